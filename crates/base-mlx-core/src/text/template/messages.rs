use serde_json::{Map, Value, json};

use super::probe::Capabilities;

/// How a template wants the arguments of a call in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    /// A parsed object, keys in their order.
    Object,
    /// The JSON text that the model wrote.
    String,
}

/// The same conversation in the words that the template knows.
pub(super) fn prepare(messages: &Value, can: &Capabilities, arguments: Arguments) -> Value {
    let Value::Array(messages) = messages else { return messages.clone() };
    let mut prepared = Vec::with_capacity(messages.len());
    let mut system = Vec::new();
    for message in messages {
        let mut message = message.clone();
        match message["role"].as_str() {
            Some("developer") => message["role"] = "system".into(),
            Some("function") => message["role"] = "tool".into(),
            _ => {}
        }
        if message["role"] == "system" {
            system.push(message);
        } else {
            prepared.push(message);
        }
    }
    // Most templates know one system message, at the beginning.
    if system.len() > 1 {
        let texts: Vec<_> = system.iter().map(|message| joined(&message["content"])).collect();
        system = vec![json!({ "role": "system", "content": texts.join("\n\n") })];
    }
    if let Some(system) = system.pop() {
        if can.system {
            prepared.insert(0, system);
        } else {
            into_first_user(&joined(&system["content"]), &mut prepared);
        }
    }
    for message in prepared.iter_mut().filter_map(Value::as_object_mut) {
        let has_calls = message.get("tool_calls").is_some_and(|calls| !calls.is_null());
        content(message, has_calls, can);
        for call in
            message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten()
        {
            call_arguments(call, arguments);
        }
    }
    Value::Array(prepared)
}

/// A template without a system role gets its words at the head of the first question.
fn into_first_user(system: &str, messages: &mut Vec<Value>) {
    match messages.iter_mut().find(|message| message["role"] == "user") {
        Some(user) => {
            user["content"] = format!("{system}\n\n{}", joined(&user["content"])).into();
        }
        None => messages.insert(0, json!({ "role": "user", "content": system })),
    }
}

fn content(message: &mut Map<String, Value>, has_calls: bool, can: &Capabilities) {
    let content = message.entry("content").or_insert(Value::Null);
    match content {
        Value::Null if !(has_calls && can.null_content) => *content = "".into(),
        Value::Array(_) if !can.parts => *content = joined(content).into(),
        _ => {}
    }
    if let Value::String(text) = content
        && !can.strings
    {
        *content = json!([{ "type": "text", "text": text }]);
    }
}

/// The texts of a content's parts, one under the other.
fn joined(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts: Vec<_> = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

/// Arguments that are no JSON object stay the string they are: the model wrote them, and must see what it wrote.
fn call_arguments(call: &mut Value, wanted: Arguments) {
    let Some(arguments) = call.get_mut("function").and_then(|f| f.get_mut("arguments")) else {
        return;
    };
    match (wanted, &*arguments) {
        (Arguments::Object, Value::String(text)) => {
            if let Ok(object) = serde_json::from_str::<Map<String, Value>>(text) {
                *arguments = Value::Object(object);
            }
        }
        (Arguments::String, Value::Object(object)) => {
            *arguments = serde_json::to_string(object).unwrap_or_default().into();
        }
        _ => {}
    }
}
