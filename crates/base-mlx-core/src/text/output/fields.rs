use serde_json::{Map, Value, json};

use super::Tool;
use super::syntax::{Args, Fields, Syntax, Words};

/// How a tool's arguments are written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Arguments {
    /// As one JSON object between two texts.
    Whole {
        open: &'static str,
        close: &'static str,
    },
    Fields(Vec<Field>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) required: bool,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Any text, as it is.
    Text,
    /// Any text, as it is, but for `null`, which is nothing.
    TextOrNull,
    /// One of these texts, as they are.
    Choice(Vec<String>),
    /// Python's `True` or `False`.
    Truth,
    Json(Value),
}

impl Kind {
    /// Whether the text stands for itself.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self, Self::Text | Self::TextOrNull | Self::Choice(_))
    }
}

impl Arguments {
    pub(super) fn of(syntax: &Syntax, tool: &Tool) -> Self {
        match &syntax.args {
            Args::Json => Self::Whole { open: "", close: "" },
            Args::Fields(fields) => match plain_fields(fields, &tool.parameters) {
                Some(fields) => Self::Fields(fields),
                None => {
                    let (open, close) = fields.whole;
                    Self::Whole { open, close }
                }
            },
        }
    }
}

/// The schema, for objects only.
pub(super) fn object(schema: &Value) -> Value {
    match schema {
        Value::Object(schema) => {
            let mut schema = schema.clone();
            schema.entry("type").or_insert_with(|| "object".into());
            Value::Object(schema)
        }
        Value::Bool(false) => json!({ "allOf": [false] }),
        _ => json!({ "type": "object" }),
    }
}

/// `None` if the schema says more than which fields there are.
fn plain_fields(syntax: &Fields, schema: &Value) -> Option<Vec<Field>> {
    let schema = schema.as_object()?;
    if !schema.keys().all(|key| PLAIN.contains(&key.as_str())) {
        return None;
    }
    if schema.get("type").is_some_and(|kind| kind != "object") {
        return None;
    }
    let properties = schema.get("properties")?.as_object()?;
    let required = match schema.get("required") {
        Some(names) => names.as_array()?.as_slice(),
        None => &[],
    };
    if !required.iter().all(|name| name.as_str().is_some_and(|name| properties.contains_key(name)))
    {
        return None;
    }
    let field = |(name, property): (&String, &Value)| {
        let required = required.iter().any(|other| other == name);
        let kind = kind(syntax, property, schema)?;
        is_word(name).then(|| Field { name: name.clone(), required, kind })
    };
    let fields: Vec<Field> = properties.iter().map(field).collect::<Option<_>>()?;
    let shared = SHARED.iter().filter_map(|key| schema.get(*key));
    let shared_bytes: usize = shared.map(|shared| shared.to_string().len()).sum();
    let carriers = properties.values().filter(|property| has_reference(property)).count();
    (shared_bytes.saturating_mul(carriers) <= MAX_CARRIED_BYTES).then_some(fields)
}

fn kind(syntax: &Fields, property: &Value, root: &Map<String, Value>) -> Option<Kind> {
    if let Some((open, close)) = syntax.text {
        let raw_end = [close, syntax.value_end].concat();
        match plain_text(property) {
            // Between marks everything is text; a model writes nothing by leaving the field out.
            Some(Kind::TextOrNull) if !open.is_empty() => return Some(Kind::Text),
            Some(kind) => return Some(kind),
            None => {}
        }
        if let Some(texts) = choice(property) {
            let stands = |text: &String| !text.contains(raw_end.trim_end()) && !text.is_empty();
            // What is around it would be cut off from it.
            let alone = !open.is_empty() || texts.iter().all(|text| text.trim() == text);
            if alone && texts.iter().all(stands) {
                return Some(Kind::Choice(texts));
            }
        }
    }
    if syntax.words == Words::Python && is_only(property, "boolean") {
        return Some(Kind::Truth);
    }
    let mut schema = match property {
        Value::Object(schema) => schema.clone(),
        Value::Bool(true) => Map::new(),
        _ => return None,
    };
    if !has_reference(property) {
        return Some(Kind::Json(schema.into()));
    }
    // Definitions of its own are at another place, and references that lead elsewhere lead nowhere from here.
    let shares = SHARED.iter().all(|key| !schema.contains_key(*key));
    if !shares || !refers_to_shared(property) {
        return None;
    }
    for key in SHARED {
        if let Some(shared) = root.get(key) {
            if !refers_to_shared(shared) {
                return None;
            }
            schema.insert(key.to_owned(), shared.clone());
        }
    }
    Some(Kind::Json(schema.into()))
}

/// Whether anything in it says what it is by pointing elsewhere.
pub(super) fn has_reference(schema: &Value) -> bool {
    match schema {
        Value::Object(schema) => schema.iter().any(|(key, value)| {
            matches!(key.as_str(), "$ref" | "$dynamicRef" | "$recursiveRef") || has_reference(value)
        }),
        Value::Array(schemas) => schemas.iter().any(has_reference),
        _ => false,
    }
}

/// Whether all references lead to what is carried along.
fn refers_to_shared(schema: &Value) -> bool {
    match schema {
        Value::Object(schema) => schema.iter().all(|(key, value)| match value {
            Value::String(target) if key == "$ref" => {
                target.starts_with("#/$defs/") || target.starts_with("#/definitions/")
            }
            value => {
                !["$id", "$dynamicRef", "$recursiveRef"].contains(&key.as_str())
                    && refers_to_shared(value)
            }
        }),
        Value::Array(schemas) => schemas.iter().all(refers_to_shared),
        _ => true,
    }
}

/// Text of any kind, or nothing at all.
fn plain_text(property: &Value) -> Option<Kind> {
    let of_two = |schemas: &Value| match schemas.as_array().map(Vec::as_slice) {
        Some([one, other]) => {
            let pair = |one, other| is_only(one, "string") && is_only(other, "null");
            pair(one, other) || pair(other, one)
        }
        _ => false,
    };
    let schema = property.as_object()?;
    let says = |key: &&String| !NOTES.contains(&key.as_str());
    let mut keys = schema.keys().filter(says);
    let or_null = match (keys.next().map(String::as_str), keys.next()) {
        (Some("type"), None) if property["type"] == "string" => return Some(Kind::Text),
        (Some("type"), None) => {
            property["type"] == json!(["string", "null"])
                || property["type"] == json!(["null", "string"])
        }
        (Some("anyOf" | "oneOf"), None) => schema.values().any(of_two),
        _ => false,
    };
    or_null.then_some(Kind::TextOrNull)
}

/// Whether it says its type and nothing else.
fn is_only(property: &Value, kind: &str) -> bool {
    property.as_object().is_some_and(|schema| {
        schema.get("type").is_some_and(|this| this == kind)
            && schema.keys().all(|key| key == "type" || NOTES.contains(&key.as_str()))
    })
}

fn choice(property: &Value) -> Option<Vec<String>> {
    let schema = property.as_object()?;
    let known = |key: &String| {
        matches!(key.as_str(), "type" | "enum" | "const") || NOTES.contains(&key.as_str())
    };
    let is_text = schema.get("type").is_none_or(|kind| kind == "string");
    if !is_text || !schema.keys().all(known) {
        return None;
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match (schema.get("enum"), schema.get("const")) {
        (Some(values), None) => {
            let texts: Vec<String> = values.as_array()?.iter().map(text).collect::<Option<_>>()?;
            (!texts.is_empty()).then_some(texts)
        }
        (None, Some(value)) => Some(vec![text(value)?]),
        _ => None,
    }
}

/// Whether it cannot be taken for anything that is around it.
fn is_word(name: &str) -> bool {
    let starts = |c: char| c.is_alphabetic() || c == '_';
    name.starts_with(starts) && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// What a schema of plain fields may say.
const PLAIN: [&str; 12] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "$schema",
    "title",
    "description",
    "examples",
    "default",
    "$comment",
];

/// Where a schema has what several places refer to.
const SHARED: [&str; 2] = ["$defs", "definitions"];

/// Of shared definitions, once for each property that refers to them.
const MAX_CARRIED_BYTES: usize = 4 << 20;

/// What holds a value to nothing.
const NOTES: [&str; 8] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "$comment",
    "deprecated",
    "readOnly",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::output::qwen3_coder::QWEN3_CODER;

    fn kinds(parameters: Value) -> Option<Vec<Kind>> {
        let tool = Tool { name: "f".to_owned(), parameters, strict: false, origin: String::new() };
        match Arguments::of(&QWEN3_CODER, &tool) {
            Arguments::Fields(fields) => Some(fields.into_iter().map(|field| field.kind).collect()),
            Arguments::Whole { .. } => None,
        }
    }

    #[test]
    fn plain_text_stands_for_itself_and_all_else_is_json() {
        let kinds = kinds(json!({ "type": "object", "properties": {
            "a": { "type": "string", "description": "any" },
            "b": { "anyOf": [{ "type": "string" }, { "type": "null" }], "default": null },
            "c": { "type": "string", "enum": ["x", "y z"] },
            "d": { "type": "string", "pattern": "^a" },
            "e": { "type": "integer" },
            "f": { "type": "string", "enum": [" x"] },
        }}));
        let json = |value: Value| Kind::Json(value);
        assert_eq!(
            kinds.unwrap(),
            [
                Kind::Text,
                Kind::TextOrNull,
                Kind::Choice(vec!["x".to_owned(), "y z".to_owned()]),
                json(json!({ "type": "string", "pattern": "^a" })),
                json(json!({ "type": "integer" })),
                json(json!({ "type": "string", "enum": [" x"] })),
            ]
        );
    }

    #[test]
    fn shared_definitions_go_along_and_other_references_keep_the_object_whole() {
        let kinds_of = kinds(json!({
            "properties": { "a": { "$ref": "#/$defs/A" } },
            "$defs": { "A": { "type": "integer" } },
        }));
        let a = json!({ "$ref": "#/$defs/A", "$defs": { "A": { "type": "integer" } } });
        assert_eq!(kinds_of.unwrap(), [Kind::Json(a)]);
        let apart = json!({
            "properties": { "a": { "type": "integer" } },
            "$defs": { "A": { "$ref": "https://example.com/b" } },
        });
        assert_eq!(kinds(apart).unwrap(), [Kind::Json(json!({ "type": "integer" }))]);
        let own = json!({ "$ref": "#/$defs/A", "$defs": { "A": {} } });
        assert_eq!(kinds(json!({ "properties": { "a": own }, "$defs": { "A": {} } })), None);
        let through = json!({
            "properties": { "a": { "$ref": "#/$defs/A" } },
            "$defs": { "A": { "$ref": "#/properties/a" } },
        });
        assert_eq!(kinds(through), None);
        let large = json!({ "A": { "description": "x".repeat(MAX_CARRIED_BYTES / 2) } });
        let refers = json!({ "$ref": "#/$defs/A" });
        let two = json!({ "properties": { "a": refers, "b": refers }, "$defs": large });
        assert_eq!(kinds(two), None);
        assert_eq!(kinds(json!({ "properties": { "a": { "$ref": "#" } } })), None);
        assert_eq!(kinds(json!({ "properties": {}, "minProperties": 1 })), None);
        assert_eq!(kinds(json!({ "properties": { "a>": {} } })), None);
        assert_eq!(kinds(json!({ "type": "object" })), None);
        assert_eq!(kinds(json!({ "properties": {}, "required": ["a"] })), None);
    }
}
