use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{DEFINITIONS, Prepared};

/// Why a schema is more than the compiler takes in its time, with the pointer of the place; most of its work it bounds itself.
pub(super) fn too_complex(prepared: &Prepared) -> Option<(String, String)> {
    let mut groups = Groups { root: &prepared.schema, known: HashMap::new() };
    prepared.places.iter().find_map(|place| {
        let schema = prepared.schema.pointer(&place.prepared)?;
        let group = groups.of(schema);
        // Its work grows with the square of these.
        let most = if group.counts_properties { MAX_COUNTED_PROPERTIES } else { MAX_PROPERTIES };
        let why = if group.properties > most {
            format!("an object has {} properties, {most} are possible", group.properties)
        } else if group.patterns > MAX_PATTERNS {
            format!("a string has {} patterns, {MAX_PATTERNS} are possible", group.patterns)
        } else if longest(schema) > MAX_TEXT_BYTES {
            format!("a text has more than {MAX_TEXT_BYTES} bytes")
        } else {
            return None;
        };
        Some((place.given.clone(), why))
    })
}

/// What one value has to satisfy at once.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    properties: usize,
    patterns: usize,
    /// Whether some number of properties is demanded.
    counts_properties: bool,
}

struct Groups<'a> {
    root: &'a Value,
    /// Of references; one that is being looked at adds nothing.
    known: HashMap<&'a str, Group>,
}

impl<'a> Groups<'a> {
    fn of(&mut self, schema: &'a Value) -> Group {
        let Value::Object(keywords) = schema else { return Group::default() };
        let counts = ["minProperties", "maxProperties"];
        let mut group = Group {
            properties: keywords.get("properties").and_then(Value::as_object).map_or(0, Map::len),
            patterns: ["pattern", "format"].iter().filter(|&&of| keywords.contains_key(of)).count(),
            counts_properties: counts.iter().any(|&of| keywords.contains_key(of)),
        };
        let list = |keyword| keywords.get(keyword).and_then(Value::as_array).into_iter().flatten();
        for schema in list("allOf") {
            group = group.and(self.of(schema));
        }
        for keyword in ["anyOf", "oneOf"] {
            let options = list(keyword).map(|schema| self.of(schema));
            group = group.and(options.fold(Group::default(), Group::or));
        }
        if let Some(reference) = keywords.get("$ref").and_then(Value::as_str) {
            group = group.and(self.of_reference(reference));
        }
        group
    }

    fn of_reference(&mut self, reference: &'a str) -> Group {
        if let Some(&group) = self.known.get(reference) {
            return group;
        }
        self.known.insert(reference, Group::default());
        let group =
            self.root.pointer(&reference[1..]).map_or(Group::default(), |schema| self.of(schema));
        self.known.insert(reference, group);
        group
    }
}

impl Group {
    fn and(self, other: Self) -> Self {
        Self {
            properties: self.properties.saturating_add(other.properties),
            patterns: self.patterns.saturating_add(other.patterns),
            counts_properties: self.counts_properties || other.counts_properties,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            properties: self.properties.max(other.properties),
            patterns: self.patterns.max(other.patterns),
            counts_properties: self.counts_properties || other.counts_properties,
        }
    }
}

/// The longest text that a schema has word for word.
fn longest(schema: &Value) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(of).max().unwrap_or(0),
            Value::Object(values) => {
                values.iter().map(|(name, value)| name.len().max(of(value))).max().unwrap_or(0)
            }
            _ => 0,
        }
    }
    let values =
        ["const", "enum", "required"].into_iter().filter_map(|keyword| schema.get(keyword));
    let names = schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    values.map(of).chain(names.map(String::len)).max().unwrap_or(0)
}

/// The name of a definition that is nothing but itself.
pub(super) fn circle(schema: &Value) -> Option<&str> {
    let definitions = schema.get(DEFINITIONS)?.as_object()?;
    let next = |name: &str| -> Option<&str> {
        let reference = definitions.get(name)?.get("$ref")?.as_str()?;
        reference.rsplit('/').next()
    };
    definitions.keys().map(String::as_str).find(|name| {
        let steps = std::iter::successors(next(name), |name| next(name));
        steps.take(definitions.len()).any(|step| step == *name)
    })
}

const MAX_PROPERTIES: usize = 2000;
const MAX_COUNTED_PROPERTIES: usize = 100;
const MAX_PATTERNS: usize = 8;
pub(super) const MAX_TEXT_BYTES: usize = 16 << 10;
