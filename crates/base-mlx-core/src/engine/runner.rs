//! One model at work: its scheduler, its sequences' caches, and what turns chosen tokens into events.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::answer::Answer;
use super::device::{RequestId, Runner, panic_message};
use super::log::{Memory, RequestLog};
use super::pace::Pace;
use super::scheduler::{Limits, Outcome, Plan, PlannedSpan, Scheduler};
use super::sequence::{Sequence, SequenceId};
use super::{Event, FinishReason, GenerateError, GenerateRequest, TokenLogprob, TopLogprob, Usage};
use crate::TokenId;
use crate::backend::{Backend, DeviceError, KvCache, LayerSpec};
use crate::models::LanguageModel;
use crate::sample::{History, Logprob, NoTokenLeft, SamplingParams, choice_seed, choose, score};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::text::{Decoder, Text};

/// A request on its way to the device thread.
pub(super) struct Submission {
    pub(super) request: GenerateRequest,
    pub(super) events: UnboundedSender<Event>,
    pub(super) log: RequestLog,
}

pub(super) struct ModelRunner<B: Backend> {
    backend: B,
    model: Box<dyn LanguageModel<B>>,
    text: Arc<Text>,
    layers: Vec<LayerSpec>,
    weight_bytes: usize,
    /// Logits beyond the tokenizer's vocabulary are padding and never chosen.
    vocab_size: usize,
    scheduler: Scheduler,
    pace: Pace,
    caches: HashMap<SequenceId, B::Kv>,
    choices: HashMap<SequenceId, Choice>,
    requests: HashMap<RequestId, Request>,
    next_sequence: u64,
}

/// One answer of a request.
struct Choice {
    request: RequestId,
    params: SamplingParams,
    history: History,
    answer: Answer<Decoder>,
    /// Of the prompt's tokens, until they are sent; `None` when nobody asked or they were sent.
    prompt_scores: Option<Vec<TokenLogprob>>,
}

struct Request {
    events: UnboundedSender<Event>,
    /// Of the choices that are not finished.
    sequences: Vec<SequenceId>,
    usage: Usage,
    log: RequestLog,
}

impl<B: Backend> ModelRunner<B> {
    pub(super) fn new(
        backend: B,
        model: Box<dyn LanguageModel<B>>,
        text: Arc<Text>,
        weight_bytes: usize,
        limits: Limits,
    ) -> Self {
        Self {
            layers: model.layers(),
            vocab_size: model.vocab_size().min(text.tokenizer.vocab_size()),
            scheduler: Scheduler::new(limits),
            pace: Pace::new(),
            caches: HashMap::new(),
            choices: HashMap::new(),
            requests: HashMap::new(),
            next_sequence: 0,
            backend,
            model,
            text,
            weight_bytes,
        }
    }

    /// Runs the plan: the hidden states of all its tokens, span after span, `[tokens, hidden_size]`.
    fn forward(&mut self, plan: &Plan) -> Result<Tensor<B>, DeviceError> {
        for span in &plan.spans {
            if let Some(cache) = self.caches.get_mut(&span.sequence) {
                // Rejected drafts disappear here.
                cache.truncate(span.range.start);
            }
        }
        for span in &plan.spans {
            let Some(fork) = span.fork else { continue };
            let mut cache = self.caches[&fork.from].fork();
            cache.truncate(fork.len);
            self.caches.insert(span.sequence, cache);
        }
        let mut caches = Vec::with_capacity(plan.spans.len());
        for span in &plan.spans {
            let cache = match self.caches.remove(&span.sequence) {
                Some(cache) => cache,
                None => self.backend.new_kv(&self.layers)?,
            };
            assert_eq!(cache.len(), span.range.start, "a span starts where its cache ends");
            caches.push(cache);
        }
        let batch = caches.iter_mut().zip(&plan.spans).map(|(kv, span)| (kv, &span.tokens[..]));
        let mut step = Step::new(&self.backend, batch.collect())?;
        let hidden = self.model.hidden(&mut step);
        drop(step);
        for (cache, span) in caches.into_iter().zip(&plan.spans) {
            self.caches.insert(span.sequence, cache);
        }
        Ok(hidden)
    }

    /// Chooses the tokens of all spans from their wanted rows, and sends what becomes visible by them.
    fn choose_all(
        &mut self,
        plan: &Plan,
        hidden: &Tensor<B>,
    ) -> Result<Vec<Result<Outcome, NoTokenLeft>>, DeviceError> {
        let mut turns: Vec<Turn> = plan.spans.iter().map(|_| Turn::default()).collect();
        let wanted = wanted_rows(&plan.spans);
        for slice in wanted.chunks(LOGITS_ROWS) {
            let rows: Vec<u32> = slice.iter().map(|wanted| wanted.row).collect();
            let logits = self.model.logits(&hidden.take_rows(&rows));
            let logits = self.backend.download(logits.array())?.to_f32();
            for (wanted, logits) in slice.iter().zip(logits.chunks_exact(self.model.vocab_size())) {
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

    /// Scores the prompt's token after `position`.
    fn score(&mut self, span: &PlannedSpan, position: usize, logits: &[f32]) {
        let choice = self.choices.get_mut(&span.sequence).expect("a planned sequence has a choice");
        let Some(scores) = &mut choice.prompt_scores else { return };
        let token = self.scheduler.sequence(span.sequence).expect("planned").tokens[position + 1];
        let top = choice.params.logprobs.unwrap_or(0);
        scores.push(token_logprob(&self.text, token, score(logits, token, top)));
    }

    /// Chooses the token after `position`.
    fn choose(&mut self, span: &PlannedSpan, position: usize, logits: &[f32], turn: &mut Turn) {
        let choice = self.choices.get_mut(&span.sequence).expect("a planned sequence has a choice");
        let request = self.requests.get_mut(&choice.request).expect("a choice has its request");
        if let Some(logprobs) = choice.prompt_scores.take() {
            // A receiver that is gone has sent its cancellation already, here and below.
            let _ = request.events.send(Event::Prompt { choice: 0, logprobs });
        }
        let next = position + 1;
        let chosen = match choose(logits, &choice.params, &choice.history, next, None) {
            Ok(chosen) => chosen,
            Err(error) => {
                *turn = Turn { outcome: Err(error), over: true };
                return;
            }
        };
        choice.history.push(chosen.token);
        request.log.first_token();
        request.usage.completion_tokens += 1;
        let logprob = chosen.logprob.map(|found| token_logprob(&self.text, chosen.token, found));
        let added = choice.answer.push(chosen.token, logprob);
        if let Some(event) = added.event {
            let _ = request.events.send(event);
        }
        // The next row counts only if it was computed with this token as its draft.
        let drafted = span.tokens.get(next - span.range.start);
        turn.over = added.ended.is_some() || drafted != Some(&chosen.token);
        if let Ok(outcome) = &mut turn.outcome {
            outcome.tokens.push(chosen.token);
            outcome.ended = added.ended;
        }
    }

    fn commit(&mut self, plan: &Plan, outcomes: Vec<Result<Outcome, NoTokenLeft>>) {
        let mut kept = Vec::with_capacity(outcomes.len());
        for (span, outcome) in plan.spans.iter().zip(outcomes) {
            // A request that ends here takes its sequences along, so the scheduler skips their outcomes.
            if let (Err(error), Some(choice)) = (&outcome, self.choices.get(&span.sequence)) {
                let last = Event::Error(GenerateError::NoTokenLeft(*error));
                self.end(choice.request, "failed", |_| Some(last));
            }
            kept.push(outcome.unwrap_or_default());
        }
        for finished in self.scheduler.commit(plan, &kept) {
            self.finish(finished.id, finished.reason);
        }
    }

    /// Ends one choice, and its request with the last one.
    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        self.caches.remove(&id);
        let mut choice = self.choices.remove(&id).expect("a finished sequence had a choice");
        let request = self.requests.get_mut(&choice.request).expect("a choice has its request");
        if let Some(logprobs) = choice.prompt_scores.take() {
            let _ = request.events.send(Event::Prompt { choice: 0, logprobs });
        }
        for event in choice.answer.finish(reason) {
            let _ = request.events.send(event);
        }
        request.sequences.retain(|sequence| *sequence != id);
        if request.sequences.is_empty() {
            self.end(choice.request, "done", |request| Some(Event::Usage(request.usage)));
        }
    }

    /// The sequences of the plan get an error; their requests end with it, siblings included.
    fn fail(&mut self, plan: &Plan, message: &str) {
        tracing::error!("a step failed: {message}");
        let mut requests: Vec<RequestId> =
            plan.spans.iter().map(|span| self.choices[&span.sequence].request).collect();
        requests.sort_unstable();
        requests.dedup();
        for request in requests {
            let error = GenerateError::Failed(message.to_owned());
            self.end(request, "failed", |_| Some(Event::Error(error)));
        }
    }

    /// Forgets a request and what is left of its sequences, writes its log line and sends its last event.
    fn end(&mut self, id: RequestId, outcome: &str, last: impl FnOnce(&Request) -> Option<Event>) {
        let Some(request) = self.requests.remove(&id) else { return };
        for sequence in &request.sequences {
            self.scheduler.cancel(*sequence);
            self.choices.remove(sequence);
            self.caches.remove(sequence);
        }
        if let Some(event) = last(&request) {
            let _ = request.events.send(event);
        }
        request.log.write(outcome, request.usage, self.memory());
    }

    fn memory(&self) -> Memory {
        let caches: usize = self.caches.values().map(KvCache::bytes).sum();
        Memory {
            active_bytes: self.weight_bytes + caches,
            cache_bytes: self.backend.cached_bytes(),
        }
    }
}

impl<B: Backend> Runner for ModelRunner<B> {
    fn submit(&mut self, id: RequestId, submission: Submission) {
        let Submission { request, events, mut log } = submission;
        log.submitted(self.memory());
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        let mut entry = Request { events, sequences: Vec::new(), usage, log };
        let history = History::new(&request.prompt);
        for index in 0..request.choices.max(1) {
            let sequence = SequenceId(self.next_sequence);
            self.next_sequence += 1;
            let max_tokens = request.max_tokens.unwrap_or(usize::MAX);
            let mut submitted = Sequence::new(sequence, id.0, request.prompt.clone(), max_tokens);
            submitted.score_prompt = request.score_prompt && index == 0;
            let prompt_scores = submitted.score_prompt.then(|| {
                let logprob = Logprob { logprob: f32::NAN, top: Vec::new() };
                vec![token_logprob(&self.text, request.prompt[0], logprob)]
            });
            self.scheduler.submit(submitted).expect("the door refused what can never run");
            let end_tokens = match request.ignore_end {
                true => Vec::new(),
                false => self.text.end_tokens.clone(),
            };
            let seed = choice_seed(request.sampling.seed, index);
            let decoder = self.text.tokenizer.decoder();
            let choice = Choice {
                request: id,
                params: SamplingParams { seed, ..request.sampling.clone() },
                history: history.clone(),
                answer: Answer::new(index, decoder, request.stop.clone(), end_tokens),
                prompt_scores,
            };
            self.choices.insert(sequence, choice);
            entry.sequences.push(sequence);
        }
        self.requests.insert(id, entry);
    }

    fn cancel(&mut self, request: RequestId) {
        self.end(request, "cancelled", |_| None);
    }

    fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    fn step(&mut self) {
        let began = Instant::now();
        self.scheduler.set_beside_answers(self.pace.beside_answers());
        let plan = self.scheduler.plan();
        for id in &plan.dropped {
            self.caches.remove(id);
        }
        for span in &plan.spans {
            let request = self.choices[&span.sequence].request;
            if let Some(request) = self.requests.get_mut(&request) {
                request.log.started();
            }
        }
        // Our bug in one step must not take the process down: its batch fails, everyone else goes on.
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let hidden = self.forward(&plan).map_err(|error| error.to_string())?;
            self.choose_all(&plan, &hidden).map_err(|error| error.to_string())
        }));
        match outcome.unwrap_or_else(|panic| Err(panic_message(&*panic))) {
            Ok(outcomes) => {
                let tokens = plan.spans.iter().map(|span| span.range.len()).sum();
                self.pace.measured(tokens, began.elapsed());
                self.commit(&plan, outcomes);
            }
            Err(message) => self.fail(&plan, &message),
        }
    }

    fn stop(&mut self) {
        let requests: Vec<RequestId> = self.requests.keys().copied().collect();
        for request in requests {
            self.end(request, "cancelled", |_| Some(Event::Error(GenerateError::ShuttingDown)));
        }
    }
}

/// What one span's rows have come to so far.
struct Turn {
    outcome: Result<Outcome, NoTokenLeft>,
    /// The rows that follow were computed for nothing.
    over: bool,
}

impl Default for Turn {
    fn default() -> Self {
        Self { outcome: Ok(Outcome::default()), over: false }
    }
}

/// A row of the ragged batch whose logits are wanted.
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

fn token_logprob(text: &Text, token: TokenId, found: Logprob) -> TokenLogprob {
    let top = found.top.into_iter().map(|(token, logprob)| TopLogprob {
        token,
        bytes: bytes_of(text, token),
        logprob,
    });
    TokenLogprob { token, bytes: bytes_of(text, token), logprob: found.logprob, top: top.collect() }
}

fn bytes_of(text: &Text, token: TokenId) -> Vec<u8> {
    text.tokenizer.token_bytes(token).to_vec()
}

/// Most rows of logits in memory at once: 150,000 floats each are 40 MB. Scoring a prompt wants them by hundreds.
const LOGITS_ROWS: usize = 64;
