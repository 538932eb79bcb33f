//! One step's work: the forward pass of a plan, and the choice of a token from each row that wants one, on the device or
//! on the host.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::choice::Allowed;
use super::device::panic_message;
use super::held::Workers;
use super::runner::ModelRunner;
use super::scheduler::{Outcome, Plan, PlannedSpan, Source};
use super::{Event, GenerateError, TokenLogprob};
use crate::backend::{Backend, DeviceError, Draw, KvCache, NO_TOKEN};
use crate::sample::{Chosen, NoTokenLeft, SamplingParams, choose, must, score, uniform};
use crate::step::Step;
use crate::tensor::{Shape, Tensor};

/// A step whose work the device has been given.
pub(super) struct Begun<B: Backend> {
    pub(super) plan: Plan,
    pub(super) began: Instant,
    /// `[tokens, hidden_size]`, span after span.
    hidden: Tensor<B>,
    /// U32 `[rows]`: what the device chose from the wanted rows, if every one of them was its to choose.
    pub(super) chosen: Option<Tensor<B>>,
}

impl<B: Backend> Begun<B> {
    /// Whether anything is wanted of it, so that who chooses waits for the device.
    pub(super) fn is_read(&self) -> bool {
        self.plan.spans.iter().any(|span| !span.wanted.is_empty())
    }
}

impl<B: Backend> ModelRunner<B> {
    /// Gives the device the work of a plan. `tokens` are those of its spans if they are on the device already.
    pub(super) fn begin(
        &mut self,
        plan: Plan,
        tokens: Option<Tensor<B>>,
    ) -> Result<Begun<B>, Failed> {
        let began = Instant::now();
        // Our bug in one step must not take the process down: its batch fails, everyone else goes on.
        let work = catch_unwind(AssertUnwindSafe(|| {
            let hidden = self.forward(&plan, tokens)?;
            let chosen = self.choose_on_device(&plan, &hidden)?;
            let last = chosen.as_ref().unwrap_or(&hidden);
            self.backend.start(&[last.array()])?;
            Ok((hidden, chosen))
        }));
        match flatten(work) {
            Ok((hidden, chosen)) => Ok(Begun { plan, began, hidden, chosen }),
            Err(message) => Err(Failed { plan, message }),
        }
    }

    /// Begins to find out what grammars allow in the rows of a plan.
    pub(super) fn start_masks(&mut self, plan: &Plan) {
        for span in plan.spans.iter().filter(|span| span.chooses()) {
            let Some(choice) = self.choices.get_mut(&span.sequence) else { continue };
            let Some(held) = &mut choice.held else { continue };
            let workers = self.mask_workers.get_or_insert_with(Workers::start);
            let drafts = &span.tokens[span.choose_from + 1 - span.range.start..];
            held.start(workers, drafts.to_vec());
        }
    }

    /// The hidden states of all tokens of the plan, span after span, `[tokens, hidden_size]`.
    fn forward(
        &mut self,
        plan: &Plan,
        tokens: Option<Tensor<B>>,
    ) -> Result<Tensor<B>, DeviceError> {
        for span in &plan.spans {
            if let Some(cache) = self.caches.get_mut(&span.sequence) {
                // Rejected drafts disappear here.
                cache.truncate(span.range.start);
            }
        }
        for span in &plan.spans {
            let Some(fork) = span.fork else { continue };
            let mut cache = match fork.from {
                Source::Sequence(id) => self.caches[&id].fork(),
                Source::Kept(id) => self.kept[&id].fork(),
            };
            cache.truncate(fork.len);
            self.caches.insert(span.sequence, cache);
        }
        self.drop_evicted();
        let mut caches = Vec::with_capacity(plan.spans.len());
        for span in &plan.spans {
            let cache = match self.caches.remove(&span.sequence) {
                Some(cache) => cache,
                None => self.backend.new_kv(&self.layers)?,
            };
            assert_eq!(cache.len(), span.range.start, "a span starts where its cache ends");
            caches.push(cache);
        }
        let spans = caches.iter_mut().zip(&plan.spans);
        let mut step = match tokens {
            None => {
                let batch = spans.map(|(kv, span)| (kv, &span.tokens[..]));
                Step::new(&self.backend, batch.collect())?
            }
            Some(tokens) => {
                let batch = spans.map(|(kv, span)| (kv, span.range.len()));
                Step::with_tokens(&self.backend, tokens, batch.collect())?
            }
        };
        let hidden = self.model.hidden(&mut step);
        drop(step);
        for (cache, span) in caches.into_iter().zip(&plan.spans) {
            self.caches.insert(span.sequence, cache);
        }
        Ok(hidden)
    }

    /// The tokens that the device chooses for all wanted rows, if it can do so for every one of them.
    fn choose_on_device(
        &self,
        plan: &Plan,
        hidden: &Tensor<B>,
    ) -> Result<Option<Tensor<B>>, DeviceError> {
        let wanted = wanted_rows(&plan.spans);
        if wanted.is_empty() || wanted.len() > LOGITS_ROWS {
            return Ok(None);
        }
        let Some(draws) = wanted.iter().map(|row| self.draw(plan, row)).collect::<Option<Vec<_>>>()
        else {
            return Ok(None);
        };
        let logits = self.logits(hidden, &wanted);
        Ok(Some(self.device_choice(&logits, &draws)))
    }

    fn device_choice(&self, logits: &Tensor<B>, draws: &[Draw]) -> Tensor<B> {
        let tokens = self.backend.choose(logits, self.vocab_size, draws);
        Tensor::new(&self.backend, tokens, Shape::new(&[draws.len()]))
    }

    fn logits(&self, hidden: &Tensor<B>, wanted: &[WantedRow]) -> Tensor<B> {
        let rows: Vec<u32> = wanted.iter().map(|wanted| wanted.row).collect();
        self.model.logits(&hidden.take_rows(&rows))
    }

    /// How the device would choose from a row; `None` if more decides about it than the device knows of.
    fn draw(&self, plan: &Plan, row: &WantedRow) -> Option<Draw> {
        if !B::CHOOSES {
            return None;
        }
        let span = &plan.spans[row.span];
        // A sequence that has ended is computed ahead for nothing, so anything will do.
        let Some(choice) = self.choices.get(&span.sequence) else { return Some(Draw::GREEDY) };
        if row.position < span.choose_from || choice.prompt_scores.is_some() {
            return None;
        }
        choice.is_free().then(|| draw(&choice.params, row.position + 1))
    }

    /// Reads what a step has come to, chooses what the device could not, and sends what becomes visible by it.
    pub(super) fn choose_all(
        &mut self,
        begun: &Begun<B>,
    ) -> Result<Vec<Result<Outcome, GenerateError>>, DeviceError> {
        let Begun { plan, hidden, chosen, .. } = begun;
        let mut turns: Vec<Turn> = plan.spans.iter().map(|_| Turn::default()).collect();
        let wanted = wanted_rows(&plan.spans);
        if let Some(chosen) = chosen {
            self.take_chosen(plan, &wanted, chosen, &mut turns)?;
            return Ok(turns.into_iter().map(|turn| turn.outcome).collect());
        }
        for slice in wanted.chunks(LOGITS_ROWS) {
            let logits = self.logits(hidden, slice);
            let plain: Vec<Option<Draw>> = slice.iter().map(|row| self.draw(plan, row)).collect();
            let (rest, others) = self.choose_plain(plan, slice, &logits, &plain, &mut turns)?;
            let others = self.backend.download(others.array())?.to_f32();
            for (wanted, logits) in rest.iter().zip(others.chunks_exact(self.model.vocab_size())) {
                let span = &plan.spans[wanted.span];
                let logits = &logits[..self.vocab_size];
                if wanted.position < span.choose_from {
                    self.score(span, wanted.position, logits);
                } else if !turns[wanted.span].over {
                    self.choose(span, wanted.position, logits, &mut turns[wanted.span]);
                }
            }
        }
        Ok(turns.into_iter().map(|turn| turn.outcome).collect())
    }

    /// Lets the device choose from the plain rows of a slice; the other rows and their logits are left.
    fn choose_plain<'w>(
        &mut self,
        plan: &Plan,
        slice: &'w [WantedRow],
        logits: &Tensor<B>,
        plain: &[Option<Draw>],
        turns: &mut [Turn],
    ) -> Result<(Vec<&'w WantedRow>, Tensor<B>), DeviceError> {
        let numbers = |is_plain: bool| {
            let places =
                plain.iter().enumerate().filter(move |(_, draw)| draw.is_some() == is_plain);
            places.map(|(place, _)| place as u32).collect::<Vec<_>>()
        };
        let (places, rest) = (numbers(true), numbers(false));
        let draws: Vec<Draw> = plain.iter().flatten().copied().collect();
        if draws.is_empty() {
            return Ok((slice.iter().collect(), logits.clone()));
        }
        let chosen = self.device_choice(&logits.take_rows(&places), &draws);
        let wanted: Vec<WantedRow> = places.iter().map(|&place| slice[place as usize]).collect();
        self.take_chosen(plan, &wanted, &chosen, turns)?;
        let left = rest.iter().map(|&place| &slice[place as usize]).collect();
        Ok((left, logits.take_rows(&rest)))
    }

    /// Takes the tokens that the device chose.
    fn take_chosen(
        &mut self,
        plan: &Plan,
        wanted: &[WantedRow],
        chosen: &Tensor<B>,
        turns: &mut [Turn],
    ) -> Result<(), DeviceError> {
        let tokens = self.backend.download(chosen.array())?.to_u32();
        for (wanted, token) in wanted.iter().zip(tokens) {
            let turn = &mut turns[wanted.span];
            let span = &plan.spans[wanted.span];
            // It may have ended in the step before, while this one was computed ahead.
            if turn.over || !self.choices.contains_key(&span.sequence) {
                continue;
            }
            let chosen = match token {
                NO_TOKEN => Err(NoTokenLeft.into()),
                token => Ok(Chosen { token, logprob: None }),
            };
            self.take(span, wanted.position, chosen, turn);
        }
        Ok(())
    }

    /// Scores the prompt's token after `position`.
    fn score(&mut self, span: &PlannedSpan, position: usize, logits: &[f32]) {
        let Some(choice) = self.choices.get_mut(&span.sequence) else { return };
        let Some(scores) = &mut choice.prompt_scores else { return };
        let token = self.scheduler.sequence(span.sequence).expect("planned").tokens[position + 1];
        let top = choice.params.logprobs.unwrap_or(0);
        scores.push(TokenLogprob::new(&self.text, token, score(logits, token, top)));
    }

    /// Chooses the token after `position`.
    fn choose(&mut self, span: &PlannedSpan, position: usize, logits: &[f32], turn: &mut Turn) {
        let Some(choice) = self.choices.get_mut(&span.sequence) else { return };
        let chosen = choice.allowed().and_then(|allowed| {
            let (params, history) = (&choice.params, &choice.history);
            let mask = match &allowed {
                Allowed::All => None,
                Allowed::These(mask) => Some(mask),
                Allowed::Only(token) => return Ok(must(logits, *token, params)),
            };
            Ok(choose(logits, params, history, position + 1, mask)?)
        });
        self.take(span, position, chosen, turn);
    }

    /// Adds the token after `position` to its answer.
    fn take(
        &mut self,
        span: &PlannedSpan,
        position: usize,
        chosen: Result<Chosen, GenerateError>,
        turn: &mut Turn,
    ) {
        let choice = self.choices.get_mut(&span.sequence).expect("the caller looked");
        let request = self.requests.get_mut(&choice.request).expect("a choice has its request");
        if let Some(logprobs) = choice.prompt_scores.take() {
            // A receiver that is gone has sent its cancellation already, here and below.
            let _ = request.events.send(Event::Prompt { choice: 0, logprobs });
        }
        let next = position + 1;
        let chosen = match chosen {
            Ok(chosen) => chosen,
            Err(error) => {
                *turn = Turn { outcome: Err(error), over: true };
                return;
            }
        };
        choice.history.push(chosen.token);
        request.log.first_token();
        request.usage.completion_tokens += 1;
        let logprob =
            chosen.logprob.map(|found| TokenLogprob::new(&self.text, chosen.token, found));
        let added = choice.answer.push(chosen.token, logprob);
        request.usage.reasoning_tokens += usize::from(added.reasoning);
        for event in added.events {
            let _ = request.events.send(event);
        }
        let ended = match choice.accept(chosen.token, added.reasoning, added.ended) {
            Ok(ended) => ended,
            Err(error) => {
                *turn = Turn { outcome: Err(error.into()), over: true };
                return;
            }
        };
        // The next row counts only if it was computed with this token as its draft.
        let drafted = span.tokens.get(next - span.range.start);
        turn.over = ended.is_some() || drafted != Some(&chosen.token);
        if let Ok(outcome) = &mut turn.outcome {
            outcome.tokens.push(chosen.token);
            outcome.ended = ended;
        }
    }

    /// Two steps of so many tokens that nobody asked for, so that the first request finds the device's kernels compiled
    /// and the weights in place. They are one sequence's, and the second sees what the first has kept, as the later chunks
    /// of a prompt do.
    pub(super) fn warm_up(&mut self, rows: usize) {
        let work = catch_unwind(AssertUnwindSafe(|| {
            let mut cache = self.backend.new_kv(&self.layers)?;
            let tokens = vec![0; rows];
            let wanted: Vec<u32> = (0..rows.min(LOGITS_ROWS) as u32).collect();
            for _ in 0..2 {
                let mut step = Step::new(&self.backend, vec![(&mut cache, &tokens[..])])?;
                let logits = self.model.logits(&self.model.hidden(&mut step).take_rows(&wanted));
                let draw = Draw { temperature: 1.0, top_k: 2, top_p: 0.9, ..Draw::GREEDY };
                let draw = |row: &u32| if *row == 0 { draw } else { Draw::GREEDY };
                let draws: Vec<Draw> = wanted.iter().map(draw).collect();
                let last = if B::CHOOSES {
                    self.backend.choose(&logits, self.vocab_size, &draws)
                } else {
                    logits.array().clone()
                };
                self.backend.download(&last)?;
            }
            Ok(())
        }));
        if let Err(message) = flatten(work) {
            // The first request will meet it again, and be told.
            tracing::warn!("warming up with {rows} tokens failed: {message}");
            self.warm_ups.clear();
        }
    }
}

/// How the device chooses the token at `position` of a sequence whose parameters are plain.
pub(super) fn draw(params: &SamplingParams, position: usize) -> Draw {
    let &SamplingParams { temperature, top_k, top_p, min_p, seed, .. } = params;
    let top_k = u32::try_from(top_k).unwrap_or(0);
    let uniform = uniform(seed, position) as f32;
    Draw { temperature, top_k, top_p, min_p, uniform: uniform.min(1.0 - f32::EPSILON) }
}

/// A plan that could not be carried out, and why.
pub(super) struct Failed {
    pub(super) plan: Plan,
    pub(super) message: String,
}

/// A device's error and a bug's panic are told alike.
pub(super) fn flatten<T>(work: std::thread::Result<Result<T, DeviceError>>) -> Result<T, String> {
    match work {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => Err(panic_message(&*panic)),
    }
}

/// What one span's rows have come to so far.
struct Turn {
    outcome: Result<Outcome, GenerateError>,
    /// The rows that follow were computed for nothing.
    over: bool,
}

impl Default for Turn {
    fn default() -> Self {
        Self { outcome: Ok(Outcome::default()), over: false }
    }
}

/// A row of the ragged batch whose logits are wanted.
#[derive(Clone, Copy)]
struct WantedRow {
    row: u32,
    /// The number of its span in the plan.
    span: usize,
    /// Its place in its sequence.
    position: usize,
}

fn wanted_rows(spans: &[PlannedSpan]) -> Vec<WantedRow> {
    let mut rows = Vec::new();
    let mut first = 0;
    for (index, span) in spans.iter().enumerate() {
        rows.extend(span.wanted.clone().map(|position| WantedRow {
            row: (first + position - span.range.start) as u32,
            span: index,
            position,
        }));
        first += span.range.len();
    }
    rows
}

/// Most rows of logits in memory at once: 150,000 floats each are 40 MB. Scoring a prompt wants them by hundreds.
pub(super) const LOGITS_ROWS: usize = 64;
