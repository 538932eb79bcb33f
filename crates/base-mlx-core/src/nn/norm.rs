use crate::backend::Backend;
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
