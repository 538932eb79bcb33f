use crate::backend::{Backend, LayerSpec};
use crate::nn::{Bias, Embedding, GatedMlp, Head, RmsNorm};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{Config, LoadError, Loader};

use super::{LanguageModel, Model};

/// The stack that Llama made common: each layer norms its input before attention and before a gated MLP, and adds what
/// they say. Families that are built so differ in their attention `A` only.
pub(super) struct Decoder<B: Backend, A> {
    embed_tokens: Embedding<B>,
    layers: Vec<Layer<B, A>>,
    norm: RmsNorm<B>,
    head: Head<B>,
    layer_specs: Vec<LayerSpec>,
    step_bytes: usize,
}

/// A family's attention: `[tokens, hidden_size]` → `[tokens, hidden_size]`.
pub(super) trait Attention<B: Backend>: Send + Sync {
    fn forward(&self, x: &Tensor<B>, step: &mut Step<B>) -> Tensor<B>;
}

/// The sizes of a decoder, checked.
pub(super) struct Sizes {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab_size: usize,
    pub(super) rms_norm_eps: f32,
}

struct Layer<B: Backend, A> {
    input_layernorm: RmsNorm<B>,
    self_attn: A,
    post_attention_layernorm: RmsNorm<B>,
    mlp: GatedMlp<B>,
}

impl<B: Backend, A: Attention<B>> Decoder<B, A> {
    /// `attention` loads the attention of the layer whose number it is given.
    pub(super) fn load(
        loader: &Loader<B>,
        sizes: &Sizes,
        attention: impl Fn(&Loader<B>, usize) -> Result<A, LoadError>,
    ) -> Result<Self, LoadError> {
        let Sizes { hidden_size, intermediate_size, rms_norm_eps: eps, .. } = *sizes;
        let bias = Bias::from(loader.config().bool_or("mlp_bias", false)?);
        let layer = |i| {
            let loader = loader.at(format!("model.layers.{i}"));
            let attn = loader.at("self_attn");
            // Old checkpoints keep the rope's frequencies; config.json says them better.
            attn.ignore("rotary_emb.inv_freq");
            Ok(Layer {
                input_layernorm: RmsNorm::load(&loader, "input_layernorm", hidden_size, eps)?,
                self_attn: attention(&attn, i)?,
                post_attention_layernorm: RmsNorm::load(
                    &loader,
                    "post_attention_layernorm",
                    hidden_size,
                    eps,
                )?,
                mlp: GatedMlp::load(&loader.at("mlp"), hidden_size, intermediate_size, bias)?,
            })
        };
        let model = loader.at("model");
        // The largest first: while a matrix is laid out it is there twice, which costs least while the others are not.
        let embed_tokens = Embedding::load(&model, "embed_tokens", sizes.vocab_size, hidden_size)?;
        let head = Head::load(loader, &embed_tokens)?;
        Ok(Self {
            layers: (0..sizes.num_hidden_layers).map(layer).collect::<Result<_, LoadError>>()?,
            norm: RmsNorm::load(&model, "norm", hidden_size, eps)?,
            head,
            embed_tokens,
            layer_specs: sizes.layers(),
            // All is loaded by now: fields are evaluated in the order they are written in.
            step_bytes: loader.step_bytes(),
        })
    }
}

impl<B: Backend, A: Attention<B>> Model<B> for Decoder<B, A> {
    fn layers(&self) -> Vec<LayerSpec> {
        self.layer_specs.clone()
    }

    fn step_bytes(&self) -> usize {
        self.step_bytes
    }

    fn hidden(&self, step: &mut Step<B>) -> Tensor<B> {
        let mut x = self.embed_tokens.forward(step); // [tokens, hidden_size]
        for layer in &self.layers {
            x = layer.forward(&x, step);
        }
        self.norm.forward(&x)
    }
}

impl<B: Backend, A: Attention<B>> LanguageModel<B> for Decoder<B, A> {
    fn vocab_size(&self) -> usize {
        self.head.vocab_size()
    }

    fn logits(&self, hidden: &Tensor<B>) -> Tensor<B> {
        self.head.forward(hidden)
    }
}

impl<B: Backend, A: Attention<B>> Layer<B, A> {
    fn forward(&self, x: &Tensor<B>, step: &mut Step<B>) -> Tensor<B> {
        let x = x.add(&self.self_attn.forward(&self.input_layernorm.forward(x), step));
        x.add(&self.mlp.forward(&self.post_attention_layernorm.forward(&x), step))
    }
}

impl Sizes {
    /// What each layer remembers.
    pub(super) fn layers(&self) -> Vec<LayerSpec> {
        let Self { num_key_value_heads: kv_heads, head_dim, .. } = *self;
        vec![LayerSpec { kv_heads, head_dim }; self.num_hidden_layers]
    }

    pub(super) fn read(config: &Config) -> Result<Self, LoadError> {
        if let Some(act) = config.get("hidden_act").filter(|act| !SILU.contains(&act.as_str())) {
            let what = format!("is {act}, which is not supported\nhint: supported is \"silu\"");
            return Err(config.error("hidden_act", &what));
        }
        let hidden_size = config.count("hidden_size")?;
        let heads = config.count("num_attention_heads")?;
        let kv_heads = config.optional_count("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let what = format!("is {kv_heads}, expected a divisor of num_attention_heads, {heads}");
            return Err(config.error("num_key_value_heads", &what));
        }
        let head_dim = match config.optional_count("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => {
                let what =
                    format!("is {hidden_size}, not a multiple of num_attention_heads, {heads}");
                return Err(config.error("hidden_size", &what));
            }
        };
        // Rope turns pairs, and is made before any tensor's shape could show that the number is absurd.
        if !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            let what = format!("is {head_dim}, expected an even number up to {MAX_HEAD_DIM}");
            return Err(config.error("head_dim", &what));
        }
        let rms_norm_eps = config.optional_f32("rms_norm_eps")?.unwrap_or(DEFAULT_EPS);
        if rms_norm_eps < 0.0 {
            let what = format!("is {rms_norm_eps}, expected at least 0");
            return Err(config.error("rms_norm_eps", &what));
        }
        Ok(Self {
            hidden_size,
            intermediate_size: config.count("intermediate_size")?,
            num_hidden_layers: config.count("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            head_dim,
            vocab_size: config.count("vocab_size")?,
            rms_norm_eps,
        })
    }

    /// `[out, in]` of `q_proj`.
    pub(super) fn q_proj(&self) -> [usize; 2] {
        [self.num_attention_heads * self.head_dim, self.hidden_size]
    }

    /// `[out, in]` of `k_proj` and of `v_proj`.
    pub(super) fn kv_proj(&self) -> [usize; 2] {
        [self.num_key_value_heads * self.head_dim, self.hidden_size]
    }

    /// `[out, in]` of `o_proj`.
    pub(super) fn o_proj(&self) -> [usize; 2] {
        [self.hidden_size, self.num_attention_heads * self.head_dim]
    }

    /// `1 / sqrt(head_dim)`
    pub(super) fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }
}

/// Two names of `x * sigmoid(x)`.
const SILU: [Option<&str>; 2] = [Some("silu"), Some("swish")];
const MAX_HEAD_DIM: usize = 1 << 16;
/// What the families' own configuration classes take where the key is absent.
const DEFAULT_EPS: f32 = 1e-6;
