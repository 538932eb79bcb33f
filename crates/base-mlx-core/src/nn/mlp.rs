use super::{Bias, Linear};
use crate::backend::Backend;
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{LoadError, Loader};

/// `down(silu(gate(x)) * up(x))`, also called SwiGLU. (Shazeer 2020, arXiv:2002.05202)
pub struct GatedMlp<B: Backend> {
    gate_proj: Linear<B>,
    up_proj: Linear<B>,
    down_proj: Linear<B>,
}

impl<B: Backend> GatedMlp<B> {
    pub fn load(
        loader: &Loader<B>,
        hidden_size: usize,
        intermediate_size: usize,
        bias: Bias,
    ) -> Result<Self, LoadError> {
        let widen = [intermediate_size, hidden_size];
        Ok(Self {
            gate_proj: Linear::load(loader, "gate_proj", widen, bias)?,
            up_proj: Linear::load(loader, "up_proj", widen, bias)?,
            down_proj: Linear::load(loader, "down_proj", [hidden_size, intermediate_size], bias)?,
        })
    }

    /// `[tokens, hidden_size]` → `[tokens, hidden_size]`
    pub fn forward(&self, x: &Tensor<B>, step: &Step<B>) -> Tensor<B> {
        // [tokens, intermediate_size] each
        let [gate, up] = Linear::forward_all([&self.gate_proj, &self.up_proj], x, step);
        let gated = Tensor::new(x.backend(), x.backend().swiglu(&gate, &up), up.shape());
        self.down_proj.forward(&gated, step)
    }
}
