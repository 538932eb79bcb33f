use std::ops::Range;

use base_mlx_sys::{Array, Mask};

use super::device::{Device, built};
use super::kv::Store;
use super::{MlxArray, MlxBackend};
use crate::backend::{Attend, Batch, Qkv};

pub(super) fn attend(
    backend: &MlxBackend,
    layer: usize,
    qkv: Qkv<MlxBackend>,
    batch: &mut Batch<MlxBackend>,
    how: Attend,
) -> MlxArray {
    let device = backend.device();
    let Qkv { q, k, v } = &qkv;
    assert_eq!(k.shape(), v.shape(), "attend: k and v");
    assert_eq!((k.rows(), k.width()), (q.rows(), q.width()), "attend: q {:?}", q.shape());
    if let Some(pages) = &batch.layout {
        return MlxArray::known(pages.attend(device, layer, qkv, &batch.spans, how));
    }
    let [tokens, heads, head_dim] = [q.rows(), q.shape().dim(1), q.width()];
    let kv_heads = k.shape().dim(1);
    let shaped =
        |array: &MlxArray, heads| built(array.value(device).reshape(&[tokens, heads, head_dim]));
    let (q, k, v) =
        (shaped(q.array(), heads), shaped(k.array(), kv_heads), shaped(v.array(), kv_heads));
    let mut out = Vec::with_capacity(batch.spans.len());
    for span in &mut batch.spans {
        let rows = span.rows.clone();
        if rows.is_empty() {
            continue;
        }
        let Store::Growing(kv) = &mut span.kv.0 else {
            unreachable!("without a layout of pages the keys lie in arrays")
        };
        let layer = kv.layer(layer);
        assert_eq!((kv_heads, head_dim), (layer.spec().kv_heads, layer.spec().head_dim), "attend");
        // [tokens, heads, head_dim] to [1, heads, rows, head_dim]
        let of_span = |x: &Array, heads: usize| {
            let whole = rows.len() == tokens;
            let end = [rows.end, heads, head_dim];
            let x = if whole { x.clone() } else { built(x.slice(&[rows.start, 0, 0], &end)) };
            let x = built(x.reshape(&[1, rows.len(), heads, head_dim]));
            built(x.transpose(&[0, 2, 1, 3]))
        };
        layer.append(&of_span(&k, kv_heads), &of_span(&v, kv_heads));
        // What no query sees is not read.
        let first_query = layer.len() - rows.len();
        let first = how.window.map_or(0, |window| (first_query + 1).saturating_sub(window));
        let seen = look(device, &of_span(&q, heads), layer.from(first), how);
        let seen = built(seen.transpose(&[0, 2, 1, 3]));
        out.push(built(seen.reshape(&[rows.len(), heads, head_dim])));
    }
    MlxArray::known(match &out[..] {
        [] => q,
        [one] => one.clone(),
        many => built(Array::concatenate(&many.iter().collect::<Vec<_>>(), 0)),
    })
}

pub(super) fn attend_within(
    backend: &MlxBackend,
    Qkv { q, k, v }: Qkv<MlxBackend>,
    texts: &[Range<usize>],
    scale: f32,
) -> MlxArray {
    let device = backend.device();
    let [tokens, heads, head_dim] = [q.rows(), q.shape().dim(1), q.width()];
    let kv_heads = k.shape().dim(1);
    assert_eq!(k.shape(), v.shape(), "attend_within: k and v");
    assert_eq!((k.rows(), k.width()), (tokens, head_dim), "attend_within: q {:?}", q.shape());
    let (q, k, v) = (q.array().value(device), k.array().value(device), v.array().value(device));
    // [tokens, heads * head_dim] to [1, heads, rows, head_dim]
    let of_text = |x: &Array, heads: usize, rows: &Range<usize>| {
        let x = built(x.reshape(&[tokens, heads, head_dim]));
        let x = built(x.slice(&[rows.start, 0, 0], &[rows.end, heads, head_dim]));
        let x = built(x.reshape(&[1, rows.len(), heads, head_dim]));
        built(x.transpose(&[0, 2, 1, 3]))
    };
    let zeros = |rows: usize| built(Array::full(&[rows, heads, head_dim], 0.0, built(q.dtype())));
    let (mut out, mut row) = (Vec::with_capacity(texts.len()), 0);
    for text in texts.iter().filter(|text| !text.is_empty()) {
        // Rows of no text.
        out.extend((row < text.start).then(|| zeros(text.start - row)));
        row = text.end;
        let (keys, values) = (of_text(k, kv_heads, text), of_text(v, kv_heads, text));
        // Where scores are written down, those of so many queries are there at once.
        for start in text.clone().step_by(QUERIES) {
            let rows = start..text.end.min(start + QUERIES);
            let q = of_text(q, heads, &rows);
            let seen = built(q.scaled_dot_product_attention(&keys, &values, scale, Mask::All));
            let seen = built(seen.transpose(&[0, 2, 1, 3]));
            out.push(built(seen.reshape(&[rows.len(), heads, head_dim])));
        }
    }
    out.extend((row < tokens).then(|| zeros(tokens - row)));
    MlxArray::known(match &out[..] {
        [one] => one.clone(),
        many => built(Array::concatenate(&many.iter().collect::<Vec<_>>(), 0)),
    })
}

const QUERIES: usize = 1024;

/// Queries at the last of the keys' positions: `[1, heads, rows, head_dim]` over `[1, kv_heads, keys, head_dim]` each.
pub(super) fn look(
    device: &Device,
    q: &Array,
    [keys, values]: [Array; 2],
    Attend { scale, window }: Attend,
) -> Array {
    let [heads, rows, head_dim] = [q.shape()[1], q.shape()[2], q.shape()[3]];
    let seen = keys.shape()[2];
    if rows == 1 {
        return built(q.scaled_dot_product_attention(&keys, &values, scale, Mask::All));
    }
    // Rows of no sequence, before and after: a query sees no key after its own, so the others notice nothing.
    let unit = device.attention_unit();
    let before = (seen - rows) % unit;
    let after = (before + rows).next_multiple_of(unit) - before - rows;
    let q = padded(q, before, after);
    let (keys, values) = (padded(&keys, 0, after), padded(&values, 0, after));
    let attended = match window.filter(|window| seen > *window) {
        None => q.scaled_dot_product_attention(&keys, &values, scale, Mask::Causal),
        Some(window) => {
            let mask = window_mask(before + rows + after, seen + after, window);
            q.scaled_dot_product_attention(&keys, &values, scale, Mask::Array(&mask))
        }
    };
    let end = [1, heads, before + rows, head_dim];
    built(built(attended).slice(&[0, 0, before, 0], &end))
}

/// `[1, heads, before + rows + after, head_dim]`
fn padded(x: &Array, before: usize, after: usize) -> Array {
    let shape = x.shape();
    let zeros = |rows| {
        let shape = [1, shape[1], rows, shape[3]];
        built(Array::full(&shape, 0.0, built(x.dtype())))
    };
    match (before, after) {
        (0, 0) => x.clone(),
        (0, after) => built(Array::concatenate(&[x, &zeros(after)], 2)),
        (before, 0) => built(Array::concatenate(&[&zeros(before), x], 2)),
        (before, after) => built(Array::concatenate(&[&zeros(before), x, &zeros(after)], 2)),
    }
}

/// Bool `[rows, keys]`: the last query is at the last key, and each sees `window` keys up to its own.
fn window_mask(rows: usize, keys: usize, window: usize) -> Array {
    let line = |start: usize, end: usize, shape: [usize; 2]| {
        let places = built(Array::arange(start as f32, end as f32, 1.0, base_mlx_sys::Dtype::I32));
        built(places.reshape(&shape))
    };
    let queries = line(keys - rows, keys, [rows, 1]);
    let keys = line(0, keys, [1, keys]);
    let window = built(Array::scalar(window as f32, base_mlx_sys::Dtype::I32));
    let past = built(keys.less_equal(&queries));
    let near = built(queries.less(&built(keys.add(&window))));
    built(past.logical_and(&near))
}
