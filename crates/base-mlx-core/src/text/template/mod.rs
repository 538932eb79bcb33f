//! Chat templates: messages in, the prompt's text out, byte for byte as Jinja2 in Python would write it.
//!
//! A template comes with the model and is foreign code. It gets no files, no network and no clock but the one
//! handed in, and a budget of work and output that grows with the conversation only.

mod environment;
mod messages;
mod namespace;
mod probe;
mod python_json;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::{Map, Value};

use environment::Budget;
pub use environment::Clock;
use messages::Arguments;
use probe::{Capabilities, ToolsPlace};

/// A model's chat template, compiled. Immutable and cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    environment: Environment<'static>,
    /// As the model has them; those in `environment` were adapted to it.
    sources: BTreeMap<String, String>,
    /// Template names, each with what it can take.
    templates: BTreeMap<String, Capabilities>,
    special_tokens: SpecialTokens,
}

/// `bos_token`, `eos_token` and so on: their texts, by the names that templates use.
pub type SpecialTokens = BTreeMap<String, String>;

/// What a template is given to write a prompt from.
#[derive(Clone, Copy, Debug)]
pub struct ChatInput<'a> {
    /// A list of messages in the words of the chat completions API.
    pub messages: &'a Value,
    /// A list of tools in the same words.
    pub tools: Option<&'a Value>,
    /// End where the assistant's next answer begins.
    pub add_generation_prompt: bool,
    /// Further variables of the template, `enable_thinking` for example.
    pub kwargs: &'a Map<String, Value>,
}

/// Why a template wrote no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template itself refuses these messages, in its own words.
    #[error("the chat template refuses the messages: {0}")]
    Refused(String),
    #[error("the chat template takes too much work or writes too much text")]
    TooMuch,
    /// It is broken, or the messages lack what it takes for granted.
    #[error("the chat template failed: {0}")]
    Failed(String),
}

impl ChatTemplate {
    /// Compiles templates given by name: `default`, and `tool_use` if there is one for requests with tools.
    pub fn compile(
        sources: BTreeMap<String, String>,
        special_tokens: SpecialTokens,
        clock: Clock,
    ) -> Result<Self, TemplateError> {
        environment::on_a_deep_stack(|| {
            let environment = environment::compile(&sources, clock)?;
            let templates = BTreeMap::new();
            let mut inner = Inner { environment, sources, templates, special_tokens };
            let names: Vec<_> = inner.sources.keys().cloned().collect();
            for name in names {
                let capabilities = Capabilities::probe(&inner, &name);
                inner.templates.insert(name, capabilities);
            }
            Ok(Self { inner: Arc::new(inner) })
        })
    }

    /// The prompt for these messages, which may say things in ways that the template does not know: they are
    /// put into its ways first, without loss.
    pub fn render(&self, input: &ChatInput) -> Result<String, TemplateError> {
        let (name, capabilities) = self.choose(input)?;
        let prepare = |arguments| {
            let messages = messages::prepare(input.messages, input.tools, capabilities, arguments);
            self.inner.render(name, &ChatInput { messages: &messages, ..*input })
        };
        environment::on_a_deep_stack(|| match prepare(capabilities.arguments) {
            // A call whose arguments are of an unforeseen shape may still be written as the string it came as.
            Err(error @ TemplateError::Failed(_))
                if capabilities.arguments == Arguments::Object =>
            {
                prepare(Arguments::String).map_err(|_| error)
            }
            result => result,
        })
    }

    /// The template's answer to exactly these messages, nothing adapted.
    pub fn render_unchanged(&self, input: &ChatInput) -> Result<String, TemplateError> {
        let (name, _) = self.choose(input)?;
        environment::on_a_deep_stack(|| self.inner.render(name, input))
    }

    /// The template for requests without tools, in its own language.
    pub fn source(&self) -> String {
        let sources = &self.inner.sources;
        let source = sources.get("default").or_else(|| sources.values().next());
        source.cloned().unwrap_or_default()
    }

    /// Whether any of the templates has these words in it, as they are and not as a part of others. What a template does
    /// not mention it cannot do.
    pub fn mentions(&self, words: &str) -> bool {
        let is_word =
            |next: Option<char>| next.is_some_and(|next| next.is_alphanumeric() || next == '_');
        self.inner.sources.values().any(|source| {
            source.match_indices(words).any(|(at, _)| {
                let (before, behind) = (&source[..at], &source[at + words.len()..]);
                !is_word(before.chars().next_back()) && !is_word(behind.chars().next())
            })
        })
    }

    /// Whether tools that it is given come to the model.
    pub fn shows_tools(&self) -> bool {
        self.chosen(true).is_some_and(|can| can.tools != ToolsPlace::Nowhere)
    }

    /// Whether calls of before come to the model, in a conversation with tools or without.
    pub fn shows_calls(&self, with_tools: bool) -> bool {
        self.chosen(with_tools).is_some_and(|can| can.calls)
    }

    /// All templates, one after another.
    pub(super) fn sources(&self) -> String {
        self.inner.sources.values().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// None if there are no sources.
    pub(super) fn load(
        sources: BTreeMap<String, String>,
        special_tokens: SpecialTokens,
    ) -> Result<Option<Self>, TemplateError> {
        if sources.is_empty() {
            return Ok(None);
        }
        Self::compile(sources, special_tokens, environment::wall_clock()).map(Some)
    }

    fn choose(&self, input: &ChatInput) -> Result<(&str, &Capabilities), TemplateError> {
        self.named(input.tools.is_some())
            .ok_or_else(|| TemplateError::Failed("there is none".to_owned()))
    }

    fn chosen(&self, with_tools: bool) -> Option<&Capabilities> {
        self.named(with_tools).map(|(_, capabilities)| capabilities)
    }

    fn named(&self, with_tools: bool) -> Option<(&str, &Capabilities)> {
        let templates = &self.inner.templates;
        let tool_use = templates.get_key_value("tool_use").filter(|_| with_tools);
        let chosen = tool_use
            .or_else(|| templates.get_key_value("default"))
            .or_else(|| templates.first_key_value())?;
        Some((chosen.0.as_str(), chosen.1))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("templates", &self.inner.templates).finish()
    }
}

impl Inner {
    fn render(&self, name: &str, input: &ChatInput) -> Result<String, TemplateError> {
        // Python's callers give `tools` and `documents` always, so templates may ask whether they are `none`.
        let mut context = Map::new();
        context.insert("documents".to_owned(), Value::Null);
        for (key, token) in &self.special_tokens {
            context.insert(key.clone(), Value::String(token.clone()));
        }
        context.extend(input.kwargs.clone());
        context.insert("messages".to_owned(), input.messages.clone());
        context.insert("tools".to_owned(), input.tools.cloned().unwrap_or_default());
        context.insert("add_generation_prompt".to_owned(), input.add_generation_prompt.into());
        let context = Value::Object(context);

        let budget = Budget::of(&context);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(budget.fuel));
        let template = environment.get_template(name).map_err(environment::explain)?;
        let mut output = budget.output();
        let rendered = template.render_captured_to(Serde(&context), &mut output);
        output.finish(rendered.map(drop))
    }
}
