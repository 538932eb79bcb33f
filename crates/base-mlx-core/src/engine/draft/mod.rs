//! Guesses at the tokens that follow, which the model then judges by their dozen in one step: what it would have chosen
//! itself is what counts, so an answer is the same with drafts and without. (Leviathan et al. 2023, arXiv:2211.17192, with
//! equality in the place of its rejection sampling.)
//!
//! A draft must win or stay out of the way: how many tokens are proposed follows from what steps were measured to take and
//! from how often guesses were right.

mod lookup;
mod model;
mod propose;
mod worth;

use self::model::Wanted;
pub(super) use model::{DraftModel, ModelDrafter};

use std::time::Duration;

use self::lookup::lookup;
use self::worth::Luck;
use super::Engine;
use super::pace::StepTime;
use crate::TokenId;

/// Who guesses at the next tokens of an answer.
#[derive(Clone, Debug, Default)]
pub enum Draft {
    #[default]
    Nobody,
    /// What followed in the prompt or the answer where they were alike.
    PromptLookup,
    /// A smaller model of the same vocabulary, on the same device.
    Model(Engine),
}

/// What all requests of a model know about its steps.
#[derive(Debug, Default)]
pub(super) struct Timing {
    verify: StepTime,
    /// Of a draft model: seconds for a token of one sequence, smoothed.
    draft: f64,
}

impl Timing {
    /// A step of answers alone, drafts included.
    pub(super) fn verified(&mut self, rows: usize, took: Duration) {
        self.verify.measured(rows, took);
    }

    /// So many tokens were drafted by a model.
    pub(super) fn drafted(&mut self, tokens: usize, took: Duration) {
        let now = took.as_secs_f64() / tokens as f64;
        self.draft = if self.draft == 0.0 { now } else { self.draft + (now - self.draft) * 0.1 };
    }

    /// Seconds of a step of answers alone; `None` before one was measured.
    pub(super) fn quiet(&self, rows: usize) -> Option<f64> {
        self.verify.of(rows)
    }

    fn of_a_step(&self, rows: usize) -> f64 {
        self.quiet(rows).unwrap_or(0.0)
    }
}

/// One answer's drafts.
#[derive(Debug)]
pub(super) struct Drafting {
    by_model: bool,
    /// Of guesses by how many tokens the places were alike; a model's guesses have the first alone.
    luck: [Luck; KINDS],
    /// What the draft of the step under way is of; `None` if it is not a guess.
    kind: Option<usize>,
    report: Report,
}

/// One answer's part of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verified {
    /// Chosen in it.
    pub(super) tokens: usize,
    pub(super) drafts: usize,
    /// Rows that the step would have had without anybody's drafts.
    pub(super) rows_without: usize,
    pub(super) took: Duration,
}

/// What drafts have come to, for the log.
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    proposed: usize,
    accepted: usize,
    steps: usize,
    /// Steps with a draft.
    verifies: usize,
    /// Seconds: of all steps, of the draft model, and of the steps that the same tokens would have taken without drafts.
    verify: f64,
    draft: f64,
    plain: f64,
}

impl Drafting {
    pub(super) fn new(by_model: bool) -> Self {
        let luck = match by_model {
            true => [MODEL_LUCK; KINDS],
            false => LOOKUP_LUCK,
        };
        Self { by_model, luck: luck.map(Luck::new), kind: Some(0), report: Report::default() }
    }

    pub(super) fn by_model(&self) -> bool {
        self.by_model
    }

    /// What followed earlier in `tokens`, as far as it is worth the time of a step that has `rows` rows without it.
    pub(super) fn look_up(
        &mut self,
        tokens: &[TokenId],
        timing: &Timing,
        rows: usize,
        fixed: Option<usize>,
    ) -> Vec<TokenId> {
        let Some((mut draft, alike)) = lookup(tokens, fixed.unwrap_or(MOST)) else {
            return Vec::new();
        };
        self.kind = Some(kind(alike));
        draft.truncate(self.worth(timing, rows, fixed));
        draft
    }

    /// The draft of this step is what must come, whoever guesses.
    pub(super) fn is_forced(&mut self) {
        self.kind = None;
    }

    /// How many tokens of a guess are worth the time.
    pub(super) fn worth(&mut self, timing: &Timing, rows: usize, fixed: Option<usize>) -> usize {
        if let Some(fixed) = fixed {
            return fixed;
        }
        let luck = &mut self.luck[*self.kind.get_or_insert(0)];
        let step = timing.of_a_step(rows);
        let draft = timing.verify.of_one_more() + if self.by_model { timing.draft } else { 0.0 };
        let tokens_per_second = if step == 0.0 { 0.0 } else { rows as f64 / step };
        let worth = luck.worth(tokens_per_second, draft, MOST);
        if worth == 0 {
            luck.passed_over();
        }
        worth
    }

    /// What a step has come to for this answer: `tokens` with `drafts`, where the step would have had `rows_without` drafts.
    pub(super) fn verified(
        &mut self,
        timing: &Timing,
        Verified { tokens, drafts, rows_without, took }: Verified,
    ) {
        let accepted = tokens.saturating_sub(1).min(drafts);
        let report = &mut self.report;
        report.steps += 1;
        report.verify += took.as_secs_f64();
        if drafts == 0 {
            report.plain += took.as_secs_f64();
            return;
        }
        report.plain += tokens as f64 * timing.of_a_step(rows_without);
        report.verifies += 1;
        report.proposed += drafts;
        report.accepted += accepted;
        if let Some(kind) = self.kind {
            self.luck[kind].tried(drafts, accepted);
        }
    }

    /// The draft model was at work on this answer.
    pub(super) fn drafted(&mut self, took: Duration) {
        self.report.draft += took.as_secs_f64();
    }

    /// Writes what it came to, if anything was proposed.
    pub(super) fn log(&self, model: &str) {
        let report = &self.report;
        if report.verifies == 0 {
            return;
        }
        let verifies = report.verifies as f64;
        let rounded = |x: f64| (x * 1000.0).round() / 1000.0;
        tracing::info!(
            model,
            proposed = report.proposed,
            accepted = report.accepted,
            acceptance = rounded(report.accepted as f64 / report.proposed as f64),
            draft_ms_mean = rounded(1000.0 * report.draft / verifies),
            verify_ms_mean = rounded(1000.0 * report.verify / report.steps as f64),
            k_mean = rounded(report.proposed as f64 / verifies),
            speedup = rounded(report.plain / (report.verify + report.draft)),
            "spec done",
        );
    }
}

fn kind(alike: usize) -> usize {
    match alike {
        0 | 1 => 0,
        2 => 1,
        3 | 4 => 2,
        5..=8 => 3,
        _ => 4,
    }
}

const KINDS: usize = 5;
/// How often one token of a guess is right, before any was tried.
const LOOKUP_LUCK: [f64; KINDS] = [0.1, 0.3, 0.5, 0.7, 0.85];
const MODEL_LUCK: f64 = 0.6;
/// Most tokens of a draft.
const MOST: usize = 16;
