use super::{CpuArray, CpuBackend};
use crate::backend::Activation;
use crate::tensor::Tensor;

pub(super) fn swiglu(
    backend: &CpuBackend,
    gate: &Tensor<CpuBackend>,
    up: &Tensor<CpuBackend>,
) -> CpuArray {
    assert_eq!(gate.shape(), up.shape(), "swiglu");
    let (gate, up) = (gate.array().as_f32(), up.array().as_f32());
    let mut out = backend.spare.buffer(gate.len());
    base_mlx_simd::swiglu(backend.pool(), backend.isa(), gate, up, &mut out);
    CpuArray::f32(out)
}

pub(super) fn add(
    backend: &CpuBackend,
    a: &Tensor<CpuBackend>,
    b: &Tensor<CpuBackend>,
) -> CpuArray {
    assert_eq!(a.shape(), b.shape(), "add");
    let (a, b) = (a.array().as_f32(), b.array().as_f32());
    let mut out = backend.spare.buffer(a.len());
    base_mlx_simd::add(backend.pool(), backend.isa(), a, b, &mut out);
    CpuArray::f32(out)
}

pub(super) fn activate(
    backend: &CpuBackend,
    x: &Tensor<CpuBackend>,
    activation: Activation,
) -> CpuArray {
    let x = x.array().as_f32();
    let mut out = backend.spare.buffer(x.len());
    base_mlx_simd::activate(backend.pool(), backend.isa(), activation, x, &mut out);
    CpuArray::f32(out)
}

pub(super) fn take_rows(x: &Tensor<CpuBackend>, rows: &[u32]) -> CpuArray {
    let (width, values) = (x.shape().elements() / x.rows().max(1), x.array().as_f32());
    let mut out = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        out.extend_from_slice(&values[row as usize * width..][..width]);
    }
    CpuArray::f32(out)
}
