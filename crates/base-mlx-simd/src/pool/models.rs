//! The pool under loom, which runs each model once for every order in which its threads' steps can happen, weak memory
//! included, and finds what is read while another writes it, and who is never woken:
//! `RUSTFLAGS="--cfg loom" cargo test --release -p base-mlx-simd --lib models`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::cell::UnsafeCell;
use loom::sync::{Condvar, Mutex};
use loom::thread;

use super::{ABSENCE, Attendance, Pool, Scratch};
use crate::sync::{Arc, now};

/// A few places that pieces write and the caller reads afterwards; loom faults whoever comes too early or too late.
struct Places(Vec<UnsafeCell<usize>>);

// SAFETY: loom checks every access.
unsafe impl Sync for Places {}

impl Places {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| UnsafeCell::new(0)).collect())
    }

    fn visit(&self, index: usize) {
        // SAFETY: loom checks that nobody else is there.
        self.0[index].with_mut(|place| unsafe { *place += 1 });
    }

    fn assert_visited(&self, times: usize) {
        for place in &self.0 {
            // SAFETY: as in `visit`; a thread that still had a piece would be found here.
            assert_eq!(place.with_mut(|place| unsafe { *place }), times);
        }
    }
}

/// All orders with at most so many threads stopped for another: more find nothing that fewer did not, in hours.
fn model(preemptions: usize, check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(check);
}

fn visit_each(pool: &Pool, pieces: usize) {
    let places = Places::new(pieces);
    pool.run(pieces, |index, _: &mut Scratch| places.visit(index));
    places.assert_visited(1);
}

/// A job of two pieces that one thread cannot run alone.
fn meet(pool: &Pool) {
    let (arrived, met) = (Mutex::new(0), Condvar::new());
    pool.run(2, |_, _| {
        let mut count = arrived.lock().unwrap();
        *count += 1;
        met.notify_one();
        while *count < 2 {
            count = met.wait(count).unwrap();
        }
    });
}

/// The clock stands still here: nobody comes back by himself.
fn leave_out(pool: &Pool, absent: usize) {
    let attendance = Attendance { absent, until: Some(now() + ABSENCE), trial: None };
    pool.caller.lock().unwrap().attendance = attendance;
}

/// At the next job.
fn ask_again(pool: &Pool) {
    pool.caller.lock().unwrap().attendance.until = Some(now());
}

#[test]
fn two_threads_share_a_job() {
    model(3, || visit_each(&Pool::start(2), 3));
}

#[test]
fn three_threads_share_a_job() {
    model(2, || visit_each(&Pool::start(3), 2));
}

/// The worker is anywhere between the first job and its sleep when the second one comes.
#[test]
fn a_job_after_another_finds_the_worker_awake_or_wakes_it() {
    model(3, || {
        let pool = Pool::start(2);
        visit_each(&pool, 2);
        visit_each(&pool, 2);
    });
}

/// Who misses the call leaves all pieces to the caller, which here cannot run them alone.
#[test]
fn a_worker_that_falls_asleep_does_not_miss_the_call() {
    model(3, || {
        meet(&Pool::start(2));
    });
}

/// The worker may have looked at the job that it had no part in, and be anywhere on its way back to sleep.
#[test]
fn a_worker_that_was_left_out_is_asked_again() {
    model(3, || {
        let pool = Pool::start(2);
        leave_out(&pool, 1);
        visit_each(&pool, 2);
        ask_again(&pool);
        meet(&pool);
    });
}

#[test]
fn one_worker_shares_a_job_that_another_is_left_out_of() {
    model(2, || {
        let pool = Pool::start(3);
        leave_out(&pool, 1);
        visit_each(&pool, 2);
    });
}

#[test]
fn a_pool_is_dropped_while_its_workers_fall_asleep() {
    model(3, || drop(Pool::start(2)));
    model(2, || drop(Pool::start(3)));
}

#[test]
fn a_panic_arrives_after_all_pieces() {
    model(3, || {
        let pool = Pool::start(2);
        let places = Places::new(2);
        let panic = catch_unwind(AssertUnwindSafe(|| {
            pool.run(2, |index, _| {
                places.visit(index);
                std::panic::resume_unwind(Box::new("thrown"));
            });
        }));
        assert!(panic.unwrap_err().is::<&str>());
        places.assert_visited(1);
        visit_each(&pool, 2);
    });
}

#[test]
fn two_callers_are_both_served() {
    model(2, || {
        let pool = Arc::new(Pool::start(2));
        let other = thread::spawn({
            let pool = pool.clone();
            move || visit_each(&pool, 2)
        });
        visit_each(&pool, 2);
        other.join().unwrap();
    });
}
