//! Models that turn a text into a vector, or a pair of texts into a score: [`Encoder`] is the door to one that is loaded.
//! They share the device with models that write, a step in turn.

mod load;
mod pooling;
mod queue;
mod runner;
mod sentence;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use tokio::sync::oneshot;

use self::queue::Job;
use self::sentence::Sentence;
use super::EngineOptions;
use super::device::{Device, Port};
use crate::TokenId;
use crate::models::{ENCODERS, scores_pairs};
use crate::text::{AddSpecial, Text};
use crate::weights::gguf::Metadata;
use crate::weights::{Checkpoint, Config, LoadError};

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It writes.
    Generate,
    /// It turns texts into vectors.
    Embed,
    /// It scores how well two texts belong together.
    Rank,
}

impl Purpose {
    /// Of the model at `path`, by the JSON files in its folder, or by a GGUF file's header.
    pub fn of(path: &Path) -> Result<Self, LoadError> {
        if path.is_dir() {
            return Self::told(path, &Config::read(&path.join("config.json"))?, None);
        }
        Self::of_checkpoint(&Checkpoint::open(path)?)
    }

    /// The same of one that is open.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        Self::told(checkpoint.path(), checkpoint.config(), checkpoint.gguf())
    }

    fn told(path: &Path, config: &Config, metadata: Option<&Metadata>) -> Result<Self, LoadError> {
        let is_encoder = ENCODERS.contains(&config.model_type()?);
        Ok(match scores_pairs(config) {
            true if is_encoder => Self::Rank,
            _ if is_encoder || Sentence::told(path, metadata)?.is_some() => Self::Embed,
            _ => Self::Generate,
        })
    }
}

/// What is known of a loaded encoder.
#[derive(Clone, Debug)]
pub struct EncoderInfo {
    /// The id it was loaded under.
    pub name: String,
    /// `model_type` of its config.
    pub family: String,
    pub purpose: Purpose,
    /// Tokens of the longest text.
    pub longest: usize,
    /// The same of the model wherever there is room.
    pub trained: usize,
    /// Values of a vector; 1 where pairs are scored.
    pub dimensions: usize,
    /// Whether it tells the two texts of a pair apart by more than the tokens between them.
    pub knows_pairs: bool,
    /// Whether vectors have length 1.
    pub normalized: bool,
    pub vocab_size: usize,
    /// Bytes of the weights on disk.
    pub bytes: u64,
    /// What the model's makers put before a text, by what the text is for, such as `query`.
    pub prompts: BTreeMap<String, String>,
    /// Which of them stands before texts of which nothing is said.
    pub default_prompt: Option<String>,
}

/// That a model has no prompt of this name.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("there is no prompt {name:?}; the model has {}", self.known())]
pub struct UnknownPrompt {
    pub name: String,
    pub known: Vec<String>,
}

impl UnknownPrompt {
    fn known(&self) -> String {
        let names: Vec<String> = self.known.iter().map(|name| format!("`{name}`")).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

impl EncoderInfo {
    /// What stands before a text for this purpose; without a name what stands there by default, and with an empty one nothing.
    pub fn prompt(&self, name: Option<&str>) -> Result<Option<&str>, UnknownPrompt> {
        let name = name.or(self.default_prompt.as_deref());
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
        let unknown = || UnknownPrompt {
            name: name.to_owned(),
            known: self.prompts.keys().cloned().collect(),
        };
        self.prompts.get(name).map(|prompt| Some(prompt.as_str())).ok_or_else(unknown)
    }

    /// The first `dimensions` values of a vector, again of length 1 if vectors are: what models are trained for whose vectors
    /// may be cut. (Kusupati et al. 2022, arXiv:2205.13147)
    pub fn shortened(&self, mut vector: Vec<f32>, dimensions: usize) -> Vec<f32> {
        if dimensions >= vector.len() {
            return vector;
        }
        vector.truncate(dimensions);
        if self.normalized { pooling::normalized(vector) } else { vector }
    }
}

/// A loaded encoder. Clones share it; it leaves the device when the last one is gone.
#[derive(Clone)]
pub struct Encoder {
    port: Arc<Port>,
    jobs: Sender<Job>,
    text: Arc<Text>,
    sentence: Arc<Sentence>,
    info: Arc<EncoderInfo>,
}

/// A text, or a pair of them, in the model's tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Encodable {
    pub tokens: Vec<TokenId>,
    /// Which text of a pair each token belongs to.
    types: Vec<u32>,
}

impl Encodable {
    /// Of one text.
    pub fn new(tokens: Vec<TokenId>) -> Self {
        Self { types: vec![0; tokens.len()], tokens }
    }
}

/// Why texts cannot be encoded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EncodeError {
    #[error("text {text} is empty")]
    Empty { text: usize },
    #[error("text {text} has {tokens} tokens, the model takes {longest}")]
    TooLong { text: usize, tokens: usize, longest: usize },
    #[error(
        "text {text} has token {token}, which is not in the model's vocabulary of {vocab_size}"
    )]
    UnknownToken { text: usize, token: TokenId, vocab_size: usize },
    /// The step panicked or the device failed; the engine goes on.
    #[error("the model failed: {0}")]
    Failed(String),
    #[error("the engine is shutting down")]
    ShuttingDown,
}

impl Encoder {
    /// Loads the model at `path` (a folder or a GGUF file) for `device`. Blocks while it reads. Of `options` only `context` and
    /// `step_tokens` mean something to an encoder.
    pub fn start(
        path: &Path,
        name: &str,
        device: &Device,
        options: &EngineOptions,
    ) -> Result<Self, LoadError> {
        load::encoder(path, name, device, options)
    }

    /// A text as the model expects it, with the tokens that go around it, after `prompt`. What is beyond `longest` tokens is
    /// left out of the text, if that is wanted.
    pub fn text(&self, text: &str, prompt: Option<&str>, longest: Option<usize>) -> Encodable {
        let text = [prompt.unwrap_or_default(), text].concat();
        let text = if self.sentence.lowercase { text.to_lowercase() } else { text };
        Encodable::new(match longest {
            None => self.text.tokenizer.encode(&text, AddSpecial::Yes),
            Some(longest) => self.text.tokenizer.encode_within(&text, longest),
        })
    }

    /// A text and others, each of those with the first as the model expects a pair. The second text loses its end where both
    /// are too long; `None` if the first alone leaves no room for any of it.
    pub fn pairs(&self, first: &str, seconds: &[String]) -> Option<Vec<Encodable>> {
        let pairs = self.text.tokenizer.encode_pairs(first, seconds, self.info.longest)?;
        let pair = |(tokens, types)| match self.info.knows_pairs {
            true => Encodable { tokens, types },
            false => Encodable::new(tokens),
        };
        Some(pairs.into_iter().map(pair).collect())
    }

    /// How many tokens go around a text.
    pub fn marks(&self) -> usize {
        self.text.tokenizer.encode("", AddSpecial::Yes).len()
    }

    /// A vector for each text, or a list of one score for each pair, in their order. Texts of all callers share the device's
    /// steps; dropping the future gives them up.
    pub async fn encode(&self, texts: Vec<Encodable>) -> Result<Vec<Vec<f32>>, EncodeError> {
        let EncoderInfo { longest, vocab_size, .. } = *self.info;
        for (text, Encodable { tokens, .. }) in texts.iter().enumerate() {
            match tokens.len() {
                0 => return Err(EncodeError::Empty { text }),
                tokens if tokens > longest => {
                    return Err(EncodeError::TooLong { text, tokens, longest });
                }
                _ => {}
            }
            if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
                return Err(EncodeError::UnknownToken { text, token, vocab_size });
            }
        }
        let (reply, answer) = oneshot::channel();
        // Either fails only where the device has stopped or has lost the model, and then nobody holds the other end of `answer`.
        let _ = self.jobs.send(Job::new(texts, reply));
        self.port.wake();
        answer.await.unwrap_or(Err(EncodeError::ShuttingDown))
    }

    pub fn info(&self) -> &EncoderInfo {
        &self.info
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_tuple("Encoder").field(&self.info.name).finish()
    }
}
