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
        Known { name: "bad_words", asks_nothing: empty },
        Known { name: "dry_multiplier", asks_nothing: |value| is(value, 0.0) },
        Known { name: "min_tokens", asks_nothing: |value| is(value, 0.0) },
        Known { name: "mirostat", asks_nothing: |value| is(value, 0.0) },
        Known { name: "prompt_logprobs", asks_nothing: never },
        Known { name: "stop_token_ids", asks_nothing: empty },
        Known { name: "typical_p", asks_nothing: |value| is(value, 1.0) },
        Known { name: "use_beam_search", asks_nothing: |value| value == false },
        Known { name: "xtc_probability", asks_nothing: |value| is(value, 0.0) },
    ];

    pub(crate) const OF_CHAT: &[Known] = &[
        Known { name: "modalities", asks_nothing: only_text },
        Known { name: "audio", asks_nothing: never },
        Known { name: "prediction", asks_nothing: never },
        Known { name: "web_search_options", asks_nothing: never },
        Known { name: "verbosity", asks_nothing: |value| value == "medium" },
        // Of plain completions.
        Known { name: "best_of", asks_nothing: |value| is(value, 1.0) },
        Known { name: "echo", asks_nothing: |value| value == false },
        Known { name: "suffix", asks_nothing: |value| value == "" },
    ];

    pub(crate) const OF_EMBEDDINGS: &[Known] = &[
        Known { name: "add_special_tokens", asks_nothing: |value| value == true },
        Known { name: "embedding_type", asks_nothing: |value| value == "float" },
        Known { name: "input_type", asks_nothing: never },
        Known { name: "late_chunking", asks_nothing: |value| value == false },
        Known { name: "normalized", asks_nothing: |value| value == true },
        Known { name: "task", asks_nothing: never },
    ];

    pub(crate) const OF_RERANK: &[Known] = &[
        Known { name: "max_chunks_per_doc", asks_nothing: never },
        Known { name: "max_tokens_per_doc", asks_nothing: never },
        Known { name: "rank_fields", asks_nothing: |value| *value == serde_json::json!(["text"]) },
        Known { name: "truncate_prompt_tokens", asks_nothing: never },
    ];

    pub(crate) const OF_COMPLETIONS: &[Known] =
        &[Known { name: "suffix", asks_nothing: |value| value == "" }];
}

fn never(_: &Value) -> bool {
    false
}

fn is(value: &Value, number: f64) -> bool {
    value.as_f64() == Some(number)
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
            r#"{"audio":null,"prediction":null,"modalities":["text"],"suffix":"","verbosity":"medium"}"#,
            r#"{"min_tokens":null,"web_search_options":null,"user":"u","store":true,"metadata":{"a":"b"}}"#,
            r#"{"stop_token_ids":[],"bad_words":[],"min_tokens":0,"typical_p":1,"mirostat":0}"#,
            r#"{"dry_multiplier":0.0,"xtc_probability":0,"use_beam_search":false}"#,
            r#"{"best_of":1,"echo":false,"prompt_logprobs":null}"#,
            r#"{"service_tier":"auto","prompt_cache_key":"k","safety_identifier":"s","foo":[1]}"#,
        ];
        for body in bodies {
            assert_eq!(refused(body), None, "{body}");
        }
    }

    #[test]
    fn asking_for_something_is_refused_by_name() {
        let bodies = [
            (r#"{"modalities":["text","audio"]}"#, "modalities"),
            (r#"{"audio":{"voice":"x"}}"#, "audio"),
            (r#"{"prediction":{"type":"content","content":"x"}}"#, "prediction"),
            (r#"{"verbosity":"low"}"#, "verbosity"),
            (r#"{"suffix":"x"}"#, "suffix"),
            (r#"{"stop_token_ids":[2]}"#, "stop_token_ids"),
            (r#"{"bad_words":["x"]}"#, "bad_words"),
            (r#"{"min_tokens":5}"#, "min_tokens"),
            (r#"{"typical_p":0.9}"#, "typical_p"),
            (r#"{"mirostat":2}"#, "mirostat"),
            (r#"{"dry_multiplier":0.8}"#, "dry_multiplier"),
            (r#"{"xtc_probability":0.5}"#, "xtc_probability"),
            (r#"{"use_beam_search":true}"#, "use_beam_search"),
            (r#"{"prompt_logprobs":0}"#, "prompt_logprobs"),
            (r#"{"best_of":2}"#, "best_of"),
            (r#"{"echo":true}"#, "echo"),
        ];
        for (body, name) in bodies {
            assert_eq!(refused(body).as_deref(), Some(name), "{body}");
        }
    }
}
