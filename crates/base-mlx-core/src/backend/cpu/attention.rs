use std::ops::Range;

use base_mlx_simd::{AttentionShape, AttentionSpan, KEY_BLOCK, KvBlock, Sees};

use super::kv::NO_MEMORY;
use super::{CpuArray, CpuBackend};
use crate::backend::{Attend, LayerSpec, Qkv, Span};

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

    let sees = window.map_or(Sees::Past, Sees::Window);
    let shape = AttentionShape { heads, kv_heads, head_dim, scale, sees };
    let q = q.array().as_f32();
    let mut out = backend.spare.buffer(q.len());
    base_mlx_simd::attention(backend.pool(), backend.isa(), shape, q, &spans, &mut out);
    CpuArray::f32(out)
}

/// Keys and values are brought into blocks all the same, as the kernel reads no others, in memory that all layers use.
pub(super) fn attend_within(
    backend: &CpuBackend,
    Qkv { q, k, v }: Qkv<CpuBackend>,
    texts: &[Range<usize>],
    scale: f32,
) -> CpuArray {
    let (heads, head_dim, kv_heads) = (q.shape().dim(1), q.width(), k.shape().dim(1));
    assert_eq!(k.shape(), v.shape(), "attend_within: k and v");
    assert_eq!((k.rows(), k.width()), (q.rows(), head_dim), "attend_within: q {:?}", q.shape());

    let (keys, values) = (k.array().as_f32(), v.array().as_f32());
    let memory = backend.exact_kv.blocks(LayerSpec { kv_heads, head_dim });
    let rows: Vec<Range<usize>> = texts
        .iter()
        .flat_map(|text| {
            let firsts = text.clone().step_by(KEY_BLOCK);
            firsts.map(|first| first..text.end.min(first + KEY_BLOCK))
        })
        .collect();
    let mut blocks: Vec<KvBlock> = rows.iter().map(|_| memory.block().expect(NO_MEMORY)).collect();
    base_mlx_simd::write_blocks(backend.pool(), &mut blocks, &rows, keys, values);
    let mut rest = &blocks[..];
    let spans: Vec<AttentionSpan> = texts
        .iter()
        .map(|text| {
            let (of_text, others) = rest.split_at(text.len().div_ceil(KEY_BLOCK));
            rest = others;
            AttentionSpan { rows: text.clone(), start: 0, blocks: of_text.iter().collect() }
        })
        .collect();

    let shape = AttentionShape { heads, kv_heads, head_dim, scale, sees: Sees::All };
    let q = q.array().as_f32();
    let mut out = backend.spare.buffer(q.len());
    base_mlx_simd::attention(backend.pool(), backend.isa(), shape, q, &spans, &mut out);
    CpuArray::f32(out)
}
