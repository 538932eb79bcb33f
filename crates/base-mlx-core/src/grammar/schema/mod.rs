//! JSON schemas before they are compiled: checked keyword by keyword, and written anew in the few words of draft 2020-12 that
//! the compiler holds to. What is not a keyword of those goes, `x-guidance` of users with it.

mod build;
mod formats;
mod keywords;
mod numbers;
mod pattern;
mod references;
mod size;

use serde_json::{Map, Value, json};

use super::GrammarError;
use crate::text::output::Spacing;

/// A schema as the compiler gets it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) schema: Value,
    /// What was left out of it; none in strict mode.
    pub(super) warnings: Vec<String>,
    /// Where each of its subschemas was in the schema as given, outermost first.
    pub(super) places: Vec<Place>,
}

/// A subschema by where it was and where it is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// JSON pointer into the schema as given.
    pub(super) given: String,
    /// JSON pointer into the schema as prepared.
    pub(super) prepared: String,
}

/// Checks `schema` and writes it anew. An error names the keyword by its JSON pointer: what is malformed in any case, what
/// cannot be guaranteed if `strict`; else that is left out, with a warning.
pub(super) fn prepare(
    schema: &Value,
    strict: bool,
    origin: &str,
) -> Result<Prepared, GrammarError> {
    let prepared = build::Builder::new(schema, strict, origin)?.build()?;
    if let Some((pointer, why)) = size::too_complex(&prepared) {
        let message = if pointer.is_empty() { why } else { format!("{pointer}: {why}") };
        return Err(GrammarError::TooComplex { origin: origin.to_owned(), message });
    }
    if let Some(name) = size::circle(&prepared.schema) {
        let prepared_at = format!("/{DEFINITIONS}/{name}");
        let place = prepared.places.iter().find(|place| place.prepared == prepared_at);
        return Err(GrammarError::Unsupported {
            origin: origin.to_owned(),
            pointer: place.map_or(String::new(), |place| format!("{}/$ref", place.given)),
            message: "it leads to itself".to_owned(),
        });
    }
    Ok(prepared)
}

impl Prepared {
    /// The whole schema with options for the compiler.
    pub(super) fn with_options(&self, lenient: bool, spacing: Spacing) -> Value {
        with_options(self.schema.clone(), lenient, spacing)
    }

    /// One subschema by itself, with all that it may refer to.
    pub(super) fn alone(&self, place: &Place, spacing: Spacing) -> Option<Value> {
        let mut schema = self.schema.pointer(&place.prepared)?.clone();
        if let (Some(schema), Some(definitions)) =
            (schema.as_object_mut(), self.schema.get(DEFINITIONS))
        {
            schema.insert(DEFINITIONS.to_owned(), definitions.clone());
        }
        Some(with_options(schema, false, spacing))
    }
}

fn with_options(schema: Value, lenient: bool, spacing: Spacing) -> Value {
    let mut options = match spacing {
        Spacing::Compact => {
            json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " })
        }
        Spacing::Flexible => json!({ "whitespace_pattern": WHITE_SPACE }),
    };
    options["lenient"] = lenient.into();
    // One spelling for each character: `"\u0061"` would be a key that is not yet taken beside `"a"`.
    options["json_allowed_escapes"] = "nrbtf\\\"".into();
    let mut schema = match schema {
        Value::Object(schema) => schema,
        Value::Bool(true) => Map::new(),
        other => Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    schema.insert("x-guidance".to_owned(), options);
    Value::Object(schema)
}

/// Where a prepared schema keeps what its `$ref` name.
const DEFINITIONS: &str = "$defs";

/// As much of it as pretty-printed JSON of some depth wants.
const WHITE_SPACE: &str = r"[ \n\t]{0,24}";

#[cfg(test)]
mod tests;
