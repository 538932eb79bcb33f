//! Attention of a ragged batch: each query looks at the keys of its own sequence, up to its own position.
//!
//! Neighbouring rows go together over one block of keys after the other, with a running softmax (Milakov and Gimelshein,
//! arXiv:1805.02867). Blocks are counted from position 0 and each sum has its own accumulator, so a row's bits are the
//! same in any company.

use std::ops::Range;

use crate::isa::{Isa, Kernel, Lanes};
use crate::linear::dot_lanes;
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

    /// How many keys a span's rows see, counted for each row.
    fn keys_seen(&self, span: &AttentionSpan) -> usize {
        span.rows.clone().map(|row| self.visible(span.position(row)).len()).sum()
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
    for span in spans {
        let (len, block) = (span.start + span.rows.len(), kv_heads * KEY_BLOCK * head_dim);
        let whole = |blocks: &[&[f32]]| {
            blocks.len() * KEY_BLOCK >= len && blocks.iter().all(|b| b.len() == block)
        };
        assert!(whole(&span.keys) && whole(&span.values), "the cache does not hold its span");
    }
    let mut seen = vec![false; q.len() / (heads * head_dim).max(1)];
    let mut rows = spans.iter().flat_map(|span| span.rows.clone());
    assert!(rows.all(|row| !std::mem::replace(&mut seen[row], true)), "a row belongs to one span");

    let count: usize = spans.iter().map(|span| span.rows.len()).sum();
    // Heads that share their keys go together, unless that leaves threads without work.
    let together = if count * kv_heads < pool.threads() { 1 } else { shape.group() };
    let units = heads / together;
    let fair = (count * units).div_ceil(pool.threads() * ITEMS_FOR_A_THREAD);
    let rows_in_tile = (TILE_QUERIES / together).min(fair).max(1);
    let tiles: Vec<(&AttentionSpan, Range<usize>)> = spans
        .iter()
        .flat_map(|span| {
            let starts = span.rows.clone().step_by(rows_in_tile);
            starts.map(move |row| (span, row..span.rows.end.min(row + rows_in_tile)))
        })
        .collect();
    let items = tiles.len() * units;
    let keys: usize = spans.iter().map(|span| shape.keys_seen(span)).sum();
    let work = keys * heads * head_dim * 2;
    let pieces = (work / WORK_IN_PIECE).clamp(1, pool.threads() * PIECES_FOR_A_THREAD).min(items);
    let out = SharedMut::new(out);
    pool.run(pieces, |piece, scratch| {
        for item in items * piece / pieces..items * (piece + 1) / pieces {
            let (span, rows) = &tiles[item / units];
            let first = item % units * together;
            let heads = first..first + together;
            isa.run(Tile { shape, span, rows: rows.clone(), heads, q, scratch, out: &out });
        }
    });
}

impl AttentionSpan<'_> {
    fn position(&self, row: usize) -> usize {
        self.start + row - self.rows.start
    }
}

/// Neighbouring rows of a span and heads that share their keys: `rows × heads` queries, counted row by row.
struct Tile<'a> {
    shape: AttentionShape,
    span: &'a AttentionSpan<'a>,
    rows: Range<usize>,
    heads: Range<usize>,
    q: &'a [f32],
    scratch: &'a mut Scratch,
    /// Of this, the tile writes its own rows' own heads.
    out: &'a SharedMut<'a, f32>,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let head_dim = self.shape.head_dim;
        let queries = self.rows.len() * self.heads.len();
        let mut running = Running::new(self.scratch, queries, head_dim.next_multiple_of(8));
        let first = self.shape.visible(self.span.position(self.rows.start)).start;
        let end = self.span.position(self.rows.end - 1) + 1;
        let kv_head = self.heads.start / self.shape.group();
        let of_head = kv_head * KEY_BLOCK * head_dim..(kv_head + 1) * KEY_BLOCK * head_dim;
        for block in first / KEY_BLOCK..end.div_ceil(KEY_BLOCK) {
            let block = Block {
                lanes,
                shape: self.shape,
                first_position: self.span.position(self.rows.start),
                first_row: self.rows.start,
                heads: self.heads.clone(),
                q: self.q,
                start: block * KEY_BLOCK,
                keys: &self.span.keys[block][of_head.clone()],
                values: &self.span.values[block][of_head.clone()],
            };
            let mut query = 0;
            while query + 3 <= queries {
                block.attend::<3, 4, 4>(query, &mut running);
                query += 3;
            }
            match queries - query {
                1 => block.attend::<1, 8, 8>(query, &mut running),
                2 => block.attend::<2, 4, 4>(query, &mut running),
                _ => {}
            }
        }
        for (index, row) in self.rows.enumerate() {
            let start = (row * self.shape.heads + self.heads.start) * head_dim;
            // SAFETY: no row is in two spans, and each of its heads belongs to one tile.
            let out = unsafe { self.out.part(start..start + self.heads.len() * head_dim) };
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                running.finish(lanes, index * self.heads.len() + head, out);
            }
        }
    }
}

/// What the blocks so far have come to, for each query.
struct Running<'a> {
    /// Floats for one query in `totals`: a head's size, in whole vectors.
    width: usize,
    /// Values times weights.
    totals: &'a mut [f32],
    /// Weights, each lane for itself.
    sums: &'a mut [[f32; 8]],
    /// The largest score; a weight is e^(score - largest).
    largest: &'a mut [f32],
}

impl<'a> Running<'a> {
    #[inline(always)]
    fn new(scratch: &'a mut Scratch, queries: usize, width: usize) -> Self {
        let floats = scratch.floats(queries * (width + 8 + 1));
        let (totals, floats) = floats.split_at_mut(queries * width);
        let (sums, largest) = floats.split_at_mut(queries * 8);
        totals.fill(0.0);
        sums.fill(0.0);
        largest.fill(f32::NEG_INFINITY);
        Self { width, totals, sums: sums.as_chunks_mut().0, largest }
    }

    /// Turns a block's scores into weights, zero where nothing is visible, and counts them in.
    #[inline(always)]
    fn softmax<L: Lanes>(
        &mut self,
        lanes: L,
        query: usize,
        scores: &mut [f32; KEY_BLOCK],
        visible: &Range<usize>,
    ) {
        let edge = visible.len() < KEY_BLOCK;
        if edge {
            scores[..visible.start].fill(f32::NEG_INFINITY);
            scores[visible.end..].fill(f32::NEG_INFINITY);
        }
        let mut largest = lanes.splat(self.largest[query]);
        for scores in scores.as_chunks().0 {
            largest = lanes.max(largest, lanes.load(scores));
        }
        let largest = lanes.largest(largest);
        let mut sum = lanes.load(&self.sums[query]);
        // Where the largest stays, the factor would be exactly one.
        if largest > self.largest[query] {
            let factor = lanes.exp(lanes.splat(self.largest[query] - largest));
            sum = lanes.mul(sum, factor);
            for totals in self.totals[query * self.width..][..self.width].as_chunks_mut().0 {
                lanes.store(lanes.mul(lanes.load(totals), factor), totals);
            }
            self.largest[query] = largest;
        }
        let largest = lanes.splat(largest);
        for scores in scores.as_chunks_mut().0 {
            lanes.store(lanes.exp(lanes.sub(lanes.load(scores), largest)), scores);
        }
        if edge {
            // The smallest power of e is not zero.
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
        }
        for weights in scores.as_chunks().0 {
            sum = lanes.add(sum, lanes.load(weights));
        }
        lanes.store(sum, &mut self.sums[query]);
    }

    #[inline(always)]
    fn finish<L: Lanes>(&self, lanes: L, query: usize, out: &mut [f32]) {
        let sum = lanes.splat(lanes.sum(lanes.load(&self.sums[query])));
        let totals = self.totals[query * self.width..][..self.width].as_chunks().0;
        for (total, out) in totals.iter().zip(out.chunks_mut(8)) {
            lanes.store_some(lanes.div(lanes.load(total), sum), out);
        }
    }
}

/// A block of keys and values of one head, and the queries of a tile.
struct Block<'a, L> {
    lanes: L,
    shape: AttentionShape,
    first_position: usize,
    first_row: usize,
    heads: Range<usize>,
    /// Of the whole batch.
    q: &'a [f32],
    /// The position of the first key.
    start: usize,
    /// `[KEY_BLOCK, head_dim]`
    keys: &'a [f32],
    values: &'a [f32],
}

impl<L: Lanes> Block<'_, L> {
    /// `R` queries from `first` on: scores, `N` keys at a time, then weights, then `C` vectors of the values at a time.
    #[inline(always)]
    fn attend<const R: usize, const N: usize, const C: usize>(
        &self,
        first: usize,
        running: &mut Running,
    ) {
        let visible: [Range<usize>; R] = std::array::from_fn(|r| self.visible(first + r));
        if visible.iter().all(Range::is_empty) {
            return;
        }
        let mut scores = [[0.0; KEY_BLOCK]; R];
        self.scores::<R, N>(first, &mut scores);
        for r in 0..R {
            if !visible[r].is_empty() {
                running.softmax(self.lanes, first + r, &mut scores[r], &visible[r]);
            }
        }
        // Positions that all see, and for each query those before and after: no value beyond its view is touched, so
        // that not even an infinite one gets in.
        let start = visible.iter().map(|visible| visible.start).max().unwrap_or(0);
        let end = visible.iter().map(|visible| visible.end).min().unwrap_or(0).max(start);
        for r in 0..R {
            let before = visible[r].start..visible[r].end.min(start);
            self.weigh_one(&scores[r], before, first + r, running);
        }
        self.weigh::<R, C>(&scores, start..end, first, running);
        for r in 0..R {
            self.weigh_one(&scores[r], end..visible[r].end, first + r, running);
        }
    }

    /// What the query sees of this block.
    #[inline(always)]
    fn visible(&self, query: usize) -> Range<usize> {
        let visible = self.shape.visible(self.first_position + query / self.heads.len());
        let within = |position: usize| position.saturating_sub(self.start).min(KEY_BLOCK);
        within(visible.start)..within(visible.end)
    }

    #[inline(always)]
    fn query(&self, query: usize) -> &[f32] {
        let row = self.first_row + query / self.heads.len();
        let head = self.heads.start + query % self.heads.len();
        &self.q[(row * self.shape.heads + head) * self.shape.head_dim..][..self.shape.head_dim]
    }

    #[inline(always)]
    fn scores<const R: usize, const N: usize>(&self, first: usize, to: &mut [[f32; KEY_BLOCK]; R]) {
        let head_dim = self.shape.head_dim;
        let q = std::array::from_fn(|r| self.query(first + r));
        for position in (0..KEY_BLOCK).step_by(N) {
            let keys: [&[f32]; N] =
                std::array::from_fn(|n| &self.keys[(position + n) * head_dim..][..head_dim]);
            let products: [[L::V; R]; N] = dot_lanes(self.lanes, keys, q);
            for (r, to) in to.iter_mut().enumerate() {
                let fours = to[position..][..N].as_chunks_mut::<4>().0;
                for (to, products) in fours.iter_mut().zip(products.as_chunks::<4>().0) {
                    let [a, b, c, d] = products;
                    let sums = self.lanes.sums([a[r], b[r], c[r], d[r]]);
                    for (to, sum) in to.iter_mut().zip(sums) {
                        *to = sum * self.shape.scale;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn weigh_one(
        &self,
        weights: &[f32; KEY_BLOCK],
        positions: Range<usize>,
        query: usize,
        running: &mut Running,
    ) {
        if !positions.is_empty() {
            self.weigh::<1, 8>(std::array::from_ref(weights), positions, query, running);
        }
    }

    #[inline(always)]
    fn weigh<const R: usize, const C: usize>(
        &self,
        weights: &[[f32; KEY_BLOCK]; R],
        positions: Range<usize>,
        first: usize,
        running: &mut Running,
    ) {
        let mut dim = 0;
        while dim + C * 8 <= self.shape.head_dim {
            self.weigh_vectors::<R, C>(weights, positions.clone(), first, dim, running);
            dim += C * 8;
        }
        while dim < self.shape.head_dim {
            self.weigh_vectors::<R, 1>(weights, positions.clone(), first, dim, running);
            dim += 8;
        }
    }

    /// Adds `C` vectors of the values from `dim` on; `C` is 1 where a head's size leaves a tail.
    #[inline(always)]
    fn weigh_vectors<const R: usize, const C: usize>(
        &self,
        weights: &[[f32; KEY_BLOCK]; R],
        positions: Range<usize>,
        first: usize,
        dim: usize,
        running: &mut Running,
    ) {
        let (lanes, head_dim) = (self.lanes, self.shape.head_dim);
        let width = (C * 8).min(head_dim - dim);
        let mut totals = [[lanes.splat(0.0); C]; R];
        for (r, totals) in totals.iter_mut().enumerate() {
            let from = &running.totals[(first + r) * running.width + dim..][..C * 8];
            for (total, from) in totals.iter_mut().zip(from.as_chunks().0) {
                *total = lanes.load(from);
            }
        }
        let values = &self.values[positions.start * head_dim..positions.end * head_dim];
        for (value, position) in values.chunks_exact(head_dim).zip(positions) {
            let value = &value[dim..dim + width];
            let mut weight = [lanes.splat(0.0); R];
            for (weight, weights) in weight.iter_mut().zip(weights) {
                *weight = lanes.splat(weights[position]);
            }
            for c in 0..C {
                let value = match C {
                    1 => lanes.load_some(value),
                    _ => lanes.load(&value.as_chunks().0[c]),
                };
                for (totals, weight) in totals.iter_mut().zip(weight) {
                    totals[c] = lanes.mul_add(weight, value, totals[c]);
                }
            }
        }
        for (r, totals) in totals.into_iter().enumerate() {
            let to = &mut running.totals[(first + r) * running.width + dim..][..C * 8];
            for (total, to) in totals.into_iter().zip(to.as_chunks_mut().0) {
                lanes.store(total, to);
            }
        }
    }
}

/// Queries that share a block while it is in the nearest cache: so many that fetching it costs little next to them.
const TILE_QUERIES: usize = 96;
/// Multiply-adds of about ten microseconds.
const WORK_IN_PIECE: usize = 64 * 1024;
const PIECES_FOR_A_THREAD: usize = 8;
const ITEMS_FOR_A_THREAD: usize = 4;
