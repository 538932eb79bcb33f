use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Threads for what may take too long, so many at most. One that is late cannot be told to stop, and keeps its place to its end:
/// llguidance's `CancellationHandle` is a parser's, of which there is none before all is compiled.
#[derive(Debug)]
pub(super) struct Workers {
    places: Arc<Places>,
}

#[derive(Debug)]
struct Places {
    count: usize,
    free: Mutex<usize>,
    freed: Condvar,
}

/// Why there is nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// No worker of so many became free.
    Busy(usize),
    /// It takes longer than this.
    Late(Duration),
    Failed(String),
}

impl Workers {
    pub(super) fn new(count: usize) -> Self {
        let free = Mutex::new(count);
        Self { places: Arc::new(Places { count, free, freed: Condvar::new() }) }
    }

    /// What `work` makes within `time`, which counts from when a worker is free for it: that takes [`PATIENCE`] at most.
    pub(super) fn run<T: Send + 'static>(
        &self,
        time: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let place = self.place(PATIENCE).ok_or(Lost::Busy(self.places.count))?;
        let (sender, receiver) = mpsc::sync_channel(1);
        let started = std::thread::Builder::new()
            .name("grammar".to_owned())
            // Grammars nest, and so do the calls that compile them.
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let made = std::panic::catch_unwind(AssertUnwindSafe(work));
                // First the place, so that whoever has the answer finds it free.
                drop(place);
                if let Ok(made) = made {
                    let _ = sender.send(made);
                }
            });
        started.map_err(|error| Lost::Failed(format!("no thread: {error}")))?;
        receiver.recv_timeout(time).map_err(|error| match error {
            RecvTimeoutError::Timeout => Lost::Late(time),
            RecvTimeoutError::Disconnected => Lost::Failed("the compiler panicked".to_owned()),
        })
    }

    fn place(&self, patience: Duration) -> Option<Place> {
        let until = Instant::now() + patience;
        let mut free = self.places.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            let left = until.checked_duration_since(Instant::now())?;
            (free, _) =
                self.places.freed.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Some(Place(Arc::clone(&self.places)))
    }
}

/// Is free again when it is dropped.
struct Place(Arc<Places>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.freed.notify_one();
    }
}

/// How long one waits for a worker.
const PATIENCE: Duration = Duration::from_secs(3);
/// Only what is used of it takes memory.
const STACK_BYTES: usize = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_late_is_given_up_and_its_worker_comes_back() {
        let workers = Workers::new(1);
        let (end, ended) = mpsc::channel::<()>();
        let late = workers.run(Duration::from_millis(10), move || ended.recv().is_ok());
        assert_eq!(late, Err(Lost::Late(Duration::from_millis(10))));
        assert!(workers.place(Duration::from_millis(10)).is_none());
        assert_eq!(workers.run(PATIENCE, || true), Err(Lost::Busy(1)));
        end.send(()).unwrap();
        assert_eq!(workers.run(PATIENCE, || 7), Ok(7));
    }

    #[test]
    fn a_panic_gives_the_worker_back() {
        let workers = Workers::new(1);
        for _ in 0..2 {
            let panicked = workers.run(PATIENCE, || -> u8 { panic!("on purpose") });
            assert_eq!(panicked, Err(Lost::Failed("the compiler panicked".to_owned())));
        }
    }
}
