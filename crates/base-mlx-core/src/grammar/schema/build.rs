use serde_json::{Map, Value, json};

use super::formats::{self, Format};
use super::references::{References, escaped};
use super::{DEFINITIONS, Place, Prepared, keywords, numbers, pattern, size};
use crate::grammar::GrammarError;

/// Writes a schema anew.
pub(super) struct Builder<'a> {
    root: &'a Value,
    strict: bool,
    origin: &'a str,
    references: References<'a>,
    warnings: Vec<String>,
    places: Vec<Place>,
    /// Of all pointers to subschemas and their keywords.
    pointer_bytes: usize,
}

/// Where a subschema was, where it is, and how many others are around it.
#[derive(Clone, Debug)]
struct At {
    place: Place,
    depth: usize,
}

impl At {
    /// A subschema below: `given` and `prepared` are pointers that begin here.
    fn below(&self, given: &str, prepared: &str) -> Self {
        let place = Place {
            given: format!("{}{given}", self.place.given),
            prepared: format!("{}{prepared}", self.place.prepared),
        };
        Self { place, depth: self.depth + 1 }
    }

    fn keyword(&self, keyword: &str) -> String {
        format!("{}/{}", self.place.given, escaped(keyword))
    }
}

impl<'a> Builder<'a> {
    pub(super) fn new(
        root: &'a Value,
        strict: bool,
        origin: &'a str,
    ) -> Result<Self, GrammarError> {
        let references = References::of(root)
            .map_err(|message| GrammarError::TooComplex { origin: origin.to_owned(), message })?;
        Ok(Self {
            root,
            strict,
            origin,
            references,
            warnings: Vec::new(),
            places: Vec::new(),
            pointer_bytes: 0,
        })
    }

    pub(super) fn build(mut self) -> Result<Prepared, GrammarError> {
        let nowhere = Place { given: String::new(), prepared: String::new() };
        let mut schema = self.schema(self.root, &At { place: nowhere, depth: 0 })?;
        let mut definitions = Map::new();
        while let Some(given) = self.references.next_unwritten() {
            let name = References::name(definitions.len());
            let prepared = format!("/{DEFINITIONS}/{name}");
            if definitions.len() == MAX_REFERENCES {
                return Err(
                    self.too_complex(format!("more than {MAX_REFERENCES} schemas are referred to"))
                );
            }
            let target = self.root.pointer(&given).expect("a reference was found to lead there");
            let definition =
                self.schema(target, &At { place: Place { given, prepared }, depth: 0 })?;
            definitions.insert(name, definition);
        }
        if let Some(schema) = schema.as_object_mut().filter(|_| !definitions.is_empty()) {
            schema.insert(DEFINITIONS.to_owned(), Value::Object(definitions));
        }
        Ok(Prepared { schema, warnings: self.warnings, places: self.places })
    }

    fn schema(&mut self, schema: &Value, at: &At) -> Result<Value, GrammarError> {
        let pointers = 1 + schema.as_object().map_or(0, Map::len);
        self.count_pointers(at.place.prepared.len() + pointers * at.place.given.len())?;
        let keywords = match schema {
            Value::Object(keywords) => keywords,
            Value::Bool(_) => return Ok(schema.clone()),
            _ => return Err(self.malformed(&at.place.given, "a schema, an object or a boolean")),
        };
        self.places.push(at.place.clone());
        if at.depth > MAX_DEPTH || self.places.len() > MAX_SUBSCHEMAS {
            let most =
                format!("more than {MAX_SUBSCHEMAS} subschemas, or {MAX_DEPTH} in one another");
            return Err(self.too_complex(most));
        }
        let mut written = Map::new();
        // What every value has to satisfy besides.
        let mut also = Vec::new();
        for (keyword, value) in keywords {
            let pointer = at.keyword(keyword);
            match keyword.as_str() {
                "type" => {
                    self.check_type(value, &pointer)?;
                    written.insert(keyword.clone(), value.clone());
                }
                "enum" | "const" => {
                    if keyword == "enum" && value.as_array().is_none_or(Vec::is_empty) {
                        return Err(self.malformed(&pointer, "an array with a value"));
                    }
                    if let Some(number) = numbers::inexact(value) {
                        self.cannot(&pointer, &format!("{number} is too large"))?;
                    } else if keywords::has_control(value) {
                        self.cannot(&pointer, "control characters are not supported")?;
                    } else {
                        written.insert(keyword.clone(), value.clone());
                    }
                }
                "$ref" => {
                    let Value::String(reference) = value else {
                        return Err(self.malformed(&pointer, "a string"));
                    };
                    match self.references.resolve(reference, &at.place.given) {
                        Some(name) => {
                            let reference = format!("#/{DEFINITIONS}/{name}");
                            written.insert(keyword.clone(), reference.into());
                        }
                        None => {
                            self.cannot(&pointer, &format!("{reference:?} is not in this schema"))?;
                        }
                    }
                }
                "allOf" | "anyOf" | "oneOf" => {
                    let list = self.list(value, at, keyword, keyword)?;
                    if list.is_empty() && keyword != "allOf" {
                        return Err(self.malformed(&pointer, "an array with a schema"));
                    }
                    written.insert(keyword.clone(), list.into());
                }
                "properties" => {
                    let properties =
                        self.map(value, at, keyword, |_, name| Ok(Some(name.to_owned())))?;
                    written.insert(keyword.clone(), properties.into());
                }
                "patternProperties" => {
                    let properties = self.map(value, at, keyword, |builder, name| {
                        let pointer = format!("{pointer}/{}", escaped(name));
                        builder.count_pointers(pointer.len())?;
                        builder.pattern(name, &pointer)
                    })?;
                    written.insert(keyword.clone(), properties.into());
                }
                "additionalProperties" => {
                    let schema = self.below(value, at, keyword, keyword)?;
                    written.insert(keyword.clone(), schema);
                }
                "prefixItems" if !matches!(keywords.get("items"), Some(Value::Array(_))) => {
                    let list = self.list(value, at, keyword, keyword)?;
                    written.insert(keyword.clone(), list.into());
                }
                // As drafts before 2020-12 say what `prefixItems` and `items` do now.
                "items" if value.is_array() => {
                    let list = self.list(value, at, "items", "prefixItems")?;
                    written.insert("prefixItems".to_owned(), list.into());
                    if let Some(rest) = keywords.get("additionalItems") {
                        let rest = self.below(rest, at, "additionalItems", "items")?;
                        written.insert("items".to_owned(), rest);
                    }
                }
                "items" => {
                    let schema = self.below(value, at, keyword, keyword)?;
                    written.insert(keyword.clone(), schema);
                }
                "required" => {
                    let names = value.as_array().map(|names| names.iter().all(Value::is_string));
                    if names != Some(true) {
                        return Err(self.malformed(&pointer, "an array of strings"));
                    }
                    written.insert(keyword.clone(), value.clone());
                }
                "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties"
                | "maxProperties" => {
                    let Some(count) = numbers::count(value) else {
                        return Err(self.malformed(&pointer, "a whole number that is not negative"));
                    };
                    if keyword == "minProperties" && !keywords::are_distinct(count, keywords) {
                        let why =
                            "names of properties that the schema does not name may come twice";
                        self.cannot(&pointer, why)?;
                    } else {
                        written.insert(keyword.clone(), count.into());
                    }
                }
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                    self.bound(keyword, value, keywords, &pointer, &mut written)?;
                }
                "multipleOf" => {
                    if value.as_f64().is_none_or(|number| number <= 0.0) {
                        return Err(self.malformed(&pointer, "a number above zero"));
                    }
                    written.insert(keyword.clone(), value.clone());
                }
                "pattern" => {
                    let Value::String(regex) = value else {
                        return Err(self.malformed(&pointer, "a string"));
                    };
                    if let Some(regex) = self.pattern(regex, &pointer)? {
                        written.insert(keyword.clone(), regex.into());
                    }
                }
                "format" => {
                    let Value::String(name) = value else {
                        return Err(self.malformed(&pointer, "a string"));
                    };
                    match formats::find(name) {
                        _ if !keywords::may_be(keywords, "string") => {}
                        Some(Format::Any) => {}
                        Some(Format::OfCompiler) => {
                            written.insert(keyword.clone(), value.clone());
                        }
                        Some(Format::Regex(regex)) => {
                            also.push(json!({ "pattern": format!("^(?:{regex})$") }));
                        }
                        None => {
                            self.cannot(&pointer, &format!("the format {name:?} is not known"))?
                        }
                    }
                }
                _ => {
                    if let Some(why) = keywords::not_held(keyword, value, keywords) {
                        self.cannot(&pointer, why)?;
                    }
                }
            }
        }
        if !also.is_empty() {
            match written.get_mut("allOf") {
                Some(Value::Array(all)) => all.extend(also),
                _ => {
                    written.insert("allOf".to_owned(), also.into());
                }
            }
        }
        Ok(Value::Object(written))
    }

    fn below(
        &mut self,
        schema: &Value,
        at: &At,
        given: &str,
        prepared: &str,
    ) -> Result<Value, GrammarError> {
        self.schema(schema, &at.below(&format!("/{given}"), &format!("/{prepared}")))
    }

    fn list(
        &mut self,
        value: &Value,
        at: &At,
        given: &str,
        prepared: &str,
    ) -> Result<Vec<Value>, GrammarError> {
        let Value::Array(schemas) = value else {
            return Err(self.malformed(&at.keyword(given), "an array of schemas"));
        };
        let place = |index| at.below(&format!("/{given}/{index}"), &format!("/{prepared}/{index}"));
        let schemas = schemas.iter().enumerate();
        schemas.map(|(index, schema)| self.schema(schema, &place(index))).collect()
    }

    /// Of names to schemas; `rename` says what a name becomes, `None` if it goes.
    fn map(
        &mut self,
        value: &Value,
        at: &At,
        keyword: &str,
        rename: impl Fn(&mut Self, &str) -> Result<Option<String>, GrammarError>,
    ) -> Result<Map<String, Value>, GrammarError> {
        let Value::Object(schemas) = value else {
            return Err(self.malformed(&at.keyword(keyword), "an object of schemas"));
        };
        let mut written = Map::new();
        for (name, schema) in schemas {
            let Some(renamed) = rename(self, name)? else { continue };
            let given = format!("/{keyword}/{}", escaped(name));
            let prepared = format!("/{keyword}/{}", escaped(&renamed));
            let schema = self.schema(schema, &at.below(&given, &prepared))?;
            written.insert(renamed, schema);
        }
        Ok(written)
    }

    fn check_type(&self, value: &Value, pointer: &str) -> Result<(), GrammarError> {
        let is_type =
            |value: &Value| value.as_str().is_some_and(|name| keywords::TYPES.contains(&name));
        let is_right = match value {
            Value::Array(types) => !types.is_empty() && types.iter().all(is_type),
            value => is_type(value),
        };
        match is_right {
            true => Ok(()),
            false => {
                Err(self.malformed(pointer, &format!("one of {}", keywords::TYPES.join(", "))))
            }
        }
    }

    fn bound(
        &mut self,
        keyword: &str,
        value: &Value,
        keywords: &Map<String, Value>,
        pointer: &str,
        written: &mut Map<String, Value>,
    ) -> Result<(), GrammarError> {
        let is_upper = keyword.ends_with("aximum");
        let bound = match value {
            // As draft 4 has it: of the other bound.
            Value::Bool(false) if keyword.starts_with("exclusive") => return Ok(()),
            Value::Bool(true) if keyword.starts_with("exclusive") => {
                match keywords.get(if is_upper { "maximum" } else { "minimum" }) {
                    Some(bound) => bound,
                    None => return Ok(()),
                }
            }
            value => value,
        };
        let Value::Number(bound) = bound else {
            return Err(self.malformed(pointer, "a number"));
        };
        match numbers::bound(bound, is_upper) {
            Some(bound) => {
                written.insert(keyword.to_owned(), bound.into());
                Ok(())
            }
            None => self.cannot(pointer, &format!("{bound} is too large")),
        }
    }

    /// The regex as the compiler has it; `None` if it is left out.
    fn pattern(&mut self, regex: &str, pointer: &str) -> Result<Option<String>, GrammarError> {
        if regex.len() > size::MAX_TEXT_BYTES {
            let most = size::MAX_TEXT_BYTES;
            return Err(self.too_complex(format!("a pattern has more than {most} bytes")));
        }
        match pattern::translated(regex) {
            Ok(regex) => Ok(Some(regex)),
            Err(message) => {
                self.cannot(pointer, &message)?;
                Ok(None)
            }
        }
    }

    /// What the keyword says cannot be guaranteed.
    fn cannot(&mut self, pointer: &str, message: &str) -> Result<(), GrammarError> {
        if self.strict {
            return Err(GrammarError::Unsupported {
                origin: self.origin.to_owned(),
                pointer: pointer.to_owned(),
                message: message.to_owned(),
            });
        }
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(format!("{}: {pointer} is left out: {message}", self.origin));
        } else if self.warnings.len() == MAX_WARNINGS {
            self.warnings.push(format!("{}: more is left out", self.origin));
        }
        Ok(())
    }

    fn count_pointers(&mut self, bytes: usize) -> Result<(), GrammarError> {
        self.pointer_bytes += bytes;
        match self.pointer_bytes > MAX_POINTER_BYTES {
            true => Err(self.too_complex("names are too long for how deep they are".to_owned())),
            false => Ok(()),
        }
    }

    fn too_complex(&self, message: String) -> GrammarError {
        GrammarError::TooComplex { origin: self.origin.to_owned(), message }
    }

    fn malformed(&self, pointer: &str, expected: &str) -> GrammarError {
        let place = if pointer.is_empty() { "the whole" } else { pointer };
        GrammarError::Invalid {
            origin: self.origin.to_owned(),
            message: format!("{place}: expected {expected}"),
        }
    }
}

/// As deep as JSON of requests may be, twice.
const MAX_DEPTH: usize = 256;
/// FHIR, the largest schema of the wild, has 20,000.
const MAX_SUBSCHEMAS: usize = 40_000;
/// The compiler calls itself for each that is in another.
const MAX_REFERENCES: usize = 3000;
const MAX_POINTER_BYTES: usize = 32 << 20;
const MAX_WARNINGS: usize = 100;
