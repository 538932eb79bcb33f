use std::fmt::Write as _;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base_mlx_core::engine::{EncodeError, GenerateError};
use base_mlx_core::grammar::GrammarError;
use serde_json::{Value, json};

/// Everything a client can be told went wrong, in the one envelope that all OpenAI clients read:
/// `{"error":{"message","type","param","code"}}`.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request is wrong; `param` is the path of the field, like `messages[0].content`.
    #[error("{message}")]
    Invalid { param: Option<String>, message: String },
    /// The parameter is known, and what it asks for cannot be done here.
    #[error("{message}")]
    Unsupported { param: String, message: String },
    #[error(
        "the prompt has {prompt} tokens, but the model's maximum context length is {context} tokens\n\
         hint: shorten the prompt, or start the server with a larger context"
    )]
    ContextLength { param: &'static str, prompt: usize, context: usize },
    #[error(
        "text {text} of `{param}` has {tokens} tokens, but the model takes at most {longest} tokens\n\
         hint: cut it into parts, or let `truncate_prompt_tokens: -1` cut its end off"
    )]
    TextTooLong { param: &'static str, text: usize, tokens: usize, longest: usize },
    #[error("the model `{model}` {}", is_absent(.model, *.in_catalogue, .closest))]
    ModelNotFound { param: &'static str, model: String, in_catalogue: bool, closest: Vec<String> },
    /// The model is there, and is of a kind that cannot do this.
    #[error("{message}")]
    ModelUnsuitable { message: String },
    /// The model is there, and its files are broken or incomplete: asking again changes nothing.
    #[error("the model `{model}` cannot be used: {message}")]
    ModelDamaged { model: String, message: String },
    /// The model is there, and its files cannot be read.
    #[error("the model `{model}` cannot be loaded: {message}")]
    LoadFailed { model: String, message: String },
    #[error("the model `{model}` cannot be loaded now: {message}")]
    LoadRefused { model: String, message: String },
    #[error("there is nothing at {path}")]
    UnknownPath { path: String },
    #[error("{method} is not allowed on {path}")]
    MethodNotAllowed { method: Method, path: String },
    #[error("the request's body is larger than {limit_bytes} bytes")]
    BodyTooLarge { limit_bytes: usize },
    #[error("the request's body did not arrive within {} s", .limit.as_secs_f32())]
    BodyTooSlow { limit: Duration },
    #[error(
        "an API key is needed: send it as `Authorization: Bearer KEY`, and check that it is right"
    )]
    Unauthorized,
    #[error("{message}")]
    Forbidden { code: &'static str, message: String },
    #[error("{running} requests are being answered, which is all this server takes at once")]
    TooManyRequests { running: usize },
    /// The model's queue is full, or too slow.
    #[error("{message}")]
    Busy { message: String },
    #[error("{message}")]
    Overloaded { message: String },
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("{message}")]
    Internal { message: String },
}

impl ApiError {
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), message: message.into() }
    }

    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Unsupported { param: param.into(), message: message.into() }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::Internal { message: message.into() }
    }

    /// Clients look for the field itself; the message says where in it.
    pub(crate) fn of_response_format(mut self) -> Self {
        let param = match &mut self {
            Self::Invalid { param: Some(param), .. } | Self::Unsupported { param, .. } => param,
            _ => return self,
        };
        if let Some((field, _)) = param.split_once(['.', '['])
            && field == RESPONSE_FORMAT
        {
            *param = RESPONSE_FORMAT.to_owned();
        }
        self
    }

    /// `prompt_param` is what the prompt is called in the request.
    pub(crate) fn generating(error: GenerateError, prompt_param: &'static str) -> Self {
        match error {
            GenerateError::PromptTooLong { prompt, context } => {
                Self::ContextLength { param: prompt_param, prompt, context }
            }
            GenerateError::PromptEmpty | GenerateError::UnknownToken { .. } => {
                Self::invalid(prompt_param, error.to_string())
            }
            GenerateError::QueueFull { .. } | GenerateError::WaitedTooLong { .. } => {
                Self::Busy { message: error.to_string() }
            }
            GenerateError::DraftUnfit { .. } => Self::invalid("draft_model", error.to_string()),
            // Bans of the whole vocabulary were refused. Bans of all that a grammar allows come to light where both were
            // followed for a while, and look like a model whose numbers are at fault.
            GenerateError::NoTokenLeft(_)
            | GenerateError::GrammarBroken(_)
            | GenerateError::Failed(_) => Self::internal(error.to_string()),
            GenerateError::ShuttingDown => Self::ShuttingDown,
        }
    }

    /// `param` is what the texts are called in the request.
    pub(crate) fn encoding(error: EncodeError, param: &'static str) -> Self {
        match error {
            EncodeError::TooLong { text, tokens, longest } => {
                Self::TextTooLong { param, text, tokens, longest }
            }
            EncodeError::Empty { .. } | EncodeError::UnknownToken { .. } => {
                Self::invalid(param, format!("`{param}`: {error}"))
            }
            EncodeError::Failed(_) => Self::internal(error.to_string()),
            EncodeError::ShuttingDown => Self::ShuttingDown,
        }
    }

    /// Grammars are the request's; errors call them by the path of the field that they came from.
    pub(crate) fn grammar(error: GrammarError) -> Self {
        match &error {
            GrammarError::Unsupported { origin, .. }
            | GrammarError::Invalid { origin, .. }
            | GrammarError::TooComplex { origin, .. } => {
                let param = (!origin.is_empty()).then(|| origin.clone());
                Self::Invalid { param, message: error.to_string() }.of_response_format()
            }
            GrammarError::Busy(_) => Self::Overloaded { message: error.to_string() },
            GrammarError::Failed(_) => Self::internal(error.to_string()),
            GrammarError::Vocabulary(_) => Self::ModelUnsuitable { message: error.to_string() },
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. }
            | Self::Unsupported { .. }
            | Self::ContextLength { .. }
            | Self::TextTooLong { .. }
            | Self::ModelUnsuitable { .. }
            | Self::ModelDamaged { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::ModelNotFound { .. } | Self::UnknownPath { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTooSlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::TooManyRequests { .. } | Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::LoadFailed { .. } | Self::Internal { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::LoadRefused { .. } | Self::Overloaded { .. } | Self::ShuttingDown => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    /// The envelope, as it is sent in a body of its own or in the middle of a stream.
    pub(crate) fn envelope(&self) -> Value {
        json!({
            "error": {
                "message": self.to_string(),
                "type": self.kind(),
                "param": self.param(),
                "code": self.code(),
            }
        })
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::TooManyRequests { .. } | Self::Busy { .. } => "rate_limit_error",
            _ if self.status().is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::Unsupported { param, .. } => Some(param),
            Self::ContextLength { param, .. } | Self::TextTooLong { param, .. } => Some(param),
            Self::ModelNotFound { param, .. } => Some(param),
            Self::ModelUnsuitable { .. } | Self::ModelDamaged { .. } => Some("model"),
            _ => None,
        }
    }

    fn code(&self) -> Option<&'static str> {
        match self {
            Self::Invalid { .. } | Self::Internal { .. } => None,
            Self::Unsupported { .. } => Some("unsupported_parameter"),
            Self::ContextLength { .. } | Self::TextTooLong { .. } => {
                Some("context_length_exceeded")
            }
            Self::ModelNotFound { .. } => Some("model_not_found"),
            Self::ModelUnsuitable { .. } => Some("model_not_supported"),
            Self::ModelDamaged { .. } => Some("model_damaged"),
            Self::LoadFailed { .. } | Self::LoadRefused { .. } => Some("model_load_failed"),
            Self::UnknownPath { .. } => Some("unknown_url"),
            Self::MethodNotAllowed { .. } => Some("method_not_supported"),
            Self::BodyTooLarge { .. } => Some("request_too_large"),
            Self::BodyTooSlow { .. } => Some("request_timeout"),
            Self::Unauthorized => Some("invalid_api_key"),
            Self::Forbidden { code, .. } => Some(code),
            Self::TooManyRequests { .. } | Self::Busy { .. } => Some("rate_limit_exceeded"),
            Self::Overloaded { .. } => Some("overloaded"),
            Self::ShuttingDown => Some("shutting_down"),
        }
    }

    /// When it makes sense to ask again, in seconds.
    fn retry_after(&self) -> Option<&'static str> {
        match self {
            Self::TooManyRequests { .. } | Self::Busy { .. } => Some("1"),
            Self::LoadRefused { .. } | Self::Overloaded { .. } | Self::ShuttingDown => Some("5"),
            _ => None,
        }
    }
}

const RESPONSE_FORMAT: &str = "response_format";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), Json(self.envelope())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        match self {
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // What is left of such a body is not worth reading, and a server that leaves takes no second request.
            Self::BodyTooLarge { .. } | Self::BodyTooSlow { .. } | Self::ShuttingDown => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

fn is_absent(model: &str, in_catalogue: bool, closest: &[String]) -> String {
    if in_catalogue {
        return format!("is not on this machine\nhint: run `base-mlx pull {model}` there");
    }
    let mut text = "does not exist".to_owned();
    for (index, name) in closest.iter().enumerate() {
        let before = if index == 0 { "\nhint: the closest names are " } else { ", " };
        let _ = write!(text, "{before}`{name}`");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_envelope_has_all_four_keys() {
        let errors = [
            ApiError::invalid("messages[0].content", "wrong"),
            ApiError::Invalid { param: None, message: "wrong".into() },
            ApiError::unsupported("audio", "no"),
            ApiError::ModelNotFound {
                param: "model",
                model: "a\"\n\u{7}".into(),
                in_catalogue: false,
                closest: vec!["b".into()],
            },
            ApiError::UnknownPath { path: "/x".into() },
            ApiError::TooManyRequests { running: 3 },
            ApiError::ShuttingDown,
            ApiError::internal("broken"),
        ];
        for error in errors {
            let envelope = error.envelope();
            let keys: Vec<&String> = envelope["error"].as_object().unwrap().keys().collect();
            assert_eq!(keys, ["message", "type", "param", "code"], "{error:?}");
            assert!(envelope["error"]["message"].is_string());
        }
    }

    #[test]
    fn a_prompt_that_is_too_long_is_called_as_the_request_calls_it() {
        for param in ["messages", "prompt"] {
            let error = GenerateError::PromptTooLong { prompt: 9, context: 8 };
            let envelope = ApiError::generating(error, param).envelope();
            assert_eq!(envelope["error"]["param"], param);
            assert_eq!(envelope["error"]["code"], "context_length_exceeded");
        }
    }

    #[test]
    fn a_schema_that_cannot_be_guaranteed_is_named_and_so_is_its_keyword() {
        let error = ApiError::grammar(GrammarError::Unsupported {
            origin: "tools[0].function.parameters".into(),
            pointer: "/properties/age/not".into(),
            message: "`not`".into(),
        });
        assert_eq!(error.status(), 400);
        let envelope = error.envelope();
        assert_eq!(envelope["error"]["param"], "tools[0].function.parameters");
        assert!(error.to_string().contains("/properties/age/not"));
    }

    #[test]
    fn a_grammar_that_found_no_room_is_not_the_request_s_fault() {
        let busy = ApiError::grammar(GrammarError::Busy(2));
        assert_eq!((busy.status().as_u16(), busy.retry_after()), (503, Some("5")));
        assert_eq!(ApiError::grammar(GrammarError::Failed("no thread".into())).status(), 500);
    }

    #[test]
    fn an_unknown_model_comes_with_the_closest_names() {
        let error = ApiError::ModelNotFound {
            param: "model",
            model: "smolm2".into(),
            in_catalogue: false,
            closest: vec!["smollm2".into(), "smollm3".into()],
        };
        assert_eq!(
            error.to_string(),
            "the model `smolm2` does not exist\nhint: the closest names are `smollm2`, `smollm3`"
        );
    }
}
