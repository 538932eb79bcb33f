//! BERT (Devlin et al. 2019, arXiv:1810.04805): an encoder whose layers norm what they have added up, and which learns an
//! embedding for each place of a text.

use serde_json::json;

use crate::backend::{Activation, Backend};
use crate::nn::{Bias, Embedding, LayerNorm, Linear};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{Config, LoadError, Loader};

use super::encoder::{self, Embeddings, EncoderModel, Scorer, Stack, activation, head_dim, only};

pub(super) fn longest_text(config: &Config) -> Result<usize, LoadError> {
    config.count("max_position_embeddings")
}

pub(super) fn load<B: Backend>(loader: &Loader<B>) -> Result<EncoderModel<B>, LoadError> {
    let stack = load_stack(loader, "bert", 0)?;
    let (scope, hidden_size) = (scope(loader, "bert"), loader.config().count("hidden_size")?);
    let scorer =
        Scorer::load(loader, [&format!("{scope}pooler.dense"), "classifier"], hidden_size)?;
    if scorer.is_none() {
        for part in ["weight", "bias"] {
            loader.ignore(&format!("{scope}pooler.dense.{part}"));
        }
    }
    Ok(EncoderModel { model: Box::new(stack), scorer })
}

/// What stands before all names but the head's: models that were saved with a head have their name there, and a dot.
fn scope<B: Backend>(loader: &Loader<B>, name: &str) -> String {
    let scope = format!("{name}.");
    let there = loader.has(&format!("{scope}embeddings.word_embeddings.weight"));
    if there { scope } else { String::new() }
}

/// The stack alone. The embedding of a text's first place is row `first_position`.
pub(super) fn load_stack<B: Backend>(
    loader: &Loader<B>,
    name: &str,
    first_position: usize,
) -> Result<Stack<B, BertLayer<B>>, LoadError> {
    let config = loader.config();
    only(config, "position_embedding_type", &json!("absolute"))?;
    only(config, "is_decoder", &json!(false))?;
    only(config, "is_causal", &json!(false))?;
    let hidden_size = config.count("hidden_size")?;
    let eps = config.optional_f32("layer_norm_eps")?.unwrap_or(1e-12);
    let scope = scope(loader, name);
    let embeddings = loader.at(format!("{scope}embeddings"));
    embeddings.ignore("position_ids");
    let table =
        |name: &str, key: &str| Embedding::load(&embeddings, name, config.count(key)?, hidden_size);
    let positions = config.count("max_position_embeddings")?;
    let shape = [positions, hidden_size];
    let position = Embedding::load_from(&embeddings, "position_embeddings", first_position, shape)?;
    Ok(Stack {
        embeddings: Embeddings {
            word: table("word_embeddings", "vocab_size")?,
            position: Some(position),
            token_type: Some(table("token_type_embeddings", "type_vocab_size")?),
            norm: LayerNorm::load(&embeddings, "LayerNorm", hidden_size, eps)?,
        },
        layers: (0..config.count("num_hidden_layers")?)
            .map(|layer| BertLayer::load(&loader.at(format!("{scope}encoder.layer.{layer}"))))
            .collect::<Result<_, LoadError>>()?,
        step_bytes: loader.step_bytes(),
    })
}

pub(super) struct BertLayer<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    attention_output: Linear<B>,
    attention_norm: LayerNorm<B>,
    intermediate: Linear<B>,
    hidden_act: Activation,
    output: Linear<B>,
    output_norm: LayerNorm<B>,
    head_dim: usize,
}

impl<B: Backend> BertLayer<B> {
    fn load(loader: &Loader<B>) -> Result<Self, LoadError> {
        let config = loader.config();
        let (hidden_size, heads) =
            (config.count("hidden_size")?, config.count("num_attention_heads")?);
        let intermediate_size = config.count("intermediate_size")?;
        let eps = config.optional_f32("layer_norm_eps")?.unwrap_or(1e-12);
        let linear = |name: &str, out_in| Linear::load(loader, name, out_in, Bias::Yes);
        let square = [hidden_size, hidden_size];
        let norm = |name: &str| LayerNorm::load(loader, name, hidden_size, eps);
        Ok(Self {
            query: linear("attention.self.query", square)?,
            key: linear("attention.self.key", square)?,
            value: linear("attention.self.value", square)?,
            attention_output: linear("attention.output.dense", square)?,
            attention_norm: norm("attention.output.LayerNorm")?,
            intermediate: linear("intermediate.dense", [intermediate_size, hidden_size])?,
            hidden_act: activation(config, "hidden_act")?,
            output: linear("output.dense", [hidden_size, intermediate_size])?,
            output_norm: norm("output.LayerNorm")?,
            head_dim: head_dim(config, hidden_size, heads)?,
        })
    }
}

impl<B: Backend> encoder::Layer<B> for BertLayer<B> {
    fn forward(&self, x: &Tensor<B>, step: &Step<B>) -> Tensor<B> {
        let qkv = Linear::forward_all([&self.query, &self.key, &self.value], x, step);
        let [q, k, v] = qkv.map(|heads| heads.split_heads(self.head_dim)); // [tokens, heads, head_dim]
        let scale = (self.head_dim as f32).sqrt().recip();
        let seen = step.attend_within(&q, &k, &v, scale).merge_heads();
        let x = self.attention_norm.forward(&x.add(&self.attention_output.forward(&seen, step)));
        let inner = self.intermediate.forward(&x, step).activate(self.hidden_act);
        self.output_norm.forward(&x.add(&self.output.forward(&inner, step)))
    }
}
