use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;

use super::super::StoreError;

/// The few connections that all transfers of a pull share, and the word that one of them has failed for good.
pub(super) struct Lanes {
    free: Mutex<usize>,
    freed: Condvar,
    has_failed: AtomicBool,
}

/// The right to one connection, until dropped.
pub(super) struct Lane<'a>(&'a Lanes);

impl Lanes {
    pub(super) fn new(count: usize) -> Self {
        Self {
            free: Mutex::new(count.max(1)),
            freed: Condvar::new(),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Waits for a free one. Nobody waits who has one, or there would be no end to it.
    pub(super) fn take(&self) -> Lane<'_> {
        let free = self.freed.wait_while(self.free(), |free| *free == 0);
        *free.expect("counting does not panic") -= 1;
        Lane(self)
    }

    /// Whether another file has failed, so that the rest would be in vain.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Does the work of all items, `threads` at once. The first error stops the rest and is the answer.
    pub(super) fn each<T: Send>(
        &self,
        threads: usize,
        items: Vec<T>,
        work: impl Fn(T) -> Result<(), StoreError> + Sync,
    ) -> Result<(), StoreError> {
        let threads = threads.min(items.len());
        let queue = Mutex::new(items.into_iter());
        let first_error = Mutex::new(None);
        let next = || queue.lock().expect("iterating does not panic").next();
        let run = || {
            while let Some(item) = next() {
                if self.has_failed() {
                    return;
                }
                if let Err(error) = work(item) {
                    let mut first = first_error.lock().expect("keeping does not panic");
                    first.get_or_insert(error);
                    self.has_failed.store(true, Ordering::Relaxed);
                }
            }
        };
        thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(run))));
        first_error.into_inner().expect("keeping does not panic").map_or(Ok(()), Err)
    }

    fn free(&self) -> MutexGuard<'_, usize> {
        self.free.lock().expect("counting does not panic")
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        *self.0.free() += 1;
        self.0.freed.notify_one();
    }
}
