//! Qwen3, dense (Yang et al. 2025, arXiv:2505.09388): a Llama that norms each head of its queries and keys.

use crate::backend::{Attend, Backend, Rope};
use crate::nn::{Bias, Linear, RmsNorm, rope};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{LoadError, Loader};

use super::LanguageModel;
use super::decoder::{self, Decoder, Sizes};
use super::qwen2::windows;

pub(super) fn load<B: Backend>(loader: &Loader<B>) -> Result<Box<dyn LanguageModel<B>>, LoadError> {
    let config = loader.config();
    let sizes = Sizes::read(config)?;
    let bias = Bias::from(config.bool_or("attention_bias", false)?);
    let rope = rope(loader, sizes.head_dim)?;
    let windows = windows(config, sizes.num_hidden_layers)?;
    let (head_dim, eps) = (sizes.head_dim, sizes.rms_norm_eps);
    let decoder = Decoder::load(loader, &sizes, |loader, layer| {
        Ok(Attention {
            q_proj: Linear::load(loader, "q_proj", sizes.q_proj(), bias)?,
            k_proj: Linear::load(loader, "k_proj", sizes.kv_proj(), bias)?,
            v_proj: Linear::load(loader, "v_proj", sizes.kv_proj(), bias)?,
            o_proj: Linear::load(loader, "o_proj", sizes.o_proj(), bias)?,
            q_norm: RmsNorm::load(loader, "q_norm", head_dim, eps)?,
            k_norm: RmsNorm::load(loader, "k_norm", head_dim, eps)?,
            head_dim,
            rope: rope.clone(),
            layer,
            how: Attend { scale: sizes.scale(), window: windows.of(layer) },
        })
    })?;
    Ok(Box::new(decoder))
}

struct Attention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    o_proj: Linear<B>,
    q_norm: RmsNorm<B>,
    k_norm: RmsNorm<B>,
    head_dim: usize,
    rope: Rope,
    layer: usize,
    how: Attend,
}

impl<B: Backend> decoder::Attention<B> for Attention<B> {
    fn forward(&self, x: &Tensor<B>, step: &mut Step<B>) -> Tensor<B> {
        let qkv = Linear::forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x, step);
        // [tokens, heads, head_dim], and twice [tokens, kv_heads, head_dim]
        let [q, k, v] = qkv.map(|heads| heads.split_heads(self.head_dim));
        let (q, k) = (self.q_norm.forward(&q), self.k_norm.forward(&k));
        let (q, k) = (q.rope(&step.positions, &self.rope), k.rope(&step.positions, &self.rope));
        let seen = step.attend(self.layer, &q, &k, &v, self.how).merge_heads();
        self.o_proj.forward(&seen, step)
    }
}
