//! Families of models, one file each, named after config.json's `model_type`, and one line each in the list below.
//! `decoder` holds the stack of layers that many of them share.
//!
//! May import `nn`, `weights`, `tensor`, `backend` and `step`. A family never learns about quantisation, batching,
//! files or sampling.

mod decoder;
mod llama;
mod qwen2;
mod qwen3;

use self::decoder::Sizes;
use crate::backend::{Backend, LayerSpec};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{Checkpoint, LoadError, Loader};

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
    /// What each layer remembers, outermost first; a new cache is made from it.
    fn layers(&self) -> Vec<LayerSpec>;
    /// `[tokens, hidden_size]`, after the last norm. Extends every span's cache.
    fn hidden(&self, step: &mut Step<B>) -> Tensor<B>;
}

/// A model with a head over the vocabulary.
pub trait LanguageModel<B: Backend>: Model<B> {
    /// The width of the logits; at least as large as the tokenizer's vocabulary.
    fn vocab_size(&self) -> usize;
    /// Bytes of parameters that a step reads, however few its tokens. Of an embedding that is not also the head it reads
    /// a row a token.
    fn step_bytes(&self) -> usize;
    /// `[rows, hidden_size]` → `[rows, vocab_size]`; call it on the rows that are wanted.
    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B>;
}

families! {
    "llama" | "mistral" => llama::load,
    "qwen2" => qwen2::load,
    "qwen3" => qwen3::load,
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

/// What each layer of the checkpoint's model will remember, known before any of it is loaded.
pub fn layers(checkpoint: &Checkpoint) -> Result<Vec<LayerSpec>, LoadError> {
    let family = checkpoint.config().model_type()?;
    if !FAMILIES.contains(&family) {
        return Err(unknown(checkpoint, family));
    }
    Ok(Sizes::read(checkpoint.config())?.layers())
}

fn unknown(checkpoint: &Checkpoint, family: &str) -> LoadError {
    LoadError::UnknownFamily {
        path: checkpoint.path().to_owned(),
        family: family.to_owned(),
        supported: FAMILIES.join(", "),
    }
}
