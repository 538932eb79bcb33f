//! One model at work: its scheduler, its sequences' caches, and what turns chosen tokens into events.

use std::any::Any;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;

use super::answer::Answer;
use super::choice::{Budget, Choice};
use super::compute::{Begun, flatten};
use super::device::{RequestId, Runner, Waker};
use super::draft::{DraftModel, Drafting, ModelDrafter, Timing};
use super::held::{Held, Workers};
use super::log::{Memory, RequestLog};
use super::memory::Room;
use super::metrics::Metrics;
use super::pace::Pace;
use super::prefix::{Evicted, Keep, KeptId};
use super::scheduler::{Limits, Outcome, Plan, Scheduler};
use super::sequence::{Sequence, SequenceId};
use super::stored::Stored;
use super::{
    Draft, EngineOptions, Event, FinishReason, GenerateError, GenerateRequest, TokenLogprob, Usage,
};
use crate::backend::{Backend, KvCache, LayerSpec};
use crate::grammar::Constraint;
use crate::models::LanguageModel;
use crate::sample::{History, Logprob, SamplingParams, choice_seed};
use crate::text::Text;

/// A request on its way to the device thread.
pub(super) struct Submission {
    pub(super) request: GenerateRequest,
    /// One for each choice, if they are held to one.
    pub(super) constraints: Vec<Constraint>,
    /// A [`DraftModel`] of the same backend.
    pub(super) draft_model: Option<Arc<dyn Any + Send + Sync>>,
    pub(super) events: UnboundedSender<Event>,
    pub(super) log: RequestLog,
}

/// What a runner is made of.
pub(super) struct NewRunner<'a, B: Backend> {
    pub(super) model: &'a DraftModel<B>,
    pub(super) name: String,
    pub(super) text: Arc<Text>,
    pub(super) weight_bytes: usize,
    pub(super) limits: Limits,
    pub(super) options: EngineOptions,
    pub(super) stored: Option<Stored<B>>,
}

pub(super) struct ModelRunner<B: Backend> {
    pub(super) backend: B,
    pub(super) model: Arc<dyn LanguageModel<B>>,
    pub(super) name: String,
    pub(super) metrics: Metrics,
    pub(super) text: Arc<Text>,
    pub(super) layers: Vec<LayerSpec>,
    pub(super) weight_bytes: usize,
    pub(super) kv_bytes_per_token: usize,
    /// Logits beyond the tokenizer's vocabulary are padding and never chosen.
    pub(super) vocab_size: usize,
    pub(super) scheduler: Scheduler,
    room: Arc<Room>,
    pub(super) pace: Pace,
    pub(super) caches: HashMap<SequenceId, B::Kv>,
    /// Of sequences that are gone, for those that begin like them.
    pub(super) kept: HashMap<KeptId, B::Kv>,
    pub(super) choices: HashMap<SequenceId, Choice<B>>,
    pub(super) requests: HashMap<RequestId, Request>,
    pub(super) next_sequence: u64,
    pub(super) drafters: Vec<ModelDrafter<B>>,
    pub(super) timing: Timing,
    /// How many tokens drafts have, if that is not to be measured.
    pub(super) draft_tokens: Option<usize>,
    /// Most sequences that wait.
    queue: usize,
    /// How long a request may wait.
    max_wait: Option<Duration>,
    /// There are none before somebody needs them.
    pub(super) mask_workers: Option<Workers>,
    /// The step that was begun before the one before it was read.
    pub(super) ahead: Option<Begun<B>>,
    /// Steps of which nothing was wanted, so that nobody has waited for them.
    pub(super) unread: Option<Unread>,
    /// Of sequences that are gone while a step may be under way that still writes to them.
    pub(super) retired: Vec<B::Kv>,
    /// Numbers of tokens that are still to be tried before the first request.
    pub(super) warm_ups: Vec<usize>,
    /// What lies on disk, if anything is to.
    pub(super) stored: Option<Stored<B>>,
    /// There is nothing to compute until something arrives, though sequences run.
    stalled: bool,
    /// Nobody knows what caches hold, so none of those that are given up is kept.
    distrusts: bool,
}

/// All steps since the last one that was read.
#[derive(Clone, Copy)]
pub(super) struct Unread {
    began: Instant,
    tokens: usize,
    prompt_tokens: usize,
}

pub(super) struct Request {
    pub(super) events: UnboundedSender<Event>,
    /// Of the choices that are not finished.
    pub(super) sequences: Vec<SequenceId>,
    pub(super) usage: Usage,
    pub(super) log: RequestLog,
}

impl<B: Backend> ModelRunner<B> {
    pub(super) fn new(new: NewRunner<B>) -> Self {
        let NewRunner { model, name, text, weight_bytes, limits, options, stored } = new;
        let DraftModel { backend, model, layers, vocab_size, room } = model;
        Self {
            metrics: Metrics::new(&name),
            name,
            room: room.clone(),
            kv_bytes_per_token: layers.iter().map(|&layer| backend.kv_bytes(layer)).sum(),
            layers: layers.clone(),
            vocab_size: *vocab_size,
            scheduler: Scheduler::new(limits),
            pace: Pace::new(),
            caches: HashMap::new(),
            kept: HashMap::new(),
            choices: HashMap::new(),
            requests: HashMap::new(),
            next_sequence: 0,
            drafters: Vec::new(),
            timing: Timing::default(),
            draft_tokens: options.draft_tokens,
            queue: options.queue,
            max_wait: options.max_wait,
            mask_workers: None,
            ahead: None,
            unread: None,
            retired: Vec::new(),
            warm_ups: possible(backend.warm_ups(), &limits),
            backend: backend.clone(),
            model: model.clone(),
            text,
            weight_bytes,
            stored,
            stalled: false,
            distrusts: false,
        }
    }

    fn commit(
        &mut self,
        plan: &Plan,
        outcomes: Vec<Result<Outcome, GenerateError>>,
        took: Option<Duration>,
    ) {
        let mut kept = Vec::with_capacity(outcomes.len());
        for (span, outcome) in plan.spans.iter().zip(outcomes) {
            // A request that ends here takes its sequences along, so the scheduler skips their outcomes.
            if let (Err(error), Some(choice)) = (&outcome, self.choices.get(&span.sequence)) {
                let last = Event::Error(error.clone());
                self.end(choice.request, "failed", |_| Some(last));
            }
            kept.push(outcome.unwrap_or_default());
        }
        if let Some(took) = took {
            self.judge_drafts(plan, &kept, took);
        }
        for finished in self.scheduler.commit(plan, &kept) {
            self.retire(finished.id, finished.keep);
            self.finish(finished.id, finished.reason);
        }
        self.drop_evicted();
    }

    /// Ends one choice, and its request with the last one.
    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        let mut choice = self.choices.remove(&id).expect("a finished sequence had a choice");
        choice.log(&self.name);
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
        // What the device was given of it, or of the step begun after it, may still be writing to the caches that go now.
        self.backend.finish();
        self.forget_kept();
        self.distrusts = true;
        let choices = plan.spans.iter().filter_map(|span| self.choices.get(&span.sequence));
        let mut requests: Vec<RequestId> = choices.map(|choice| choice.request).collect();
        requests.sort_unstable();
        requests.dedup();
        for request in requests {
            let error = GenerateError::Failed(message.to_owned());
            self.end(request, "failed", |_| Some(Event::Error(error)));
        }
        // If memory was short, the next step is to have what this one had.
        self.forget_kept();
        self.distrusts = false;
        self.unread = None;
        self.retired.clear();
        self.backend.clear_cache();
    }

    fn forget_kept(&mut self) {
        self.scheduler.forget_kept();
        self.kept.clear();
        if let Some(stored) = &mut self.stored {
            stored.forget_kept();
        }
    }

    /// Forgets a request and what is left of its sequences, writes its log line and sends its last event.
    fn end(
        &mut self,
        id: RequestId,
        outcome: &'static str,
        last: impl FnOnce(&Request) -> Option<Event>,
    ) {
        let Some(request) = self.requests.remove(&id) else { return };
        for sequence in &request.sequences {
            let keep = self.scheduler.cancel(*sequence).flatten();
            self.choices.remove(sequence);
            self.retire(*sequence, keep);
        }
        self.drop_evicted();
        // Whoever has heard the last event finds it in the numbers.
        self.metrics.ended(outcome, request.usage, &request.log);
        self.gauge();
        if let Some(event) = last(&request) {
            let _ = request.events.send(event);
        }
        request.log.write(outcome, request.usage, self.memory());
    }

    /// Prompt tokens that a step may have beside the answers that run.
    pub(super) fn beside_answers(&self) -> usize {
        let quiet = self.timing.quiet(self.scheduler.answering().count());
        self.pace.beside_answers(quiet.unwrap_or(0.0))
    }

    /// Ends requests that have waited for too long.
    fn send_away(&mut self) {
        let Some(most) = self.max_wait else { return };
        let waited = |request: &Request| request.log.waited().filter(|waited| *waited > most);
        let late = self.requests.iter().filter_map(|(&id, request)| Some((id, waited(request)?)));
        let late: Vec<(RequestId, Duration)> = late.collect();
        for (id, waited) in late {
            let error = GenerateError::WaitedTooLong { ms: waited.as_millis() as u64 };
            self.end(id, "sent away", |_| Some(Event::Error(error)));
        }
    }

    fn next_plan(&mut self) -> Plan {
        self.send_away();
        self.propose();
        self.scheduler.set_kv_tokens(self.room.positions());
        self.pace.oldest_prompt(self.scheduler.oldest_prompt().map(|id| id.0));
        let beside = self.beside_answers();
        self.scheduler.set_beside_answers(beside);
        let plan = self.scheduler.plan();
        self.metrics.preempted.increment(plan.dropped.len() as u64);
        for dropped in &plan.dropped {
            self.retire(dropped.id, dropped.keep);
        }
        self.fetch(&plan);
        for span in &plan.spans {
            let request = self.choices[&span.sequence].request;
            let cached = self.scheduler.sequence(span.sequence).and_then(|planned| planned.cached);
            let (Some(request), Some(cached)) = (self.requests.get_mut(&request), cached) else {
                continue;
            };
            if request.log.started() {
                self.metrics.begun(cached);
                request.usage.cached_tokens = cached.tokens;
                let _ = request.events.send(Event::Begun(cached));
            }
        }
        plan
    }

    /// Keeps what is to be kept of a sequence's cache, and gives up the rest, which goes when no step is under way any more.
    fn retire(&mut self, id: SequenceId, keep: Option<Keep>) {
        for drafter in &mut self.drafters {
            drafter.retire(id);
        }
        if let Some(stored) = &mut self.stored {
            stored.give_up(id);
        }
        let Some(cache) = self.caches.remove(&id) else { return };
        if let Some(Keep { id, len, shares }) = keep.filter(|_| !self.distrusts) {
            let mut kept = cache.fork();
            kept.truncate(len);
            if let Some((other, len)) = shares
                && let Some(other) = self.kept.get(&other)
            {
                kept.share(other, len);
            }
            self.retired.extend(self.kept.insert(id, kept));
            self.note_kept(id);
        }
        self.retired.push(cache);
    }

    pub(super) fn drop_evicted(&mut self) {
        let evicted = self.scheduler.take_evicted();
        if evicted.is_empty() {
            return;
        }
        self.metrics.evicted.increment(evicted.len() as u64);
        self.write_before_they_go(&evicted);
        for Evicted { id, .. } in evicted {
            self.retired.extend(self.kept.remove(&id));
        }
    }

    fn drop_retired(&mut self) {
        if self.unread.is_some() && (self.scheduler.is_idle() || self.stalled) {
            self.backend.finish();
            self.unread = None;
        }
        if self.ahead.is_none() && self.unread.is_none() {
            self.retired.clear();
        }
    }

    /// Computes one step, and begins the next where that needs nobody's answer.
    fn advance(&mut self) {
        let begun = match self.ahead.take() {
            Some(begun) => begun,
            None => {
                let plan = self.next_plan();
                if plan.spans.is_empty() {
                    // What makes room for what is fetched.
                    self.drop_evicted();
                    self.stalled = self.stored.as_ref().is_some_and(Stored::is_fetching);
                    return;
                }
                self.start_masks(&plan);
                match self.begin(plan, None) {
                    Ok(begun) => begun,
                    Err(failed) => return self.fail(&failed.plan, &failed.message),
                }
            }
        };
        // While the device computes this step, the next is built from tokens that nobody has read yet.
        let ahead = match &begun.chosen {
            // A draft is made of the tokens that this step chooses.
            Some(_) if self.drafts(&begun.plan) => None,
            Some(tokens) => {
                self.scheduler.ahead(&begun.plan).map(|p| self.begin(p, Some(tokens.clone())))
            }
            None => None,
        };
        // What was given up before this step was read, this step may have used; what is given up from here on, the next.
        let unused = std::mem::take(&mut self.retired);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.choose_all(&begun)));
        match flatten(outcome) {
            Ok(outcomes) => {
                let Unread { began, tokens, prompt_tokens } = self.with_unread(&begun);
                let took = begun.is_read().then(|| began.elapsed());
                if let Some(took) = took {
                    let answers = tokens - prompt_tokens;
                    let quiet = if answers > 0 { self.timing.quiet(answers) } else { Some(0.0) };
                    self.pace.measured(prompt_tokens, took, quiet.unwrap_or(0.0));
                    drop(unused);
                } else {
                    // The device goes on with it while the next is built.
                    self.unread = Some(Unread { began, tokens, prompt_tokens });
                    self.retired.extend(unused);
                }
                self.commit(&begun.plan, outcomes, took);
                match ahead {
                    Some(Ok(ahead)) => self.ahead = Some(ahead),
                    Some(Err(failed)) => self.fail(&failed.plan, &failed.message),
                    None => {}
                }
            }
            Err(message) => {
                self.retired.extend(unused);
                self.fail(&begun.plan, &message);
            }
        }
    }

    /// The step together with those that the device may have been at work on before it.
    fn with_unread(&mut self, begun: &Begun<B>) -> Unread {
        let before = self.unread.take();
        let before = before.unwrap_or(Unread { began: begun.began, tokens: 0, prompt_tokens: 0 });
        let lengths = || begun.plan.spans.iter().map(|span| span.range.len());
        let prompts = begun.plan.spans.iter().filter(|span| !span.is_answer());
        let prompt_tokens: usize = prompts.map(|span| span.range.len()).sum();
        Unread {
            began: before.began,
            tokens: before.tokens + lengths().sum::<usize>(),
            prompt_tokens: before.prompt_tokens + prompt_tokens,
        }
    }

    /// Says how things stand.
    fn gauge(&self) {
        let bytes = |positions: usize| (positions as f64) * self.kv_bytes_per_token as f64;
        let scheduler = &self.scheduler;
        let held = scheduler.held();
        self.room.holds(held);
        self.metrics.running.set(scheduler.running() as f64);
        self.metrics.waiting.set(scheduler.waiting() as f64);
        self.metrics.kv.set(bytes(held));
        self.metrics.kv_budget.set(bytes(scheduler.kv_tokens()));
        self.metrics.prefix.set(bytes(scheduler.kept().positions()));
        self.metrics.prefix_budget.set(bytes(scheduler.kept_tokens()));
    }

    fn memory(&self) -> Memory {
        let counted = || self.weight_bytes + self.scheduler.held() * self.kv_bytes_per_token;
        Memory {
            active_bytes: self.backend.active_bytes().unwrap_or_else(counted),
            cache_bytes: self.backend.cached_bytes(),
        }
    }
}

impl<B: Backend> Drop for ModelRunner<B> {
    /// A step may still be under way that nobody will read, and it reads the weights.
    fn drop(&mut self) {
        self.backend.finish();
    }
}

impl<B: Backend> Runner for ModelRunner<B> {
    fn added(&mut self, waker: Waker) {
        if let Some(stored) = &mut self.stored {
            stored.woken_by(waker);
        }
    }

    fn wake(&mut self) {
        if let Some(stored) = &mut self.stored {
            stored.something_came();
        }
    }

    fn submit(&mut self, id: RequestId, submission: Submission) {
        let Submission { request, constraints, draft_model, events, mut log } = submission;
        let mut constraints = constraints.into_iter();
        let draft_model: Option<Arc<DraftModel<B>>> = draft_model
            .map(|model| model.downcast().expect("models of one device are of one backend"));
        self.drafters.retain(ModelDrafter::is_alive);
        if let Some(model) = &draft_model
            && !self.drafters.iter().any(|drafter| drafter.is_of(model))
        {
            self.drafters.push(ModelDrafter::new(model));
        }
        log.submitted(self.memory());
        let waiting = self.scheduler.waiting();
        if waiting + request.choices > self.queue + self.scheduler.free_places() {
            let _ = events.send(Event::Error(GenerateError::QueueFull { waiting }));
            let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
            self.metrics.ended("refused", usage, &log);
            log.write("refused", usage, self.memory());
            return;
        }
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        let mut entry = Request { events, sequences: Vec::new(), usage, log };
        let history = History::new(&request.prompt);
        let stored_tokens = self.stored(&request.prompt);
        self.stalled = false;
        for index in 0..request.choices.max(1) {
            let sequence = SequenceId(self.next_sequence);
            self.next_sequence += 1;
            let max_tokens = request.max_tokens.unwrap_or(usize::MAX);
            let mut submitted = Sequence::new(sequence, id.0, request.prompt.clone(), max_tokens);
            submitted.background = request.background;
            submitted.score_prompt = request.score_prompt && index == 0;
            let prompt_scores = submitted.score_prompt.then(|| {
                let logprob = Logprob { logprob: f32::NAN, top: Vec::new() };
                vec![TokenLogprob::new(&self.text, request.prompt[0], logprob)]
            });
            submitted.stored = stored_tokens;
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
                answer: Answer::new(
                    index,
                    decoder,
                    request.output.clone(),
                    request.stop.clone(),
                    end_tokens,
                ),
                held: constraints.next().map(Held::new),
                thinking: (request.thinking.as_ref())
                    .map(|thinking| Budget::new(thinking, &self.text.tokenizer)),
                drafting: match request.draft {
                    Draft::Nobody => None,
                    Draft::PromptLookup => Some(Drafting::new(false)),
                    Draft::Model(_) => Some(Drafting::new(true)),
                },
                draft_model: draft_model.clone(),
                prompt_scores,
            };
            self.choices.insert(sequence, choice);
            entry.sequences.push(sequence);
        }
        self.requests.insert(id, entry);
        self.gauge();
    }

    fn cancel(&mut self, request: RequestId) {
        self.end(request, "cancelled", |_| None);
        self.stalled = false;
        self.drop_retired();
        self.gauge();
    }

    fn is_idle(&self) -> bool {
        let computes = !(self.scheduler.is_idle() || self.stalled);
        let moves = |stored: &Stored<B>| stored.can_write() || stored.has_come();
        let moves = self.stored.as_ref().is_some_and(moves);
        !computes && !moves && self.warm_ups.is_empty() && self.ahead.is_none()
    }

    fn step(&mut self) {
        if self.take_in() {
            self.stalled = false;
        }
        match self.warm_ups.pop() {
            Some(rows) => self.warm_up(rows),
            None if self.ahead.is_none() && (self.scheduler.is_idle() || self.stalled) => {}
            None => self.advance(),
        }
        // Saving would wait for a step that was begun ahead.
        if self.ahead.is_none() {
            self.write_one();
        }
        self.drop_retired();
        self.gauge();
    }

    fn settle(&mut self) {
        self.drafters.iter_mut().for_each(ModelDrafter::clear);
        self.scheduler.set_kv_tokens(self.room.positions());
        self.drop_evicted();
        self.drop_retired();
        self.backend.clear_cache();
        self.gauge();
    }

    fn stop(&mut self, until: Instant) {
        let requests: Vec<RequestId> = self.requests.keys().copied().collect();
        for request in requests {
            self.end(request, "cancelled", |_| Some(Event::Error(GenerateError::ShuttingDown)));
        }
        self.write_the_rest(until);
    }
}

/// Numbers of tokens that a step can have. A prompt has as many as it likes, however few sequences run.
fn possible(warm_ups: &[usize], limits: &Limits) -> Vec<usize> {
    // What is compiled for so many serves down to half as many.
    warm_ups.iter().filter(|&&tokens| tokens < 2 * limits.step_tokens).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sequence_is_warmed_up_for_prompts_too() {
        let limits = Limits {
            running: 1,
            step_tokens: 2048,
            kv_tokens: 4096,
            kept_tokens: 0,
            block: None,
            context: 4096,
        };
        assert_eq!(possible(&[256, 63, 8, 1], &limits), [256, 63, 8, 1]);
        assert_eq!(possible(&[256, 63, 8, 1], &Limits { step_tokens: 40, ..limits }), [63, 8, 1]);
    }
}
