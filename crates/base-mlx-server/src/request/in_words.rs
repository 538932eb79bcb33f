//! Tools and calls in plain words, for models whose chat template has no place for them: the tools as lines of JSON in the
//! system message, calls as lines of JSON in the answer.

use serde_json::{Value, json};

/// The messages with the tools told of in one more message of the system, behind those that they begin with: all of these
/// become one. Calls and their results in the history become text.
pub(crate) fn messages(messages: &Value, tools: Option<&Value>) -> Value {
    let given = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut messages: Vec<Value> = given.iter().cloned().map(message).collect();
    if let Some(tools) = tools.and_then(Value::as_array) {
        let is_system =
            |message: &&Value| matches!(message["role"].as_str(), Some("system" | "developer"));
        let at = messages.iter().take_while(is_system).count();
        messages.insert(at, json!({ "role": "system", "content": description(tools) }));
    }
    messages.into()
}

fn description(tools: &[Value]) -> String {
    let lines: String = tools.iter().map(|tool| format!("{}\n", tool["function"])).collect();
    format!("{BEFORE_TOOLS}\n{lines}{BEHIND_TOOLS}")
}

fn message(mut message: Value) -> Value {
    match message["role"].as_str() {
        Some("tool" | "function") => {
            let text = text(&message["content"]);
            json!({ "role": "user", "content": format!("{RESULT}\n{text}") })
        }
        Some("assistant") => {
            let mut calls: Vec<Value> =
                message["tool_calls"].as_array().cloned().unwrap_or_default();
            if message["function_call"].is_object() {
                calls.push(json!({ "function": message["function_call"] }));
            }
            if calls.is_empty() {
                return message;
            }
            let mut parts = vec![text(&message["content"])];
            parts.retain(|text| !text.is_empty());
            parts.extend(calls.iter().map(|call| written(&call["function"])));
            if let Some(fields) = message.as_object_mut() {
                fields.shift_remove("tool_calls");
                fields.shift_remove("function_call");
                fields.insert("content".to_owned(), parts.join("\n").into());
            }
            message
        }
        _ => message,
    }
}

/// Arguments stay as the model wrote them.
fn written(function: &Value) -> String {
    let arguments = match &function["arguments"] {
        Value::String(text) if text.trim().is_empty() => "{}".to_owned(),
        Value::String(text) => text.clone(),
        Value::Null => "{}".to_owned(),
        object => object.to_string(),
    };
    let name = &function["name"];
    format!("{{\"name\": {name}, \"arguments\": {arguments}}}")
}

fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

const BEFORE_TOOLS: &str = "You may call functions to help with the user's query. \
     These are the functions, one on each line:";
const BEHIND_TOOLS: &str = "To call functions, answer with nothing but a JSON object for each call, one on each line:\n\
     {\"name\": \"the function's name\", \"arguments\": {}}\n\
     The next message then has what the function gave.";
const RESULT: &str = "The function gave:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_come_behind_the_words_of_the_system() {
        let tools = json!([
            { "type": "function", "function": { "name": "a", "parameters": {} } },
            { "type": "function", "function": { "name": "b" } },
        ]);
        let given = json!([
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": "Hi." },
        ]);
        let told = messages(&given, Some(&tools));
        assert_eq!((&told[0], &told[2]), (&given[0], &given[1]));
        assert_eq!(told[1]["role"], "system");
        let words = told[1]["content"].as_str().unwrap();
        let lines: Vec<&str> = words.lines().filter(|line| line.starts_with('{')).collect();
        assert_eq!(lines[0], r#"{"name":"a","parameters":{}}"#);
        assert_eq!(lines[1], r#"{"name":"b"}"#);
        assert_eq!(messages(&given, None), given);
    }

    #[test]
    fn calls_of_the_history_become_text() {
        let call = |arguments: Value| json!({ "id": "c", "function": { "name": "f", "arguments": arguments } });
        let history = json!([
            { "role": "assistant", "content": "Well.", "tool_calls":
                [call(json!("{\"x\": 1}")), call(json!("")), call(json!({ "y": 2 }))] },
            { "role": "tool", "tool_call_id": "c", "content": [{ "type": "text", "text": "sunny" }] },
            { "role": "assistant", "content": null, "function_call": { "name": "g" } },
        ]);
        let written = |name: &str, arguments: &str| {
            format!(r#"{{"name": "{name}", "arguments": {arguments}}}"#)
        };
        let calls = [written("f", r#"{"x": 1}"#), written("f", "{}"), written("f", r#"{"y":2}"#)]
            .join("\n");
        assert_eq!(
            messages(&history, None),
            json!([
                { "role": "assistant", "content": format!("Well.\n{calls}") },
                { "role": "user", "content": "The function gave:\nsunny" },
                { "role": "assistant", "content": written("g", "{}") },
            ])
        );
    }
}
