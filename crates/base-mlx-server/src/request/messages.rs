use std::collections::HashSet;
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::request::JsonObject;

/// The messages of a chat request, as templates want them: roles that templates know, contents that are strings.
#[derive(Debug)]
pub(crate) struct Conversation {
    messages: Messages,
    /// The answer goes on where the last message, the assistant's, ends.
    continues: bool,
    add_generation_prompt: bool,
    /// Variables for the template beside its usual ones.
    pub template_kwargs: Map<String, Value>,
}

type Messages = Vec<Map<String, Value>>;

#[derive(serde::Deserialize)]
struct Fields {
    #[serde(default)]
    messages: Vec<Message>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    chat_template_kwargs: Option<Map<String, Value>>,
}

#[derive(serde::Deserialize)]
struct Message {
    role: Role,
    content: Option<Content>,
    name: Option<String>,
    tool_calls: Option<Vec<ToolCall>>,
    function_call: Option<Function>,
    tool_call_id: Option<String>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    refusal: Option<String>,
}

#[derive(Clone, Copy, PartialEq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    /// What newer models call the system.
    Developer,
    System,
    User,
    Assistant,
    Tool,
    /// The tool of old.
    Function,
}

enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(serde::Deserialize)]
struct Part {
    r#type: String,
    text: Option<String>,
    refusal: Option<String>,
}

#[derive(serde::Deserialize)]
struct ToolCall {
    id: Option<String>,
    function: Function,
}

#[derive(serde::Deserialize)]
struct Function {
    name: String,
    #[serde(default)]
    arguments: Value,
}

impl Conversation {
    pub(crate) fn parse(body: &JsonObject) -> Result<Self, ApiError> {
        let fields: Fields = body.read()?;
        if fields.messages.is_empty() {
            return Err(ApiError::invalid(
                "messages",
                "`messages` is missing or empty, expected at least one message",
            ));
        }
        let continues = fields.continue_final_message.unwrap_or(false);
        if continues && fields.add_generation_prompt == Some(true) {
            return Err(ApiError::invalid(
                "add_generation_prompt",
                "`add_generation_prompt` and `continue_final_message` exclude each other",
            ));
        }
        let mut called = HashSet::new();
        let messages = fields
            .messages
            .into_iter()
            .enumerate()
            .map(|(index, message)| message.plain(&format!("messages[{index}]"), &mut called))
            .collect::<Result<Vec<_>, _>>()?;
        let last = &messages[messages.len() - 1];
        if continues && (last["role"] != "assistant" || last["content"] == "") {
            return Err(ApiError::invalid(
                "continue_final_message",
                "`continue_final_message` needs a last message of the assistant that has content",
            ));
        }
        Ok(Self {
            messages: lead_with_one_system_message(messages),
            continues,
            add_generation_prompt: fields.add_generation_prompt.unwrap_or(!continues),
            template_kwargs: fields.chat_template_kwargs.unwrap_or_default(),
        })
    }

    /// The prompt's text. `template` gets the messages and whether the assistant's turn is to be opened. Templates
    /// differ in what they bear, so those that fail get the same conversation in another spelling: arguments of
    /// tool calls as the strings they came as, and all system messages in front. The first error is reported.
    pub(crate) fn render<E: fmt::Display>(
        &self,
        template: impl Fn(&Value, bool) -> Result<String, E>,
    ) -> Result<String, ApiError> {
        let spellings: [fn(Messages) -> Messages; 4] = [
            |messages| messages,
            arguments_as_strings,
            system_messages_in_front,
            |messages| arguments_as_strings(system_messages_in_front(messages)),
        ];
        let mut tried: Vec<Value> = Vec::new();
        let mut failure = None;
        for spelling in spellings {
            let messages = spelling(self.messages.clone()).into_iter().map(Value::Object).collect();
            if tried.contains(&messages) {
                continue;
            }
            match template(&messages, self.add_generation_prompt) {
                Ok(text) => return self.cut(text),
                Err(error) => failure = failure.or(Some(error)),
            }
            tried.push(messages);
        }
        let error = failure.map(|error| error.to_string()).unwrap_or_default();
        Err(ApiError::invalid(
            "messages",
            format!("the model's chat template refuses these messages: {error}"),
        ))
    }

    /// Takes away what the template puts behind the message that the answer continues.
    fn cut(&self, mut text: String) -> Result<String, ApiError> {
        if !self.continues {
            return Ok(text);
        }
        let content = self.messages.last().and_then(|last| last["content"].as_str()).unwrap_or("");
        // Some templates trim what they are given.
        let end = [content, content.trim_end(), content.trim()]
            .into_iter()
            .filter(|content| !content.is_empty())
            .find_map(|content| text.rfind(content).map(|start| start + content.len()));
        let Some(end) = end else {
            return Err(ApiError::invalid(
                "continue_final_message",
                "the model's chat template changes the last message, so it cannot be continued",
            ));
        };
        text.truncate(end);
        Ok(text)
    }
}

impl Message {
    fn plain(self, at: &str, called: &mut HashSet<String>) -> Result<Map<String, Value>, ApiError> {
        let role = match self.role {
            Role::Developer | Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool | Role::Function => "tool",
        };
        let mut calls = self.tool_calls.unwrap_or_default();
        if let Some(function) = self.function_call {
            calls.push(ToolCall { id: None, function });
        }
        let reasoning = self.reasoning_content.or(self.reasoning);
        let may_lack_content = self.role == Role::Assistant
            && (!calls.is_empty() || reasoning.is_some() || self.refusal.is_some());
        let content = match self.content {
            Some(content) => content.text(&format!("{at}.content"))?,
            None if may_lack_content => self.refusal.unwrap_or_default(),
            None => {
                let param = format!("{at}.content");
                let message =
                    format!("`{param}` is missing, expected a string or an array of parts");
                return Err(ApiError::invalid(param, message));
            }
        };

        let mut message = Map::new();
        message.insert("role".into(), role.into());
        message.insert("content".into(), content.into());
        if let Some(name) = self.name {
            message.insert("name".into(), name.into());
        }
        if let Some(reasoning) = reasoning {
            message.insert("reasoning_content".into(), reasoning.into());
        }
        if self.role == Role::Tool {
            let param = format!("{at}.tool_call_id");
            let id = self.tool_call_id.ok_or_else(|| {
                ApiError::invalid(
                    &param,
                    format!("`{param}` is missing, a tool's message needs it"),
                )
            })?;
            if !called.contains(&id) {
                let text = format!("`{param}` is {id:?}, which no earlier message called");
                return Err(ApiError::invalid(param, text));
            }
            message.insert("tool_call_id".into(), id.into());
        }
        if self.role == Role::Function && !message.contains_key("name") {
            let param = format!("{at}.name");
            let text = format!("`{param}` is missing, a function's message needs it");
            return Err(ApiError::invalid(param, text));
        }
        if self.role == Role::Assistant && !calls.is_empty() {
            let calls = calls
                .into_iter()
                .enumerate()
                .map(|(index, call)| call.plain(&format!("{at}.tool_calls[{index}]"), called))
                .collect::<Result<Vec<_>, _>>()?;
            message.insert("tool_calls".into(), calls.into());
        }
        Ok(message)
    }
}

impl Content {
    /// Parts are laid end to end, with nothing between them.
    fn text(self, at: &str) -> Result<String, ApiError> {
        let parts = match self {
            Self::Text(text) => return Ok(text),
            Self::Parts(parts) => parts,
        };
        let mut whole = String::new();
        for (index, part) in parts.into_iter().enumerate() {
            let text = match part.r#type.as_str() {
                "text" => part.text,
                "refusal" => part.refusal,
                kind @ ("image_url" | "input_audio" | "file" | "video_url") => {
                    let param = format!("{at}[{index}].type");
                    let message =
                        format!("`{param}` is `{kind}`, but this model takes nothing but text");
                    return Err(ApiError::unsupported(param, message));
                }
                kind => {
                    let param = format!("{at}[{index}].type");
                    let message = format!("`{param}` is {kind:?}, expected `text`");
                    return Err(ApiError::invalid(param, message));
                }
            };
            let Some(text) = text else {
                let param = format!("{at}[{index}].{}", part.r#type);
                let message = format!("`{param}` is missing, expected a string");
                return Err(ApiError::invalid(param, message));
            };
            whole.push_str(&text);
        }
        Ok(whole)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrParts;
        impl<'de> Visitor<'de> for TextOrParts {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
            }
        }
        deserializer.deserialize_any(TextOrParts)
    }
}

impl ToolCall {
    fn plain(self, at: &str, called: &mut HashSet<String>) -> Result<Value, ApiError> {
        let id = self.id.unwrap_or_else(|| format!("call_{}", called.len()));
        let arguments = match self.function.arguments {
            // A template can write an object out; of text that is no object it gets the text.
            Value::String(text) if text.trim().is_empty() => json!({}),
            Value::String(text) => match serde_json::from_str::<Map<String, Value>>(&text) {
                Ok(object) => Value::Object(object),
                Err(_) => Value::String(text),
            },
            Value::Null => json!({}),
            Value::Object(object) => Value::Object(object),
            _ => {
                let param = format!("{at}.function.arguments");
                let message = format!("`{param}` is neither a string nor an object");
                return Err(ApiError::invalid(param, message));
            }
        };
        called.insert(id.clone());
        let function = json!({ "name": self.function.name, "arguments": arguments });
        Ok(json!({ "id": id, "type": "function", "function": function }))
    }
}

/// Several instructions in a row are one: most templates look at the first message only.
fn lead_with_one_system_message(messages: Messages) -> Messages {
    let leading = messages.iter().take_while(|message| message["role"] == "system").count();
    joined_system_messages(messages, |index| index < leading)
}

fn system_messages_in_front(messages: Messages) -> Messages {
    joined_system_messages(messages, |_| true)
}

fn joined_system_messages(messages: Messages, join: impl Fn(usize) -> bool) -> Messages {
    let mut first: Option<Map<String, Value>> = None;
    let mut others = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        if message["role"] != "system" || !join(index) {
            others.push(message);
        } else if let Some(first) = &mut first {
            let text = |message: &Map<String, Value>| {
                message["content"].as_str().unwrap_or_default().to_owned()
            };
            let joined = format!("{}\n\n{}", text(first), text(&message));
            first.insert("content".into(), joined.into());
        } else {
            first = Some(message);
        }
    }
    first.into_iter().chain(others).collect()
}

fn arguments_as_strings(mut messages: Messages) -> Messages {
    let calls = messages.iter_mut().filter_map(|message| message.get_mut("tool_calls"));
    for call in calls.filter_map(Value::as_array_mut).flatten() {
        let arguments = &mut call["function"]["arguments"];
        if arguments.is_object() {
            *arguments = Value::String(arguments.to_string());
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: Value) -> Result<Conversation, ApiError> {
        Conversation::parse(&JsonObject::parse(body.to_string().as_bytes()).unwrap())
    }

    fn messages(messages: Value) -> Value {
        json!(parse(json!({ "messages": messages })).unwrap().messages)
    }

    fn wrong(messages: Value) -> (String, Option<String>) {
        let error = parse(json!({ "messages": messages })).unwrap_err();
        assert_eq!(error.status(), 400);
        let error = &error.envelope()["error"];
        let text = |key: &str| error[key].as_str().map(str::to_owned);
        (text("param").unwrap(), text("code"))
    }

    #[test]
    fn point_26_contents_are_strings_parts_or_absent() {
        let parts = json!([{ "type": "text", "text": "a " }, { "type": "text", "text": "b" }]);
        assert_eq!(
            messages(json!([{ "role": "user", "content": parts }])),
            json!([{ "role": "user", "content": "a b" }])
        );
        assert_eq!(
            wrong(json!([{ "role": "user", "content": [{ "type": "wave" }] }])),
            ("messages[0].content[0].type".into(), None)
        );
        assert_eq!(
            wrong(json!([{ "role": "user", "content": [{ "type": "image_url" }] }])),
            ("messages[0].content[0].type".into(), Some("unsupported_parameter".into()))
        );
        assert_eq!(wrong(json!([{ "role": "user", "content": 5 }])).0, "messages[0].content");
        assert_eq!(wrong(json!([{ "role": "user", "content": null }])).0, "messages[0].content");
        assert_eq!(wrong(json!([{ "role": "user" }])).0, "messages[0].content");
        assert_eq!(wrong(json!([{ "content": "x" }])).0, "messages[0].role");
        assert_eq!(wrong(json!([{ "role": "king", "content": "x" }])).0, "messages[0].role");
        assert_eq!(wrong(json!([])).0, "messages");
        assert_eq!(
            wrong(json!([{ "role": "user", "content": [{ "type": "text", "text": 1 }] }])).0,
            "messages[0].content[0].text"
        );
    }

    #[test]
    fn point_27_tools_answer_calls_and_leading_system_messages_are_one() {
        let call = json!({ "role": "assistant", "content": null, "tool_calls":
            [{ "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{}" } }] });
        let answer = |id: &str| json!({ "role": "tool", "tool_call_id": id, "content": "x" });
        assert_eq!(messages(json!([call, answer("call_1")]))[1]["role"], "tool");
        assert_eq!(wrong(json!([call, answer("call_2")])).0, "messages[1].tool_call_id");
        assert_eq!(
            wrong(json!([call, { "role": "tool", "content": "x" }])).0,
            "messages[1].tool_call_id"
        );
        assert_eq!(
            messages(json!([
                { "role": "developer", "content": "a" },
                { "role": "system", "content": "b" },
                { "role": "user", "content": "c" },
                { "role": "system", "content": "d" },
            ])),
            json!([
                { "role": "system", "content": "a\n\nb" },
                { "role": "user", "content": "c" },
                { "role": "system", "content": "d" },
            ])
        );
    }

    #[test]
    fn point_28_arguments_become_objects_in_their_own_order() {
        let call = |arguments: &str| {
            let function = json!({ "name": "f", "arguments": arguments });
            let call = json!([{ "id": "c", "type": "function", "function": function }]);
            let messages = messages(json!([{ "role": "assistant", "tool_calls": call }]));
            messages[0]["tool_calls"][0]["function"]["arguments"].to_string()
        };
        assert_eq!(call(r#"{"z": 1, "a": [2]}"#), r#"{"z":1,"a":[2]}"#);
        assert_eq!(call(""), "{}");
        assert_eq!(call("{not json"), r#""{not json""#);
    }

    #[test]
    fn a_template_that_refuses_gets_another_spelling() {
        let conversation = parse(json!({ "messages": [
            { "role": "user", "content": "hi" },
            { "role": "system", "content": "be brief" },
        ]}))
        .unwrap();
        let strict = |messages: &Value, _| match messages[0]["role"].as_str() {
            Some("system") => Ok(messages.to_string()),
            _ => Err("the system must come first"),
        };
        assert!(conversation.render(strict).unwrap().starts_with(r#"[{"role":"system""#));
        let never = |_: &Value, _| Err::<String, _>("no");
        let error = conversation.render(never).unwrap_err();
        assert_eq!(error.status(), 400);
        assert!(error.to_string().ends_with(": no"));
    }

    #[test]
    fn point_30_the_last_message_is_continued_only_when_asked() {
        let template = |messages: &Value, open: bool| {
            let mut text = String::new();
            for message in messages.as_array().unwrap() {
                text += &format!("<{}>", message["content"].as_str().unwrap().trim());
            }
            Ok::<_, String>(text + if open { "<assistant" } else { "" })
        };
        let history =
            json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b " }]);
        let render = |body: Value| parse(body).unwrap().render(template).unwrap();
        assert_eq!(render(json!({ "messages": history })), "<a><b><assistant");
        assert_eq!(render(json!({ "messages": history, "continue_final_message": true })), "<a><b");
        let only_user = json!([{ "role": "user", "content": "a" }]);
        assert!(parse(json!({ "messages": only_user, "continue_final_message": true })).is_err());
    }
}
