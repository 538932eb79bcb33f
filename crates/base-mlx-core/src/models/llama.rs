//! Llama 1 to 3 (Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783), Mistral (Jiang et
//! al. 2023, arXiv:2310.06825), and the many that are built like them, SmolLM2 among them.

use crate::backend::{Attend, Backend, Rope};
use crate::nn::{Bias, Linear, Windows, rope};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{LoadError, Loader};

use super::LanguageModel;
use super::decoder::{self, Decoder, Sizes};

pub(super) fn load<B: Backend>(loader: &Loader<B>) -> Result<Box<dyn LanguageModel<B>>, LoadError> {
    let config = loader.config();
    let sizes = Sizes::read(config)?;
    let bias = Bias::from(config.bool_or("attention_bias", false)?);
    // A Mistral's window is every layer's; a Llama has none unless its `layer_types` say so.
    let first = (config.model_type()? == "mistral").then_some(0);
    let windows = Windows::read(config, sizes.num_hidden_layers, first)?;
    build(loader, &sizes, &windows, Biases { qkv: bias, o: bias })
}

/// Which of the attention's layers have a bias: where Llama and Qwen2 differ.
pub(super) struct Biases {
    pub(super) qkv: Bias,
    pub(super) o: Bias,
}

/// A Llama of these windows and biases.
pub(super) fn build<B: Backend>(
    loader: &Loader<B>,
    sizes: &Sizes,
    windows: &Windows,
    biases: Biases,
) -> Result<Box<dyn LanguageModel<B>>, LoadError> {
    let rope = rope(loader, sizes.head_dim)?;
    let decoder = Decoder::load(loader, sizes, |loader, layer| {
        Ok(Attention {
            q_proj: Linear::load(loader, "q_proj", sizes.q_proj(), biases.qkv)?,
            k_proj: Linear::load(loader, "k_proj", sizes.kv_proj(), biases.qkv)?,
            v_proj: Linear::load(loader, "v_proj", sizes.kv_proj(), biases.qkv)?,
            o_proj: Linear::load(loader, "o_proj", sizes.o_proj(), biases.o)?,
            head_dim: sizes.head_dim,
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
        let (q, k) = (q.rope(&step.positions, &self.rope), k.rope(&step.positions, &self.rope));
        let seen = step.attend(self.layer, &q, &k, &v, self.how).merge_heads();
        self.o_proj.forward(&seen, step)
    }
}
