use base_mlx_simd::{Affine, Matrix};

use super::{CpuArray, CpuBackend};
use crate::tensor::{Tensor, Weight};

pub(super) fn linear(
    backend: &CpuBackend,
    x: &Tensor<CpuBackend>,
    w: &Weight<CpuBackend>,
    bias: Option<&Tensor<CpuBackend>>,
) -> CpuArray {
    let matrix = matrix(w);
    let [outputs, inner] = matrix.shape();
    assert_eq!(x.width(), inner, "linear: x {:?}, w {:?}", x.shape(), w.shape());
    let rows = x.shape().elements() / inner;
    let mut out = vec![0.0; rows * outputs];
    let bias = bias.map(|bias| bias.array().as_f32());
    base_mlx_simd::linear(
        backend.pool(),
        backend.isa(),
        x.array().as_f32(),
        &matrix,
        bias,
        &mut out,
    );
    CpuArray::f32(out)
}

pub(super) fn embed(
    backend: &CpuBackend,
    table: &Weight<CpuBackend>,
    tokens: &Tensor<CpuBackend>,
) -> CpuArray {
    let matrix = matrix(table);
    let tokens = tokens.array().as_u32();
    let mut out = vec![0.0; tokens.len() * matrix.shape()[1]];
    base_mlx_simd::unpack_rows(backend.pool(), backend.isa(), &matrix, tokens, &mut out);
    CpuArray::f32(out)
}

fn matrix(w: &Weight<CpuBackend>) -> Matrix<'_> {
    let shape = w.shape();
    let (outputs, inner) = (shape.dim(0), shape.dim(1));
    match w {
        Weight::Dense { array, .. } => Matrix::dense(array.floats(), outputs, inner),
        Weight::Affine { packed, scales, biases, bits, group_size, .. } => {
            let (scales, biases) = (scales.floats(), biases.floats());
            let affine =
                Affine { packed: packed.bytes(), scales, biases, bits: *bits, group: *group_size };
            Matrix::affine(affine, outputs, inner)
        }
    }
}
