use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::header;
use base_mlx_core::text::parse_json;
use futures_util::StreamExt;
use serde_json::{Map, Value};

use crate::App;
use crate::error::ApiError;
use crate::request::Object;

/// A request's body: a JSON object, no larger than allowed. Of keys given twice the last one counts, as in Python.
#[derive(Debug)]
pub(crate) struct JsonObject(Map<String, Value>);

/// The same where a request need not have a body.
#[derive(Debug)]
pub(crate) struct OptionalObject(pub JsonObject);

impl JsonObject {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        // It stops at 128 levels, at half surrogates and at numbers that no f64 holds.
        match parse_json(bytes) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::Invalid {
                param: None,
                message: "the request's body is not a JSON object".into(),
            }),
            Err(error) => Err(ApiError::Invalid {
                param: None,
                message: format!("the request's body is not valid JSON: {error}"),
            }),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    pub(crate) fn fields(&self) -> Object<'_> {
        Object::body(&self.0)
    }
}

impl FromRequest<Arc<App>> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        // The request holds a place while it comes in.
        Self::parse(&body(request, app).await?)
    }
}

impl FromRequest<Arc<App>> for OptionalObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let bytes = body(request, app).await?;
        let object =
            if bytes.is_empty() { Ok(JsonObject(Map::new())) } else { JsonObject::parse(&bytes) };
        object.map(Self)
    }
}

async fn body(request: Request, app: &App) -> Result<Vec<u8>, ApiError> {
    let limit = app.options.upload_time;
    let bytes = tokio::time::timeout(limit, receive(request, app.options.body_bytes)).await;
    bytes.map_err(|_| ApiError::BodyTooSlow { limit })?
}

async fn receive(request: Request, limit_bytes: usize) -> Result<Vec<u8>, ApiError> {
    let too_large = ApiError::BodyTooLarge { limit_bytes };
    let headers = request.headers();
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let waits_for_leave = headers.contains_key(header::EXPECT);
    let mut stream = request.into_body().into_data_stream();
    if announced.is_some_and(|bytes| bytes > limit_bytes) {
        if !waits_for_leave {
            discard(stream).await;
        }
        return Err(too_large);
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0));
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| ApiError::Invalid {
            param: None,
            message: format!("the request's body cannot be read: {error}"),
        })?;
        if bytes.len() + piece.len() > limit_bytes {
            discard(stream).await;
            return Err(too_large);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Most clients read no answer before they have sent everything, and lose it if the connection is cut before.
async fn discard(mut rest: axum::body::BodyDataStream) {
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(piece)) = rest.next().await {
            bytes += piece.len();
            if bytes > DISCARD_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARD_TIME, read).await;
}

const DISCARD_BYTES: usize = 256 * 1024 * 1024;
const DISCARD_TIME: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_json_is_a_client_error() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let nested = format!(r#"{{"a":{deep}}}"#);
        for body in
            ["", "{", "[]", "null", "{\"a\":NaN}", "{\"a\":1e999}", r#"{"a":"\ud83d"}"#, &nested]
        {
            let error = JsonObject::parse(body.as_bytes()).unwrap_err();
            assert_eq!(error.status(), 400, "{}", &body[..body.len().min(20)]);
        }
        assert!(JsonObject::parse(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn the_last_of_two_equal_keys_counts() {
        let body = JsonObject::parse(br#"{"list":1,"list":[{"number":7}]}"#).unwrap();
        assert_eq!(body.fields().list("list").unwrap().unwrap().len(), 1);
    }
}
