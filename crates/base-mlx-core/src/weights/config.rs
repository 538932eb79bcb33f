use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::LoadError;
use super::folder::MAX_JSON_BYTES;
use super::mapping::read_text;

/// `config.json`, or what GGUF metadata says in its words. Keys keep the spelling of `config.json`.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    values: Map<String, Value>,
    /// What the file itself has in the place of a key, where it has words of its own.
    spelling: BTreeMap<&'static str, String>,
}

impl Config {
    /// `path` is the file that errors name.
    pub fn new(path: &Path, values: Map<String, Value>) -> Self {
        Self { path: path.to_owned(), values, spelling: BTreeMap::new() }
    }

    /// Errors call these keys by the names that the file has for them: nobody finds others in it.
    pub(super) fn spelled(self, spelling: BTreeMap<&'static str, String>) -> Self {
        Self { spelling, ..self }
    }

    /// Reads a `config.json`.
    pub fn read(path: &Path) -> Result<Self, LoadError> {
        let values = serde_json::from_str(&read_text(path, MAX_JSON_BYTES)?);
        Ok(Self::new(path, values.map_err(|error| not_json(path, "a JSON object", error))?))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The family: `llama`, `qwen3`, …
    pub fn model_type(&self) -> Result<&str, LoadError> {
        self.get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| self.error("model_type", "is missing or not a string"))
    }

    /// The value, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// A count that must be there and at least 1.
    pub fn count(&self, key: &str) -> Result<usize, LoadError> {
        self.optional_count(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A count of at least 1, if it is there. A cap keeps every later product of two counts within 64 bits.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        const MAX: u64 = 1 << 31;
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(count @ 1..=MAX) => Ok(Some(count as usize)),
            _ => Err(self.error(key, &format!("is {value}, expected a whole number in 1..={MAX}"))),
        }
    }

    pub fn optional_f32(&self, key: &str) -> Result<Option<f32>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() => Ok(Some(number as f32)),
            _ => Err(self.error(key, &format!("is {value}, expected a number"))),
        }
    }

    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool, LoadError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(value) => Err(self.error(key, &format!("is {value}, expected true or false"))),
        }
    }

    /// An error about `key`; `what` completes the sentence "`key` in config.json …".
    pub fn error(&self, key: &str, what: &str) -> LoadError {
        let key = self.spelling.get(key).map_or(key, String::as_str).to_owned();
        LoadError::Config { path: self.path.clone(), key, what: what.to_owned() }
    }
}

/// What a JSON file beside a checkpoint says.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    serde_json::from_str(&read_text(path, MAX_JSON_BYTES)?)
        .map_err(|error| not_json(path, "what such a file says", error))
}

fn not_json(path: &Path, expected: &str, error: serde_json::Error) -> LoadError {
    let what = format!("it cannot be read as {expected}: {error}");
    LoadError::Damaged { path: path.to_owned(), what }
}
