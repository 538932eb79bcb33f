use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use base_mlx_core::engine::GenerateRequest;
use base_mlx_core::text::{AddSpecial, ChatInput, Opening, TemplateError};
use serde_json::Value;

use crate::App;
use crate::dialects::chat::Chat;
use crate::dialects::{Dialect, Header};
use crate::error::ApiError;
use crate::events::{joined, opened};
use crate::models::{Model, blocking};
use crate::request::{
    Conversation, JsonObject, KeepAlive, Known, Parameters, in_range, max_tokens, refuse,
};
use crate::routes::{check_length, draft_name, in_background, respond};
use crate::running::Running;

/// `POST /v1/chat/completions`
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    mut running: Running,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let chat = ChatRequest::parse(&body)?;
    let background = in_background(&headers, &body)?;
    let draft = draft_name(query.as_deref(), &chat.parameters.draft)?;
    let (model, called) = app.models.get(chat.parameters.model.as_deref(), &mut running).await?;
    if let Some(KeepAlive(after)) = chat.parameters.keep_alive {
        model.keep_for(after);
    }
    let draft = app.models.draft(draft, &model, &mut running).await?;
    let (parameters, choices) = (chat.parameters.clone(), chat.parameters.choices);
    let dialect = Chat {
        header: Header::new("chatcmpl-", called),
        choices,
        logprobs: chat.logprobs.is_some(),
        include_usage: parameters.include_usage,
        background,
    };
    let continues = chat.conversation.continues;
    let chat = Arc::new(chat);
    // Long conversations take long to render and to cut into tokens.
    let mut request = {
        let (model, chat) = (Arc::clone(&model), Arc::clone(&chat));
        blocking(move || chat.prepare(&model)).await??
    };
    (request.draft, request.background) = (draft, background);
    let generation = model.engine.generate(request);
    let generation = generation.map_err(|error| ApiError::generating(error, Chat::PROMPT))?;
    // An answer is a text of its own, unless it goes on with the last message.
    let tokenizer = &model.engine.text().tokenizer;
    let opening = if continues { Opening::default() } else { tokenizer.opening_after(&[]) };
    let events = opened(joined(vec![generation], choices, running), vec![opening; choices]);
    let place = async move |token| {
        blocking(move || chat.place(&model, token).ok().flatten()).await.ok().flatten()
    };
    respond(&app, &parameters, events, 1, dialect, place).await
}

struct ChatRequest {
    parameters: Parameters,
    conversation: Conversation,
    /// How many alternatives to report with each token.
    logprobs: Option<usize>,
}

impl ChatRequest {
    fn parse(body: &JsonObject) -> Result<Self, ApiError> {
        refuse(body, &[Known::EVERYWHERE, Known::OF_CHAT])?;
        check_response_format(body.get("response_format"))?;
        let mut parameters = Parameters::parse(body, 1)?;
        let fields = body.fields();
        let most = fields.whole("max_completion_tokens")?;
        let most = max_tokens("max_completion_tokens", most, 1)?;
        parameters.max_tokens = most.or(parameters.max_tokens);
        let top = in_range("top_logprobs", fields.whole("top_logprobs")?, 0..=20)?;
        let logprobs = match (fields.flag("logprobs")?.unwrap_or(false), top) {
            (true, top) => Some(top.unwrap_or(0) as usize),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                let message = "`top_logprobs` is only allowed with `logprobs: true`";
                return Err(ApiError::invalid("top_logprobs", message));
            }
        };
        Ok(Self { parameters, conversation: Conversation::parse(body)?, logprobs })
    }

    fn prepare(&self, model: &Model) -> Result<GenerateRequest, ApiError> {
        let prompt = self.conversation.render(self.template(model)?)?;
        // The template has put the special tokens where they belong.
        let tokens = model.engine.text().tokenizer.encode(&prompt, AddSpecial::No);
        if tokens.is_empty() {
            let message = "the model's chat template made an empty prompt of these messages";
            return Err(ApiError::invalid(Chat::PROMPT, message));
        }
        check_length(Chat::PROMPT, tokens.len(), model.engine.info().context)?;
        self.parameters.request(tokens, self.logprobs, &model.defaults())
    }

    /// What makes a text of messages.
    fn template(
        &self,
        model: &Model,
    ) -> Result<impl Fn(&Value, bool) -> Result<String, TemplateError>, ApiError> {
        let text = model.engine.text();
        let Some(template) = &text.template else {
            let problem = match &text.template_error {
                Some(error) => format!("this model's chat template is broken: {error}"),
                None => "this model has no chat template".to_owned(),
            };
            return Err(ApiError::ModelUnsuitable {
                message: format!("{problem}\nhint: it can complete texts with /v1/completions"),
            });
        };
        Ok(|messages: &Value, add_generation_prompt| {
            template.render(&ChatInput {
                messages,
                tools: None,
                add_generation_prompt,
                kwargs: &self.conversation.template_kwargs,
            })
        })
    }

    /// Which message the prompt's token of that number belongs to, for people: `system message`, `message 3, user`.
    fn place(&self, model: &Model, token: usize) -> Result<Option<String>, ApiError> {
        let template = self.template(model)?;
        let prompt = self.conversation.render(&template)?;
        let tokenizer = &model.engine.text().tokenizer;
        let before = tokenizer.encode(&prompt, AddSpecial::No).into_iter().take(token);
        let offset = before.map(|token| tokenizer.token_bytes(token).len()).sum();
        Ok(self.conversation.message_at(&prompt, offset, template))
    }
}

fn check_response_format(format: Option<&Value>) -> Result<(), ApiError> {
    match format {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(fields)) => match fields.get("type").and_then(Value::as_str) {
            Some("text") => Ok(()),
            Some(kind @ ("json_object" | "json_schema")) => Err(ApiError::unsupported(
                "response_format",
                format!("`response_format` of type `{kind}` is not supported"),
            )),
            _ => Err(ApiError::invalid(
                "response_format",
                "`response_format.type` is not one of `text`, `json_object`, `json_schema`",
            )),
        },
        Some(_) => Err(ApiError::invalid("response_format", "`response_format` is not an object")),
    }
}
