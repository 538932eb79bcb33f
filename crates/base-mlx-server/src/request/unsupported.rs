use serde_json::Value;

use crate::error::ApiError;
use crate::request::JsonObject;

/// A parameter that other servers know, and the values with which it asks for nothing.
#[derive(Debug)]
pub(crate) struct Known {
    pub name: &'static str,
    /// Decides about values other than null, which never asks for anything.
    pub asks_nothing: fn(&Value) -> bool,
}

/// Says no to parameters that would change the answer and cannot be honoured. What nobody knows is ignored, as are
/// parameters that only mean something to OpenAI's own machines (`user`, `store`, `metadata`, `service_tier` …).
pub(crate) fn refuse(body: &JsonObject, known: &[&[Known]]) -> Result<(), ApiError> {
    for parameter in known.iter().copied().flatten() {
        if let Some(value) = body.get(parameter.name)
            && !value.is_null()
            && !(parameter.asks_nothing)(value)
        {
            let name = parameter.name;
            return Err(ApiError::unsupported(name, format!("`{name}` is not supported")));
        }
    }
    Ok(())
}

impl Known {
    /// For both endpoints.
    pub(crate) const EVERYWHERE: &[Known] = &[
        Known { name: "draft_model", asks_nothing: never },
        Known { name: "grammar", asks_nothing: never },
        Known { name: "guided_choice", asks_nothing: never },
        Known { name: "guided_grammar", asks_nothing: never },
        Known { name: "guided_json", asks_nothing: never },
        Known { name: "guided_regex", asks_nothing: never },
    ];

    pub(crate) const OF_CHAT: &[Known] = &[
        Known { name: "tools", asks_nothing: empty },
        Known { name: "tool_choice", asks_nothing: |value| value == "none" },
        Known { name: "functions", asks_nothing: empty },
        Known { name: "function_call", asks_nothing: |value| value == "none" },
        Known { name: "modalities", asks_nothing: only_text },
        Known { name: "audio", asks_nothing: never },
        Known { name: "prediction", asks_nothing: never },
        Known { name: "web_search_options", asks_nothing: never },
        Known { name: "reasoning_effort", asks_nothing: never },
        Known { name: "verbosity", asks_nothing: |value| value == "medium" },
    ];

    pub(crate) const OF_COMPLETIONS: &[Known] =
        &[Known { name: "suffix", asks_nothing: |value| value == "" }];
}

fn never(_: &Value) -> bool {
    false
}

fn empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

fn only_text(value: &Value) -> bool {
    value.as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind == "text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> Option<String> {
        let body = JsonObject::parse(body.as_bytes()).unwrap();
        let result = refuse(&body, &[Known::EVERYWHERE, Known::OF_CHAT, Known::OF_COMPLETIONS]);
        let envelope = result.err()?.envelope();
        assert_eq!(envelope["error"]["code"], "unsupported_parameter");
        Some(envelope["error"]["param"].as_str().unwrap().to_owned())
    }

    #[test]
    fn asking_for_nothing_is_accepted() {
        let bodies = [
            r#"{"tools":[],"tool_choice":"none","functions":null,"modalities":["text"],"suffix":""}"#,
            r#"{"draft_model":null,"grammar":null,"user":"u","store":true,"metadata":{"a":"b"}}"#,
            r#"{"service_tier":"auto","prompt_cache_key":"k","safety_identifier":"s","foo":[1]}"#,
        ];
        for body in bodies {
            assert_eq!(refused(body), None, "{body}");
        }
    }

    #[test]
    fn asking_for_something_is_refused_by_name() {
        let bodies = [
            (r#"{"tools":[{"type":"function"}]}"#, "tools"),
            (r#"{"tool_choice":"auto"}"#, "tool_choice"),
            (r#"{"modalities":["text","audio"]}"#, "modalities"),
            (r#"{"draft_model":"x"}"#, "draft_model"),
            (r#"{"reasoning_effort":"high"}"#, "reasoning_effort"),
            (r#"{"suffix":"x"}"#, "suffix"),
        ];
        for (body, name) in bodies {
            assert_eq!(refused(body).as_deref(), Some(name), "{body}");
        }
    }
}
