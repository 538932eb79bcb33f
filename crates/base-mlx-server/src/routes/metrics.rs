//! The process's numbers, in Prometheus' text format.

use std::sync::OnceLock;
use std::time::Duration;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::error::ApiError;

/// `None` where the program around the server has a recorder of its own.
static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Collects from here on, once for all servers of the process.
pub(crate) fn install() {
    RECORDER.get_or_init(|| {
        let seconds = Matcher::Suffix("_seconds".to_owned());
        let builder = PrometheusBuilder::new().set_buckets_for_metric(seconds, &SECONDS);
        builder.expect("buckets are given").install_recorder().ok()
    });
}

/// Histograms keep every measurement until somebody does this; never returns.
pub(crate) async fn keep_up() {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        if let Some(recorder) = recorder() {
            recorder.run_upkeep();
        }
    }
}

/// `GET /metrics`
pub(crate) async fn show() -> Result<Response, ApiError> {
    let Some(recorder) = recorder() else {
        return Err(ApiError::UnknownPath { path: "/metrics".to_owned() });
    };
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok((headers, recorder.render()).into_response())
}

fn recorder() -> Option<&'static PrometheusHandle> {
    RECORDER.get().and_then(Option::as_ref)
}

/// Upper ends of what a histogram of seconds tells apart.
const SECONDS: [f64; 12] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
