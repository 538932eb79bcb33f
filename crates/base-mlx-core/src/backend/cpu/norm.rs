use super::{CpuArray, CpuBackend};
use crate::backend::LayerNorm;
use crate::tensor::Tensor;

pub(super) fn rms_norm(
    backend: &CpuBackend,
    x: &Tensor<CpuBackend>,
    w: &Tensor<CpuBackend>,
    eps: f32,
) -> CpuArray {
    assert_eq!(x.width(), w.shape().elements(), "rms_norm: x {:?}, w {:?}", x.shape(), w.shape());
    let (x, w) = (x.array().as_f32(), w.array().as_f32());
    let mut out = backend.spare.buffer(x.len());
    base_mlx_simd::rms_norm(backend.pool(), backend.isa(), x, w, eps, &mut out);
    CpuArray::f32(out)
}

pub(super) fn layer_norm(
    backend: &CpuBackend,
    x: &Tensor<CpuBackend>,
    LayerNorm { w, bias, eps }: LayerNorm<CpuBackend>,
) -> CpuArray {
    assert_eq!(x.width(), w.shape().elements(), "layer_norm: x {:?}, w {:?}", x.shape(), w.shape());
    let norm = base_mlx_simd::LayerNorm { w: w.array().as_f32(), bias: bias.array().as_f32(), eps };
    let x = x.array().as_f32();
    let mut out = backend.spare.buffer(x.len());
    base_mlx_simd::layer_norm(backend.pool(), backend.isa(), x, norm, &mut out);
    CpuArray::f32(out)
}
