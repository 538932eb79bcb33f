//! The texts that wait for an encoder, in the order in which their callers have turns.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Encodable, EncodeError};
use crate::engine::metrics;

/// Some texts that one caller waits for.
pub(super) struct Job {
    /// Those that are begun have been taken out.
    texts: Vec<Encodable>,
    /// Of all texts.
    tokens: usize,
    /// The first that is not begun.
    next: usize,
    vectors: Vec<Vec<f32>>,
    /// How many are not ready.
    left: usize,
    reply: Reply,
    since: Instant,
}

type Reply = oneshot::Sender<Result<Vec<Vec<f32>>, EncodeError>>;

impl Job {
    pub(super) fn new(texts: Vec<Encodable>, reply: Reply) -> Self {
        let (vectors, left) = (vec![Vec::new(); texts.len()], texts.len());
        let tokens = texts.iter().map(|text| text.tokens.len()).sum();
        Self { texts, tokens, next: 0, vectors, left, reply, since: Instant::now() }
    }
}

pub(super) type JobId = u64;

/// All jobs that are not done.
pub(super) struct Queue {
    incoming: Receiver<Job>,
    jobs: BTreeMap<JobId, Job>,
    next_id: JobId,
    /// Jobs with texts that are not begun, the next one first: each gives one text in turn, so that a single text does not
    /// wait for another's thousand.
    turns: VecDeque<JobId>,
}

impl Queue {
    pub(super) fn new(incoming: Receiver<Job>) -> Self {
        Self { incoming, jobs: BTreeMap::new(), next_id: 0, turns: VecDeque::new() }
    }

    pub(super) fn take_incoming(&mut self) {
        while let Ok(job) = self.incoming.try_recv() {
            let id = self.next_id;
            self.next_id += 1;
            if job.texts.is_empty() {
                let _ = job.reply.send(Ok(Vec::new()));
                continue;
            }
            self.jobs.insert(id, job);
            self.turns.push_back(id);
        }
    }

    /// Those whose callers have gone need nothing any more.
    pub(super) fn drop_abandoned(&mut self, model: &str) {
        self.jobs.retain(|_, job| {
            let wanted = !job.reply.is_closed();
            if !wanted {
                metrics::encoded(model, "cancelled", 0);
            }
            wanted
        });
        let jobs = &self.jobs;
        self.turns.retain(|id| jobs.contains_key(id));
    }

    /// Gives everybody up who waits.
    pub(super) fn clear(&mut self, model: &str) {
        self.take_incoming();
        self.jobs.values().for_each(|_| metrics::encoded(model, "cancelled", 0));
        self.jobs.clear();
        self.turns.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// False if its caller has gone.
    pub(super) fn wants(&self, id: JobId) -> bool {
        self.jobs.contains_key(&id)
    }

    /// Whose turn it is.
    pub(super) fn next_job(&self) -> Option<JobId> {
        self.turns.front().copied()
    }

    /// The length of the text that is next.
    pub(super) fn next_len(&self) -> Option<usize> {
        let job = &self.jobs[self.turns.front()?];
        Some(job.texts[job.next].tokens.len())
    }

    /// Whose turn it is, which of its texts, and that.
    pub(super) fn take_next(&mut self) -> Option<(JobId, usize, Encodable)> {
        let id = self.turns.pop_front()?;
        let job = self.jobs.get_mut(&id).expect("who has a turn is there");
        let number = job.next;
        let text = std::mem::replace(&mut job.texts[number], Encodable::new(Vec::new()));
        job.next += 1;
        if job.next < job.texts.len() {
            self.turns.push_back(id);
        }
        Some((id, number, text))
    }

    pub(super) fn ready(&mut self, model: &str, id: JobId, text: usize, vector: Vec<f32>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.vectors[text] = vector;
        job.left -= 1;
        if job.left > 0 {
            return;
        }
        let job = self.jobs.remove(&id).expect("it was just there");
        let tokens = job.tokens;
        metrics::encoded(model, "done", tokens);
        tracing::info!(
            tag = "encode",
            model,
            elapsed_ms = job.since.elapsed().as_millis() as u64,
            texts = job.texts.len(),
            tokens,
            "encode done",
        );
        let _ = job.reply.send(Ok(job.vectors));
    }

    pub(super) fn fail(&mut self, model: &str, id: JobId, message: &str) {
        if let Some(job) = self.jobs.remove(&id) {
            metrics::encoded(model, "failed", 0);
            let _ = job.reply.send(Err(EncodeError::Failed(message.to_owned())));
        }
        self.turns.retain(|turn| *turn != id);
    }
}
