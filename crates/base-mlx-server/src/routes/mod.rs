//! A file for each endpoint. Its types live beside its handler.

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
use crate::events::{Events, fold};
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

/// The answer as a stream or as a whole, whichever was asked for.
async fn respond<D: Dialect + Send + 'static>(
    app: &App,
    parameters: &Parameters,
    events: Events,
    choices: usize,
    mut dialect: D,
) -> Result<Response, ApiError> {
    if parameters.stream {
        return Ok(sse::respond(events, dialect, app.options.keep_alive));
    }
    let answer = fold(events, choices).await;
    let answer = answer.map_err(|error| ApiError::generating(error, D::PROMPT))?;
    Ok(json(dialect.answer(answer)))
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
