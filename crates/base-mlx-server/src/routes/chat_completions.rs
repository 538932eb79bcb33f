use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use base_mlx_core::engine::{GenerateRequest, Thinking};
use base_mlx_core::text::output::{OutputFormat, Rule, Wanted};
use base_mlx_core::text::{AddSpecial, ChatInput, ChatTemplate, Opening, TemplateError};
use serde_json::Value;

use crate::App;
use crate::dialects::chat::Chat;
use crate::dialects::{Dialect, Header};
use crate::error::ApiError;
use crate::events::{joined, opened};
use crate::model::Writer;
use crate::models::blocking;
use crate::request::{
    Conversation, JsonObject, Known, Parameters, Reasoning, Thoughts, Tools, content_rule,
    in_range, in_words, max_tokens, refuse,
};
use crate::routes::{check_length, draft_name, in_background, respond, warnings};
use crate::running::Running;

/// `POST /v1/chat/completions`
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    mut running: Running,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let mut chat = ChatRequest::parse(&body)?;
    let background = in_background(&headers, &body)?;
    let draft = draft_name(query.as_deref(), &chat.parameters.draft)?;
    let (name, keep_alive) = (chat.parameters.model.as_deref(), chat.parameters.keep_alive);
    let model = app.models.writer(name, keep_alive, &mut running).await?;
    if let Some(system) = &model.preset.system {
        chat.conversation.open_with(system);
    }
    let draft = app.models.draft(draft, &model, &mut running).await?;
    let (parameters, choices) = (chat.parameters.clone(), chat.parameters.choices);
    let dialect = Chat {
        header: Header::new("chatcmpl-", model.called.clone()),
        choices,
        logprobs: chat.logprobs.is_some(),
        include_usage: parameters.include_usage,
        background,
        reasoning: app.options.reasoning_field,
        named: chat.tools.named,
        calls: chat.tools.calls_as,
    };
    // An answer is a text of its own, unless it goes on with the last message. What is held to something has no space
    // but what that says.
    let is_own = !chat.conversation.continues && !chat.is_held();
    let chat = Arc::new(chat);
    // Long conversations take long to render and to cut into tokens.
    let mut request = {
        let (model, chat) = (Arc::clone(&model), Arc::clone(&chat));
        blocking(move || chat.prepare(&model)).await??
    };
    (request.draft, request.background) = (draft, background);
    let left_out = request.constraint.as_ref().map(|constraint| constraint.warnings().to_vec());
    let generation = model.engine.generate(request);
    let generation = generation.map_err(|error| ApiError::generating(error, Chat::PROMPT))?;
    let tokenizer = &model.engine.text().tokenizer;
    let opening = if is_own { tokenizer.opening_after(&[]) } else { Opening::default() };
    let events = opened(joined(vec![generation], choices, running), vec![opening; choices]);
    let place = async move |token| {
        blocking(move || chat.place(&model, token).ok().flatten()).await.ok().flatten()
    };
    let mut response = respond(&app, &parameters, events, 1, dialect, place).await?;
    warnings::tell(&mut response, &left_out.unwrap_or_default());
    Ok(response)
}

struct ChatRequest {
    parameters: Parameters,
    conversation: Conversation,
    tools: Tools,
    /// What the answer's visible text is held to.
    content: Option<(String, Rule)>,
    reasoning: Reasoning,
    /// How many alternatives to report with each token.
    logprobs: Option<usize>,
}

impl ChatRequest {
    fn parse(body: &JsonObject) -> Result<Self, ApiError> {
        refuse(body, &[Known::EVERYWHERE, Known::OF_CHAT])?;
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
        Ok(Self {
            parameters,
            conversation: Conversation::parse(body)?,
            tools: Tools::parse(body)?,
            content: content_rule(body)?,
            reasoning: Reasoning::parse(body)?,
            logprobs,
        })
    }

    fn prepare(&self, model: &Writer) -> Result<GenerateRequest, ApiError> {
        let text = model.engine.text();
        let template = self.template(model)?;
        let prompt = self.conversation.render(|messages, open| template.render(messages, open))?;
        // The template has put the special tokens where they belong.
        let tokens = text.tokenizer.encode(&prompt, AddSpecial::No);
        if tokens.is_empty() {
            let message = "the model's chat template made an empty prompt of these messages";
            return Err(ApiError::invalid(Chat::PROMPT, message));
        }
        check_length(Chat::PROMPT, tokens.len(), model.engine.info().context)?;
        let defaults = model.defaults();
        let mut request = self.parameters.request(tokens, self.logprobs, &defaults)?;
        let continues_thoughts = || {
            let last = self.conversation.continued();
            last.is_some_and(|last| {
                prompt.ends_with(last.trim_start()) && text.output.is_within_thoughts(&last)
            })
        };
        let shape = text.output.shape(&Wanted {
            calls: self.tools.calls.clone(),
            content: self.content.clone(),
            opened: text.output.opens_thoughts(&prompt) || continues_thoughts(),
            // Thoughts in an answer that is free cannot be ruled out, so they must be known for what they are.
            may_think: template.thoughts.may_think || !self.is_held(),
        });
        request.output = shape.parser;
        let budget = template.thoughts.tokens.zip(shape.closes_thoughts);
        request.thinking = budget.map(|(tokens, close)| Thinking { tokens, close });
        let constraint = shape.grammar.map(|grammar| model.engine.compile(&grammar));
        request.constraint = constraint.transpose().map_err(ApiError::grammar)?;
        Ok(request)
    }

    /// Whether the answer must be something that not every text is.
    fn is_held(&self) -> bool {
        self.content.is_some() || self.tools.calls.required
    }

    fn template<'a>(&'a self, model: &'a Writer) -> Result<Template<'a>, ApiError> {
        let text = model.engine.text();
        let Some(template) = &text.template else {
            let problem = match &text.template_error {
                Some(error) => format!("this model's chat template is broken: {error}"),
                None if model.foreign_template => {
                    "this model's GGUF file has no chat template (`tokenizer.chat_template`), and Ollama's own, \
                     which is written in another language, is not read"
                        .to_owned()
                }
                None => "this model has no chat template".to_owned(),
            };
            return Err(ApiError::ModelUnsuitable {
                message: format!("{problem}\nhint: it can complete texts with /v1/completions"),
            });
        };
        let kwargs = &self.conversation.template_kwargs;
        let thoughts = self.reasoning.thoughts(|words| template.mentions(words), kwargs);
        let tools = self.tools.shown.as_ref();
        let content = self.content.as_ref().map(|(_, rule)| rule);
        let output = text.output.beside(content, &self.tools.calls);
        Ok(Template { template, tools, output, thoughts })
    }

    /// Which message the prompt's token of that number belongs to, for people: `system message`, `message 3, user`.
    fn place(&self, model: &Writer, token: usize) -> Result<Option<String>, ApiError> {
        let template = self.template(model)?;
        let render = |messages: &Value, open| template.render(messages, open);
        let prompt = self.conversation.render(render)?;
        let tokenizer = &model.engine.text().tokenizer;
        let before = tokenizer.encode(&prompt, AddSpecial::No).into_iter().take(token);
        let offset = before.map(|token| tokenizer.token_bytes(token).len()).sum();
        Ok(self.conversation.message_at(&prompt, offset, render))
    }
}

/// What makes a text of messages, for one request.
struct Template<'a> {
    template: &'a ChatTemplate,
    tools: Option<&'a Value>,
    /// How calls are written where it has no place for them.
    output: OutputFormat,
    thoughts: Thoughts,
}

impl Template<'_> {
    fn render(
        &self,
        messages: &Value,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut told = None;
        if !self.template.shows_calls(self.tools.is_some()) {
            told = Some(in_words::history(messages, &self.output));
        }
        if let Some(tools) = self.tools.filter(|_| !self.template.shows_tools()) {
            let messages = told.unwrap_or_else(|| messages.clone());
            told = Some(in_words::with_tools(messages, tools, &self.output));
        }
        self.template.render(&ChatInput {
            messages: told.as_ref().unwrap_or(messages),
            tools: self.tools,
            add_generation_prompt,
            kwargs: &self.thoughts.kwargs,
        })
    }
}
