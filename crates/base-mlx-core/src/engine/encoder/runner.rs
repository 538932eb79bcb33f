//! An encoder at work: texts of all callers, as many to a step as it has room for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Encodable;
use super::pooling::{Pooled, Pooling};
use super::queue::{JobId, Queue};
use crate::TokenId;
use crate::backend::{Backend, DeviceError};
use crate::engine::compute::flatten;
use crate::engine::device::{RequestId, Runner};
use crate::engine::memory::Room;
use crate::engine::runner::Submission;
use crate::engine::{Event, GenerateError};
use crate::models::{EncoderModel, Paused, Progress};
use crate::step::Step;

pub(super) struct EncoderRunner<B: Backend> {
    pub(super) name: String,
    pub(super) backend: B,
    pub(super) encoder: EncoderModel<B>,
    pub(super) pooling: Pooling,
    pub(super) normalize: bool,
    /// Most tokens of a step, but for a text that has to be seen at once.
    pub(super) step_tokens: usize,
    pub(super) room: Arc<Room>,
    pub(super) queue: Queue,
    /// Texts of this step, and those that were too long for the one before.
    pub(super) begun: Vec<Begun<B::Kv>>,
    /// Where their step has paused, so that others had their turns.
    pub(super) paused: Option<Paused<B>>,
}

/// A text of which some tokens are computed.
pub(super) struct Begun<K> {
    job: JobId,
    /// Its number in the job.
    number: usize,
    text: Encodable,
    kv: K,
    pooled: Pooled,
}

/// The next tokens of a text.
struct Part<'a, K> {
    kv: &'a mut K,
    pooled: &'a mut Pooled,
    tokens: &'a [TokenId],
    types: &'a [u32],
}

impl<B: Backend> EncoderRunner<B> {
    /// Begins as many texts as there is room for beside those that are begun, at least one where none is.
    fn begin(&mut self) -> Result<(), DeviceError> {
        // Whether a text's beginning is remembered, so that it can be computed piece by piece.
        let layers = self.encoder.model.layers();
        let mut held: usize = self.begun.iter().map(|begun| begun.text.tokens.len()).sum();
        let done: usize = self.begun.iter().map(|begun| begun.pooled.tokens).sum();
        while held - done < self.step_tokens
            && let Some(len) = self.queue.next_len()
        {
            let most = if layers.is_empty() { self.step_tokens } else { self.room.positions() };
            if held + len > most && !self.begun.is_empty() {
                break;
            }
            // Before the text is taken, so that a failure leaves it where it is found.
            let kv = self.backend.new_kv(&layers)?;
            let Some((job, number, text)) = self.queue.take_next() else { break };
            let pooled = Pooled::new(self.pooling);
            self.begun.push(Begun { job, number, text, kv, pooled });
            held += len;
        }
        Ok(())
    }

    /// Computes the next tokens of what is begun. False if it has paused.
    fn compute(&mut self) -> Result<bool, DeviceError> {
        let whole = self.encoder.model.layers().is_empty();
        let mut room = if whole { usize::MAX } else { self.step_tokens };
        let mut parts = Vec::with_capacity(self.begun.len());
        for Begun { text, kv, pooled, .. } in &mut self.begun {
            let start = pooled.tokens;
            let end = text.tokens.len().min(start.saturating_add(room));
            room -= end - start;
            if start < end {
                let (tokens, types) = (&text.tokens[start..end], &text.types[start..end]);
                parts.push(Part { kv, pooled, tokens, types });
            }
        }
        let (mut wanted, mut row) = (Vec::new(), 0);
        for part in &parts {
            wanted.extend(self.pooling.rows(row, part.tokens.len()));
            row += part.tokens.len() as u32;
        }
        let types: Vec<u32> = parts.iter().flat_map(|part| part.types).copied().collect();
        let sequences = parts.iter_mut().map(|part| (&mut *part.kv, part.tokens)).collect();
        let step = Step::new(&self.backend, sequences)?;
        let mut step = step.with_types(&self.backend, &types)?;
        let began = Instant::now();
        let paused = self.paused.take();
        let model = &self.encoder.model;
        let hidden = match model.hidden_until(&mut step, paused, &|| began.elapsed() > TURN) {
            Progress::Done(hidden) => hidden,
            Progress::Paused(paused) => {
                self.paused = Some(paused);
                return Ok(false);
            }
        };
        let all = wanted.len() == row as usize;
        let rows = if all { hidden } else { hidden.take_rows(&wanted) };
        let rows = match &self.encoder.scorer {
            Some(scorer) => scorer.forward(&rows, &step),
            None => rows,
        };
        let width = rows.width();
        let values = self.backend.download(rows.array())?.to_f32();
        drop(step);
        let mut rest = &values[..];
        for Part { pooled, tokens, .. } in parts {
            let rows = self.pooling.rows(0, tokens.len()).len();
            let (of_text, others) = rest.split_at(rows * width);
            pooled.add(of_text, width, tokens.len());
            rest = others;
        }
        Ok(true)
    }

    /// Hands out what is done.
    fn finish(&mut self) {
        let mut rest = Vec::new();
        for begun in self.begun.drain(..) {
            if begun.pooled.tokens < begun.text.tokens.len() {
                rest.push(begun);
                continue;
            }
            let vector = begun.pooled.finish(self.normalize);
            if vector.iter().all(|value| value.is_finite()) {
                self.queue.ready(&self.name, begun.job, begun.number, vector);
            } else {
                let message = format!("what it makes of text {} is no number", begun.number);
                self.queue.fail(&self.name, begun.job, &message);
            }
        }
        self.begun = rest;
    }
}

impl<B: Backend> Runner for EncoderRunner<B> {
    fn wake(&mut self) {
        self.queue.take_incoming();
    }

    fn submit(&mut self, _: RequestId, submission: Submission) {
        let error = GenerateError::Failed("an encoder does not write".to_owned());
        let _ = submission.events.send(Event::Error(error));
    }

    fn cancel(&mut self, _: RequestId) {}

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.begun.is_empty()
    }

    fn step(&mut self) {
        self.queue.drop_abandoned(&self.name);
        let wanted = |begun: &Begun<_>| self.queue.wants(begun.job);
        // A step that has paused goes on with all of its rows as long as somebody wants one.
        if self.paused.is_none() || !self.begun.iter().any(wanted) {
            self.paused = None;
            self.begun.retain(wanted);
        }
        if self.is_idle() {
            return;
        }
        let work = AssertUnwindSafe(|| {
            if self.paused.is_none() {
                self.begin()?;
            }
            self.compute()
        });
        match flatten(catch_unwind(work)) {
            Ok(true) => self.finish(),
            Ok(false) => {}
            Err(message) => {
                tracing::error!("a step failed: {message}");
                self.paused = None;
                // Where nothing could be begun it is the next one's failure.
                let next = self.queue.next_job().filter(|_| self.begun.is_empty());
                let begun = self.begun.drain(..).map(|begun| begun.job);
                for job in begun.chain(next).collect::<Vec<_>>() {
                    self.queue.fail(&self.name, job, &message);
                }
            }
        }
    }

    fn settle(&mut self) {
        self.backend.clear_cache();
    }

    fn stop(&mut self, _: Instant) {
        // Whoever waits hears that nobody is there to answer.
        self.paused = None;
        self.begun.clear();
        self.queue.clear(&self.name);
    }
}

/// How long others wait while layers are computed, and for the one that is begun by then.
const TURN: Duration = Duration::from_millis(20);
