use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::guard::host::Hosts;

/// Which web pages may use the server: those it names itself, and the origins the operator listed.
#[derive(Debug)]
pub(crate) struct Origins {
    pub allowed: Vec<String>,
    pub hosts: Arc<Hosts>,
}

impl Origins {
    fn listed(&self, origin: &str) -> bool {
        self.allowed.iter().any(|allowed| allowed == "*" || allowed == origin)
    }

    /// Is it a page of this very machine or a listed one? Such pages may send whatever they like.
    fn trusted(&self, origin: &str) -> bool {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        self.listed(origin) || authority.is_some_and(|authority| self.hosts.allows(authority))
    }
}

/// Adds the headers that let listed origins read answers, and answers their preflights. Other origins get no such
/// header, so their pages cannot read; and the only writing a browser lets them do unasked, a form's, is refused.
pub(crate) async fn check(
    State(origins): State<Arc<Origins>>,
    request: Request,
    next: Next,
) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let Some(origin) = origin else { return run(request, next).await };
    let name = origin.to_str().unwrap_or("");

    if request.method() == Method::POST && is_form(request.headers()) && !origins.trusted(name) {
        return ApiError::Forbidden {
            code: "origin_not_allowed",
            message: format!(
                "a web page of {name:?} may not use this server\n\
                 hint: start the server with `--cors` and the origin"
            ),
        }
        .into_response();
    }
    if !origins.listed(name) {
        return run(request, next).await;
    }
    let preflight = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let mut response =
        if preflight { StatusCode::NO_CONTENT.into_response() } else { run(request, next).await };
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    if preflight {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_METHODS,
            HeaderValue::from_static("GET, HEAD, POST, OPTIONS"),
        );
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            asked.unwrap_or(HeaderValue::from_static("authorization, content-type")),
        );
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    response
}

/// `OPTIONS` on a path that exists says which methods it has, instead of being a method it has not.
async fn run(request: Request, next: Next) -> Response {
    let options = request.method() == Method::OPTIONS;
    let mut response = next.run(request).await;
    if options && response.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = StatusCode::NO_CONTENT.into_response();
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    response
}

/// The content types that a page may post anywhere without asking first, and none at all.
fn is_form(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return true };
    let kind = kind.to_str().unwrap_or("").to_ascii_lowercase();
    let kind = kind.split(';').next().unwrap_or("").trim();
    matches!(kind, "text/plain" | "application/x-www-form-urlencoded" | "multipart/form-data")
}
