use serde_json::Value;

use crate::backend::{Activation, Backend, LayerSpec};
use crate::nn::{Bias, Embedding, LayerNorm, Linear};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{Config, LoadError, Loader};

use super::{Model, Paused, Progress};

/// An encoder, and what it makes of a pair of texts if it was made for that.
pub struct EncoderModel<B: Backend> {
    pub model: Box<dyn Model<B>>,
    pub scorer: Option<Scorer<B>>,
}

/// The stack that BERT made common: embeddings that are summed and normed, and layers of attention, in which each token sees
/// all of its text, and of an MLP. Families that are built so differ in their layers `L` and in what is summed.
pub(super) struct Stack<B: Backend, L> {
    pub(super) embeddings: Embeddings<B>,
    pub(super) layers: Vec<L>,
    pub(super) step_bytes: usize,
}

/// Those of a token, of its place if that is not a matter of attention, and of which text of a pair it is in.
pub(super) struct Embeddings<B: Backend> {
    pub(super) word: Embedding<B>,
    pub(super) position: Option<Embedding<B>>,
    pub(super) token_type: Option<Embedding<B>>,
    pub(super) norm: LayerNorm<B>,
}

/// A family's layer: `[tokens, hidden_size]` → `[tokens, hidden_size]`.
pub(super) trait Layer<B: Backend>: Send + Sync {
    fn forward(&self, x: &Tensor<B>, step: &Step<B>) -> Tensor<B>;
}

impl<B: Backend, L: Layer<B>> Model<B> for Stack<B, L> {
    fn layers(&self) -> Vec<LayerSpec> {
        Vec::new()
    }

    fn step_bytes(&self) -> usize {
        self.step_bytes
    }

    fn hidden(&self, step: &mut Step<B>) -> Tensor<B> {
        match self.hidden_until(step, None, &|| false) {
            Progress::Done(x) => x,
            Progress::Paused(_) => unreachable!("nobody wanted a pause"),
        }
    }

    fn hidden_until(
        &self,
        step: &mut Step<B>,
        paused: Option<Paused<B>>,
        pause: &dyn Fn() -> bool,
    ) -> Progress<B> {
        let Paused { mut x, layer: first } =
            paused.unwrap_or_else(|| Paused { x: self.embeddings.forward(step), layer: 0 });
        for (number, layer) in self.layers.iter().enumerate().skip(first) {
            if number > first && pause() {
                return Progress::Paused(Paused { x, layer: number });
            }
            x = layer.forward(&x, step); // [tokens, hidden_size]
        }
        Progress::Done(x)
    }
}

impl<B: Backend> Embeddings<B> {
    fn forward(&self, step: &Step<B>) -> Tensor<B> {
        let mut x = self.word.forward(step);
        if let Some(position) = &self.position {
            x = x.add(&position.rows(&step.positions));
        }
        if let Some(token_type) = &self.token_type {
            let types = step.types.as_ref().expect("an encoder's step has types");
            x = x.add(&token_type.rows(types));
        }
        self.norm.forward(&x)
    }
}

/// One score from the state of a pair's first token: a layer, a tanh, and a layer with one output.
pub struct Scorer<B: Backend> {
    dense: Linear<B>,
    out: Linear<B>,
}

impl<B: Backend> Scorer<B> {
    /// `dense` and `out` are the layers' full names. `None` if the checkpoint was not made to score.
    pub(super) fn load(
        loader: &Loader<B>,
        [dense, out]: [&str; 2],
        hidden_size: usize,
    ) -> Result<Option<Self>, LoadError> {
        let config = loader.config();
        if !scores_pairs(config) {
            return Ok(None);
        }
        let labels = match config.get("id2label").and_then(Value::as_object) {
            Some(labels) => labels.len(),
            None => config.optional_count("num_labels")?.unwrap_or(1),
        };
        if labels != 1 {
            let what =
                format!("has {labels} labels; only models that give one score are supported");
            return Err(config.error("id2label", &what));
        }
        Ok(Some(Self {
            dense: Linear::load(loader, dense, [hidden_size, hidden_size], Bias::Yes)?,
            out: Linear::load(loader, out, [1, hidden_size], Bias::Yes)?,
        }))
    }

    /// Of each pair's first token, `[pairs, hidden_size]` → `[pairs, 1]`.
    pub fn forward(&self, first: &Tensor<B>, step: &Step<B>) -> Tensor<B> {
        self.out.forward(&self.dense.forward(first, step).activate(Activation::Tanh), step)
    }
}

/// Whether it is a cross-encoder.
pub fn scores_pairs(config: &Config) -> bool {
    let architectures = config.get("architectures").and_then(Value::as_array);
    let names = architectures.into_iter().flatten().filter_map(Value::as_str);
    names.into_iter().any(|name| name.ends_with("ForSequenceClassification"))
}

/// The function that `key` of the config names.
pub(super) fn activation(config: &Config, key: &str) -> Result<Activation, LoadError> {
    match config.get(key).and_then(Value::as_str) {
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some("silu" | "swish") => Ok(Activation::Silu),
        other => {
            let found =
                other.map_or("missing or not a string".to_owned(), |name| format!("`{name}`"));
            let supported = "gelu, gelu_new, relu, silu";
            Err(config.error(key, &format!("is {found}\nhint: supported are {supported}")))
        }
    }
}

/// The width of a head, of which there are `heads` in `hidden_size`.
pub(super) fn head_dim(
    config: &Config,
    hidden_size: usize,
    heads: usize,
) -> Result<usize, LoadError> {
    if hidden_size.is_multiple_of(heads) {
        return Ok(hidden_size / heads);
    }
    Err(config
        .error("hidden_size", &format!("is {hidden_size}, not a multiple of its {heads} heads")))
}

/// Fails unless the config leaves `key` out or has it like this.
pub(super) fn only(config: &Config, key: &str, supported: &Value) -> Result<(), LoadError> {
    let same = |value: &Value| match (value.as_f64(), supported.as_f64()) {
        (Some(value), Some(supported)) => value == supported,
        _ => value == supported,
    };
    match config.get(key) {
        Some(value) if !same(value) => {
            Err(config.error(key, &format!("is {value}, only {supported} is supported")))
        }
        _ => Ok(()),
    }
}
