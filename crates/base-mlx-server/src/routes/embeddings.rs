use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use base_mlx_core::engine::{Encodable, Encoder, Purpose};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

use crate::App;
use crate::error::ApiError;
use crate::models::blocking;
use crate::request::{JsonObject, KeepAlive, Known, Prompt, in_range, prompts, refuse};
use crate::routes::{TextUsage, json};
use crate::running::Running;

/// `POST /v1/embeddings`
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    mut running: Running,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let request = EmbeddingRequest::parse(&body)?;
    let (name, keep_alive) = (request.model.clone(), request.keep_alive);
    let encoder = app.models.encoder(name.as_deref(), Purpose::Embed, keep_alive, &mut running);
    let (encoder, model) = encoder.await?;
    let dimensions = request.dimensions(&encoder)?;
    let format = request.format;
    // The place is held until the work is done, even if the client has gone.
    let (running, texts) = {
        let encoder = encoder.clone();
        blocking(move || (running, request.texts(&encoder))).await?
    };
    let texts = texts?;
    let usage = TextUsage::of(&texts);
    let vectors = tokio::select! {
        vectors = encoder.encode(texts) => vectors,
        () = running.stopped() => return Err(ApiError::ShuttingDown),
    };
    let vectors = vectors.map_err(|error| ApiError::encoding(error, INPUT))?;
    let data = vectors.into_iter().enumerate().map(|(index, vector)| {
        let embedding = format.write(encoder.info().shortened(vector, dimensions));
        Embedding { object: "embedding", index, embedding }
    });
    let answer = Embeddings { object: "list", data: data.collect(), model, usage };
    // Thousands of vectors are megabytes of digits.
    let written = blocking(move || serde_json::to_string(&answer)).await?;
    Ok(json(written.map_err(|error| ApiError::internal(error.to_string()))?))
}

struct EmbeddingRequest {
    model: Option<String>,
    keep_alive: Option<KeepAlive>,
    input: Vec<Prompt>,
    format: Format,
    dimensions: Option<usize>,
    /// Which of the model's prompts stands before each text.
    prompt_name: Option<String>,
    /// Tokens that each text keeps, from its first one on; more than the model takes is all that it takes.
    truncate: Option<usize>,
}

impl EmbeddingRequest {
    fn parse(body: &JsonObject) -> Result<Self, ApiError> {
        refuse(body, &[Known::OF_EMBEDDINGS])?;
        let fields = body.fields();
        let input = prompts(&fields, INPUT, MOST_TEXTS)?;
        let empty = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => text.is_empty(),
            Prompt::Tokens(tokens) => tokens.is_empty(),
        };
        if let Some(index) = input.iter().position(empty) {
            let message = format!("text {index} of `{INPUT}` is empty");
            return Err(ApiError::invalid(INPUT, message));
        }
        let format = match fields.text("encoding_format")? {
            None | Some("float") => Format::Float,
            Some("base64") => Format::Base64,
            Some(other) => {
                let message =
                    format!("`encoding_format` is {other:?}, expected `float` or `base64`");
                return Err(ApiError::invalid("encoding_format", message));
            }
        };
        let prompt_name = fields.text("prompt_name")?.map(str::to_owned);
        if prompt_name.is_some() && input.iter().any(|one| matches!(one, Prompt::Tokens(_))) {
            let message = "`prompt_name` goes before texts, and `input` has tokens";
            return Err(ApiError::invalid("prompt_name", message));
        }
        let truncate = match in_range(TRUNCATE, fields.whole(TRUNCATE)?, -1..=i64::MAX)? {
            None => None,
            Some(0) => {
                let message = format!("`{TRUNCATE}` is 0, expected -1 or at least 1");
                return Err(ApiError::invalid(TRUNCATE, message));
            }
            // -1 is as many as the model takes.
            Some(tokens) => Some(usize::try_from(tokens).unwrap_or(usize::MAX)),
        };
        let dimensions = in_range("dimensions", fields.whole("dimensions")?, 1..=i64::MAX)?;
        Ok(Self {
            model: fields.text("model")?.map(str::to_owned),
            keep_alive: KeepAlive::parse(&fields)?,
            input,
            format,
            dimensions: dimensions.map(|dimensions| dimensions as usize),
            prompt_name,
            truncate,
        })
    }

    fn dimensions(&self, encoder: &Encoder) -> Result<usize, ApiError> {
        let all = encoder.info().dimensions;
        match self.dimensions {
            Some(wanted) if wanted > all => {
                let message = format!("`dimensions` is {wanted}, the model's vectors have {all}");
                Err(ApiError::invalid("dimensions", message))
            }
            wanted => Ok(wanted.unwrap_or(all)),
        }
    }

    fn texts(&self, encoder: &Encoder) -> Result<Vec<Encodable>, ApiError> {
        let prompt = encoder.info().prompt(self.prompt_name.as_deref());
        let prompt = prompt.map_err(|error| ApiError::invalid("prompt_name", error.to_string()))?;
        let longest = self.truncate.map(|tokens| tokens.min(encoder.info().longest));
        let marks = encoder.marks();
        let is_text = |input: &Prompt| matches!(input, Prompt::Text(_));
        if longest.is_some_and(|tokens| tokens <= marks) && self.input.iter().any(is_text) {
            let message =
                format!("`{TRUNCATE}` leaves nothing but the {marks} tokens around a text");
            return Err(ApiError::invalid(TRUNCATE, message));
        }
        let encode = |input: &Prompt| match input {
            Prompt::Text(text) => encoder.text(text, prompt, longest),
            Prompt::Tokens(tokens) => {
                let kept = longest.map_or(tokens.len(), |longest| longest.min(tokens.len()));
                Encodable::new(tokens[..kept].to_vec())
            }
        };
        Ok(self.input.iter().map(encode).collect())
    }
}

#[derive(Clone, Copy)]
enum Format {
    Float,
    Base64,
}

impl Format {
    fn write(self, vector: Vec<f32>) -> Vector {
        match self {
            Self::Float => Vector::Floats(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                Vector::Base64(BASE64_STANDARD.encode(bytes))
            }
        }
    }
}

#[derive(Serialize)]
struct Embeddings {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: TextUsage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    /// Of little-endian f32.
    Base64(String),
}

const INPUT: &str = "input";
/// As vLLM calls it.
const TRUNCATE: &str = "truncate_prompt_tokens";
/// As OpenAI has it.
const MOST_TEXTS: usize = 2048;
