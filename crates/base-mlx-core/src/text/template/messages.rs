use serde_json::{Map, Value, json};

use super::probe::{Capabilities, ToolsPlace};
use crate::text::parse_json;

/// How a template wants the arguments of a call in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    /// A parsed object, keys in their order.
    Object,
    /// The JSON text that the model wrote.
    String,
}

/// The same conversation in the words that the template knows.
pub(super) fn prepare(
    messages: &Value,
    tools: Option<&Value>,
    can: &Capabilities,
    arguments: Arguments,
) -> Value {
    let Value::Array(messages) = messages else { return messages.clone() };
    let mut prepared = Vec::with_capacity(messages.len());
    let mut system = Vec::new();
    let mut calls = Calls::default();
    for message in messages {
        let mut message = message.clone();
        if let Value::Object(fields) = &mut message {
            modernize(fields, &mut calls);
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
    if let Some(tools) = tools.filter(|_| can.tools == ToolsPlace::SystemMessage) {
        if system.is_empty() {
            system.push(json!({ "role": "system", "content": "" }));
        }
        system[0]["tools"] = told_tools(tools);
    }
    if let Some(system) = system.pop() {
        if can.system {
            prepared.insert(0, system);
        } else {
            into_first_user(&joined(&system["content"]), &mut prepared);
        }
    }
    for message in prepared.iter_mut().filter_map(Value::as_object_mut) {
        let has_calls = message.contains_key("tool_calls");
        content(message, has_calls, can);
        for call in
            message.get_mut("tool_calls").and_then(Value::as_array_mut).into_iter().flatten()
        {
            call_arguments(call, arguments);
        }
    }
    Value::Array(prepared)
}

/// Tools as templates want them that look for them in the system message: their functions, as JSON text.
pub(super) fn told_tools(tools: &Value) -> Value {
    let tools = tools.as_array().map(Vec::as_slice).unwrap_or_default();
    let functions: Vec<&Value> = tools.iter().map(|tool| &tool["function"]).collect();
    json!(functions).to_string().into()
}

/// The calls seen so far.
#[derive(Default)]
struct Calls {
    /// Those that came without an id and were given one.
    named: usize,
    latest: Option<Value>,
}

/// One word for what the API says in several: older and newer names of roles and fields, and null for absence.
fn modernize(message: &mut Map<String, Value>, calls: &mut Calls) {
    let role = match message.get("role").and_then(Value::as_str) {
        Some("developer") => Some("system"),
        Some("function") => Some("tool"),
        _ => None,
    };
    if let Some(role) = role {
        message.insert("role".to_owned(), role.into());
    }
    message.retain(|key, value| key == "content" || !value.is_null());
    if let Some(reasoning) = message.get("reasoning").cloned() {
        message.entry("reasoning_content").or_insert(reasoning);
    }
    if let Some(function) = message.shift_remove("function_call") {
        message.entry("tool_calls").or_insert(json!([{ "function": function }]));
    }
    match message.get_mut("tool_calls") {
        // Templates ask whether there is a list of calls, not whether there are calls in it.
        Some(Value::Array(list)) if list.is_empty() => {
            message.shift_remove("tool_calls");
        }
        Some(Value::Array(list)) => {
            for call in list.iter_mut().filter_map(Value::as_object_mut) {
                let id = call.entry("id").or_insert(Value::Null);
                if id.is_null() {
                    calls.named += 1;
                    // Nine letters and digits: one family refuses other ids.
                    *id = format!("call{:05}", calls.named).into();
                }
                calls.latest = Some(id.clone());
                call.entry("type").or_insert("function".into());
            }
        }
        _ => {}
    }
    if role == Some("tool")
        && let Some(id) = &calls.latest
    {
        message.entry("tool_call_id").or_insert(id.clone());
    }
    let refusal = message.get("refusal").cloned();
    match message.get_mut("content") {
        Some(Value::Array(parts)) => {
            for part in parts.iter_mut().filter(|part| part["type"] == "refusal") {
                *part = json!({ "type": "text", "text": part["refusal"] });
            }
        }
        None | Some(Value::Null) => {
            if let Some(refusal) = refusal {
                message.insert("content".to_owned(), refusal);
            }
        }
        _ => {}
    }
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

/// The texts of a content's parts with nothing between them, as templates write them that take parts.
fn joined(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

/// Arguments that are no JSON object stay the string they are: the model wrote them, and must see what it wrote.
fn call_arguments(call: &mut Value, wanted: Arguments) {
    let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else { return };
    let arguments = function.entry("arguments").or_insert(Value::Null);
    if arguments.is_null() || arguments.as_str().is_some_and(|text| text.trim().is_empty()) {
        *arguments = json!({});
    }
    match (wanted, &*arguments) {
        (Arguments::Object, Value::String(text)) => {
            if let Ok(object @ Value::Object(_)) = parse_json(text.as_bytes()) {
                *arguments = object;
            }
        }
        (Arguments::String, Value::Object(object)) => {
            *arguments = serde_json::to_string(object).unwrap_or_default().into();
        }
        _ => {}
    }
}
