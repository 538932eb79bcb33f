//! A file for each endpoint. Its types live beside its handler.

mod cached;
pub(crate) mod chat_completions;
pub(crate) mod completions;
pub(crate) mod health;
pub(crate) mod models;

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};

use crate::App;
use crate::dialects::Dialect;
use crate::error::ApiError;
use crate::events::{Events, begun, fold};
use crate::request::Parameters;
use crate::running::Running;
use crate::sse;

/// A place among the running requests, taken before the body is read.
impl FromRequestParts<Arc<App>> for Running {
    type Rejection = ApiError;

    async fn from_request_parts(_: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        app.gate.enter()
    }
}

/// Refuses the query's form of `draft_model`; other queries mean nothing here.
fn check_query(query: Option<&str>) -> Result<(), ApiError> {
    let parameters = query.unwrap_or_default().split('&');
    let mut specs = parameters.filter_map(|parameter| parameter.strip_prefix("spec="));
    match specs.all(str::is_empty) {
        true => Ok(()),
        false => Err(ApiError::unsupported("spec", "`spec` is not supported")),
    }
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

/// An answer needs room for a token.
fn check_length(param: &'static str, prompt: usize, context: usize) -> Result<(), ApiError> {
    match prompt {
        0 => Err(ApiError::invalid(param, format!("`{param}` is empty"))),
        prompt if prompt >= context => Err(ApiError::ContextLength { param, prompt, context }),
        _ => Ok(()),
    }
}
