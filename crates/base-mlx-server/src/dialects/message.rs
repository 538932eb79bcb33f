//! What a chat answer says beside its text, in a whole message and in a stream's deltas.

use serde::Serialize;

use crate::ReasoningField;
use crate::events::Call;

/// What the model thought, under the names that clients look for.
#[derive(Default, Serialize)]
pub(super) struct ReasoningBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
}

impl ReasoningBody {
    pub(super) fn new(text: String, field: ReasoningField) -> Self {
        if text.is_empty() {
            return Self::default();
        }
        let (reasoning_content, reasoning) = match field {
            ReasoningField::ReasoningContent => (Some(text), None),
            ReasoningField::Reasoning => (None, Some(text)),
            ReasoningField::Both => (Some(text.clone()), Some(text)),
        };
        Self { reasoning_content, reasoning }
    }
}

/// Where a message tells its calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum CallsAs {
    #[default]
    ToolCalls,
    /// The one call of an answer to `functions`.
    FunctionCall,
}

/// The calls of a message, or a piece of one.
#[derive(Default, Serialize)]
pub(super) struct CallsBody {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    /// The one call of an answer to `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    function_call: Option<Function>,
}

#[derive(Serialize)]
struct ToolCall {
    /// Only in streams.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function,
}

#[derive(Serialize)]
struct Function {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl CallsBody {
    /// Of a whole message.
    pub(super) fn whole(calls: Vec<Call>, told: CallsAs) -> Self {
        let functions = calls
            .into_iter()
            .map(|call| Function { name: Some(call.name), arguments: call.arguments });
        let of_tool = |function| Self::tool_call(None, function);
        if told == CallsAs::FunctionCall {
            Self { tool_calls: Vec::new(), function_call: functions.into_iter().next() }
        } else {
            Self { tool_calls: functions.map(of_tool).collect(), function_call: None }
        }
    }

    /// The first delta of a call: everything but its arguments.
    pub(super) fn begun(index: usize, name: String, told: CallsAs) -> Self {
        let function = Function { name: Some(name), arguments: String::new() };
        if told == CallsAs::FunctionCall {
            Self { tool_calls: Vec::new(), function_call: Some(function) }
        } else {
            Self { tool_calls: vec![Self::tool_call(Some(index), function)], function_call: None }
        }
    }

    /// A piece of a call's arguments. Clients put names and ids together like texts, so they are not said again.
    pub(super) fn more(index: usize, arguments: String, told: CallsAs) -> Self {
        let function = Function { name: None, arguments };
        if told == CallsAs::FunctionCall {
            Self { tool_calls: Vec::new(), function_call: Some(function) }
        } else {
            let call = ToolCall { index: Some(index), id: None, kind: None, function };
            Self { tool_calls: vec![call], function_call: None }
        }
    }

    fn tool_call(index: Option<usize>, function: Function) -> ToolCall {
        ToolCall { index, id: Some(call_id()), kind: Some("function"), function }
    }
}

/// As OpenAI's look: 24 letters and digits, most of them random.
fn call_id() -> String {
    let unique = uuid::Uuid::now_v7().simple().to_string();
    format!("call_{}", &unique[unique.len() - 24..])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn point_33_ids_of_calls_are_unique() {
        let ids: HashSet<String> = (0..10_000).map(|_| call_id()).collect();
        assert_eq!(ids.len(), 10_000);
        let fits = |id: &String| {
            let rest = id.strip_prefix("call_").unwrap();
            rest.len() == 24 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        assert!(ids.iter().all(fits));
    }
}
