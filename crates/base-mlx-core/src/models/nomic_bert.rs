//! Nomic BERT (Nussbaum et al. 2024, arXiv:2402.01613): a BERT whose attention rotates queries and keys, with a gated MLP.

use serde_json::json;

use crate::backend::{Backend, Rope};
use crate::nn::{self, Bias, Embedding, LayerNorm, Linear};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{Config, LoadError, Loader};

use super::encoder::{self, Embeddings, EncoderModel, Stack, head_dim, only, scores_pairs};

pub(super) fn longest_text(config: &Config) -> Result<usize, LoadError> {
    config.count(key(config, "n_positions"))
}

/// What the key is called here: transformers has words of its own for what the first checkpoints' configs say.
fn key(config: &Config, name: &'static str) -> &'static str {
    let [_, other] = KEYS.into_iter().find(|[first, _]| *first == name).unwrap_or([name, name]);
    if config.get(name).is_none() && config.get(other).is_some() { other } else { name }
}

const KEYS: [[&str; 2]; 6] = [
    ["layer_norm_epsilon", "layer_norm_eps"],
    ["n_embd", "hidden_size"],
    ["n_head", "num_attention_heads"],
    ["n_inner", "intermediate_size"],
    ["n_layer", "num_hidden_layers"],
    ["n_positions", "max_position_embeddings"],
];

pub(super) fn load<B: Backend>(loader: &Loader<B>) -> Result<EncoderModel<B>, LoadError> {
    let config = loader.config();
    for (key, supported) in [
        ("activation_function", json!("swiglu")),
        ("hidden_act", json!("silu")),
        ("causal", json!(false)),
        ("is_causal", json!(false)),
        ("parallel_block", json!(false)),
        ("prenorm", json!(false)),
        ("rotary_emb_fraction", json!(1.0)),
        ("rotary_emb_interleaved", json!(false)),
        ("rotary_scaling_factor", json!(null)),
        ("scale_attn_by_inverse_layer_idx", json!(false)),
        ("use_rms_norm", json!(false)),
    ] {
        only(config, key, &supported)?;
    }
    if config.optional_count("num_experts").is_ok_and(|experts| experts.is_some()) {
        return Err(config.error("num_experts", "is there; mixtures of experts are not supported"));
    }
    if scores_pairs(config) {
        let what = "asks for a score, which is not supported of this family";
        return Err(config.error("architectures", what));
    }
    let hidden_size = config.count(key(config, "n_embd"))?;
    let eps = config.optional_f32(key(config, "layer_norm_epsilon"))?.unwrap_or(1e-12);
    let embeddings = loader.at("embeddings");
    let table =
        |name: &str, key: &str| Embedding::load(&embeddings, name, config.count(key)?, hidden_size);
    let stack = Stack {
        embeddings: Embeddings {
            word: table("word_embeddings", "vocab_size")?,
            position: None,
            token_type: match config.get("type_vocab_size").and_then(|types| types.as_u64()) {
                None | Some(0) => None,
                Some(_) => Some(table("token_type_embeddings", "type_vocab_size")?),
            },
            norm: LayerNorm::load(loader, "emb_ln", hidden_size, eps)?,
        },
        layers: (0..config.count(key(config, "n_layer"))?)
            .map(|layer| NomicLayer::load(&loader.at(format!("encoder.layers.{layer}"))))
            .collect::<Result<_, LoadError>>()?,
        step_bytes: loader.step_bytes(),
    };
    Ok(EncoderModel { model: Box::new(stack), scorer: None })
}

struct NomicLayer<B: Backend> {
    /// Queries, keys and values of all heads.
    qkv: [Linear<B>; 3],
    out_proj: Linear<B>,
    norm1: LayerNorm<B>,
    /// Up and gate.
    widen: [Linear<B>; 2],
    fc2: Linear<B>,
    norm2: LayerNorm<B>,
    head_dim: usize,
    rope: Rope,
}

impl<B: Backend> NomicLayer<B> {
    fn load(loader: &Loader<B>) -> Result<Self, LoadError> {
        let config = loader.config();
        let (hidden_size, heads) =
            (config.count(key(config, "n_embd"))?, config.count(key(config, "n_head"))?);
        let head_dim = head_dim(config, hidden_size, heads)?;
        if !head_dim.is_multiple_of(2) {
            return Err(config.error("n_head", &format!("gives heads of {head_dim}, an odd width")));
        }
        let inner = config.count(key(config, "n_inner"))?;
        let eps = config.optional_f32(key(config, "layer_norm_epsilon"))?.unwrap_or(1e-12);
        // In transformers' words there is no key, and no bias.
        let by_default = config.get("n_embd").is_some();
        let bias = |key: &str| Ok::<_, LoadError>(Bias::from(config.bool_or(key, by_default)?));
        let (qkv, fc1, fc2) =
            (bias("qkv_proj_bias")?, bias("mlp_fc1_bias")?, bias("mlp_fc2_bias")?);
        let linear = |name: &str, out_in, bias| Linear::load(loader, name, out_in, bias);
        let norm = |name: &str| LayerNorm::load(loader, name, hidden_size, eps);
        Ok(Self {
            qkv: Linear::load_parts(loader, "attn.Wqkv", [hidden_size, hidden_size], qkv)?,
            out_proj: linear("attn.out_proj", [hidden_size, hidden_size], qkv)?,
            norm1: norm("norm1")?,
            widen: [
                linear("mlp.fc11", [inner, hidden_size], fc1)?,
                linear("mlp.fc12", [inner, hidden_size], fc1)?,
            ],
            fc2: linear("mlp.fc2", [hidden_size, inner], fc2)?,
            norm2: norm("norm2")?,
            head_dim,
            rope: rope(loader, head_dim)?,
        })
    }
}

fn rope<B: Backend>(loader: &Loader<B>, head_dim: usize) -> Result<Rope, LoadError> {
    let config = loader.config();
    if ["rope_parameters", "rope_theta"].iter().any(|key| config.get(key).is_some()) {
        return nn::rope(loader, head_dim);
    }
    let base = config.optional_f32("rotary_emb_base")?.unwrap_or(10_000.0);
    if base <= 1.0 {
        return Err(config.error("rotary_emb_base", &format!("is {base}, expected more than 1")));
    }
    let inv_freq = |pair: usize| base.powf(-(2.0 * pair as f32) / head_dim as f32);
    Ok(Rope { inv_freq: (0..head_dim / 2).map(inv_freq).collect(), attention_factor: 1.0 })
}

impl<B: Backend> encoder::Layer<B> for NomicLayer<B> {
    fn forward(&self, x: &Tensor<B>, step: &Step<B>) -> Tensor<B> {
        let qkv = Linear::forward_all(self.qkv.each_ref(), x, step);
        let [q, k, v] = qkv.map(|heads| heads.split_heads(self.head_dim)); // [tokens, heads, head_dim]
        let (q, k) = (q.rope(&step.positions, &self.rope), k.rope(&step.positions, &self.rope));
        let scale = (self.head_dim as f32).sqrt().recip();
        let seen = step.attend_within(&q, &k, &v, scale).merge_heads();
        let x = self.norm1.forward(&x.add(&self.out_proj.forward(&seen, step)));
        let [up, gate] = Linear::forward_all(self.widen.each_ref(), &x, step);
        let gated = Tensor::new(x.backend(), x.backend().swiglu(&gate, &up), up.shape());
        self.norm2.forward(&x.add(&self.fc2.forward(&gated, step)))
    }
}
