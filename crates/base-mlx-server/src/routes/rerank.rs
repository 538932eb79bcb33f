use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use base_mlx_core::engine::{Encodable, Encoder, Purpose};
use serde::Serialize;

use crate::App;
use crate::error::ApiError;
use crate::models::blocking;
use crate::request::{Field, JsonObject, KeepAlive, Known, in_range, refuse};
use crate::routes::{TextUsage, json};
use crate::running::Running;

/// `POST /v1/rerank`, as Jina and Cohere have it: which documents answer a query best.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    mut running: Running,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let request = Arc::new(RerankRequest::parse(&body)?);
    let (name, keep_alive) = (request.model.as_deref(), request.keep_alive);
    let encoder = app.models.encoder(name, Purpose::Rank, keep_alive, &mut running);
    let (encoder, model) = encoder.await?;
    // The place is held until the work is done, even if the client has gone.
    let (running, pairs) = {
        let (encoder, request) = (encoder.clone(), Arc::clone(&request));
        blocking(move || (running, request.pairs(&encoder))).await?
    };
    let pairs = pairs?;
    let usage = TextUsage::of(&pairs);
    let scores = tokio::select! {
        scores = encoder.encode(pairs) => scores,
        () = running.stopped() => return Err(ApiError::ShuttingDown),
    };
    let scores = scores.map_err(|error| ApiError::encoding(error, DOCUMENTS))?;
    let mut results: Vec<Ranked> = scores
        .iter()
        .enumerate()
        .map(|(index, score)| Ranked {
            index,
            relevance_score: sigmoid(score[0]),
            document: request.returns.then(|| Document { text: request.documents[index].clone() }),
        })
        .collect();
    // By what tells the best apart where relevance comes to 1. Equals stay in their order.
    results.sort_by(|a, b| scores[b.index][0].total_cmp(&scores[a.index][0]));
    results.truncate(request.top_n);
    let id = format!("rerank-{}", uuid::Uuid::now_v7().simple());
    let answer = Ranking { id, object: "list", model, results, usage };
    let written = serde_json::to_string(&answer);
    Ok(json(written.map_err(|error| ApiError::internal(error.to_string()))?))
}

struct RerankRequest {
    model: Option<String>,
    keep_alive: Option<KeepAlive>,
    query: String,
    documents: Vec<String>,
    /// How many of them are given out.
    top_n: usize,
    /// Whether their texts are.
    returns: bool,
}

impl RerankRequest {
    fn parse(body: &JsonObject) -> Result<Self, ApiError> {
        refuse(body, &[Known::OF_RERANK])?;
        let fields = body.fields();
        let query = fields.need("query", "a string")?.text()?.to_owned();
        if query.is_empty() {
            return Err(ApiError::invalid("query", "`query` is empty"));
        }
        let expected = "an array of strings or of objects with a `text`";
        let documents = fields.need(DOCUMENTS, expected)?.list()?;
        let wrong = |message: String| Err(ApiError::invalid(DOCUMENTS, message));
        match documents.len() {
            0 => return wrong(format!("`{DOCUMENTS}` is an empty array")),
            1..=MOST_DOCUMENTS => {}
            count => {
                return wrong(format!(
                    "`{DOCUMENTS}` has {count} documents, at most {MOST_DOCUMENTS} are taken"
                ));
            }
        }
        let documents = documents.iter().map(document).collect::<Result<Vec<_>, _>>()?;
        let top_n = in_range("top_n", fields.whole("top_n")?, 1..=i64::MAX)?;
        Ok(Self {
            model: fields.text("model")?.map(str::to_owned),
            keep_alive: KeepAlive::parse(&fields)?,
            query,
            top_n: top_n.map_or(documents.len(), |top_n| top_n as usize),
            documents,
            returns: fields.flag("return_documents")?.unwrap_or(false),
        })
    }

    fn pairs(&self, encoder: &Encoder) -> Result<Vec<Encodable>, ApiError> {
        encoder.pairs(&self.query, &self.documents).ok_or_else(|| {
            let longest = encoder.info().longest;
            let message =
                format!("`query` leaves no room for a document in the model's {longest} tokens");
            ApiError::invalid("query", message)
        })
    }
}

fn document(field: &Field) -> Result<String, ApiError> {
    if field.value().is_object() {
        let text = field.object()?.need("text", "a string")?.text()?;
        return Ok(text.to_owned());
    }
    Ok(field.text()?.to_owned())
}

/// Models are trained to give the logarithm of the odds.
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

#[derive(Serialize)]
struct Ranking {
    id: String,
    object: &'static str,
    model: String,
    results: Vec<Ranked>,
    usage: TextUsage,
}

#[derive(Serialize)]
struct Ranked {
    index: usize,
    relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document>,
}

#[derive(Serialize)]
struct Document {
    text: String,
}

const DOCUMENTS: &str = "documents";
const MOST_DOCUMENTS: usize = 2048;
