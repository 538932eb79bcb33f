//! Tools and calls in plain words, for models whose chat template has no place for them: the tools as lines of JSON in the
//! system message, calls as the model's format has them.

use base_mlx_core::text::output::OutputFormat;
use base_mlx_core::text::parse_json;
use serde_json::{Map, Value, json};

/// The messages with calls and their results as text. What was given between two answers becomes one message, for some
/// templates want the user and the assistant in turns.
pub(crate) fn history(messages: &Value, format: &OutputFormat) -> Value {
    let given = messages.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut messages: Vec<Value> = Vec::with_capacity(given.len());
    let mut behind_result = false;
    for message in given {
        let is_result = matches!(message["role"].as_str(), Some("tool" | "function"));
        let joins = behind_result && (is_result || message["role"] == "user");
        let message = in_words(message.clone(), format);
        match messages.last_mut().filter(|_| joins) {
            Some(last) => last["content"] = joined(&last["content"], &message["content"]),
            None => messages.push(message),
        }
        behind_result = is_result || joins;
    }
    messages.into()
}

/// The messages with the tools told of in one more message of the system, behind those that they begin with: all of these
/// become one.
pub(crate) fn with_tools(mut messages: Value, tools: &Value, format: &OutputFormat) -> Value {
    if let (Some(messages), Some(tools)) = (messages.as_array_mut(), tools.as_array()) {
        let is_system =
            |message: &&Value| matches!(message["role"].as_str(), Some("system" | "developer"));
        let at = messages.iter().take_while(is_system).count();
        messages.insert(at, json!({ "role": "system", "content": description(tools, format) }));
    }
    messages
}

fn description(tools: &[Value], format: &OutputFormat) -> String {
    let lines: String = tools.iter().map(|tool| format!("{}\n", tool["function"])).collect();
    let arguments = json!({ "the argument's name": "its value" });
    let example = format
        .written(&[("the function's name", arguments.as_object().cloned().unwrap_or_default())]);
    format!("{BEFORE_TOOLS}\n{lines}{BEFORE_EXAMPLE}\n{example}\n{BEHIND_TOOLS}")
}

/// One content behind another, with a line end between them.
fn joined(first: &Value, second: &Value) -> Value {
    match (first, second) {
        (Value::String(first), Value::String(second)) => format!("{first}\n{second}").into(),
        (first, second) => {
            let parts = |content: &Value| match content {
                Value::Array(parts) => parts.clone(),
                text => vec![json!({ "type": "text", "text": text })],
            };
            let between = json!({ "type": "text", "text": "\n" });
            [parts(first), vec![between], parts(second)].concat().into()
        }
    }
}

fn in_words(mut message: Value, format: &OutputFormat) -> Value {
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
            parts.push(written(&calls, format));
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

/// Arguments that are no object stay as the model wrote them.
fn written(calls: &[Value], format: &OutputFormat) -> String {
    let name = |call: &Value| call["function"]["name"].as_str().unwrap_or_default().to_owned();
    let arguments = |call: &Value| -> Result<Map<String, Value>, String> {
        match &call["function"]["arguments"] {
            Value::Object(arguments) => Ok(arguments.clone()),
            Value::String(text) if !text.trim().is_empty() => match parse_json(text.as_bytes()) {
                Ok(Value::Object(arguments)) => Ok(arguments),
                _ => Err(text.clone()),
            },
            _ => Ok(Map::new()),
        }
    };
    let names: Vec<String> = calls.iter().map(name).collect();
    let parsed: Result<Vec<_>, _> = calls.iter().map(arguments).collect();
    match parsed {
        Ok(parsed) => {
            let calls: Vec<_> = names.iter().map(String::as_str).zip(parsed).collect();
            format.written(&calls)
        }
        Err(_) => {
            let one = |(name, call): (&String, &Value)| {
                let arguments =
                    arguments(call).map_or_else(|text| text, |of| Value::from(of).to_string());
                format!("{{\"name\": {}, \"arguments\": {arguments}}}", json!(name))
            };
            names.iter().zip(calls).map(one).collect::<Vec<_>>().join("\n")
        }
    }
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
const BEFORE_EXAMPLE: &str =
    "To call a function, answer with nothing but its call, in exactly this form:";
const BEHIND_TOOLS: &str = "The next message then has what the function gave.";
const RESULT: &str = "The function gave:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tools_come_behind_the_words_of_the_system() {
        let plain = OutputFormat::default();
        let tools = json!([
            { "type": "function", "function": { "name": "a", "parameters": {} } },
            { "type": "function", "function": { "name": "b" } },
        ]);
        let given = json!([
            { "role": "developer", "content": "Be brief." },
            { "role": "user", "content": "Hi." },
        ]);
        let told = with_tools(given.clone(), &tools, &plain);
        assert_eq!((&told[0], &told[2]), (&given[0], &given[1]));
        assert_eq!(told[1]["role"], "system");
        let words = told[1]["content"].as_str().unwrap();
        let lines: Vec<&str> = words.lines().filter(|line| line.starts_with('{')).collect();
        assert_eq!(lines[0], r#"{"name":"a","parameters":{}}"#);
        assert_eq!(lines[1], r#"{"name":"b"}"#);
        assert_eq!(
            lines[2],
            r#"{"name": "the function's name", "arguments": {"the argument's name": "its value"}}"#
        );
        assert_eq!(history(&given, &plain), given);
        let hermes = plain.with_tools("hermes").unwrap();
        let told = with_tools(given, &tools, &hermes);
        assert!(told[1]["content"].as_str().unwrap().contains("<tool_call>\n{\"name\": "));
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
        let calls = [written("f", r#"{"x": 1}"#), written("f", "{}"), written("f", r#"{"y": 2}"#)]
            .join("\n");
        assert_eq!(
            super::history(&history, &OutputFormat::default()),
            json!([
                { "role": "assistant", "content": format!("Well.\n{calls}") },
                { "role": "user", "content": "The function gave:\nsunny" },
                { "role": "assistant", "content": written("g", "{}") },
            ])
        );
    }

    #[test]
    fn results_and_the_next_question_are_one_message() {
        let result = |text: &str| json!({ "role": "tool", "tool_call_id": "c", "content": text });
        let user = |content: Value| json!({ "role": "user", "content": content });
        let given = json!([
            result("a"), result("b"), user(json!("And?")),
            { "role": "assistant", "content": "c" },
            result("d"), user(json!([{ "type": "text", "text": "e" }])),
            { "role": "assistant", "content": "f" },
            user(json!("g")), user(json!("h")),
        ]);
        let told = history(&given, &OutputFormat::default());
        let texts: Vec<String> =
            told.as_array().unwrap().iter().map(|message| text(&message["content"])).collect();
        assert_eq!(
            texts,
            [
                "The function gave:\na\nThe function gave:\nb\nAnd?",
                "c",
                "The function gave:\nd\ne",
                "f",
                "g",
                "h"
            ]
        );
    }
}
