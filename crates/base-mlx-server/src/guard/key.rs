use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::error::ApiError;

/// The keys that let a request in. Without any, everybody may come in.
#[derive(Debug)]
pub(crate) struct Keys(pub Vec<String>);

impl Keys {
    /// Takes the same time whichever key is given and wherever it differs; only its length may show.
    fn allow(&self, given: &str) -> bool {
        let mut allowed = subtle::Choice::from(0);
        for key in &self.0 {
            allowed |= key.as_bytes().ct_eq(given.as_bytes());
        }
        allowed.into()
    }
}

pub(crate) async fn check(State(keys): State<Arc<Keys>>, request: Request, next: Next) -> Response {
    // Whoever watches the server's health has no key.
    if keys.0.is_empty() || request.uri().path() == "/health" {
        return next.run(request).await;
    }
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match given.and_then(bearer) {
        Some(key) if keys.allow(key) => next.run(request).await,
        _ => ApiError::Unauthorized.into_response(),
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_listed_key_is_allowed() {
        let keys = Keys(vec!["first".into(), "second".into()]);
        assert!(keys.allow("first") && keys.allow("second"));
        for wrong in ["", "firs", "firstt", "third", "first second"] {
            assert!(!keys.allow(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(bearer("Bearer key"), Some("key"));
        assert_eq!(bearer("bearer  key "), Some("key"));
        assert_eq!(bearer("Basic key"), None);
        assert_eq!(bearer("key"), None);
    }
}
