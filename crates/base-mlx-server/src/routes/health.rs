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
    let (code, status) = match (app.gate.is_closing(), app.models.device_runs()) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "shutting down"),
        (false, true) => (StatusCode::OK, "ok"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "device lost"),
    };
    let (version, loaded) = (env!("CARGO_PKG_VERSION"), app.models.loaded());
    (code, Json(Health { status, version, loaded }))
}
