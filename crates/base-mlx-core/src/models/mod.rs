//! Families of models, one file each, named after config.json's `model_type`, and one line each in one of the lists below:
//! those that write, and encoders. `decoder` and `encoder` hold the stacks of layers that they share.
//!
//! May import `nn`, `weights`, `tensor`, `backend` and `step`. A family never learns about quantisation, batching,
//! files or sampling.

mod bert;
mod decoder;
mod encoder;
mod llama;
mod nomic_bert;
mod qwen2;
mod qwen3;
mod xlm_roberta;

pub use self::encoder::{EncoderModel, Scorer, scores_pairs};

use self::decoder::Sizes;
use crate::backend::{Backend, LayerSpec};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{Checkpoint, Config, LoadError, Loader};

/// Makes the list of families and the choice among them from one line a family.
macro_rules! families {
    ($($($name:literal)|+ => $load:path),+ $(,)?) => {
        /// The values of `model_type` that [`load`] knows.
        pub const FAMILIES: &[&str] = &[$($($name),+),+];

        fn load_family<B: Backend>(
            family: &str,
            loader: &Loader<B>,
        ) -> Option<Result<Box<dyn LanguageModel<B>>, LoadError>> {
            match family {
                $($($name)|+ => Some($load(loader)),)+
                _ => None,
            }
        }
    };
}

/// What turns a batch of tokens into hidden states.
pub trait Model<B: Backend>: Send + Sync {
    /// What each layer remembers, outermost first; a new cache is made from it. None of an encoder's does.
    fn layers(&self) -> Vec<LayerSpec>;
    /// Bytes of parameters that a step reads, however few its tokens. Of an embedding that is not also the head it reads
    /// a row a token.
    fn step_bytes(&self) -> usize;
    /// `[tokens, hidden_size]`, after the last norm. Extends every span's cache.
    fn hidden(&self, step: &mut Step<B>) -> Tensor<B>;
    /// The same, from where an equal step has paused, until `pause` says so between two layers. Who cannot pause does not.
    fn hidden_until(
        &self,
        step: &mut Step<B>,
        _paused: Option<Paused<B>>,
        _pause: &dyn Fn() -> bool,
    ) -> Progress<B> {
        Progress::Done(self.hidden(step))
    }
}

/// What a step has come to.
pub enum Progress<B: Backend> {
    /// `[tokens, hidden_size]`, after the last norm.
    Done(Tensor<B>),
    Paused(Paused<B>),
}

/// What goes into the next of its layers.
pub struct Paused<B: Backend> {
    x: Tensor<B>,
    layer: usize,
}

/// A model with a head over the vocabulary.
pub trait LanguageModel<B: Backend>: Model<B> {
    /// The width of the logits; at least as large as the tokenizer's vocabulary.
    fn vocab_size(&self) -> usize;
    /// `[rows, hidden_size]` → `[rows, vocab_size]`; call it on the rows that are wanted.
    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B>;
}

families! {
    "llama" | "mistral" => llama::load,
    "qwen2" => qwen2::load,
    "qwen3" => qwen3::load,
}

/// The same for encoders.
macro_rules! encoders {
    ($($name:literal => $family:ident),+ $(,)?) => {
        /// The values of `model_type` that [`load_encoder`] knows.
        pub const ENCODERS: &[&str] = &[$($name),+];

        /// The longest text that the encoder takes, in tokens, known before it is loaded; `None` if the family is none.
        pub fn longest_text(config: &Config) -> Result<Option<usize>, LoadError> {
            Ok(match config.model_type()? {
                $($name => Some($family::longest_text(config)?),)+
                _ => None,
            })
        }

        fn load_encoder_family<B: Backend>(
            family: &str,
            loader: &Loader<B>,
        ) -> Option<Result<EncoderModel<B>, LoadError>> {
            match family {
                $($name => Some($family::load(loader)),)+
                _ => None,
            }
        }
    };
}

encoders! {
    "bert" => bert,
    "nomic_bert" => nomic_bert,
    "xlm-roberta" => xlm_roberta,
}

/// The checkpoint's encoder on `backend`. A tensor that the family does not use is an error.
pub fn load_encoder<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &B,
) -> Result<EncoderModel<B>, LoadError> {
    let family = checkpoint.config().model_type()?;
    let loader = checkpoint.loader(backend);
    let encoder = load_encoder_family(family, &loader);
    let encoder = encoder.unwrap_or_else(|| Err(unknown(checkpoint, family)))?;
    loader.finish()?;
    Ok(encoder)
}

/// The checkpoint's model on `backend`, by its `model_type`. A tensor that the family does not use is an error.
pub fn load<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &B,
) -> Result<Box<dyn LanguageModel<B>>, LoadError> {
    let family = checkpoint.config().model_type()?;
    let loader = checkpoint.loader(backend);
    let model = load_family(family, &loader).unwrap_or_else(|| Err(unknown(checkpoint, family)))?;
    loader.finish()?;
    Ok(model)
}

/// The same of which only the states are wanted: its head is left alone, if it has one.
pub fn load_states<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &B,
) -> Result<Box<dyn Model<B>>, LoadError> {
    let family = checkpoint.config().model_type()?;
    let loader = checkpoint.loader(backend).without_head();
    let model = load_family(family, &loader).unwrap_or_else(|| Err(unknown(checkpoint, family)))?;
    loader.finish()?;
    Ok(model)
}

/// The longest text of a model with that config, known before it is loaded; for a decoder with what it adds.
pub fn context(config: &Config) -> Result<usize, LoadError> {
    match longest_text(config)? {
        Some(longest) => Ok(longest),
        None => config.count("max_position_embeddings"),
    }
}

/// What each layer of the checkpoint's model will remember, known before any of it is loaded.
pub fn layers(checkpoint: &Checkpoint) -> Result<Vec<LayerSpec>, LoadError> {
    let family = checkpoint.config().model_type()?;
    if !FAMILIES.contains(&family) {
        return Err(unknown(checkpoint, family));
    }
    Ok(Sizes::read(checkpoint.config())?.layers())
}

/// The checkpoint's family, which must be a known one: known before any of it is loaded.
pub fn family(checkpoint: &Checkpoint) -> Result<&str, LoadError> {
    let family = checkpoint.config().model_type()?;
    let is_known = FAMILIES.contains(&family) || ENCODERS.contains(&family);
    if is_known { Ok(family) } else { Err(unknown(checkpoint, family)) }
}

fn unknown(checkpoint: &Checkpoint, family: &str) -> LoadError {
    LoadError::UnknownFamily {
        path: checkpoint.path().to_owned(),
        family: family.to_owned(),
        supported: [FAMILIES, ENCODERS].concat().join(", "),
    }
}
