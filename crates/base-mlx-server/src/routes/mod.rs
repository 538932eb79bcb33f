//! A file for each endpoint. Its types live beside its handler.

mod cached;
pub(crate) mod chat_completions;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod health;
pub(crate) mod metrics;
pub(crate) mod models;
pub(crate) mod rerank;
mod warnings;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base_mlx_core::engine::Encodable;
use serde::Serialize;

use crate::App;
use crate::dialects::Dialect;
use crate::error::ApiError;
use crate::events::{Events, begun, fold};
use crate::request::{DraftName, JsonObject, Parameters};
use crate::running::Running;
use crate::sse;

/// A place among the running requests, taken before the body is read.
impl FromRequestParts<Arc<App>> for Running {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        app.gate.enter()
    }
}

/// Whether it may come behind all others: `service_tier: "flex"`, or a header for clients that cannot say that.
fn in_background(headers: &HeaderMap, body: &JsonObject) -> Result<bool, ApiError> {
    let flex = body.get("service_tier").is_some_and(|tier| tier == "flex");
    match headers.get(LANE).map(HeaderValue::as_bytes) {
        None => Ok(flex),
        Some(b"background") => Ok(true),
        Some(b"interactive") => Ok(false),
        Some(other) => {
            let other = String::from_utf8_lossy(other).into_owned();
            let message = format!("`{LANE}` is {other:?}, expected `interactive` or `background`");
            Err(ApiError::invalid(LANE.as_str(), message))
        }
    }
}

const LANE: HeaderName = HeaderName::from_static("x-base-mlx-lane");

/// Who drafts: the body's `draft_model`, or `spec` in the URL, which is the same.
fn draft_name(
    query: Option<&str>,
    body: &Option<DraftName>,
) -> Result<Option<DraftName>, ApiError> {
    let query = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let specs = query.filter(|(key, value)| key == "spec" && !value.is_empty());
    let mut asked = body.clone();
    for (_, name) in specs {
        let name = DraftName::from(&*name);
        if asked.as_ref().is_some_and(|asked| *asked != name) {
            let message =
                "`spec` in the URL and `draft_model` mean the same, and name two drafters";
            return Err(ApiError::invalid("spec", message));
        }
        asked = Some(name);
    }
    Ok(asked)
}

/// The answer as a stream or as a whole, whichever was asked for, when its prompts have begun to be computed. `place` tells
/// people where in its prompt a token is.
async fn respond<D: Dialect + Send + 'static>(
    app: &App,
    parameters: &Parameters,
    events: Events,
    prompts: usize,
    mut dialect: D,
    place: impl AsyncFnOnce(usize) -> Option<String>,
) -> Result<Response, ApiError> {
    // Who waits longer than this wants to see a sign of life more than what is cached.
    let wrong = |error| ApiError::generating(error, D::PROMPT);
    let (cached, events) = begun(events, prompts, app.options.keep_alive).await.map_err(wrong)?;
    let mut response = if parameters.stream {
        sse::respond(events, dialect, app.options.keep_alive)
    } else {
        let answer = fold(events, prompts * parameters.choices).await.map_err(wrong)?;
        json(dialect.answer(answer))
    };
    if cached.len() == prompts {
        response.headers_mut().insert(cached::NAME, cached::value(&cached, place).await);
    }
    Ok(response)
}

fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// What texts that are only read have cost.
#[derive(Serialize)]
struct TextUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl TextUsage {
    fn of(texts: &[Encodable]) -> Self {
        let prompt_tokens = texts.iter().map(|text| text.tokens.len()).sum();
        Self { prompt_tokens, total_tokens: prompt_tokens }
    }
}

/// An answer needs room for a token.
fn check_length(param: &'static str, prompt: usize, context: usize) -> Result<(), ApiError> {
    match prompt {
        0 => Err(ApiError::invalid(param, format!("`{param}` is empty"))),
        prompt if prompt >= context => Err(ApiError::ContextLength { param, prompt, context }),
        _ => Ok(()),
    }
}
