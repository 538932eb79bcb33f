use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event as Frame, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base_mlx_core::engine::Event;
use futures_util::stream::{self, StreamExt};

use crate::dialects::Dialect;
use crate::error::ApiError;
use crate::events::Events;

/// A stream that lives as long as its client: server-sent events, `[DONE]` at the end unless an error was, and a
/// comment whenever nothing was sent for `keep_alive`. When the client goes, the events are dropped, and with them
/// the generation.
pub(crate) fn respond<D: Dialect + Send + 'static>(
    events: Events,
    mut dialect: D,
    keep_alive: Duration,
) -> Response {
    let opening = stream::iter(dialect.opening());
    let chunks = events.flat_map(move |event| {
        let (chunk, last) = match event {
            Event::Error(error) => {
                let error = ApiError::generating(error, D::PROMPT);
                (Some(error.envelope().to_string()), None)
            }
            event @ Event::Usage(_) => (dialect.chunk(event), Some("[DONE]".to_owned())),
            event => (dialect.chunk(event), None),
        };
        stream::iter(chunk.into_iter().chain(last))
    });
    let frames = opening.chain(chunks).map(|data| Ok::<_, Infallible>(Frame::default().data(data)));
    let keep_alive = KeepAlive::new().interval(keep_alive).text("keep-alive");
    let mut response = Sse::new(frames).keep_alive(keep_alive).into_response();
    // Proxies that gather answers would hold the tokens back.
    response.headers_mut().insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    response
}

const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use base_mlx_core::engine::{FinishReason, GenerateError, Usage};

    use super::*;
    use crate::events::Answer;

    struct Plain;

    impl Dialect for Plain {
        const PROMPT: &'static str = "prompt";

        fn answer(&mut self, _: Answer) -> String {
            String::new()
        }

        fn opening(&self) -> Vec<String> {
            vec!["open".into()]
        }

        fn chunk(&mut self, event: Event) -> Option<String> {
            match event {
                Event::Text { text, .. } => Some(text),
                Event::Finish { .. } => Some("finish".into()),
                _ => None,
            }
        }
    }

    async fn body(events: Vec<Event>) -> String {
        let response = respond(Box::pin(stream::iter(events)), Plain, Duration::from_secs(60));
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().into()).unwrap()
    }

    fn text() -> Event {
        Event::Text { choice: 0, text: "hi".into(), logprobs: Vec::new() }
    }

    #[tokio::test]
    async fn point_13_a_good_stream_ends_with_done() {
        let finish = Event::Finish { choice: 0, reason: FinishReason::Stop };
        let body = body(vec![text(), finish, Event::Usage(Usage::default())]).await;
        assert_eq!(body, "data: open\n\ndata: hi\n\ndata: finish\n\ndata: [DONE]\n\n");
    }

    #[tokio::test]
    async fn point_04_an_error_after_the_first_byte_is_the_end() {
        let error = GenerateError::Failed("line\n\"two\"".into());
        let body = body(vec![text(), Event::Error(error)]).await;
        let last = body.strip_prefix("data: open\n\ndata: hi\n\ndata: ").unwrap();
        let envelope: serde_json::Value = serde_json::from_str(last.trim_end()).unwrap();
        assert_eq!(envelope["error"]["message"], "the model failed: line\n\"two\"");
        assert_eq!(envelope["error"]["type"], "server_error");
        assert!(last.ends_with("}\n\n") && !body.contains("finish") && !body.contains("[DONE]"));
    }

    #[tokio::test]
    async fn point_14_silence_is_broken_by_comments_only() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let late = stream::once(async { receiver.await.unwrap() });
        let response = respond(Box::pin(late), Plain, Duration::from_millis(5));
        let mut body = response.into_body().into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), "data: open\n\n");
        for _ in 0..3 {
            assert_eq!(body.next().await.unwrap().unwrap(), ": keep-alive\n\n");
        }
        sender.send(text()).unwrap();
        let mut rest = Vec::new();
        while let Some(piece) = body.next().await {
            rest.extend(piece.unwrap());
        }
        assert!(rest.ends_with(b"data: hi\n\n"));
    }
}
