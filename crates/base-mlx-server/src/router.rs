use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

use crate::App;
use crate::error::ApiError;
use crate::guard::cors::{self, Origins};
use crate::guard::host::{self, Hosts};
use crate::guard::key::{self, Keys};
use crate::routes::{chat_completions, completions, embeddings, health, metrics, models, rerank};

pub(crate) fn router(app: Arc<App>) -> Router {
    let hosts = Arc::new(Hosts::new(&app.options.host, &app.options.allow_hosts));
    let origins = Origins { allowed: app.options.cors.clone(), hosts: Arc::clone(&hosts) };
    let keys = Keys(app.options.api_keys.clone());
    Router::new()
        .route("/health", get(health::show))
        .route("/metrics", get(metrics::show))
        .route("/v1/chat/completions", post(chat_completions::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::show).post(models::change))
        .route("/v1/rerank", post(rerank::create))
        .fallback(unknown_path)
        .method_not_allowed_fallback(method_not_allowed)
        // The last one is the first that a request meets.
        .layer(middleware::from_fn_with_state(Arc::clone(&app), refuse_when_closing))
        .layer(middleware::from_fn_with_state(Arc::new(keys), key::check))
        .layer(middleware::from_fn_with_state(Arc::new(origins), cors::check))
        .layer(middleware::from_fn_with_state(hosts, host::check))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(app)
}

/// `/v1/models/` is `/v1/models`, and so is `/v1//models`, which comes of joining a base that ends in a slash.
pub(crate) fn without_spare_slashes(mut request: Request) -> Request {
    let uri = request.uri();
    let path = uri.path();
    if path.len() > 1 && (path.ends_with('/') || path.contains("//")) {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        if let Ok(plain) = format!("/{}{query}", parts.join("/")).parse::<Uri>() {
            let mut whole = uri.clone().into_parts();
            whole.path_and_query = plain.into_parts().path_and_query;
            if let Ok(uri) = Uri::from_parts(whole) {
                *request.uri_mut() = uri;
            }
        }
    }
    request
}

async fn refuse_when_closing(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Response {
    // Whoever watches the server's health hears it from there.
    if app.gate.is_closing() && request.uri().path() != "/health" {
        return ApiError::ShuttingDown.into_response();
    }
    next.run(request).await
}

async fn unknown_path(uri: Uri) -> ApiError {
    ApiError::UnknownPath { path: uri.path().to_owned() }
}

async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    ApiError::MethodNotAllowed { method, path: uri.path().to_owned() }
}

fn panicked(cause: Box<dyn std::any::Any + Send + 'static>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    tracing::error!(panic = text, "a request's handler panicked");
    ApiError::internal("the server failed while it answered this request").into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn spare_slashes_go_and_the_query_stays() {
        for (given, plain) in [
            ("/v1/models/", "/v1/models"),
            ("/v1//models", "/v1/models"),
            ("/v1/chat/completions/?spec=a", "/v1/chat/completions?spec=a"),
            ("/v1/models/a%2Fb", "/v1/models/a%2Fb"),
            ("/", "/"),
            ("//", "/"),
        ] {
            let request = Request::builder().uri(given).body(Body::empty()).unwrap();
            assert_eq!(without_spare_slashes(request).uri().to_string(), plain);
        }
    }

    #[tokio::test]
    async fn point_01_a_panic_is_an_error_in_the_envelope() {
        async fn panics() -> Response {
            panic!("no such luck")
        }
        let router = Router::new().route("/", get(panics)).layer(CatchPanicLayer::custom(panicked));
        let request = Request::builder().uri("/").body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["content-type"], "application/json");
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"].as_object().unwrap().len(), 4);
        assert_eq!(body["error"]["type"], "server_error");
    }
}
