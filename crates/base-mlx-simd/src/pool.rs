//! Fork and join. A job is a number of pieces; whoever is free claims the next one, the caller included, so that a
//! thread which the operating system does not run holds up at most the one piece that it has claimed; after that, jobs go
//! on with a thread less for a while. For the same reason no lock is held where another thread may need it: who sleeps is
//! woken through its own handle.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::cores::cores;
use crate::sync::{
    Arc, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Builder, JoinHandle, Mutex, Ordering,
    Thread, current, fence, now, park, spin_until,
};

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
    caller: Mutex<Caller>,
    workers: Vec<Worker>,
}

struct Caller {
    scratch: Scratch,
    attendance: Attendance,
}

struct Worker {
    thread: JoinHandle<()>,
    bed: Arc<Bed>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included: at least one, at most one for each of [`cores`].
    pub fn new(threads: usize) -> Self {
        Self::start(threads.min(cores()))
    }

    fn start(threads: usize) -> Self {
        let shared = Arc::new(Shared::new());
        let workers = (1..threads)
            .map_while(|index| {
                let bed = Arc::new(Bed::new());
                let (shared, own_bed) = (shared.clone(), bed.clone());
                let builder = Builder::new().name(format!("compute-{index}"));
                // A pool with fewer threads than asked for is slower, not wrong.
                let thread = builder.spawn(move || shared.work(index, &own_bed)).ok()?;
                Some(Worker { thread, bed })
            })
            .collect();
        let caller = Caller { scratch: Scratch::default(), attendance: Attendance::default() };
        Self { shared, caller: Mutex::new(caller), workers }
    }

    /// How many threads share a job, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// How many of `units` of equal work make a piece, so that each thread gets several; at least one.
    pub fn fair_piece(&self, units: usize) -> usize {
        units.div_ceil(self.threads() * PIECES_FOR_A_THREAD).max(1)
    }

    /// Runs `piece(0)`, …, `piece(pieces - 1)`, each once, in any order and on any thread, and returns when all have
    /// finished. The first panic of a piece is passed on then. While the workers are busy with another caller's job,
    /// or when called from a piece, all of it runs on the calling thread.
    pub fn run(&self, pieces: usize, piece: impl Fn(usize, &mut Scratch) + Sync) {
        let caller = match self.caller.try_lock() {
            Err(TryLockError::WouldBlock) => None,
            Ok(guard) => Some(guard),
            // What is guarded may hold any value.
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
        };
        match caller {
            Some(mut caller) if pieces > 1 && !self.workers.is_empty() => {
                let panic = self.fork_join(pieces, &piece, &mut caller);
                drop(caller);
                if let Some(panic) = panic {
                    resume_unwind(panic);
                }
            }
            Some(mut caller) => (0..pieces).for_each(|index| piece(index, &mut caller.scratch)),
            None => {
                let mut scratch = Scratch::default();
                (0..pieces).for_each(|index| piece(index, &mut scratch));
            }
        }
    }

    fn fork_join(
        &self,
        pieces: usize,
        piece: &(dyn Fn(usize, &mut Scratch) + Sync),
        Caller { scratch, attendance }: &mut Caller,
    ) -> Option<Panic> {
        let job = Job { pieces, piece, caller: current(), panic: Mutex::new(None) };
        let began = now();
        let workers = attendance.workers(self.workers.len(), began);
        self.shared.publish(&job, workers);
        for worker in self.workers.iter().take(workers.min(pieces - 1)) {
            if worker.bed.occupied.load(Ordering::Relaxed)
                && worker.bed.occupied.swap(false, Ordering::Relaxed)
            {
                worker.thread.thread().unpark();
            }
        }
        let ran_some = self.shared.run_pieces(scratch);
        let alone = now();
        self.shared.wait_for_others();
        if ran_some {
            let end = now();
            attendance.waited(alone - began, end - alone, end);
        }
        job.panic.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many workers are asked to take part in jobs. One that another process keeps from running holds up each job that it
/// has claimed a piece of until it is its turn again, which takes milliseconds. With a thread less, the system has a core
/// for each of the others.
///
/// A single long wait may be for a piece that took long by itself, for uneven work or pages that were not there: only the
/// second one within [`TRIAL`] counts. Whoever comes back is on trial too, so that there the first one does.
#[derive(Default)]
struct Attendance {
    absent: usize,
    /// When they all are asked again, if no other is waited for until then.
    until: Option<Instant>,
    /// When a trial last began: with a wait, or a return.
    trial: Option<Instant>,
}

impl Attendance {
    /// Of `all` workers.
    fn workers(&mut self, all: usize, now: Instant) -> usize {
        if self.until.is_some_and(|until| until <= now) {
            *self = Self { absent: 0, until: None, trial: Some(now) };
        }
        all.saturating_sub(self.absent)
    }

    /// The caller has worked on a job for so long, and then waited for the others' last pieces. Pieces of a job are alike,
    /// so that this takes no longer than a piece of its own did.
    fn waited(&mut self, worked: Duration, waited: Duration, now: Instant) {
        if waited <= worked + STRAGGLE {
            return;
        }
        let trial = self.trial.replace(now);
        if trial.is_some_and(|began| now - began < TRIAL) {
            // Twice as many, for finding them one by one costs a wait each.
            self.absent = self.absent.saturating_mul(2).max(1);
            self.until = Some(now + ABSENCE);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread.thread().unpark();
            // A worker catches every panic of a piece, so there is nothing to learn from a failed join.
            let _ = worker.thread.join();
        }
    }
}

type Panic = Box<dyn Any + Send>;

/// A job, on its caller's stack until all its pieces have finished.
struct Job<'a> {
    pieces: usize,
    piece: &'a (dyn Fn(usize, &mut Scratch) + Sync),
    caller: Thread,
    panic: Mutex<Option<Panic>>,
}

/// Where one worker sleeps. A line of the cache of its own, so that looking at it costs the caller nothing.
#[repr(align(128))]
struct Bed {
    occupied: AtomicBool,
}

impl Bed {
    fn new() -> Self {
        Self { occupied: AtomicBool::new(false) }
    }
}

struct Shared {
    published: Published,
    finished: Finished,
    closed: AtomicBool,
}

/// What workers look at while they wait.
#[repr(align(128))]
struct Published {
    /// The number of the job in the high bits, its pieces not yet claimed in the low ones. A thread that is stopped
    /// between its look and its claim is wrong only if a job of the same number is published meanwhile: in 2^40 jobs.
    unclaimed: AtomicU64,
    job: AtomicPtr<Job<'static>>,
    /// Workers beyond this number leave the job to the others.
    workers: AtomicUsize,
}

/// What the caller looks at while it waits.
#[repr(align(128))]
struct Finished {
    /// Pieces of the job that have not finished, and [`ASLEEP`] when the caller must be woken.
    unfinished: AtomicUsize,
}

impl Shared {
    fn new() -> Self {
        Self {
            published: Published {
                unclaimed: AtomicU64::new(0),
                job: AtomicPtr::new(std::ptr::null_mut()),
                workers: AtomicUsize::new(0),
            },
            finished: Finished { unfinished: AtomicUsize::new(0) },
            closed: AtomicBool::new(false),
        }
    }

    /// After this, a worker that sleeps has its bed occupied; one that does not will see the job before it sleeps.
    fn publish(&self, job: &Job, workers: usize) {
        assert!(job.pieces as u64 <= PIECES, "at most {PIECES} pieces");
        let Published { unclaimed, job: place, workers: asked } = &self.published;
        asked.store(workers, Ordering::Relaxed);
        self.finished.unfinished.store(job.pieces, Ordering::Relaxed);
        place.store((&raw const *job).cast_mut().cast(), Ordering::Relaxed);
        let number = (unclaimed.load(Ordering::Relaxed) & !PIECES).wrapping_add(PIECES + 1);
        unclaimed.store(number | job.pieces as u64, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Claims pieces and runs them until none is left; false if there was none.
    fn run_pieces(&self, scratch: &mut Scratch) -> bool {
        let Published { unclaimed, job: place, .. } = &self.published;
        let mut job = std::ptr::null_mut();
        let mut ran = 0;
        let mut seen = unclaimed.load(Ordering::Acquire);
        while seen & PIECES != 0 {
            // Read before the claim: the claim succeeds only if `seen` was still true, and then this is its job.
            job = place.load(Ordering::Relaxed);
            if let Err(now) = unclaimed.compare_exchange_weak(
                seen,
                seen - 1,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                seen = now;
                continue;
            }
            // SAFETY: this thread has claimed a piece of the job and not reported it finished, so the caller is still
            // inside `fork_join`, where the job lives; the `'static` of the pointer is never used beyond that.
            let running = unsafe { &*job };
            running.run_piece(running.pieces - (seen & PIECES) as usize, scratch);
            ran += 1;
            seen = unclaimed.load(Ordering::Acquire);
        }
        if ran > 0 {
            self.report(job, ran);
        }
        ran > 0
    }

    /// Counts the pieces that this thread has run as finished, at once, for others count in the same place. A pointer,
    /// for at the last piece the caller may return, and the job be gone, before this does.
    fn report(&self, job: *const Job<'static>, ran: usize) {
        let unfinished = &self.finished.unfinished;
        let mut seen = unfinished.load(Ordering::Relaxed);
        loop {
            // SAFETY: the pieces are not counted yet, so the job is there.
            let sleeper = (seen == ASLEEP + ran).then(|| unsafe { (*job).caller.clone() });
            match unfinished.compare_exchange_weak(
                seen,
                seen - ran,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => {
                    if let Some(sleeper) = sleeper {
                        sleeper.unpark();
                    }
                    return;
                }
                Err(now) => seen = now,
            }
        }
    }

    fn wait_for_others(&self) {
        let unfinished = &self.finished.unfinished;
        if spin_until(|| unfinished.load(Ordering::Acquire) == 0, AWAKE) {
            return;
        }
        if unfinished.fetch_or(ASLEEP, Ordering::Acquire) != 0 {
            while unfinished.load(Ordering::Acquire) != ASLEEP {
                park();
            }
        }
    }

    /// The life of a worker, the first of whom is number 1.
    fn work(&self, number: usize, bed: &Bed) {
        let mut scratch = Scratch::default();
        let closed = || self.closed.load(Ordering::Acquire);
        let asked = || {
            self.published.unclaimed.load(Ordering::Acquire) & PIECES != 0
                && number <= self.published.workers.load(Ordering::Relaxed)
        };
        let called = || asked() || closed();
        while !closed() {
            if asked() && self.run_pieces(&mut scratch) || spin_until(called, AWAKE) {
                continue;
            }
            bed.occupied.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            while bed.occupied.load(Ordering::Relaxed) && !called() {
                park();
            }
            bed.occupied.store(false, Ordering::Relaxed);
        }
    }
}

impl Job<'_> {
    fn run_piece(&self, index: usize, scratch: &mut Scratch) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.piece)(index, scratch))) else {
            return;
        };
        let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
        match *first {
            None => *first = Some(panic),
            // Dropping what was thrown may throw again, and this thread has to go on.
            Some(_) => std::mem::forget(panic),
        }
    }
}

/// How long a thread without work stays awake: longer than the gaps between the operations of a forward pass, short
/// enough to cost nothing when idle.
const AWAKE: Duration = Duration::from_micros(50);

/// What a thread may wait for another without either having been stopped.
const STRAGGLE: Duration = Duration::from_micros(500);
/// How long after one long wait another one means that somebody is kept from running. A turn of the system's is a few
/// milliseconds, so that two of them end well within it.
const TRIAL: Duration = Duration::from_millis(20);
/// How long jobs then go on without the last workers. Trying again costs about a twentieth of it if nothing has changed.
const ABSENCE: Duration = Duration::from_millis(60);

const PIECES: u64 = (1 << 24) - 1;
const ASLEEP: usize = 1 << (usize::BITS - 1);

/// A thread that is not running holds up one of them.
const PIECES_FOR_A_THREAD: usize = 6;
/// Simple work on so many values takes some microseconds: less is not worth a second thread. A multiple of any vector's lanes.
pub(crate) const VALUES_IN_PIECE: usize = 16 * 1024;

#[cfg(all(test, loom))]
mod models;

#[cfg(all(test, not(loom)))]
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
            while !pool.workers.iter().all(|worker| worker.bed.occupied.load(Ordering::SeqCst)) {
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
    fn who_is_not_run_is_left_out_for_a_while() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let mut attendance = Attendance::default();
        assert_eq!(attendance.workers(2, start), 2);
        // Long pieces, then a thread that was stopped.
        attendance.waited(ms(9), ms(8), start);
        attendance.waited(ms(1), ms(3), start);
        assert_eq!(attendance.workers(2, start), 2, "one alone may have had a long piece");
        let (mut now, mut left) = (start, Vec::new());
        for _ in 0..3 {
            now += TRIAL / 2;
            attendance.waited(ms(1), ms(3), now);
            left.push(attendance.workers(5, now));
        }
        assert_eq!(left, [4, 3, 1]);
        assert_eq!(attendance.workers(5, now + ABSENCE - ms(1)), 1);
        now += ABSENCE;
        assert_eq!(attendance.workers(5, now), 5, "all at once");
        attendance.waited(ms(1), ms(3), now + TRIAL / 2);
        assert_eq!(attendance.workers(5, now + TRIAL / 2), 4, "still kept from running");
    }

    #[test]
    fn long_pieces_now_and_then_leave_nobody_out() {
        let ms = Duration::from_millis;
        let mut now = Instant::now();
        let mut attendance = Attendance::default();
        for _ in 0..10 {
            attendance.waited(ms(1), ms(3), now);
            assert_eq!(attendance.workers(3, now), 3);
            now += TRIAL;
        }
        attendance.waited(ms(1), ms(3), now - ms(1));
        assert_eq!(attendance.workers(3, now), 2);
        // Back for longer than a trial, they are trusted again.
        now += ABSENCE;
        assert_eq!(attendance.workers(3, now), 3);
        attendance.waited(ms(1), ms(3), now + TRIAL);
        assert_eq!(attendance.workers(3, now + TRIAL), 3);
    }

    #[test]
    fn there_are_never_more_threads_than_cores() {
        assert_eq!(Pool::new(usize::MAX).threads(), cores());
        assert_eq!(Pool::new(0).threads(), 1);
    }
}
