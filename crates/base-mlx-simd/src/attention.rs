//! Attention of a ragged batch: each query looks at the keys of its own sequence, up to its own position.

use std::ops::Range;

use crate::isa::{Isa, Kernel, Lanes};
use crate::linear::dot_tile;
use crate::pool::{Pool, Scratch};
use crate::shared::SharedMut;

/// Positions in a block of keys or values.
pub const KEY_BLOCK: usize = 32;

/// What all queries of a call have in common.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub heads: usize,
    /// Divides `heads`; neighbouring heads share one.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor of `q · k`.
    pub scale: f32,
    /// A query at position p sees only keys at positions > p - window.
    pub window: Option<usize>,
}

/// A sequence's rows in the batch, and its memory, which already holds them.
#[derive(Debug)]
pub struct AttentionSpan<'a> {
    pub rows: Range<usize>,
    /// The position of the first row.
    pub start: usize,
    /// Blocks of [`KEY_BLOCK`] positions: `[kv_heads, KEY_BLOCK, head_dim]`.
    pub keys: Vec<&'a [f32]>,
    /// As `keys`.
    pub values: Vec<&'a [f32]>,
}

impl AttentionShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The positions that a query at `position` sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// `q` and `out` are `[rows, heads, head_dim]`. Rows of no span are left as they are.
pub fn attention(
    pool: &Pool,
    isa: Isa,
    shape: AttentionShape,
    q: &[f32],
    spans: &[AttentionSpan],
    out: &mut [f32],
) {
    let AttentionShape { heads, kv_heads, head_dim, window, .. } = shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads, {kv_heads} of keys");
    assert!(window != Some(0), "a window of nothing");
    assert_eq!(q.len(), out.len(), "attention");
    let rows: Vec<(&AttentionSpan, usize)> =
        spans.iter().flat_map(|span| span.rows.clone().map(move |row| (span, row))).collect();
    for span in spans {
        let (len, block) = (span.start + span.rows.len(), kv_heads * KEY_BLOCK * head_dim);
        let whole = |blocks: &[&[f32]]| {
            blocks.len() * KEY_BLOCK >= len && blocks.iter().all(|b| b.len() == block)
        };
        assert!(whole(&span.keys) && whole(&span.values), "the cache does not hold its span");
    }
    let mut seen = vec![false; q.len() / (heads * head_dim).max(1)];
    assert!(
        rows.iter().all(|&(_, row)| !std::mem::replace(&mut seen[row], true)),
        "a row belongs to one span"
    );

    // Heads that share their keys go together, unless that leaves threads without work.
    let together = if rows.len() * kv_heads < pool.threads() * 4 { 1 } else { shape.group() };
    let units = heads / together;
    let items = rows.len() * units;
    let keys: usize = rows.iter().map(|(span, row)| shape.visible(span.position(*row)).len()).sum();
    let work = keys * heads * head_dim * 2;
    let pieces = (work / WORK_IN_PIECE).clamp(1, pool.threads() * PIECES_FOR_A_THREAD).min(items);
    let out = SharedMut::new(out);
    pool.run(pieces, |piece, scratch| {
        for item in items * piece / pieces..items * (piece + 1) / pieces {
            let (span, row) = rows[item / units];
            let head = item % units * together;
            let values =
                (row * heads + head) * head_dim..(row * heads + head + together) * head_dim;
            // SAFETY: no row is in two spans, and each of its heads belongs to one item of one piece.
            let out = unsafe { out.part(values.clone()) };
            let kv_head = head / shape.group();
            let position = span.position(row);
            isa.run(Query { shape, span, position, kv_head, q: &q[values], scratch, out });
        }
    });
}

impl AttentionSpan<'_> {
    fn position(&self, row: usize) -> usize {
        self.start + row - self.rows.start
    }
}

/// Some heads of one row that look at the same keys.
struct Query<'a> {
    shape: AttentionShape,
    span: &'a AttentionSpan<'a>,
    position: usize,
    kv_head: usize,
    /// `[heads, head_dim]`
    q: &'a [f32],
    scratch: &'a mut Scratch,
    out: &'a mut [f32],
}

impl Kernel for Query<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let head_dim = self.shape.head_dim;
        let visible = self.shape.visible(self.position);
        let heads = Heads {
            lanes,
            span: self.span,
            kv_head: self.kv_head,
            head_dim,
            scale: self.shape.scale,
            // Blocks are counted from position 0, wherever a window begins.
            first_block: visible.start / KEY_BLOCK,
            visible,
        };
        let (mut q, mut out) = (self.q, self.out);
        while !q.is_empty() {
            let count = (q.len() / head_dim).min(4);
            let (some_q, rest_q) = q.split_at(count * head_dim);
            let (some_out, rest_out) = out.split_at_mut(count * head_dim);
            match count {
                1 => heads.attend::<1, 4>(some_q, self.scratch, some_out),
                2 => heads.attend::<2, 4>(some_q, self.scratch, some_out),
                3 => heads.attend::<3, 4>(some_q, self.scratch, some_out),
                _ => heads.attend::<4, 3>(some_q, self.scratch, some_out),
            }
            (q, out) = (rest_q, rest_out);
        }
    }
}

struct Heads<'a, L> {
    lanes: L,
    span: &'a AttentionSpan<'a>,
    kv_head: usize,
    head_dim: usize,
    scale: f32,
    first_block: usize,
    visible: Range<usize>,
}

impl<L: Lanes> Heads<'_, L> {
    /// `R` heads, `N` keys at a time: all scores, their softmax, then the weighted values.
    #[inline(always)]
    fn attend<const R: usize, const N: usize>(
        &self,
        q: &[f32],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
        let base = self.first_block * KEY_BLOCK;
        let visible = self.visible.start - base..self.visible.end - base;
        let stride = visible.end.next_multiple_of(8);
        let weights = scratch.floats(R * stride);
        self.scores::<R, N>(q, visible.end, stride, weights);
        let mut sums = [0.0; R];
        for (sum, scores) in sums.iter_mut().zip(weights.chunks_exact_mut(stride)) {
            *sum = self.softmax(scores, &visible);
        }
        let weights = std::array::from_fn(|r| &weights[r * stride..][..visible.end]);
        let whole = self.head_dim / 8;
        let mut vector = 0;
        while vector + 4 <= whole {
            self.weigh::<R, 4>(weights, sums, vector * 8, out);
            vector += 4;
        }
        while vector < self.head_dim.div_ceil(8) {
            self.weigh::<R, 1>(weights, sums, vector * 8, out);
            vector += 1;
        }
    }

    /// This head's part of the blocks from `first_block` on that hold `len` positions: `[positions, head_dim]`.
    #[inline(always)]
    fn blocks<'b>(&self, blocks: &'b [&[f32]], len: usize) -> impl Iterator<Item = &'b [f32]> {
        let start = self.kv_head * KEY_BLOCK * self.head_dim;
        let head_dim = self.head_dim;
        let blocks = blocks[self.first_block..][..len.div_ceil(KEY_BLOCK)].iter();
        blocks.enumerate().map(move |(index, block)| {
            let positions = (len - index * KEY_BLOCK).min(KEY_BLOCK);
            &block[start..][..positions * head_dim]
        })
    }

    #[inline(always)]
    fn scores<const R: usize, const N: usize>(
        &self,
        q: &[f32],
        len: usize,
        stride: usize,
        to: &mut [f32],
    ) {
        let q: [&[f32]; R] = std::array::from_fn(|r| &q[r * self.head_dim..][..self.head_dim]);
        for (index, keys) in self.blocks(&self.span.keys, len).enumerate() {
            let mut position = index * KEY_BLOCK;
            let mut tiles = keys.chunks_exact(N * self.head_dim);
            for keys in &mut tiles {
                let k = std::array::from_fn(|n| &keys[n * self.head_dim..][..self.head_dim]);
                let products: [[f32; N]; R] = dot_tile(self.lanes, q, k);
                for (r, products) in products.into_iter().enumerate() {
                    let to = &mut to[r * stride + position..][..N];
                    to.copy_from_slice(&products.map(|product| product * self.scale));
                }
                position += N;
            }
            for key in tiles.remainder().chunks_exact(self.head_dim) {
                let products: [[f32; 1]; R] = dot_tile(self.lanes, q, [key]);
                for (r, [product]) in products.into_iter().enumerate() {
                    to[r * stride + position] = product * self.scale;
                }
                position += 1;
            }
        }
    }

    /// Turns scores into e^(score - largest), zero where nothing is visible, and returns their sum.
    #[inline(always)]
    fn softmax(&self, scores: &mut [f32], visible: &Range<usize>) -> f32 {
        let lanes = self.lanes;
        scores[..visible.start].fill(f32::NEG_INFINITY);
        scores[visible.end..].fill(f32::NEG_INFINITY);
        let vectors = scores.as_chunks_mut::<8>().0;
        let mut largest = lanes.splat(f32::NEG_INFINITY);
        for scores in vectors.iter() {
            largest = lanes.max(largest, lanes.load(scores));
        }
        let largest = lanes.to_array(largest).into_iter().fold(f32::NEG_INFINITY, f32::max);
        for scores in vectors.iter_mut() {
            lanes.store(lanes.exp(lanes.sub(lanes.load(scores), lanes.splat(largest))), scores);
        }
        scores[..visible.start].fill(0.0);
        scores[visible.end..].fill(0.0);
        let mut sum = lanes.splat(0.0);
        for weights in scores.as_chunks::<8>().0 {
            sum = lanes.add(sum, lanes.load(weights));
        }
        lanes.sum(sum)
    }

    /// Sums the `C` vectors of the values from `dim` on; `C` is 1 where a head's size leaves a tail.
    #[inline(always)]
    fn weigh<const R: usize, const C: usize>(
        &self,
        weights: [&[f32]; R],
        sums: [f32; R],
        dim: usize,
        out: &mut [f32],
    ) {
        let lanes = self.lanes;
        let width = (C * 8).min(self.head_dim - dim);
        let mut totals = [[lanes.splat(0.0); C]; R];
        let mut now = [lanes.splat(0.0); C];
        let mut position = 0;
        for values in self.blocks(&self.span.values, weights[0].len()) {
            for value in values.chunks_exact(self.head_dim) {
                let value = &value[dim..dim + width];
                if C > 1 {
                    for (now, value) in now.iter_mut().zip(value.as_chunks().0) {
                        *now = lanes.load(value);
                    }
                } else {
                    now[0] = lanes.load_some(value);
                }
                for (totals, weights) in totals.iter_mut().zip(weights) {
                    let weight = lanes.splat(weights[position]);
                    for (total, value) in totals.iter_mut().zip(now) {
                        *total = lanes.mul_add(weight, value, *total);
                    }
                }
                position += 1;
            }
        }
        for r in 0..R {
            let out = &mut out[r * self.head_dim + dim..][..width];
            for (total, out) in totals[r].into_iter().zip(out.chunks_mut(8)) {
                lanes.store_some(lanes.div(total, lanes.splat(sums[r])), out);
            }
        }
    }
}

/// Multiply-adds of about ten microseconds.
const WORK_IN_PIECE: usize = 64 * 1024;
const PIECES_FOR_A_THREAD: usize = 8;
