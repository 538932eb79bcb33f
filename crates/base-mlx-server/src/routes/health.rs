use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use crate::App;

#[derive(Serialize)]
pub(crate) struct Health {
    status: &'static str,
    version: &'static str,
    /// The models in memory.
    loaded: Vec<String>,
}

/// `GET /health`, which needs no key
pub(crate) async fn show(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    let (code, status) = match app.gate.is_closing() {
        false => (StatusCode::OK, "ok"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "shutting down"),
    };
    let (version, loaded) = (env!("CARGO_PKG_VERSION"), app.models.loaded());
    (code, Json(Health { status, version, loaded }))
}
