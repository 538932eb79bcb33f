//! Fork and join. A job is a number of pieces; whoever is free claims the next one, the caller included, so that a
//! thread which the operating system does not run holds up at most the one piece that it has claimed.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cores::cores;

/// Memory that a thread keeps from piece to piece, so that pieces need not allocate.
#[derive(Default)]
pub struct Scratch(Vec<f32>);

impl Scratch {
    /// `len` floats of any value.
    pub fn floats(&mut self, len: usize) -> &mut [f32] {
        if self.0.len() < len {
            self.0.resize(len, 0.0);
        }
        &mut self.0[..len]
    }
}

/// Threads that wait for work: briefly awake, then asleep.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held by the caller whose job the workers share.
    caller: Mutex<Scratch>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included: at least one, at most one for each of [`cores`].
    pub fn new(threads: usize) -> Self {
        Self::start(threads.min(cores()))
    }

    fn start(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let workers = (1..threads)
            .map_while(|index| {
                let shared = shared.clone();
                let name = format!("compute-{index}");
                // A pool with fewer threads than asked for is slower, not wrong.
                std::thread::Builder::new().name(name).spawn(move || shared.work()).ok()
            })
            .collect();
        Self { shared, caller: Mutex::default(), workers }
    }

    /// How many threads share a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `piece(0)`, …, `piece(pieces - 1)`, each once, in any order and on any thread, and returns when all have
    /// finished. The first panic of a piece is passed on then. While the workers are busy with another caller's job,
    /// or when called from a piece, all of it runs on the calling thread.
    pub fn run(&self, pieces: usize, piece: impl Fn(usize, &mut Scratch) + Sync) {
        let caller = match self.caller.try_lock() {
            Err(std::sync::TryLockError::WouldBlock) => None,
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(error)) => Some(error.into_inner()),
        };
        match caller {
            Some(mut scratch) if pieces > 1 && !self.workers.is_empty() => {
                let panic = self.shared.fork_join(pieces, &piece, &mut scratch);
                drop(scratch);
                if let Some(panic) = panic {
                    resume_unwind(panic);
                }
            }
            Some(mut scratch) => (0..pieces).for_each(|index| piece(index, &mut scratch)),
            None => {
                let mut scratch = Scratch::default();
                (0..pieces).for_each(|index| piece(index, &mut scratch));
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        drop(lock(&self.shared.sleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches every panic of a piece, so there is nothing to learn from a failed join.
            let _ = worker.join();
        }
    }
}

type Panic = Box<dyn Any + Send>;

/// A job, on its caller's stack until all its pieces have finished.
struct Job<'a> {
    pieces: u32,
    piece: &'a (dyn Fn(usize, &mut Scratch) + Sync),
}

#[derive(Default)]
struct Shared {
    /// The number of the job in the high half, its pieces not yet claimed in the low half.
    unclaimed: AtomicU64,
    job: AtomicPtr<Job<'static>>,
    /// Pieces of the job that have not finished.
    unfinished: AtomicUsize,
    panic: Mutex<Option<Panic>>,
    sleeping_workers: AtomicUsize,
    sleeping_caller: AtomicBool,
    closed: AtomicBool,
    /// Guards no data: whoever goes to sleep holds it from the last look at the atomics until asleep.
    sleep: Mutex<()>,
    wake: Condvar,
    finished: Condvar,
}

/// How long a thread without work stays awake: longer than the gaps between the operations of a forward pass, short
/// enough to cost nothing when idle.
const AWAKE: Duration = Duration::from_micros(50);

const PIECES: u64 = u32::MAX as u64;

impl Shared {
    fn fork_join(
        &self,
        pieces: usize,
        piece: &(dyn Fn(usize, &mut Scratch) + Sync),
        scratch: &mut Scratch,
    ) -> Option<Panic> {
        let mut job = Job { pieces: u32::try_from(pieces).expect("fewer than 2^32 pieces"), piece };
        self.unfinished.store(pieces, Ordering::SeqCst);
        self.job.store((&raw mut job).cast(), Ordering::SeqCst);
        let number = (self.unclaimed.load(Ordering::SeqCst) >> 32).wrapping_add(1);
        self.unclaimed.store((number << 32) | u64::from(job.pieces), Ordering::SeqCst);
        if self.sleeping_workers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
        while self.run_one(scratch) {}
        self.wait_for_others();
        lock(&self.panic).take()
    }

    fn wait_for_others(&self) {
        let finished = || self.unfinished.load(Ordering::SeqCst) == 0;
        if spin_until(finished) {
            return;
        }
        let mut guard = lock(&self.sleep);
        self.sleeping_caller.store(true, Ordering::SeqCst);
        while !finished() {
            guard = self.finished.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleeping_caller.store(false, Ordering::SeqCst);
    }

    /// Claims a piece and runs it; false if there is none.
    fn run_one(&self, scratch: &mut Scratch) -> bool {
        let mut seen = self.unclaimed.load(Ordering::SeqCst);
        let job = loop {
            if seen & PIECES == 0 {
                return false;
            }
            // Read before the claim: the claim succeeds only if `seen` was still true, and then this is its job.
            let job = self.job.load(Ordering::SeqCst);
            match self.unclaimed.compare_exchange_weak(
                seen,
                seen - 1,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) {
                Ok(_) => break job,
                Err(now) => seen = now,
            }
        };
        let left = (seen & PIECES) as usize;
        let result = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: this thread has claimed a piece of the job and not reported it finished, so the caller is still
            // inside `fork_join`, where the job lives; the `'static` of the pointer is never used beyond that.
            let job = unsafe { &*job };
            (job.piece)(job.pieces as usize - left, scratch);
        }));
        if let Err(panic) = result {
            lock(&self.panic).get_or_insert(panic);
        }
        // The last look at the job: the caller may return as soon as the count is zero.
        let last = self.unfinished.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.sleeping_caller.load(Ordering::SeqCst) {
            drop(lock(&self.sleep));
            self.finished.notify_all();
        }
        true
    }

    /// A worker's life.
    fn work(&self) {
        let mut scratch = Scratch::default();
        let closed = || self.closed.load(Ordering::SeqCst);
        let called = || self.unclaimed.load(Ordering::SeqCst) & PIECES != 0 || closed();
        while !closed() {
            while self.run_one(&mut scratch) {}
            if spin_until(called) {
                continue;
            }
            let mut guard = lock(&self.sleep);
            self.sleeping_workers.fetch_add(1, Ordering::SeqCst);
            while !called() {
                guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleeping_workers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Looks again and again for a moment; says whether the condition came true.
fn spin_until(done: impl Fn() -> bool) -> bool {
    let mut until = None;
    loop {
        for _ in 0..64 {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        let now = Instant::now();
        if now >= *until.get_or_insert(now + AWAKE) {
            return false;
        }
    }
}

/// None of the pool's locks is held while foreign code runs, so a poisoned one guards sound data.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_once() {
        let pool = Pool::start(4);
        for pieces in (0..40).chain([1000, 1, 5000]) {
            let ran: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
            pool.run(pieces, |piece, scratch| {
                scratch.floats(piece % 50).fill(1.0);
                ran[piece].fetch_add(1, Ordering::Relaxed);
            });
            assert!(ran.iter().all(|ran| ran.load(Ordering::Relaxed) == 1), "{pieces} pieces");
        }
    }

    #[test]
    fn a_piece_that_does_not_come_to_its_end_holds_up_no_other() {
        let pool = Pool::start(2);
        for slow in [0, 7, 99] {
            let finished = AtomicUsize::new(0);
            pool.run(100, |piece, _| {
                while piece == slow && finished.load(Ordering::SeqCst) < 99 {
                    std::thread::yield_now();
                }
                finished.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!(finished.into_inner(), 100);
        }
    }

    #[test]
    fn a_panic_is_passed_on_when_all_have_finished_and_the_pool_goes_on() {
        for threads in [1, 3] {
            let pool = Pool::start(threads);
            for _ in 0..20 {
                let finished = AtomicUsize::new(0);
                let panic = catch_unwind(AssertUnwindSafe(|| {
                    pool.run(50, |piece, _| {
                        finished.fetch_add(1, Ordering::SeqCst);
                        assert!(piece != 49, "the last piece fails");
                    });
                }));
                let message = *panic.unwrap_err().downcast::<&str>().unwrap();
                assert_eq!((message, finished.into_inner()), ("the last piece fails", 50));
            }
        }
    }

    #[test]
    fn a_job_within_a_piece_and_other_callers_are_served() {
        let pool = Pool::start(3);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(5, |_, _| {
                            pool.run(4, |piece, _| {
                                total.fetch_add(piece, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 100 * 5 * (1 + 2 + 3));
    }

    #[test]
    fn idle_workers_sleep_and_wake_again() {
        let pool = Pool::start(3);
        for _ in 0..20 {
            while pool.shared.sleeping_workers.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            let ran = AtomicUsize::new(0);
            pool.run(9, |_, _| {
                ran.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!(ran.into_inner(), 9);
        }
    }

    #[test]
    fn there_are_never_more_threads_than_cores() {
        assert_eq!(Pool::new(usize::MAX).threads(), cores());
        assert_eq!(Pool::new(0).threads(), 1);
    }
}
