use base_mlx_simd::Product;

use super::{CpuArray, CpuBackend};
use crate::tensor::{Tensor, Weight};

pub(super) fn linears<const N: usize>(
    backend: &CpuBackend,
    x: &Tensor<CpuBackend>,
    layers: [(&Weight<CpuBackend>, Option<&Tensor<CpuBackend>>); N],
) -> [CpuArray; N] {
    let rows = x.shape().elements() / x.width();
    let mut outs = layers.map(|(w, _)| backend.spare.buffer(rows * w.shape().dim(0)));
    let (pool, isa, floats) = (backend.pool(), backend.isa(), x.array().as_f32());
    // Those of a kind share one fork of the threads; packed ones read x in another form.
    let (mut dense, mut quantised) = (Vec::with_capacity(N), Vec::with_capacity(N));
    for ((w, bias), out) in layers.into_iter().zip(&mut outs) {
        assert_eq!(x.width(), w.shape().dim(1), "linear: x {:?}, w {:?}", x.shape(), w.shape());
        let bias = bias.map(|bias| bias.array().as_f32());
        match w {
            Weight::Dense { array, .. } => {
                dense.push(Product { weight: array.as_dense(), bias, out });
            }
            Weight::Affine { packed, .. } => {
                quantised.push(Product { weight: packed.as_packed(), bias, out });
            }
        }
    }
    base_mlx_simd::linear(pool, isa, floats, dense);
    base_mlx_simd::linear_packed(pool, isa, floats, quantised);
    outs.map(CpuArray::f32)
}

pub(super) fn embed(
    backend: &CpuBackend,
    table: &Weight<CpuBackend>,
    tokens: &Tensor<CpuBackend>,
) -> CpuArray {
    let tokens = tokens.array().as_u32();
    let inner = table.shape().dim(1);
    let mut out = backend.spare.buffer(tokens.len() * inner);
    match table {
        Weight::Dense { array, .. } => {
            array.as_dense().unpack_rows(backend.pool(), backend.isa(), tokens, &mut out);
        }
        Weight::Affine { packed, .. } => {
            packed.as_packed().unpack_rows(backend.pool(), tokens, &mut out);
        }
    }
    CpuArray::f32(out)
}
