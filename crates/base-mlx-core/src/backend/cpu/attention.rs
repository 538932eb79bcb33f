use base_mlx_simd::{AttentionShape, AttentionSpan};

use super::{CpuArray, CpuBackend};
use crate::backend::{Attend, Qkv, Span};

pub(super) fn attend(
    backend: &CpuBackend,
    layer: usize,
    Qkv { q, k, v }: Qkv<CpuBackend>,
    spans: &mut [Span<CpuBackend>],
    Attend { scale, window }: Attend,
) -> CpuArray {
    let (heads, head_dim) = (q.shape().dim(1), q.width());
    let kv_heads = k.shape().dim(1);
    assert_eq!(k.shape(), v.shape(), "attend: k and v");
    assert_eq!((k.rows(), k.width()), (q.rows(), head_dim), "attend: q {:?}", q.shape());

    let (keys, values) = (k.array().as_f32(), v.array().as_f32());
    let spans: Vec<AttentionSpan> = spans
        .iter_mut()
        .map(|span| {
            let layer = &mut span.kv.0[layer];
            assert_eq!([kv_heads, head_dim], layer.shape(), "attend: k, cache");
            let start = layer.len();
            let width = kv_heads * head_dim;
            let new = span.rows.start * width..span.rows.end * width;
            layer.append(&keys[new.clone()], &values[new]);
            AttentionSpan { rows: span.rows.clone(), start, blocks: layer.blocks() }
        })
        .collect();

    let shape = AttentionShape { heads, kv_heads, head_dim, scale, window };
    let q = q.array().as_f32();
    let mut out = backend.spare.buffer(q.len());
    base_mlx_simd::attention(backend.pool(), backend.isa(), shape, q, &spans, &mut out);
    CpuArray::f32(out)
}
