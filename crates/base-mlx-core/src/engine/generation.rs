use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Event;
use super::device::{Port, RequestId};

/// A running answer: a stream of [`Event`]s. Dropping it cancels the request within one step.
pub struct Generation {
    events: UnboundedReceiver<Event>,
    // Dropped with the stream; that is the whole of cancelling.
    _guard: CancelOnDrop,
}

impl Generation {
    pub(super) fn new(
        events: UnboundedReceiver<Event>,
        port: Arc<Port>,
        request: RequestId,
    ) -> Self {
        Self { events, _guard: CancelOnDrop { port, request } }
    }

    /// The next event, for callers that are not asynchronous; `None` after the last. Must not be called from an
    /// asynchronous task.
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }
}

impl Stream for Generation {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Event>> {
        self.events.poll_recv(context)
    }
}

struct CancelOnDrop {
    port: Arc<Port>,
    request: RequestId,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.port.cancel(self.request);
    }
}
