//! Text parts of a Hugging Face folder: tokenizer.json, and what the JSON files around it say about templates and
//! special tokens.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Map, Value};

use super::charsmap;
use super::end::EndTokens;
use super::template::{ChatTemplate, SpecialTokens};
use super::tokenizer::{Pieces, Spelling, Tokenizer};
use super::{MAX_TOKENS, Text};
use crate::TokenId;
use crate::weights::{Config, LoadError};

pub(super) fn load(folder: &Path, config: &Config) -> Result<Text, LoadError> {
    let tokenizer = tokenizer(folder)?;
    let settings = Settings::read(folder)?;
    let special = settings.special_tokens();
    let (template, template_error) =
        match ChatTemplate::load(settings.templates(folder)?, special.clone()) {
            Ok(template) => (template, None),
            Err(error) => (None, Some(error)),
        };

    let mut end = EndTokens::new(&tokenizer);
    end.add_named(special.get("eos_token"));
    end.add_ids(config.get("eos_token_id"));
    // Models with several parts keep the language model's settings one level down.
    end.add_ids(config.get("text_config").and_then(|inner| inner.get("eos_token_id")));
    end.add_ids(settings.generation.get("eos_token_id"));
    end.add_turn_ends(template.as_ref());
    let end_tokens = end.finish();
    Ok(Text::new(tokenizer, template, template_error, end_tokens))
}

fn tokenizer(folder: &Path) -> Result<Tokenizer, LoadError> {
    let path = folder.join("tokenizer.json");
    let error = |what: String| LoadError::Tokenizer { path: path.clone(), what };
    let Some(bytes) = read(&path, MAX_TOKENIZER_BYTES)? else {
        return Err(error(
            "the file is not there\nhint: other formats are not read; \
            `transformers` writes it with `AutoTokenizer.from_pretrained(…).save_pretrained(…)`"
                .to_owned(),
        ));
    };
    // The file is foreign and its parser is not ours: whatever it stumbles over is the file's fault.
    let parsed = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(&bytes)));
    let mut inner = parsed
        .map_err(|_| error("the file is damaged".to_owned()))?
        .map_err(|source| error(source.to_string()))?;
    // How long a text may be is not the tokenizer's business.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|source| error(source.to_string()))?;
    inner.get_normalizer().map_or(Ok(()), charsmap::check_all).map_err(error)?;

    let spelling = Spelling::of(&inner).map_err(error)?;
    let added = inner.get_added_vocabulary().get_added_tokens_decoder();
    let mut pieces = BTreeMap::new();
    for (token, id) in inner.get_vocab(false) {
        pieces.insert(id, (spelling.bytes(&token), false));
    }
    for (&id, token) in added {
        let bytes = match spelling {
            Spelling::SentencePiece { .. } => spelling.bytes(&token.content),
            Spelling::ByteLevel | Spelling::Words { .. } => token.content.clone().into_bytes(),
        };
        pieces.insert(id, (bytes, token.special));
    }
    let size = pieces.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
    if size == 0 || size > MAX_TOKENS {
        return Err(error(format!("it has token ids up to {size}, expected 1..={MAX_TOKENS}")));
    }
    let unused = |id| pieces.remove(&id).unwrap_or_default();
    let table = Pieces::new((0..size as TokenId).map(unused), spelling.strips_first_space());
    Ok(Tokenizer::new(inner, table))
}

/// The JSON files beside tokenizer.json. None of them must be there.
struct Settings {
    tokenizer_config: Map<String, Value>,
    special_tokens_map: Map<String, Value>,
    generation: Map<String, Value>,
}

impl Settings {
    fn read(folder: &Path) -> Result<Self, LoadError> {
        Ok(Self {
            tokenizer_config: object(&folder.join("tokenizer_config.json"))?,
            special_tokens_map: object(&folder.join("special_tokens_map.json"))?,
            generation: object(&folder.join("generation_config.json"))?,
        })
    }

    /// `bos_token` and its kin, as templates know them. tokenizer_config.json is the younger place and wins.
    fn special_tokens(&self) -> SpecialTokens {
        let mut tokens = SpecialTokens::new();
        for place in [&self.special_tokens_map, &self.tokenizer_config] {
            for (key, value) in place.iter().filter(|(key, _)| key.ends_with("_token")) {
                // A plain string, or one with its matching rules around it.
                if let Some(text) = value.as_str().or_else(|| value.get("content")?.as_str()) {
                    tokens.insert(key.clone(), text.to_owned());
                }
            }
        }
        tokens
    }

    /// Template sources by name, the unnamed one being `default`. Files win over tokenizer_config.json.
    fn templates(&self, folder: &Path) -> Result<BTreeMap<String, String>, LoadError> {
        let mut sources = BTreeMap::new();
        match self.tokenizer_config.get("chat_template") {
            Some(Value::String(source)) => {
                sources.insert("default".to_owned(), source.clone());
            }
            Some(Value::Array(named)) => {
                for entry in named {
                    if let (Some(name), Some(source)) =
                        (entry["name"].as_str(), entry["template"].as_str())
                    {
                        sources.insert(name.to_owned(), source.to_owned());
                    }
                }
            }
            _ => {}
        }
        if let Some(source) = text(&folder.join("chat_template.jinja"))? {
            sources.insert("default".to_owned(), source);
        } else if sources.is_empty() {
            // The form between the two: a JSON file of its own.
            let file = object(&folder.join("chat_template.json"))?;
            if let Some(source) = file.get("chat_template").and_then(Value::as_str) {
                sources.insert("default".to_owned(), source.to_owned());
            }
        }
        let Ok(additional) = std::fs::read_dir(folder.join("additional_chat_templates")) else {
            return Ok(sources);
        };
        for path in additional.flatten().map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "jinja")
                && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
                && let Some(source) = text(&path)?
            {
                sources.insert(name.to_owned(), source);
            }
        }
        Ok(sources)
    }
}

/// The object that a JSON file holds; an empty one if the file is not there.
fn object(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let Some(bytes) = read(path, MAX_SETTINGS_BYTES)? else { return Ok(Map::new()) };
    serde_json::from_slice(&bytes).map_err(|source| LoadError::Tokenizer {
        path: path.to_owned(),
        what: format!("it is not a JSON object: {source}"),
    })
}

fn text(path: &Path) -> Result<Option<String>, LoadError> {
    let Some(bytes) = read(path, MAX_SETTINGS_BYTES)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|source| LoadError::Template {
        path: path.to_owned(),
        what: format!("it is not UTF-8: {source}"),
    })
}

/// The whole file, unless it is not there.
fn read(path: &Path, max_bytes: u64) -> Result<Option<Vec<u8>>, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        // To open a pipe would wait for its writer.
        Ok(metadata) if !metadata.is_file() => Err(io(std::io::Error::other("it is not a file"))),
        Ok(metadata) if metadata.len() > max_bytes => Err(LoadError::Tokenizer {
            path: path.to_owned(),
            what: format!("it has {} bytes, expected at most {max_bytes}", metadata.len()),
        }),
        Ok(_) => std::fs::read(path).map(Some).map_err(io),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(io(source)),
    }
}

/// The largest vocabularies of today take 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;
const MAX_SETTINGS_BYTES: u64 = 64 << 20;
