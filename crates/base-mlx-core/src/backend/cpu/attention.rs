use base_mlx_simd::{AttentionShape, AttentionSpan};

use super::{CpuArray, CpuBackend};
use crate::backend::{Attend, Qkv, Span};

pub(super) fn attend(
    backend: &CpuBackend,
    layer: usize,
    Qkv { q, k, v }: Qkv<CpuBackend>,
    spans: &mut [Span<CpuBackend>],
    how: Attend,
) -> CpuArray {
    let (heads, head_dim) = (q.shape().dim(1), q.width());
    let kv_heads = k.shape().dim(1);
    assert_eq!(k.shape(), v.shape(), "attend: k and v");
    assert_eq!((k.rows(), k.width()), (q.rows(), head_dim), "attend: q {:?}", q.shape());

    let (keys, values) = (k.array().as_f32(), v.array().as_f32());
    let starts: Vec<usize> = spans
        .iter_mut()
        .map(|span| {
            let layer = span.kv.layer_mut(layer);
            let spec = layer.spec();
            assert_eq!((kv_heads, head_dim), (spec.kv_heads, spec.head_dim), "attend: k, cache");
            let start = layer.len();
            let width = kv_heads * head_dim;
            let new = span.rows.start * width..span.rows.end * width;
            layer.append(&keys[new.clone()], &values[new]);
            start
        })
        .collect();
    let spans: Vec<AttentionSpan> = spans
        .iter()
        .zip(starts)
        .map(|(span, start)| {
            let layer = span.kv.layer(layer);
            let (keys, values) = (layer.keys(), layer.values());
            AttentionSpan { rows: span.rows.clone(), start, keys, values }
        })
        .collect();

    let Attend { scale, window } = how;
    let shape = AttentionShape { heads, kv_heads, head_dim, scale, window };
    let q = q.array().as_f32();
    let mut out = vec![0.0; q.len()];
    base_mlx_simd::attention(backend.pool(), backend.isa(), shape, q, &spans, &mut out);
    CpuArray::f32(out)
}
