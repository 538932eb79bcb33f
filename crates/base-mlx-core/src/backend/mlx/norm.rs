use base_mlx_sys::Array;

use super::MlxBackend;
use super::array::{MlxArray, Norm, Recipe};
use super::device::{Device, built};
use crate::tensor::Tensor;

pub(super) fn rms_norm(
    backend: &MlxBackend,
    x: &Tensor<MlxBackend>,
    w: &Tensor<MlxBackend>,
    eps: f32,
) -> MlxArray {
    let shape = [x.shape().elements() / x.width().max(1), x.width()];
    let norm = Norm { x: x.array().clone(), shape, weight: w.array().clone(), eps };
    backend.device().offer(Recipe::Norm(norm))
}

impl Device {
    /// `[rows, width]`
    pub(super) fn rms_norm(&self, norm: &Norm) -> Array {
        let x = built(norm.x.value(self).reshape(&norm.shape));
        let weight = norm.weight.value_as(self, built(x.dtype()));
        built(x.rms_norm(&weight, norm.eps))
    }
}
