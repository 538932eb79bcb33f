//! How many answers are under way, and how they come to an end when the server does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::model::InUse;

/// Lets requests in until it is full or closed.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    count: usize,
    closing: Arc<AtomicBool>,
    stop: CancellationToken,
}

/// A request that was let in. It counts until it is dropped, which is when its answer has been written.
#[derive(Debug)]
pub(crate) struct Running {
    _place: OwnedSemaphorePermit,
    stop: CancellationToken,
    /// The models that it needs until then.
    models: Vec<InUse>,
}

impl Gate {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(count)),
            count,
            closing: Arc::new(AtomicBool::new(false)),
            stop: CancellationToken::new(),
        }
    }

    pub(crate) fn enter(&self) -> Result<Running, ApiError> {
        if self.is_closing() {
            return Err(ApiError::ShuttingDown);
        }
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| ApiError::TooManyRequests { running: self.count })?;
        Ok(Running { _place: place, stop: self.stop.clone(), models: Vec::new() })
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Lets nobody in any more, and returns when the last one is out; those that are not after `grace` are told to
    /// stop at once.
    pub(crate) async fn close(&self, grace: Duration) {
        self.closing.store(true, Ordering::SeqCst);
        let all_places = self.places.acquire_many(self.count as u32);
        if tokio::time::timeout(grace, all_places).await.is_err() {
            self.stop.cancel();
        }
    }
}

impl Running {
    /// Holds a model for as long as the request counts.
    pub(crate) fn hold(&mut self, model: InUse) {
        self.models.push(model);
    }

    /// Resolves when the answer must end.
    pub(crate) async fn stopped(&self) {
        self.stop.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gate_says_so_and_a_place_given_back_is_free() {
        let gate = Gate::new(1);
        let running = gate.enter().unwrap();
        let error = gate.enter().unwrap_err();
        assert_eq!(error.status(), 429);
        drop(running);
        assert!(gate.enter().is_ok());
    }

    #[tokio::test]
    async fn a_closed_gate_waits_for_those_inside() {
        let gate = Gate::new(2);
        let running = gate.enter().unwrap();
        let closing = tokio::spawn({
            let gate = gate.clone();
            async move { gate.close(Duration::from_secs(60)).await }
        });
        while !gate.is_closing() {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.enter().unwrap_err().status(), 503);
        assert!(!closing.is_finished());
        drop(running);
        closing.await.unwrap();
        assert!(!gate.stop.is_cancelled());
    }
}
