use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::super::Progress;

/// Adds up what the files of a pull tell, so that its progress is that of the whole.
pub(super) struct Tally<'a> {
    progress: &'a dyn Progress,
    what: String,
    sum: Mutex<Sum>,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    has_begun: bool,
    total_bytes: Option<u64>,
    here: u64,
}

impl<'a> Tally<'a> {
    pub(super) fn new(progress: &'a dyn Progress, what: String) -> Self {
        Self { progress, what, sum: Mutex::default() }
    }

    /// How much there is to all files, and how much of it is here. For once all are known, or known better.
    pub(super) fn begin(&self, total_bytes: Option<u64>, here: u64) {
        let mut sum = self.sum();
        *sum = Sum { has_begun: true, total_bytes, here };
        self.progress.start(&self.what, total_bytes, here);
    }

    pub(super) fn finish(&self) {
        if self.sum().has_begun {
            self.progress.finish();
        }
    }

    pub(super) fn message(&self, text: &str) {
        let _sum = self.sum();
        self.progress.message(text);
    }

    fn advance(&self, bytes: u64) {
        let mut sum = self.sum();
        sum.here += bytes;
        self.progress.advance(bytes);
    }

    fn recount(&self, from: u64, to: u64) {
        let mut sum = self.sum();
        if from != to && sum.has_begun {
            sum.here = (sum.here + to).saturating_sub(from);
            self.progress.start(&self.what, sum.total_bytes, sum.here);
        }
    }

    /// Held while the progress is told, so that it hears of one thing at a time.
    fn sum(&self) -> MutexGuard<'_, Sum> {
        self.sum.lock().expect("whoever is told of progress does not panic")
    }
}

/// One file's part of it.
pub(super) struct Share<'a> {
    tally: &'a Tally<'a>,
    here: AtomicU64,
}

impl<'a> Share<'a> {
    /// `here` bytes of the file are counted already.
    pub(super) fn new(tally: &'a Tally<'a>, here: u64) -> Self {
        Self { tally, here: AtomicU64::new(here) }
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.here.fetch_add(bytes, Ordering::Relaxed);
        self.tally.advance(bytes);
    }

    pub(super) fn here(&self) -> u64 {
        self.here.load(Ordering::Relaxed)
    }

    /// For once more or less is here than was thought.
    pub(super) fn set(&self, here: u64) {
        self.tally.recount(self.here.swap(here, Ordering::Relaxed), here);
    }

    pub(super) fn message(&self, text: &str) {
        self.tally.message(text);
    }
}
