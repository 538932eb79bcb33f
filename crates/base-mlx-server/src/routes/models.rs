use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{Method, Uri};
use serde::Serialize;

use crate::App;
use crate::dialects::seconds;
use crate::error::ApiError;
use crate::models::{Listed, LoadRequest};
use crate::request::{KeepAlive, OptionalObject};

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
        app.models.load_now(id, LoadRequest { keep_alive, pinned }).await?;
        id
    } else if let Some(id) = path.strip_suffix("/unload") {
        app.models.unload(id).await?;
        id
    } else {
        return Err(ApiError::MethodNotAllowed { method, path: uri.path().to_owned() });
    };
    Ok(Json(app.models.show(id).await?.into()))
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
