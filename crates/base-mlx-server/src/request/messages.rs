use std::collections::HashSet;
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::ApiError;
use crate::request::JsonObject;

/// The messages of a chat request, checked. They go on as they came: putting them into the words of a template is
/// the template's affair.
#[derive(Debug)]
pub(crate) struct Conversation {
    messages: Value,
    /// The answer goes on where the last message, the assistant's, ends.
    pub continues: bool,
    add_generation_prompt: bool,
    /// Variables for the template beside its usual ones.
    pub template_kwargs: Map<String, Value>,
}

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
    /// There must be one; who writes it is not the server.
    #[serde(rename = "name")]
    _name: String,
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
        for (index, message) in fields.messages.iter().enumerate() {
            message.check(&format!("messages[{index}]"), &mut called)?;
        }
        if continues && !fields.messages.last().is_some_and(Message::can_be_continued) {
            return Err(ApiError::invalid(
                "continue_final_message",
                "`continue_final_message` needs a last message of the assistant that has content",
            ));
        }
        Ok(Self {
            messages: body.get("messages").cloned().unwrap_or_default(),
            continues,
            add_generation_prompt: fields.add_generation_prompt.unwrap_or(!continues),
            template_kwargs: fields.chat_template_kwargs.unwrap_or_default(),
        })
    }

    /// The prompt's text. `template` gets the messages and whether the assistant's turn is to be opened.
    pub(crate) fn render<E: fmt::Display>(
        &self,
        template: impl FnOnce(&Value, bool) -> Result<String, E>,
    ) -> Result<String, ApiError> {
        let render = |messages: &Value| {
            template(messages, self.add_generation_prompt)
                .map_err(|error| ApiError::invalid("messages", error.to_string()))
        };
        if !self.continues {
            return render(&self.messages);
        }
        let mut messages = self.messages.clone();
        mark_end(&mut messages);
        let mut text = render(&messages)?;
        let Some(end) = text.rfind(MARK) else {
            return Err(ApiError::invalid(
                "continue_final_message",
                "the model's chat template changes the last message, so it cannot be continued",
            ));
        };
        text.truncate(end);
        Ok(text)
    }
}

/// Shows where the last message ends, whatever the template puts behind it.
fn mark_end(messages: &mut Value) {
    let last = messages.as_array_mut().and_then(|messages| messages.last_mut());
    let content = last.and_then(|last| last.get_mut("content"));
    let text = match content {
        Some(Value::Array(parts)) => parts.last_mut().and_then(|part| {
            let key = if part["type"] == "refusal" { "refusal" } else { "text" };
            part.get_mut(key)
        }),
        content => content,
    };
    if let Some(Value::String(text)) = text {
        text.push_str(MARK);
    }
}

impl Message {
    /// `called` holds the ids of all calls before.
    fn check(&self, at: &str, called: &mut HashSet<String>) -> Result<(), ApiError> {
        let assistant = self.role == Role::Assistant;
        let calls = self.tool_calls.as_deref().unwrap_or_default();
        let may_lack_content = assistant
            && (!calls.is_empty()
                || self.function_call.is_some()
                || self.reasoning_content.is_some()
                || self.reasoning.is_some()
                || self.refusal.is_some());
        match &self.content {
            Some(content) => content.check(&format!("{at}.content"))?,
            None if may_lack_content => {}
            None => {
                let param = format!("{at}.content");
                let message =
                    format!("`{param}` is missing, expected a string or an array of parts");
                return Err(ApiError::invalid(param, message));
            }
        }
        if self.role == Role::Tool {
            let param = format!("{at}.tool_call_id");
            let Some(id) = &self.tool_call_id else {
                let text = format!("`{param}` is missing, a tool's message needs it");
                return Err(ApiError::invalid(param, text));
            };
            if !called.contains(id) {
                let text = format!("`{param}` is {id:?}, which no earlier message called");
                return Err(ApiError::invalid(param, text));
            }
        }
        if self.role == Role::Function && self.name.is_none() {
            let param = format!("{at}.name");
            let text = format!("`{param}` is missing, a function's message needs it");
            return Err(ApiError::invalid(param, text));
        }
        if let Some(function) = &self.function_call {
            function.check(&format!("{at}.function_call"))?;
        }
        for (index, call) in calls.iter().enumerate() {
            call.function.check(&format!("{at}.tool_calls[{index}].function"))?;
            called.extend(call.id.clone().filter(|_| assistant));
        }
        Ok(())
    }

    fn can_be_continued(&self) -> bool {
        let has_content = match &self.content {
            Some(Content::Text(text)) => !text.is_empty(),
            Some(Content::Parts(parts)) => !parts.is_empty(),
            None => false,
        };
        self.role == Role::Assistant && has_content
    }
}

impl Content {
    fn check(&self, at: &str) -> Result<(), ApiError> {
        let Self::Parts(parts) = self else { return Ok(()) };
        for (index, part) in parts.iter().enumerate() {
            let text = match part.r#type.as_str() {
                "text" => &part.text,
                "refusal" => &part.refusal,
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
            if text.is_none() {
                let param = format!("{at}[{index}].{}", part.r#type);
                let message = format!("`{param}` is missing, expected a string");
                return Err(ApiError::invalid(param, message));
            }
        }
        Ok(())
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

impl Function {
    fn check(&self, at: &str) -> Result<(), ApiError> {
        match self.arguments {
            Value::String(_) | Value::Object(_) | Value::Null => Ok(()),
            _ => {
                let param = format!("{at}.arguments");
                let message = format!("`{param}` is neither a string nor an object");
                Err(ApiError::invalid(param, message))
            }
        }
    }
}

/// A private character of Unicode's last plane, in which no template says anything.
const MARK: &str = "\u{10fffd}";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(body: Value) -> Result<Conversation, ApiError> {
        Conversation::parse(&JsonObject::parse(body.to_string().as_bytes()).unwrap())
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
        assert!(parse(json!({ "messages": [{ "role": "user", "content": parts }] })).is_ok());
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
    fn point_27_tools_answer_earlier_calls() {
        let call = json!({ "role": "assistant", "content": null, "tool_calls":
            [{ "id": "call_1", "type": "function", "function": { "name": "f", "arguments": "{}" } }] });
        let answer = |id: &str| json!({ "role": "tool", "tool_call_id": id, "content": "x" });
        assert!(parse(json!({ "messages": [call, answer("call_1")] })).is_ok());
        assert_eq!(wrong(json!([answer("call_1"), call])).0, "messages[0].tool_call_id");
        assert_eq!(wrong(json!([call, answer("call_2")])).0, "messages[1].tool_call_id");
        assert_eq!(
            wrong(json!([call, { "role": "tool", "content": "x" }])).0,
            "messages[1].tool_call_id"
        );
        assert_eq!(wrong(json!([{ "role": "function", "content": "x" }])).0, "messages[0].name");
    }

    #[test]
    fn point_28_arguments_are_texts_or_objects() {
        let call = |arguments: Value| {
            let function = json!({ "name": "f", "arguments": arguments });
            json!([{ "role": "assistant", "tool_calls": [{ "id": "c", "function": function }] }])
        };
        for arguments in [json!("{}"), json!(""), json!("{not json"), json!({}), json!(null)] {
            assert!(parse(json!({ "messages": call(arguments) })).is_ok());
        }
        assert_eq!(wrong(call(json!(5))).0, "messages[0].tool_calls[0].function.arguments");
        let old =
            json!([{ "role": "assistant", "function_call": { "name": "f", "arguments": [] } }]);
        assert_eq!(wrong(old).0, "messages[0].function_call.arguments");
    }

    #[test]
    fn what_the_template_refuses_is_told() {
        let body = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        let error = parse(body).unwrap().render(|_, _| Err::<String, _>("never")).unwrap_err();
        assert_eq!(error.status(), 400);
        assert_eq!(error.to_string(), "never");
    }

    /// As many models have it.
    fn template(messages: &Value, open: bool) -> Result<String, String> {
        let mut text = String::new();
        for message in messages.as_array().unwrap() {
            let content = match &message["content"] {
                Value::Array(parts) => {
                    parts.iter().filter_map(|part| part["text"].as_str()).collect()
                }
                content => content.as_str().unwrap().to_owned(),
            };
            text += &format!("<|im_start|>{}<|im_end|>", content.trim());
        }
        Ok(text + if open { "<|im_start|>" } else { "" })
    }

    #[test]
    fn point_30_the_last_message_is_continued_only_when_asked() {
        let history = |content: Value| json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": content }]);
        let render = |body: Value| parse(body).unwrap().render(template).unwrap();
        let asked = render(json!({ "messages": history(json!("b ")) }));
        assert_eq!(asked, "<|im_start|>a<|im_end|><|im_start|>b<|im_end|><|im_start|>");
        let parts = json!([{ "type": "text", "text": "b" }, { "type": "text", "text": "c" }]);
        for (content, end) in [
            (json!("b "), "b "),
            // What also stands behind the message.
            (json!("i"), "i"),
            (json!("<"), "<"),
            (json!(" "), ""),
            (parts, "bc"),
        ] {
            let body = json!({ "messages": history(content), "continue_final_message": true });
            assert_eq!(render(body), format!("<|im_start|>a<|im_end|><|im_start|>{end}"));
        }
        let user = json!([{ "role": "user", "content": "a" }]);
        for messages in [user, history(json!("")), history(json!([]))] {
            let body = json!({ "messages": messages, "continue_final_message": true });
            assert!(parse(body).is_err());
        }
    }

    #[test]
    fn a_message_that_the_template_leaves_out_cannot_be_continued() {
        let body = json!({
            "messages": [{ "role": "assistant", "content": "a" }],
            "continue_final_message": true,
        });
        let silent = |_: &Value, _| Ok::<_, String>("<|im_start|>".to_owned());
        let error = parse(body).unwrap().render(silent).unwrap_err();
        assert_eq!(error.envelope()["error"]["param"], "continue_final_message");
    }
}
