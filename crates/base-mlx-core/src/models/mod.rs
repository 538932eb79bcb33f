//! Families of models, one file each, named after config.json's `model_type`.
//!
//! May import `nn`, `weights`, `tensor`, `backend` and `step`. A family never learns about quantisation, batching,
//! files or sampling.

use crate::backend::{Backend, LayerSpec};
use crate::step::Step;
use crate::tensor::Tensor;

/// What turns a batch of tokens into hidden states.
pub trait Model<B: Backend>: Send {
    /// What each layer remembers, outermost first; a new cache is made from it.
    fn layers(&self) -> Vec<LayerSpec>;
    /// `[tokens, hidden_size]`, after the last norm. Extends every span's cache.
    fn hidden(&self, step: &mut Step<B>) -> Tensor<B>;
}

/// A model with a head over the vocabulary.
pub trait LanguageModel<B: Backend>: Model<B> {
    /// The width of the logits; at least as large as the tokenizer's vocabulary.
    fn vocab_size(&self) -> usize;
    /// `[rows, hidden_size]` → `[rows, vocab_size]`; call it on the rows that are wanted.
    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B>;
}
