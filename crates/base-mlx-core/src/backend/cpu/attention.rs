use base_mlx_simd::{AttentionShape, AttentionSpan, KvValue};

use super::kv::{Layer, Layers};
use super::{CpuArray, CpuBackend, CpuKv};
use crate::backend::{Attend, Qkv, Span};
use crate::tensor::Dtype;

pub(super) fn attend(
    backend: &CpuBackend,
    layer: usize,
    qkv: Qkv<CpuBackend>,
    spans: &mut [Span<CpuBackend>],
    how: Attend,
) -> CpuArray {
    // All caches of a backend keep the same type.
    match backend.kv_dtype {
        Dtype::F16 => attend_in(backend, qkv, spans, how, |kv| match &mut kv.0 {
            Layers::F16(layers) => &mut layers[layer],
            Layers::F32(_) => panic!("a cache of F32 among those of F16"),
        }),
        _ => attend_in(backend, qkv, spans, how, |kv| match &mut kv.0 {
            Layers::F32(layers) => &mut layers[layer],
            Layers::F16(_) => panic!("a cache of F16 among those of F32"),
        }),
    }
}

fn attend_in<T: KvValue>(
    backend: &CpuBackend,
    Qkv { q, k, v }: Qkv<CpuBackend>,
    spans: &mut [Span<CpuBackend>],
    Attend { scale, window }: Attend,
    layer: impl Fn(&mut CpuKv) -> &mut Layer<T>,
) -> CpuArray {
    let (heads, head_dim) = (q.shape().dim(1), q.width());
    let kv_heads = k.shape().dim(1);
    assert_eq!(k.shape(), v.shape(), "attend: k and v");
    assert_eq!((k.rows(), k.width()), (q.rows(), head_dim), "attend: q {:?}", q.shape());

    let (keys, values) = (k.array().as_f32(), v.array().as_f32());
    let spans: Vec<AttentionSpan<T>> = spans
        .iter_mut()
        .map(|span| {
            let layer = layer(span.kv);
            let spec = layer.spec();
            assert_eq!((kv_heads, head_dim), (spec.kv_heads, spec.head_dim), "attend: k, cache");
            let start = layer.len();
            let width = kv_heads * head_dim;
            let new = span.rows.start * width..span.rows.end * width;
            layer.append(&keys[new.clone()], &values[new]);
            AttentionSpan { rows: span.rows.clone(), start, blocks: layer.blocks() }
        })
        .collect();

    let shape = AttentionShape { heads, kv_heads, head_dim, scale, window };
    let q = q.array().as_f32();
    let mut out = vec![0.0; q.len()];
    base_mlx_simd::attention(backend.pool(), backend.isa(), shape, q, &spans, &mut out);
    CpuArray::f32(out)
}
