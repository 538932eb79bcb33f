use std::collections::HashSet;
use std::fmt;

use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::request::{Field, JsonObject, Object};

/// The messages of a chat request, checked. They go on as they came: putting them into the words of a template is
/// the template's affair.
#[derive(Debug)]
pub(crate) struct Conversation {
    messages: Value,
    /// Whether the first message is the model's own, not the client's.
    opened: bool,
    /// The answer goes on where the last message, the assistant's, ends.
    pub continues: bool,
    add_generation_prompt: bool,
    /// Variables for the template beside its usual ones.
    pub template_kwargs: Map<String, Value>,
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    System,
    User,
    Assistant,
    Tool,
    /// The tool of old.
    Function,
}

impl Conversation {
    pub(crate) fn parse(body: &JsonObject) -> Result<Self, ApiError> {
        let fields = body.fields();
        let messages = fields.list("messages")?.unwrap_or_default();
        if messages.is_empty() {
            return Err(ApiError::invalid(
                "messages",
                "`messages` is missing or empty, expected at least one message",
            ));
        }
        let add_generation_prompt = fields.flag("add_generation_prompt")?;
        let continues = fields.flag("continue_final_message")?.unwrap_or(false);
        if continues && add_generation_prompt == Some(true) {
            return Err(ApiError::invalid(
                "add_generation_prompt",
                "`add_generation_prompt` and `continue_final_message` exclude each other",
            ));
        }
        let mut called = HashSet::new();
        let mut can_be_continued = false;
        for message in messages {
            let (role, has_content) = check(&message.object()?, &mut called)?;
            can_be_continued = role == Role::Assistant && has_content;
        }
        if continues && !can_be_continued {
            return Err(ApiError::invalid(
                "continue_final_message",
                "`continue_final_message` needs a last message of the assistant that has content",
            ));
        }
        let template_kwargs = fields.object("chat_template_kwargs")?;
        Ok(Self {
            messages: body.get("messages").cloned().unwrap_or_default(),
            opened: false,
            continues,
            add_generation_prompt: add_generation_prompt.unwrap_or(!continues),
            template_kwargs: template_kwargs.map(|kwargs| kwargs.to_map()).unwrap_or_default(),
        })
    }

    /// Begins with this system message, unless the client has one.
    pub(crate) fn open_with(&mut self, system: &str) {
        let Some(messages) = self.messages.as_array_mut() else { return };
        let is_system = |message: &Value| {
            message["role"].as_str().is_some_and(|role| ["system", "developer"].contains(&role))
        };
        if !messages.iter().any(is_system) {
            messages.insert(0, json!({ "role": "system", "content": system }));
            self.opened = true;
        }
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

    /// The text that the answer goes on with.
    pub(crate) fn continued(&self) -> Option<String> {
        let last = self.messages.as_array().filter(|_| self.continues)?.last()?;
        match &last["content"] {
            Value::String(text) => Some(text.clone()),
            Value::Array(parts) => parts.last()?["text"].as_str().map(str::to_owned),
            _ => None,
        }
    }

    /// The message that the byte of that number belongs to in `prompt`, the text of all of them: the first one without which
    /// a text of the messages before it would end there. `None` behind the last.
    pub(crate) fn message_at<E>(
        &self,
        prompt: &str,
        offset: usize,
        template: impl Fn(&Value, bool) -> Result<String, E>,
    ) -> Option<String> {
        let messages = self.messages.as_array()?;
        // Templates that refuse a conversation which ends so say nothing about where it does.
        let end = |count: usize| {
            let text = template(&Value::Array(messages[..count].to_vec()), false).ok()?;
            Some(text.bytes().zip(prompt.bytes()).take_while(|(a, b)| a == b).count())
        };
        let counts: Vec<usize> = (1..=messages.len()).collect();
        let ends_before = |&count: &usize| end(count).is_none_or(|end| end <= offset);
        let number = *counts.get(counts.partition_point(ends_before))?;
        let role = messages[number - 1].get("role")?.as_str()?;
        Some(match number - usize::from(self.opened) {
            0 => "the model's own system message".to_owned(),
            1 if role == "system" => "system message".to_owned(),
            number => format!("message {number}, {role}"),
        })
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

/// A message's role, and whether it has content that is not empty. `called` holds the ids of all calls before.
fn check<'a>(
    message: &Object<'a>,
    called: &mut HashSet<&'a str>,
) -> Result<(Role, bool), ApiError> {
    let role = Role::parse(&message.need("role", ROLES)?)?;
    let calls = message.list("tool_calls")?.unwrap_or_default();
    let ids = calls.iter().map(check_call).collect::<Result<Vec<_>, _>>()?;
    let old_call = message.object("function_call")?;
    old_call.as_ref().map(check_function).transpose()?;
    let mut says_more = !calls.is_empty() || old_call.is_some();
    for key in ["reasoning_content", "reasoning", "refusal"] {
        says_more |= message.text(key)?.is_some();
    }
    let has_content = match message.get("content") {
        None if role == Role::Assistant && says_more => false,
        None => return Err(message.missing("content", "a string or an array of parts")),
        Some(content) => check_content(&content)?,
    };
    let (name, id) = (message.text("name")?, message.text("tool_call_id")?);
    match (role, name, id) {
        (Role::Tool, _, Some(id)) if !called.contains(id) => {
            let param = message.path_of("tool_call_id");
            let text = format!("`{param}` is {id:?}, which no earlier message called");
            return Err(ApiError::invalid(param, text));
        }
        (Role::Tool, _, None) => {
            return Err(message.missing("tool_call_id", "the id of the call that it answers"));
        }
        (Role::Function, None, _) => {
            return Err(message.missing("name", "the name of the function that it answers for"));
        }
        (Role::Assistant, ..) => called.extend(ids.into_iter().flatten()),
        _ => {}
    }
    Ok((role, has_content))
}

impl Role {
    fn parse(role: &Field) -> Result<Self, ApiError> {
        match role.text()? {
            // What newer models call the system.
            "developer" | "system" => Ok(Self::System),
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            "tool" => Ok(Self::Tool),
            "function" => Ok(Self::Function),
            other => {
                let message = format!("`{}` is {other:?}, expected {ROLES}", role.path());
                Err(ApiError::invalid(role.path(), message))
            }
        }
    }
}

/// Is there anything in it?
fn check_content(content: &Field) -> Result<bool, ApiError> {
    match content.value() {
        Value::String(text) => Ok(!text.is_empty()),
        Value::Array(parts) => {
            content.list()?.iter().try_for_each(check_part)?;
            Ok(!parts.is_empty())
        }
        _ => Err(content.wrong("a string or an array of parts")),
    }
}

fn check_part(part: &Field) -> Result<(), ApiError> {
    let fields = part.object()?;
    let kind = fields.need("type", "a string")?;
    match kind.text()? {
        key @ ("text" | "refusal") => fields.need(key, "a string")?.text().map(|_| ()),
        name @ ("image_url" | "input_audio" | "file" | "video_url") => {
            let message =
                format!("`{}` is `{name}`, but this model takes nothing but text", kind.path());
            Err(ApiError::unsupported(kind.path(), message))
        }
        name => {
            let message = format!("`{}` is {name:?}, expected `text`", kind.path());
            Err(ApiError::invalid(kind.path(), message))
        }
    }
}

/// The call's id, if it has one.
fn check_call<'a>(call: &Field<'a>) -> Result<Option<&'a str>, ApiError> {
    let call = call.object()?;
    check_function(&call.need("function", "an object")?.object()?)?;
    call.text("id")
}

fn check_function(function: &Object) -> Result<(), ApiError> {
    function.need("name", "a string")?.text()?;
    match function.get("arguments") {
        Some(arguments) if !arguments.value().is_string() && !arguments.value().is_object() => {
            Err(arguments.wrong("a string or an object"))
        }
        _ => Ok(()),
    }
}

const ROLES: &str = "`developer`, `system`, `user`, `assistant`, `tool` or `function`";
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
