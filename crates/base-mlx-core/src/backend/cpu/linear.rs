use base_mlx_simd::Matrix;

use super::{CpuArray, CpuBackend};
use crate::tensor::{Tensor, Weight};

pub(super) fn linear(
    backend: &CpuBackend,
    x: &Tensor<CpuBackend>,
    w: &Weight<CpuBackend>,
    bias: Option<&Tensor<CpuBackend>>,
) -> CpuArray {
    let (outputs, inner) = (w.shape().dim(0), w.shape().dim(1));
    assert_eq!(x.width(), inner, "linear: x {:?}, w {:?}", x.shape(), w.shape());
    let rows = x.shape().elements() / inner;
    let mut out = vec![0.0; rows * outputs];
    let bias = bias.map(|bias| bias.array().as_f32());
    let (pool, isa, x) = (backend.pool(), backend.isa(), x.array().as_f32());
    match w {
        Weight::Dense { array, .. } => {
            let matrix = Matrix::new(array.floats(), outputs, inner);
            base_mlx_simd::linear(pool, isa, x, &matrix, bias, &mut out);
        }
        Weight::Affine { packed, .. } => {
            base_mlx_simd::linear_packed(pool, isa, x, packed.as_packed(), bias, &mut out);
        }
    }
    CpuArray::f32(out)
}

pub(super) fn embed(
    backend: &CpuBackend,
    table: &Weight<CpuBackend>,
    tokens: &Tensor<CpuBackend>,
) -> CpuArray {
    let tokens = tokens.array().as_u32();
    let (outputs, inner) = (table.shape().dim(0), table.shape().dim(1));
    let mut out = vec![0.0; tokens.len() * inner];
    match table {
        Weight::Dense { array, .. } => {
            let matrix = Matrix::new(array.floats(), outputs, inner);
            base_mlx_simd::unpack_rows(backend.pool(), backend.isa(), &matrix, tokens, &mut out);
        }
        Weight::Affine { packed, .. } => {
            packed.as_packed().unpack_rows(backend.pool(), tokens, &mut out);
        }
    }
    CpuArray::f32(out)
}
