use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{Method, Uri};
use base_mlx_core::engine::KvFormat;
use serde::Serialize;

use crate::dialects::seconds;
use crate::error::ApiError;
use crate::models::{Listed, LoadRequest};
use crate::request::{KeepAlive, Object, OptionalObject, in_range};
use crate::{App, ModelOptions};

#[derive(Serialize)]
pub(crate) struct List {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
pub(crate) struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Is it in memory?
    loaded: bool,
    /// Does it stay there until somebody says otherwise?
    pinned: bool,
    context_length: Option<usize>,
    /// Bytes on disk.
    size: u64,
}

/// `GET /v1/models`: what is on disk or in memory
pub(crate) async fn list(State(app): State<Arc<App>>) -> Result<Json<List>, ApiError> {
    let models = app.models.list().await?;
    Ok(Json(List { object: "list", data: models.into_iter().map(Model::from).collect() }))
}

/// `GET /v1/models/{id}`, where the id may have slashes, as they are or encoded
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Ok(Path(id)) = id else {
        return Err(ApiError::invalid("model", "the model's name in the URL is not UTF-8"));
    };
    Ok(Json(app.models.show(&id).await?.into()))
}

/// `POST /v1/models/{id}/load` and `POST /v1/models/{id}/unload`; what they did shows in the answer, which is that of a
/// `GET` of the model.
pub(crate) async fn change(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
    method: Method,
    uri: Uri,
    OptionalObject(body): OptionalObject,
) -> Result<Json<Model>, ApiError> {
    let Ok(Path(path)) = id else {
        return Err(ApiError::invalid("model", "the model's name in the URL is not UTF-8"));
    };
    let id = if let Some(id) = path.strip_suffix("/load") {
        let fields = body.fields();
        let (keep_alive, pinned) = (KeepAlive::parse(&fields)?, fields.flag("pinned")?);
        let options = ModelOptions {
            context: context(&fields)?,
            kv_format: kv_format(&fields)?,
            tool_format: None,
        };
        app.models.load_now(id, LoadRequest { keep_alive, pinned, options }).await?;
        id
    } else if let Some(id) = path.strip_suffix("/unload") {
        app.models.unload(id).await?;
        id
    } else {
        return Err(ApiError::MethodNotAllowed { method, path: uri.path().to_owned() });
    };
    Ok(Json(app.models.show(id).await?.into()))
}

fn context(fields: &Object) -> Result<Option<usize>, ApiError> {
    let tokens = in_range("context_length", fields.whole("context_length")?, 1..=i64::MAX)?;
    Ok(tokens.map(|tokens| tokens as usize))
}

fn kv_format(fields: &Object) -> Result<Option<KvFormat>, ApiError> {
    let Some(name) = fields.text("kv_cache_type")? else { return Ok(None) };
    let known = || KvFormat::ALL.map(|format| format!("`{format}`")).join(", ");
    let wrong = || {
        let message = format!("`kv_cache_type` is {name:?}, expected one of {}", known());
        ApiError::invalid("kv_cache_type", message)
    };
    KvFormat::named(name).map(Some).ok_or_else(wrong)
}

impl From<Listed> for Model {
    fn from(model: Listed) -> Self {
        Self {
            id: model.name,
            object: "model",
            created: seconds(model.created),
            owned_by: "base-mlx",
            loaded: model.loaded,
            pinned: model.pinned,
            context_length: model.context,
            size: model.bytes,
        }
    }
}
