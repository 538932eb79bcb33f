use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::header;
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::App;
use crate::error::ApiError;

/// A request's body: a JSON object, no larger than allowed. Of keys given twice the last one counts, as in Python.
#[derive(Debug)]
pub(crate) struct JsonObject(Map<String, Value>);

impl JsonObject {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ApiError> {
        // serde_json stops at 128 levels, at half surrogates and at numbers that no f64 holds.
        match serde_json::from_slice(bytes) {
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

    /// The fields that `T` knows; an error names the path of the one that is wrong.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_path_to_error::deserialize(&Value::Object(self.0.clone())).map_err(|error| {
            let path = error.path().to_string();
            let message = error.into_inner().to_string();
            // A field that is missing is the one to name, not the object that lacks it.
            let missing =
                message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
            let param = match (path.as_str(), missing) {
                (".", Some(field)) => field.to_owned(),
                (path, Some(field)) => format!("{path}.{field}"),
                (path, None) => path.to_owned(),
            };
            let message = format!("`{param}`: {message}");
            ApiError::invalid(param, message)
        })
    }
}

impl FromRequest<Arc<App>> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        // The request holds a place while it comes in.
        let limit = app.options.upload_time;
        let bytes = tokio::time::timeout(limit, receive(request, app.options.body_bytes)).await;
        Self::parse(&bytes.map_err(|_| ApiError::BodyTooSlow { limit })??)
    }
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
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[serde(default)]
        list: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[allow(dead_code)]
        number: u32,
    }

    fn param(body: &str) -> String {
        let error = JsonObject::parse(body.as_bytes()).and_then(|body| body.read::<Outer>());
        let envelope = error.unwrap_err().envelope();
        envelope["error"]["param"].as_str().unwrap_or("null").to_owned()
    }

    #[test]
    fn errors_name_the_path_of_the_field() {
        assert_eq!(param(r#"{"list":[{"number":1},{"number":"2"}]}"#), "list[1].number");
        assert_eq!(param(r#"{"list":[{}]}"#), "list[0].number");
        assert_eq!(param(r#"{"list":5}"#), "list");
    }

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
        assert_eq!(body.read::<Outer>().unwrap().list.len(), 1);
    }
}
