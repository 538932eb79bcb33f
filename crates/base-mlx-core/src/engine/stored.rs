//! A model's keys and values on disk: what is kept in memory is written there while there is time, and sequences that begin
//! with more than is kept are fetched from there.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::compute::flatten;
use super::device::Waker;
use super::disk::{Chunk, Key, KvDisk, keys};
use super::prefix::{Evicted, KeptId};
use super::runner::ModelRunner;
use super::scheduler::Plan;
use super::sequence::SequenceId;
use crate::TokenId;
use crate::backend::{Backend, KV_CHUNK, KvCache};

/// One model's side of the disk.
pub(super) struct Stored<B: Backend> {
    /// Dropped before `disk`, whose threads may wait for what is taken in here.
    fetching: HashMap<SequenceId, Fetching<B>>,
    disk: KvDisk,
    /// Of no tokens yet; unknown while the model's files are still being read for it.
    model: Arc<OnceLock<Key>>,
    waker: Option<Waker>,
    unwritten: VecDeque<Unwritten>,
    speed: Speed,
    /// When a step has last waited for caches that made room.
    paused: Option<Instant>,
    /// Something may have come from disk.
    came: bool,
}

/// A chunk of a kept cache that is not on disk.
struct Unwritten {
    id: KeptId,
    chunk: usize,
    key: Key,
}

/// A cache on its way from disk.
struct Fetching<B: Backend> {
    cache: B::Kv,
    chunks: Receiver<Chunk>,
    /// Positions that are wanted.
    len: usize,
    /// That reading it and taking it in has taken; the steps of others that come between are not its own.
    took: Duration,
}

impl<B: Backend> Stored<B> {
    pub(super) fn new(disk: KvDisk, model: Arc<OnceLock<Key>>) -> Self {
        Self {
            disk,
            model,
            waker: None,
            unwritten: VecDeque::new(),
            fetching: HashMap::new(),
            speed: Speed::default(),
            paused: None,
            came: false,
        }
    }

    pub(super) fn woken_by(&mut self, waker: Waker) {
        self.waker = Some(waker);
    }

    /// Whether there is a chunk to write, and room for it on its way.
    pub(super) fn can_write(&self) -> bool {
        !self.unwritten.is_empty() && self.disk.can_write()
    }

    pub(super) fn something_came(&mut self) {
        self.came = true;
    }

    /// Whether there may be something to take in.
    pub(super) fn has_come(&self) -> bool {
        self.came
    }

    /// Whether sequences wait for what is on its way.
    pub(super) fn is_fetching(&self) -> bool {
        !self.fetching.is_empty()
    }

    /// The cache of a sequence that is gone is not wanted any more.
    pub(super) fn give_up(&mut self, id: SequenceId) {
        self.fetching.remove(&id);
    }

    /// What is kept is forgotten, and so is what was to be written of it.
    pub(super) fn forget_kept(&mut self) {
        self.unwritten.clear();
    }
}

impl<B: Backend> ModelRunner<B> {
    /// How many positions at the beginning of these tokens lie on disk, if it is worth the time to fetch them.
    pub(super) fn stored(&mut self, tokens: &[TokenId]) -> usize {
        let computing = self.pace.of_many();
        let Some(stored) = &mut self.stored else { return 0 };
        let Some(model) = stored.model.get() else { return 0 };
        let chunks = stored.disk.find(&keys(model, tokens));
        if chunks == 0 || !stored.speed.pays(computing, &self.name) {
            return 0;
        }
        chunks * KV_CHUNK
    }

    /// A cache is kept from now on: what is not on disk of it is to be written.
    pub(super) fn note_kept(&mut self, id: KeptId) {
        if self.stored.is_none() {
            return;
        }
        // One that was evicted at once is written when it is dropped.
        let tokens = self.scheduler.kept().tokens(id).map(<[TokenId]>::to_vec);
        if let Some(tokens) = tokens {
            self.note_unwritten(id, &tokens);
        }
    }

    fn note_unwritten(&mut self, id: KeptId, tokens: &[TokenId]) {
        let computing = self.pace.of_many();
        let Some(stored) = &mut self.stored else { return };
        let Some(model) = stored.model.get() else { return };
        if !stored.speed.is_worth(computing) {
            return;
        }
        let keys = keys(model, tokens);
        for chunk in stored.disk.missing(&keys) {
            let key = keys[chunk];
            match stored.unwritten.iter_mut().find(|other| other.key == key) {
                // Of two that begin alike the later one stays longer.
                Some(other) => other.id = id,
                None => stored.unwritten.push_back(Unwritten { id, chunk, key }),
            }
        }
    }

    /// Hands one chunk over that is to be written, if there is room on the way.
    pub(super) fn write_one(&mut self) {
        let Some(stored) = &mut self.stored else { return };
        let Some(waker) = &stored.waker else { return };
        while stored.disk.can_write()
            && let Some(Unwritten { id, chunk, key }) = stored.unwritten.pop_front()
        {
            // It may have been evicted.
            let Some(cache) = self.kept.get(&id) else { continue };
            match cache.save(chunk) {
                Ok(bytes) => stored.disk.write(key, chunk, bytes, waker.clone()),
                Err(error) => tracing::warn!("keys and values are not saved: {error}"),
            }
            return;
        }
    }

    /// Begins to fetch what a plan begins with.
    pub(super) fn fetch(&mut self, plan: &Plan) {
        for fetch in &plan.fetches {
            let begun = self.begin_fetch(fetch.sequence, fetch.len);
            if !begun {
                self.scheduler.fetched(fetch.sequence, 0);
            }
        }
    }

    fn begin_fetch(&mut self, id: SequenceId, len: usize) -> bool {
        let Some(stored) = &mut self.stored else { return false };
        let (Some(model), Some(waker)) = (stored.model.get(), &stored.waker) else { return false };
        let Some(sequence) = self.scheduler.sequence(id) else { return false };
        let mut keys = keys(model, &sequence.tokens);
        keys.truncate(len.div_ceil(KV_CHUNK));
        let Ok(cache) = self.backend.new_kv(&self.layers) else { return false };
        let chunks = stored.disk.read(keys, waker.clone());
        let fetching = Fetching { cache, chunks, len, took: Duration::ZERO };
        stored.fetching.insert(id, fetching);
        true
    }

    /// Takes in a chunk of what has come from disk for each sequence, as steps of others come between. Sequences go on when
    /// all has come that was wanted, or all that there is; whether one does.
    pub(super) fn take_in(&mut self) -> bool {
        let Some(stored) = &mut self.stored else { return false };
        if !std::mem::take(&mut stored.came) {
            return false;
        }
        let mut done = Vec::new();
        for (&id, fetching) in &mut stored.fetching {
            let ended = {
                match fetching.chunks.try_recv() {
                    Ok(Chunk { bytes, took }) => {
                        let len = fetching.cache.len();
                        let began = Instant::now();
                        let restored = AssertUnwindSafe(|| fetching.cache.restore(&bytes));
                        let restored = flatten(catch_unwind(restored));
                        fetching.took += took + began.elapsed();
                        // What is only a cache must not cost the model.
                        if let Err(error) = restored {
                            tracing::warn!("saved keys and values are ignored: {error}");
                            fetching.cache.truncate(len);
                            true
                        } else {
                            stored.came = true;
                            fetching.cache.len() >= fetching.len
                        }
                    }
                    Err(TryRecvError::Empty) => false,
                    Err(TryRecvError::Disconnected) => true,
                }
            };
            if ended {
                done.push(id);
            }
        }
        let some = !done.is_empty();
        for id in done {
            let Fetching { mut cache, len, took, .. } =
                stored.fetching.remove(&id).expect("it was found there");
            stored.speed.fetched(cache.len(), took);
            let len = cache.truncate(len);
            if self.scheduler.fetched(id, len) && len > 0 {
                self.caches.insert(id, cache);
            }
        }
        some
    }

    /// These caches go, and what is not on disk of them is written now, as far as running answers can wait for it.
    pub(super) fn write_before_they_go(&mut self, evicted: &[Evicted]) {
        for Evicted { id, tokens } in evicted {
            self.note_unwritten(*id, tokens);
        }
        let Some(stored) = &mut self.stored else { return };
        let evicted: Vec<KeptId> = evicted.iter().map(|evicted| evicted.id).collect();
        let (theirs, others): (Vec<_>, Vec<_>) =
            stored.unwritten.drain(..).partition(|chunk| evicted.contains(&chunk.id));
        let left = others.len();
        stored.unwritten = theirs.into_iter().chain(others).collect();
        let now = Instant::now();
        if stored.unwritten.len() > left
            && stored.paused.is_none_or(|paused| now - paused > BETWEEN_PAUSES)
        {
            stored.paused = Some(now);
            self.write_down_to(left, now + LONGEST_PAUSE);
        }
    }

    /// Writes what is left, as far as time goes.
    pub(super) fn write_the_rest(&mut self, until: Instant) {
        let Some(stored) = &self.stored else { return };
        let model = Arc::clone(&stored.model);
        // What was kept before the model's files were read is not noted yet.
        while !self.kept.is_empty() && model.get().is_none() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        let kept: Vec<KeptId> = self.kept.keys().copied().collect();
        kept.into_iter().for_each(|id| self.note_kept(id));
        self.write_down_to(0, until);
        if let Some(stored) = &self.stored {
            stored.disk.flush(until.saturating_duration_since(Instant::now()));
        }
    }

    /// Writes until no more than so many chunks are left.
    fn write_down_to(&mut self, left: usize, until: Instant) {
        while self.stored.as_ref().is_some_and(|stored| stored.unwritten.len() > left)
            && Instant::now() < until
        {
            self.write_one();
            if !self.stored.as_ref().is_some_and(Stored::can_write) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// Whether fetching is faster than computing. It is for large models and slow devices, not for all.
#[derive(Debug, Default)]
struct Speed {
    /// Seconds to fetch a position, smoothed; 0 until it was measured.
    fetching: f64,
    /// It was found to be slower.
    off: bool,
}

impl Speed {
    fn fetched(&mut self, positions: usize, took: Duration) {
        if positions == 0 {
            return;
        }
        let now = took.as_secs_f64() / positions as f64;
        self.fetching = match self.fetching {
            0.0 => now,
            before => before + (now - before) * WEIGHT,
        };
    }

    /// `computing` are the seconds to compute a position. What is not known is tried.
    fn is_worth(&self, computing: Option<f64>) -> bool {
        computing.is_none_or(|computing| self.fetching <= computing)
    }

    /// The same, for one that could be fetched now; says in the log when it changes. What was slow once is tried again after
    /// some chances were passed over.
    fn pays(&mut self, computing: Option<f64>, model: &str) -> bool {
        let pays = self.is_worth(computing);
        if pays == self.off
            && let Some(computing) = computing
        {
            self.off = !pays;
            let [fetching, computing] = [self.fetching, computing].map(|s| (1.0 / s).round());
            let now = if pays { "fetched again" } else { "not fetched any more" };
            tracing::info!(
                "keys and values of {model} are {now} from disk: \
                 {fetching} tokens a second, computing has {computing}"
            );
        }
        if !pays {
            self.fetching *= FORGET;
        }
        pays
    }
}

/// How long a step may wait for caches that make room for it.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How long steps go on then before one may wait again.
const BETWEEN_PAUSES: Duration = Duration::from_secs(1);
/// How much the newest fetch counts.
const WEIGHT: f64 = 0.3;
/// What is left of a bad experience after a chance was passed over.
const FORGET: f64 = 0.98;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_slower_than_computing_is_left_until_it_may_be_better() {
        let mut speed = Speed::default();
        let fast = Some(0.001);
        assert!(speed.pays(None, "m") && speed.pays(fast, "m"), "it must be tried first");
        speed.fetched(1000, Duration::from_secs(2));
        assert!(!speed.pays(fast, "m") && !speed.is_worth(fast));
        assert!(speed.pays(Some(0.003), "m"), "a slower model");
        let chances = (0..1000).take_while(|_| !speed.pays(fast, "m")).count();
        assert!((20..60).contains(&chances), "{chances}");
        for _ in 0..30 {
            speed.fetched(1000, Duration::from_millis(10));
        }
        assert!(speed.pays(fast, "m"));
    }
}
