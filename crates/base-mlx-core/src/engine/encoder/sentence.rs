//! What a model's own files say about making one vector of a text: those that sentence-transformers writes beside the weights,
//! or a GGUF file's metadata.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::pooling::Pooling;
use crate::weights::gguf::Metadata;
use crate::weights::{LoadError, read_json};

/// How a text becomes a vector. Their `max_seq_length` is left alone: it is where they cut texts by themselves, and what a
/// model's positions have room for can be longer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sentence {
    pub(super) pooling: Pooling,
    /// Whether vectors are brought to length 1.
    pub(super) normalize: bool,
    /// Whether texts are written in small letters first.
    pub(super) lowercase: bool,
    /// What is put before a text, by what the text is for.
    pub(super) prompts: BTreeMap<String, String>,
    /// Which of them stands before texts of which nothing is said.
    pub(super) default_prompt: Option<String>,
}

impl Default for Sentence {
    /// For encoders that come without such files.
    fn default() -> Self {
        Self {
            pooling: Pooling::Mean,
            normalize: true,
            lowercase: false,
            prompts: BTreeMap::new(),
            default_prompt: None,
        }
    }
}

impl Sentence {
    /// By the metadata of a GGUF file, or by the files in a folder. `None` if they say nothing of it.
    pub(super) fn told(
        path: &Path,
        metadata: Option<&Metadata>,
    ) -> Result<Option<Self>, LoadError> {
        metadata.map_or_else(|| Self::read(path), |metadata| Self::of_gguf(path, metadata))
    }

    /// A GGUF file names the pooling alone. Whoever else reads such files brings vectors to length 1, so that is what they
    /// are compared at.
    fn of_gguf(path: &Path, metadata: &Metadata) -> Result<Option<Self>, LoadError> {
        let architecture = metadata.str("general.architecture").unwrap_or_default();
        let key = format!("{architecture}.pooling_type");
        let pooling = match (metadata.get(&key), metadata.u64(&key)) {
            (None, _) | (_, Some(0)) => return Ok(None),
            (_, Some(1)) => Pooling::Mean,
            (_, Some(2)) => Pooling::First,
            (_, Some(3)) => Pooling::Last,
            (Some(value), _) => {
                return Err(LoadError::Unsupported {
                    path: path.to_owned(),
                    what: format!("`{key}` {value:?}"),
                    hint: "supported are 1 (mean), 2 (first) and 3 (last)".to_owned(),
                });
            }
        };
        Ok(Some(Self { pooling, ..Self::default() }))
    }

    /// `None` if the folder has no modules.json. What is not known there is an error.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, LoadError> {
        let path = folder.join("modules.json");
        let Some(modules) = json::<Vec<Module>>(&path)? else { return Ok(None) };
        let mut sentence = Self { normalize: false, ..Self::default() };
        let mut pooling = None;
        for Module { kind, path: place } in &modules {
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Pooling" => pooling = Some(self::pooling(folder, place)?),
                "Normalize" => sentence.normalize = true,
                other => {
                    return Err(LoadError::Unsupported {
                        path,
                        what: format!("a module `{other}`"),
                        hint: "supported are Transformer, Pooling and Normalize".to_owned(),
                    });
                }
            }
        }
        sentence.pooling = pooling.ok_or_else(|| LoadError::Damaged {
            path,
            what: "it lists no Pooling, so that there is no way from tokens to a vector".to_owned(),
        })?;
        let settings = json::<Map<String, Value>>(&folder.join("sentence_bert_config.json"))?;
        let lowercase = settings.as_ref().and_then(|settings| settings.get("do_lower_case"));
        sentence.lowercase = lowercase == Some(&Value::Bool(true));
        let path = folder.join("config_sentence_transformers.json");
        let Prompts { prompts, default_prompt_name } = json(&path)?.unwrap_or_default();
        let prompts = prompts.unwrap_or_default().into_iter();
        let prompts: BTreeMap<String, String> =
            prompts.map(|(name, prompt)| (name, prompt.unwrap_or_default())).collect();
        if let Some(name) = default_prompt_name.as_ref().filter(|name| !prompts.contains_key(*name))
        {
            let what = format!("`default_prompt_name` is {name:?}, which is none of its prompts");
            return Err(LoadError::Damaged { path, what });
        }
        (sentence.prompts, sentence.default_prompt) = (prompts, default_prompt_name);
        Ok(Some(sentence))
    }
}

/// What the module in folder `place` says.
fn pooling(folder: &Path, place: &str) -> Result<Pooling, LoadError> {
    let inside = Path::new(place).components().all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        let what = format!("the module's folder `{place}` is not one beside it");
        return Err(LoadError::Damaged { path: folder.join("modules.json"), what });
    }
    let path = folder.join(place).join("config.json");
    let Some(settings) = json::<Map<String, Value>>(&path)? else {
        let source = std::io::ErrorKind::NotFound.into();
        return Err(LoadError::Io { path, source });
    };
    let on = |(key, value): (&String, &Value)| {
        let mode = key.strip_prefix("pooling_mode_")?;
        (value == &Value::Bool(true)).then(|| mode.to_owned())
    };
    let mut modes: Vec<String> = settings.iter().filter_map(on).collect();
    modes.extend(settings.get("pooling_mode").and_then(Value::as_str).map(str::to_owned));
    let unsupported = |what: String| LoadError::Unsupported {
        path: path.clone(),
        what,
        hint: "supported is one of cls_token, lasttoken, mean_tokens, max_tokens".to_owned(),
    };
    if settings.get("include_prompt") == Some(&Value::Bool(false)) {
        return Err(unsupported("`include_prompt` false".to_owned()));
    }
    match modes.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["cls_token" | "cls"] => Ok(Pooling::First),
        ["lasttoken"] => Ok(Pooling::Last),
        ["mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["max_tokens" | "max"] => Ok(Pooling::Max),
        _ => Err(unsupported(format!("pooling by {modes:?}"))),
    }
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

#[derive(Default, Deserialize)]
struct Prompts {
    prompts: Option<BTreeMap<String, Option<String>>>,
    default_prompt_name: Option<String>,
}

/// `None` if the file is not there.
fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, LoadError> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MODULES: &str = r#"[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    ]"#;

    fn read(modules: &str, pooling: &str) -> Result<Option<Sentence>, String> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        fs::write(folder.path().join("modules.json"), modules).unwrap();
        fs::write(folder.path().join("1_Pooling/config.json"), pooling).unwrap();
        let prompts = r#"{"prompts": {"query": "Query: ", "document": ""}}"#;
        fs::write(folder.path().join("config_sentence_transformers.json"), prompts).unwrap();
        Sentence::read(folder.path()).map_err(|error| {
            error.to_string().replace(&folder.path().display().to_string(), "FOLDER")
        })
    }

    #[test]
    fn pooling_and_normalisation_are_what_the_files_say() {
        let last = r#"{"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false}"#;
        let sentence = read(MODULES, last).unwrap().unwrap();
        assert_eq!((sentence.pooling, sentence.normalize), (Pooling::Last, true));
        assert_eq!(sentence.prompts["query"], "Query: ");
        let plain = MODULES.replace(",\n        {\"idx\": 2, \"name\": \"2\", \"path\": \"2_Normalize\", \"type\": \"sentence_transformers.models.Normalize\"}", "");
        let sentence = read(&plain, r#"{"pooling_mode": "cls"}"#).unwrap().unwrap();
        assert_eq!((sentence.pooling, sentence.normalize), (Pooling::First, false));
        assert_eq!(Sentence::read(tempfile::tempdir().unwrap().path()).unwrap(), None);
    }

    #[test]
    fn what_is_not_known_is_an_error_that_names_it() {
        let two = r#"{"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true}"#;
        let error = read(MODULES, two).unwrap_err();
        assert!(error.contains(r#"pooling by ["cls_token", "max_tokens"] is not"#), "{error}");
        let dense = MODULES.replace("models.Normalize", "models.Dense");
        let error = read(&dense, r#"{"pooling_mode_mean_tokens": true}"#).unwrap_err();
        assert!(error.starts_with("FOLDER/modules.json: a module `Dense` is not"), "{error}");
        let outside = MODULES.replace("1_Pooling", "../1_Pooling");
        let error = read(&outside, "{}").unwrap_err();
        assert!(error.contains("`../1_Pooling` is not one beside it"), "{error}");
    }
}
