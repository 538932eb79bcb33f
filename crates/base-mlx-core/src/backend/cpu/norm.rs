use super::{CpuArray, CpuBackend};
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
