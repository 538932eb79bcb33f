use crate::backend::{self, Backend};
use crate::tensor::Tensor;
use crate::weights::{LoadError, Loader};

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension. (Zhang and Sennrich 2019, arXiv:1910.07467)
pub struct RmsNorm<B: Backend> {
    weight: Tensor<B>,
    eps: f32,
}

impl<B: Backend> RmsNorm<B> {
    /// `name` is the norm's, without `.weight`.
    pub fn load(loader: &Loader<B>, name: &str, width: usize, eps: f32) -> Result<Self, LoadError> {
        Ok(Self { weight: loader.tensor(&format!("{name}.weight"), &[width])?, eps })
    }

    /// Any shape whose last dimension is the norm's width.
    pub fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        assert_eq!(x.width(), self.weight.width(), "the norm of {:?}", x.shape());
        Tensor::new(x.backend(), x.backend().rms_norm(x, &self.weight, self.eps), x.shape())
    }
}

/// `(x - mean(x)) / sqrt(variance(x) + eps) * weight + bias` over the last dimension. (Ba et al. 2016, arXiv:1607.06450)
pub struct LayerNorm<B: Backend> {
    weight: Tensor<B>,
    bias: Tensor<B>,
    eps: f32,
}

impl<B: Backend> LayerNorm<B> {
    /// `name` is the norm's, without `.weight`.
    pub fn load(loader: &Loader<B>, name: &str, width: usize, eps: f32) -> Result<Self, LoadError> {
        let parameter = |part: &str| loader.tensor(&format!("{name}.{part}"), &[width]);
        Ok(Self { weight: parameter("weight")?, bias: parameter("bias")?, eps })
    }

    /// Any shape whose last dimension is the norm's width.
    pub fn forward(&self, x: &Tensor<B>) -> Tensor<B> {
        assert_eq!(x.width(), self.weight.width(), "the norm of {:?}", x.shape());
        let norm = backend::LayerNorm { w: &self.weight, bias: &self.bias, eps: self.eps };
        Tensor::new(x.backend(), x.backend().layer_norm(x, norm), x.shape())
    }
}
