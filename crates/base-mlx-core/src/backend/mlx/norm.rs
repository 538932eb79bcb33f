use base_mlx_sys::Array;

use super::MlxBackend;
use super::array::{MlxArray, Norm, Recipe};
use super::device::{Device, built};
use crate::backend::LayerNorm;
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

pub(super) fn layer_norm(
    backend: &MlxBackend,
    x: &Tensor<MlxBackend>,
    LayerNorm { w, bias, eps }: LayerNorm<MlxBackend>,
) -> MlxArray {
    let device = backend.device();
    let rows = x.shape().elements() / x.width().max(1);
    let x = built(x.array().value(device).reshape(&[rows, x.width()]));
    let dtype = built(x.dtype());
    let (w, bias) = (w.array().value_as(device, dtype), bias.array().value_as(device, dtype));
    MlxArray::known(built(x.layer_norm(&w, &bias, eps)))
}

impl Device {
    /// `[rows, width]`
    pub(super) fn rms_norm(&self, norm: &Norm) -> Array {
        let x = built(norm.x.value(self).reshape(&norm.shape));
        let weight = norm.weight.value_as(self, built(x.dtype()));
        built(x.rms_norm(&weight, norm.eps))
    }
}
