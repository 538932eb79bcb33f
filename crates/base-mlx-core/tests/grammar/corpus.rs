use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base_mlx_core::grammar::{Constraint, GrammarError};
use serde_json::{Map, Value};

use crate::support::test_models::test_model;
use crate::vocabulary::Vocabulary;

/// A schema that somebody wrote.
pub(crate) struct Schema {
    pub(crate) name: String,
    pub(crate) schema: Value,
}

/// Of each collection every so many-th, as they come in order.
pub(crate) fn schemas(every: usize) -> Vec<Schema> {
    let mut schemas = Vec::new();
    for collection in COLLECTIONS {
        let folder = test_model("schemas").join(collection);
        let mut of_collection = Vec::new();
        for path in files(&folder) {
            let name = path.strip_prefix(folder.parent().unwrap()).unwrap().display().to_string();
            let text = std::fs::read_to_string(&path).unwrap();
            if *collection == "functions" {
                of_collection.extend(functions(&name, &text));
            } else if let Ok(schema @ Value::Object(_)) = serde_json::from_str(&text) {
                let is_schema = ["properties", "type", "$ref", "anyOf", "oneOf", "allOf"];
                if is_schema.iter().any(|keyword| schema.get(keyword).is_some())
                    && !name.contains("/examples/")
                {
                    of_collection.push(Schema { name, schema });
                }
            }
        }
        schemas.extend(of_collection.into_iter().step_by(every));
    }
    schemas
}

/// The parameters of functions, one function once. They write the types of Python.
fn functions(name: &str, lines: &str) -> Vec<Schema> {
    let mut found = BTreeMap::new();
    for line in lines.lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        let functions = line["function"].as_array().cloned().unwrap_or_else(|| vec![line]);
        for function in functions {
            if let (Some(of), Some(parameters)) =
                (function["name"].as_str(), function.get("parameters"))
            {
                found.insert(format!("{name} {of}"), json_types(parameters, false));
            }
        }
    }
    found.into_iter().map(|(name, schema)| Schema { name, schema }).collect()
}

fn json_types(value: &Value, of_names: bool) -> Value {
    match value {
        Value::Object(keywords) => {
            let mut written = Map::new();
            for (keyword, value) in keywords {
                match (keyword.as_str(), value.as_str()) {
                    ("type", Some(of)) if !of_names => {
                        let of = match of {
                            "dict" | "HashMap" | "Hashtable" => "object",
                            "float" | "double" => "number",
                            "int" | "long" | "short" | "byte" => "integer",
                            "tuple" | "ArrayList" | "Array" | "Queue" | "Stack" | "set" => "array",
                            "String" | "char" => "string",
                            "bool" | "Boolean" => "boolean",
                            "null" | "boolean" | "integer" | "number" | "string" | "array"
                            | "object" => of,
                            _ => continue,
                        };
                        written.insert(keyword.clone(), of.into());
                    }
                    _ => {
                        let value = json_types(value, keyword == "properties" && !of_names);
                        written.insert(keyword.clone(), value);
                    }
                }
            }
            written.into()
        }
        Value::Array(values) => values.iter().map(|value| json_types(value, false)).collect(),
        value => value.clone(),
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What became of a corpus.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) schemas: usize,
    pub(crate) compiled: usize,
    /// By the keyword that was refused.
    refused: BTreeMap<String, usize>,
    /// Answers to schemas that the validator does not take.
    without_validator: usize,
    pub(crate) ended: usize,
    pub(crate) cut: usize,
    pub(crate) invalid: Vec<String>,
    slowest: std::time::Duration,
}

impl Report {
    /// The grammar of a schema, in strict mode; if there is none, a keyword is to blame that the schema has. With
    /// `BASE_MLX_SHOW_REFUSED` it says which.
    pub(crate) fn compile(&mut self, vocabulary: &Vocabulary, of: &Schema) -> Option<Constraint> {
        self.schemas += 1;
        let started = std::time::Instant::now();
        let made = vocabulary.strict(&of.schema);
        self.slowest = self.slowest.max(started.elapsed());
        let keyword = match made {
            Ok(constraint) => {
                self.compiled += 1;
                return Some(constraint);
            }
            Err(GrammarError::Unsupported { pointer, message, .. }) => {
                assert!(of.schema.pointer(&pointer).is_some(), "{}: {pointer}: {message}", of.name);
                let keyword = pointer.rsplit('/').next().unwrap_or_default();
                if std::env::var_os("BASE_MLX_SHOW_REFUSED").is_some() {
                    println!("{}: {pointer}: {message}", of.name);
                }
                keyword.to_owned()
            }
            Err(error) => {
                println!("{}: {error}", of.name);
                error.to_string().split(": ").nth(1).unwrap_or_default().chars().take(40).collect()
            }
        };
        *self.refused.entry(keyword).or_default() += 1;
        None
    }

    /// Checks an answer with a validator; `None` was cut.
    pub(crate) fn check(&mut self, of: &Schema, answer: Option<&[u8]>) {
        let Some(answer) = answer else {
            self.cut += 1;
            return;
        };
        self.ended += 1;
        let value: Value = match serde_json::from_slice(answer) {
            Ok(value) => value,
            Err(error) => {
                self.invalid.push(format!(
                    "{}: {error}: {}",
                    of.name,
                    String::from_utf8_lossy(answer)
                ));
                return;
            }
        };
        let Ok(validator) = jsonschema::options().should_validate_formats(true).build(&of.schema)
        else {
            self.without_validator += 1;
            return;
        };
        if let Err(error) = validator.validate(&value) {
            let place = error.schema_path();
            self.invalid.push(format!("{}: {place}: {error}: {value}", of.name));
        }
    }
}

/// How many schemas there are to one that is tried: what `BASE_MLX_SCHEMAS_EVERY` says, 1 for all of them.
pub(crate) fn every(of_ci: usize) -> usize {
    match std::env::var("BASE_MLX_SCHEMAS_EVERY") {
        Ok(number) => number.parse().expect("BASE_MLX_SCHEMAS_EVERY is a number"),
        Err(_) => of_ci,
    }
}

#[test]
fn what_dice_make_of_a_schema_is_valid() {
    let vocabulary = Vocabulary::smollm2();
    let mut report = Report::default();
    for of in schemas(every(5)) {
        let Some(constraint) = report.compile(&vocabulary, &of) else { continue };
        for seed in 0..3 {
            let tokens = vocabulary.walk(&constraint, seed, 200);
            report.check(&of, tokens.map(|tokens| vocabulary.bytes(&tokens)).as_deref());
        }
    }
    println!("{report:#?}");
    assert!(report.invalid.is_empty());
    assert!(report.schemas >= 300);
    assert!(report.compiled * 100 >= report.schemas * 70);
    assert!(report.ended >= report.compiled * 2 && report.cut * 50 <= report.ended);
    assert!(report.without_validator * 50 <= report.ended);
}

const COLLECTIONS: &[&str] = &[
    "cloudformation",
    "stix",
    "check-jsonschema",
    "pyproject",
    "nbformat",
    "vega-lite",
    "cyclonedx",
    "functions",
];
