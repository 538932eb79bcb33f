use std::path::Path;

use base_mlx_core::grammar::GrammarError;
use serde_json::{Map, Value};

use crate::support::test_models::test_model;
use crate::vocabulary::Vocabulary;

/// The JSON Schema Test Suite: a grammar lets no instance through that the suite calls invalid, and most that it calls valid.
#[test]
fn no_invalid_instance_of_the_suite_passes() {
    let vocabulary = Vocabulary::smollm2();
    let mut count = Count::default();
    for draft in ["draft4", "draft6", "draft7", "draft2019-09", "draft2020-12"] {
        let folder = test_model("schemas/suite").join(draft);
        for file in files(&folder) {
            // What strings contain is for people to know.
            if file.ends_with("optional/content.json") {
                continue;
            }
            let groups: Vec<Value> =
                serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            for group in groups {
                let name = format!("{}: {}", file.display(), group["description"]);
                count.group(&vocabulary, &group, draft, &name);
            }
        }
    }
    println!("{count:?}");
    assert!(count.wrong.is_empty(), "{:#?}", count.wrong);
    assert!(count.compiled * 100 >= count.groups * 60, "{count:?}");
    assert!(count.allowed * 100 >= count.valid * 85, "{count:?}");
}

/// Of the draft, with what is optional: formats and regexes.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
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

#[derive(Debug, Default)]
struct Count {
    groups: usize,
    compiled: usize,
    invalid: usize,
    valid: usize,
    allowed: usize,
    /// Invalid instances that a grammar lets through.
    wrong: Vec<String>,
}

impl Count {
    fn group(&mut self, vocabulary: &Vocabulary, group: &Value, draft: &str, name: &str) {
        let mut schema = group["schema"].clone();
        if let (Some(schema), Some(number)) = (schema.as_object_mut(), draft.strip_prefix("draft"))
            && number.len() == 1
        {
            let draft = format!("http://json-schema.org/draft-0{number}/schema#");
            schema.entry("$schema").or_insert_with(|| draft.into());
        }
        self.groups += 1;
        let constraint = match vocabulary.strict(&schema) {
            Ok(constraint) => constraint,
            Err(error) => {
                let is_named = match &error {
                    GrammarError::Unsupported { pointer, .. } => {
                        pointer.is_empty() || schema.pointer(pointer).is_some()
                    }
                    GrammarError::Invalid { .. } | GrammarError::TooComplex { .. } => true,
                    GrammarError::Busy(_)
                    | GrammarError::Failed(_)
                    | GrammarError::Vocabulary(_) => false,
                };
                assert!(is_named, "{name}: {error}");
                return;
            }
        };
        self.compiled += 1;
        for test in group["tests"].as_array().unwrap() {
            let is_valid = test["valid"] == true;
            let data = ordered(&test["data"], &schema);
            let passes = |data: &Value| vocabulary.lets_through(&constraint, &data.to_string());
            let passes = passes(&data) || !is_valid && passes(&test["data"]);
            match is_valid {
                true => {
                    self.valid += 1;
                    self.allowed += usize::from(passes);
                }
                false => {
                    self.invalid += 1;
                    if passes {
                        self.wrong.push(format!("{name}: {} {schema} {data}", test["description"]));
                    }
                }
            }
        }
    }
}

/// The value with its properties in the order of the schema.
fn ordered(value: &Value, schema: &Value) -> Value {
    let Some(properties) = value.as_object() else { return value.clone() };
    let of_schema = schema["properties"].as_object();
    let mut written = Map::new();
    for name in of_schema.into_iter().flat_map(Map::keys).chain(properties.keys()) {
        if let Some(value) = properties.get(name) {
            written.insert(name.clone(), ordered(value, &schema["properties"][name]));
        }
    }
    Value::Object(written)
}
