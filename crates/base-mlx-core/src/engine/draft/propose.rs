use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::{MOST, Verified, Wanted};
use crate::TokenId;
use crate::backend::Backend;
use crate::engine::compute::{LOGITS_ROWS, flatten};
use crate::engine::runner::ModelRunner;
use crate::engine::scheduler::{Outcome, Plan, PlannedSpan};
use crate::engine::sequence::SequenceId;

/// What a model's steps have to do with drafts.
impl<B: Backend> ModelRunner<B> {
    /// Gives the scheduler the drafts for the next step.
    pub(in crate::engine) fn propose(&mut self) {
        let rows = self.scheduler.answering().count();
        let mut by_models: Vec<(SequenceId, usize)> = Vec::new();
        let (mut drafts, mut certain) = (Vec::new(), Vec::new());
        for sequence in self.scheduler.answering() {
            let Some(choice) = self.choices.get_mut(&sequence.id) else { continue };
            let forced = choice.forced(self.draft_tokens.unwrap_or(MOST));
            if !forced.is_empty() {
                if let Some(drafting) = &mut choice.drafting {
                    drafting.is_forced();
                }
                certain.push((sequence.id, forced));
                continue;
            }
            let Some(drafting) = &mut choice.drafting else { continue };
            let fixed = self.draft_tokens;
            if drafting.by_model() {
                // The token after the last draft is chosen too.
                let may_come = sequence.max_tokens - sequence.answer().len();
                let most = drafting.worth(&self.timing, rows, fixed).min(may_come - 1);
                if most > 0 {
                    by_models.push((sequence.id, most));
                }
            } else {
                let draft = drafting.look_up(&sequence.tokens, &self.timing, rows, fixed);
                drafts.push((sequence.id, draft));
            }
        }
        for index in 0..self.drafters.len() {
            drafts.extend(self.propose_by(index, &by_models));
        }
        for (id, draft) in &mut drafts {
            // What a grammar does not allow is not worth a row.
            let held = self.choices.get_mut(id).and_then(|choice| choice.held.as_mut());
            if let Some(held) = held.filter(|_| !draft.is_empty()) {
                draft.truncate(held.follows(draft));
            }
        }
        for (id, draft) in certain.into_iter().chain(drafts) {
            self.scheduler.draft(id, draft);
        }
    }

    /// What one draft model makes of its sequences among `all`, each with how many tokens are wanted.
    fn propose_by(
        &mut self,
        index: usize,
        all: &[(SequenceId, usize)],
    ) -> Vec<(SequenceId, Vec<TokenId>)> {
        let began = Instant::now();
        let step_tokens = self.beside_answers().max(1);
        let drafter = &mut self.drafters[index];
        let wanted: Vec<Wanted> = all
            .iter()
            .filter_map(|&(id, most)| {
                let choice = &self.choices[&id];
                choice.draft_model.as_ref().filter(|model| drafter.is_of(model))?;
                let tokens = &self.scheduler.sequence(id)?.tokens[..];
                Some(Wanted { id, tokens, params: &choice.params, history: &choice.history, most })
            })
            .collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        let work = catch_unwind(AssertUnwindSafe(|| drafter.draft(&wanted, step_tokens)));
        let ids: Vec<SequenceId> = wanted.iter().map(|wanted| wanted.id).collect();
        let drafts = match flatten(work) {
            Ok(drafts) => drafts.into_iter().map(|draft| self.known(draft)).collect::<Vec<_>>(),
            Err(message) => {
                // Without drafts the answers are the same.
                tracing::warn!("drafting failed, the answers go on without: {message}");
                for id in ids {
                    if let Some(choice) = self.choices.get_mut(&id) {
                        choice.drafting = None;
                    }
                }
                // What it was computing is lost, and others may still count on its number.
                self.drafters[index].clear();
                return Vec::new();
            }
        };
        let took = began.elapsed();
        let tokens: usize = drafts.iter().map(Vec::len).sum();
        if tokens > 0 {
            self.timing.drafted(tokens, took);
        }
        for id in &ids {
            let choice = self.choices.get_mut(id);
            if let Some(drafting) = choice.and_then(|choice| choice.drafting.as_mut()) {
                drafting.drafted(took / ids.len() as u32);
            }
        }
        ids.into_iter().zip(drafts).collect()
    }

    /// A draft as far as this model has rows for its tokens.
    fn known(&self, mut draft: Vec<TokenId>) -> Vec<TokenId> {
        let known = draft.iter().take_while(|token| (**token as usize) < self.vocab_size).count();
        draft.truncate(known);
        draft
    }

    /// Takes note of what a step's drafts have come to.
    pub(in crate::engine) fn judge_drafts(
        &mut self,
        plan: &Plan,
        outcomes: &[Outcome],
        took: Duration,
    ) {
        let answers = || plan.spans.iter().filter(|span| span.is_answer());
        let rows: usize = answers().map(|span| span.range.len()).sum();
        if answers().count() == plan.spans.len() && rows <= LOGITS_ROWS {
            self.timing.verified(rows, took);
        }
        let rows_without = answers().count();
        for (span, outcome) in plan.spans.iter().zip(outcomes) {
            let Some(choice) = self.choices.get_mut(&span.sequence) else { continue };
            let Some(drafting) = &mut choice.drafting else { continue };
            if span.is_answer() {
                let (tokens, drafts) = (outcome.tokens.len(), span.range.len() - 1);
                let verified = Verified { tokens, drafts, rows_without, took };
                drafting.verified(&self.timing, verified);
            }
        }
    }

    /// Whether the next step may want drafts.
    pub(in crate::engine) fn drafts(&self, plan: &Plan) -> bool {
        let of = |span: &PlannedSpan| self.choices.get(&span.sequence);
        plan.spans.iter().filter_map(of).any(|choice| choice.drafting.is_some())
    }
}
