use serde_json::{Map, Value};

pub(super) const TYPES: [&str; 7] =
    ["null", "boolean", "integer", "number", "string", "array", "object"];

/// Why a keyword cannot be guaranteed; `None` if it says nothing about values, or nothing here.
pub(super) fn not_held(
    keyword: &str,
    value: &Value,
    keywords: &Map<String, Value>,
) -> Option<&'static str> {
    let has = |keyword| keywords.contains_key(keyword);
    let is_empty = value.as_object().is_some_and(Map::is_empty);
    let says_nothing = match keyword {
        "not" | "contains" | "dependentRequired" | "dependentSchemas" | "dependencies"
        | "$dynamicRef" | "$recursiveRef" => is_empty && keyword.starts_with("depend"),
        "uniqueItems" => {
            let is_single =
                keywords.get("maxItems").and_then(Value::as_u64).is_some_and(|most| most < 2);
            value == &Value::Bool(false) || is_single || !may_be(keywords, "array")
        }
        "propertyNames" => {
            let any_string = |keywords: &Map<_, _>| {
                keywords.len() == 1 && keywords.get("type") == Some(&Value::from("string"))
            };
            let is_any = is_empty
                || value == &Value::Bool(true)
                || value.as_object().is_some_and(any_string);
            is_any || !may_be(keywords, "object")
        }
        "unevaluatedProperties" | "unevaluatedItems" => is_empty || value == &Value::Bool(true),
        "if" => !has("then") && !has("else"),
        // Of `if`, of `contains`.
        "then" | "else" | "minContains" | "maxContains" => true,
        _ => true,
    };
    (!says_nothing).then_some("not supported")
}

/// Whether a value may be of the type, for all that `type` says.
pub(super) fn may_be(keywords: &Map<String, Value>, name: &str) -> bool {
    match keywords.get("type") {
        None => true,
        Some(Value::String(only)) => only == name,
        Some(Value::Array(types)) => types.iter().any(|of| of == name),
        Some(_) => true,
    }
}

/// Whether so many properties are of different names: those that `required` names are, and one more.
pub(super) fn are_distinct(count: u64, keywords: &Map<String, Value>) -> bool {
    let required = keywords.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    count <= required as u64 + 1
}
