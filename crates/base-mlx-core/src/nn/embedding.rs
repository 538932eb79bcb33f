use super::linear::product;
use crate::backend::{Backend, Role};
use crate::step::Step;
use crate::tensor::{Shape, Tensor, Weight};
use crate::weights::{LoadError, Loader};

/// A row for each token of the vocabulary.
pub struct Embedding<B: Backend> {
    table: Weight<B>,
}

/// Hidden states to logits: `hidden @ weight.T`.
pub struct Head<B: Backend> {
    weight: Weight<B>,
}

impl<B: Backend> Embedding<B> {
    pub fn load(
        loader: &Loader<B>,
        name: &str,
        vocab_size: usize,
        hidden_size: usize,
    ) -> Result<Self, LoadError> {
        Ok(Self { table: loader.table(name, [vocab_size, hidden_size])? })
    }

    /// Without the first `skipped` of its rows: number 0 has row `skipped`. `[rows, hidden_size]` is its shape with them.
    pub fn load_from(
        loader: &Loader<B>,
        name: &str,
        skipped: usize,
        [rows, hidden_size]: [usize; 2],
    ) -> Result<Self, LoadError> {
        Ok(Self { table: loader.rows(name, [rows, hidden_size], skipped..rows, Role::Table)? })
    }

    /// The step's tokens → `[tokens, hidden_size]`.
    pub fn forward(&self, step: &Step<B>) -> Tensor<B> {
        self.rows(&step.tokens)
    }

    /// U32 `[tokens]` → `[tokens, hidden_size]`
    pub fn rows(&self, numbers: &Tensor<B>) -> Tensor<B> {
        let backend = numbers.backend();
        let array = backend.embed(&self.table, numbers);
        Tensor::new(backend, array, Shape::new(&[numbers.rows(), self.table.shape().dim(1)]))
    }
}

impl<B: Backend> Head<B> {
    /// The head of a model whose `tie_word_embeddings` is true is its embedding. A checkpoint may hold a copy of it under
    /// `lm_head`, which is left alone, as is any head where none is wanted. Without the key in config.json, the checkpoint decides by having a head or not.
    pub fn load(loader: &Loader<B>, embedding: &Embedding<B>) -> Result<Self, LoadError> {
        let has_head = loader.has("lm_head.weight");
        if !loader.has_head() || loader.config().bool_or("tie_word_embeddings", !has_head)? {
            for part in ["weight", "scales", "biases"] {
                loader.ignore(&format!("lm_head.{part}"));
            }
            if !loader.has_head() {
                return Ok(Self { weight: embedding.table.clone() });
            }
            loader.count_for_step(loader.backend().weight_bytes(&embedding.table));
            return Ok(Self { weight: embedding.table.clone() });
        }
        let [vocab_size, hidden_size] =
            [embedding.table.shape().dim(0), embedding.table.shape().dim(1)];
        Ok(Self { weight: loader.weight("lm_head", [vocab_size, hidden_size])? })
    }

    /// The width of the logits.
    pub fn vocab_size(&self) -> usize {
        self.weight.shape().dim(0)
    }

    /// `[rows, hidden_size]` → `[rows, vocab_size]`
    pub fn forward(&self, hidden: &Tensor<B>) -> Tensor<B> {
        product(hidden, &self.weight, None)
    }
}
