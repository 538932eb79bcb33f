//! Attention of a ragged batch: each query looks at the keys of its own sequence, up to its own position.
//!
//! Neighbouring rows go together over one block of keys after the other, with a running softmax (Milakov and Gimelshein,
//! arXiv:1805.02867); each segment of blocks begins anew, and what segments come to is merged in their order. So threads can
//! share a long past (Flash-Decoding, <https://crfm.stanford.edu/2023/10/12/flashdecoding.html>), and since blocks and segments
//! are counted from position 0 and each sum has its own accumulator, a row's bits are the same in any company.

mod block;

use std::marker::PhantomData;
use std::ops::Range;

use half::f16;

use self::block::{Head, KvValue, padded};
use crate::isa::{Isa, Kernel, Lanes};
use crate::memory::LINE;
use crate::pool::{Pool, Scratch};
use crate::shared::SharedMut;

pub use block::{KEY_BLOCK, KvBlock, KvBlocks, KvFormat};

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
pub struct AttentionSpan<'a> {
    pub rows: Range<usize>,
    /// The position of the first row.
    pub start: usize,
    /// Of [`KEY_BLOCK`] positions each, from position 0 on.
    pub blocks: Vec<&'a KvBlock>,
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

/// `q` and `out` are `[rows, heads, head_dim]`. Rows of no span are left as they are. All blocks are of one format.
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
    for AttentionSpan { rows, start, blocks } in spans {
        let whole = blocks.len() * KEY_BLOCK >= start + rows.len()
            && blocks.iter().all(|block| block.of().shape() == [kv_heads, head_dim]);
        assert!(whole, "the cache does not hold its span");
    }
    let mut seen = vec![false; q.len() / (heads * head_dim).max(1)];
    let mut rows = spans.iter().flat_map(|span| span.rows.clone());
    assert!(rows.all(|row| !std::mem::replace(&mut seen[row], true)), "a row belongs to one span");

    let format = spans.iter().find_map(|span| Some(span.blocks.first()?.of().format()));
    match format {
        None => {}
        Some(KvFormat::F32) => attend::<f32>(pool, isa, shape, q, spans, out),
        Some(KvFormat::F16) => attend::<f16>(pool, isa, shape, q, spans, out),
        Some(KvFormat::Q8) => attend::<i8>(pool, isa, shape, q, spans, out),
    }
}

fn attend<T: KvValue>(
    pool: &Pool,
    isa: Isa,
    shape: AttentionShape,
    q: &[f32],
    spans: &[AttentionSpan],
    out: &mut [f32],
) {
    let AttentionShape { heads, head_dim, .. } = shape;
    let tiles: Vec<Tile<T>> = tiles(pool.threads(), shape, spans);
    let keys: usize = spans.iter().map(|span| shape.keys_seen(span)).sum();
    let work = keys * heads * head_dim * 2;
    let pieces = (work / WORK_IN_PIECE).clamp(1, pool.threads() * PIECES_FOR_A_THREAD);
    let out = SharedMut::new(out);
    let segments: usize = tiles.iter().map(|tile| tile.segments().len()).sum();
    if tiles.len() >= pool.threads() * ITEMS_FOR_A_THREAD || segments == tiles.len() {
        pool.run(pieces.min(tiles.len()), |piece, scratch| {
            for tile in share(&tiles, piece, pieces.min(tiles.len())) {
                isa.run(Whole { tile, q, scratch, out: &out });
            }
        });
        return;
    }
    // Few tiles of a long past: threads share their segments.
    let mut results = Vec::with_capacity(segments);
    let mut floats = 0;
    for tile in &tiles {
        for segment in tile.segments() {
            results.push((tile, segment, floats));
            floats += tile.result_floats();
        }
    }
    let mut parts = vec![0.0; floats];
    let parts_of_all = SharedMut::new(&mut parts);
    pool.run(pieces.min(segments), |piece, scratch| {
        for (tile, segment, first) in share(&results, piece, pieces.min(segments)) {
            // SAFETY: each segment of a tile has its own part.
            let to = unsafe { parts_of_all.part(*first..first + tile.result_floats()) };
            isa.run(Part { tile, segment: *segment, q, scratch, to });
        }
    });
    let mut rest = &mut parts[..];
    for tile in &tiles {
        let (of_tile, others) = rest.split_at_mut(tile.segments().len() * tile.result_floats());
        rest = others;
        isa.run(Merge { tile, parts: of_tile, out: &out });
    }
}

/// Cut so that every thread gets some, if there are enough.
fn tiles<'a, T: KvValue>(
    threads: usize,
    shape: AttentionShape,
    spans: &'a [AttentionSpan<'a>],
) -> Vec<Tile<'a, T>> {
    let count: usize = spans.iter().map(|span| span.rows.len()).sum();
    let (group, heads) = (shape.group(), shape.heads);
    let fair = (count * shape.kv_heads).div_ceil(threads * ITEMS_FOR_A_THREAD);
    let rows_in_tile = (TILE_QUERIES / group).min(fair).max(1);
    let mut tiles = Vec::new();
    for span in spans {
        for row in span.rows.clone().step_by(rows_in_tile) {
            for first in (0..heads).step_by(group) {
                let rows = row..span.rows.end.min(row + rows_in_tile);
                tiles.push(Tile {
                    values: PhantomData,
                    shape,
                    span,
                    rows,
                    heads: first..first + group,
                });
            }
        }
    }
    tiles
}

fn share<T>(all: &[T], piece: usize, pieces: usize) -> &[T] {
    &all[all.len() * piece / pieces..all.len() * (piece + 1) / pieces]
}

impl AttentionSpan<'_> {
    fn position(&self, row: usize) -> usize {
        self.start + row - self.rows.start
    }
}

/// Neighbouring rows of a span and the heads that share a head of keys: `rows × heads` queries, counted row by row.
struct Tile<'a, T> {
    /// What the span's blocks hold.
    values: PhantomData<T>,
    shape: AttentionShape,
    span: &'a AttentionSpan<'a>,
    rows: Range<usize>,
    heads: Range<usize>,
}

impl<T: KvValue> Tile<'_, T> {
    fn queries(&self) -> usize {
        self.rows.len() * self.heads.len()
    }

    /// The positions that some row sees.
    fn visible(&self) -> Range<usize> {
        let first = self.shape.visible(self.span.position(self.rows.start)).start;
        first..self.span.position(self.rows.end - 1) + 1
    }

    fn segments(&self) -> Range<usize> {
        let visible = self.visible();
        visible.start / SEGMENT..visible.end.div_ceil(SEGMENT)
    }

    /// Floats of what a segment comes to.
    fn result_floats(&self) -> usize {
        self.queries() * (self.width() + 2)
    }

    fn width(&self) -> usize {
        padded(self.shape.head_dim)
    }

    /// What the queries see of a segment. `sums` has a vector for each.
    #[inline(always)]
    fn attend<L: Lanes>(
        &self,
        lanes: L,
        segment: usize,
        q: &[f32],
        sums: &mut [f32],
        to: &mut [f32],
    ) {
        let queries = self.queries();
        let mut running = Running::new::<L>(Results::new(to, self.width()), sums);
        let visible = self.visible();
        let first = visible.start.max(segment * SEGMENT) / KEY_BLOCK;
        let end = visible.end.min((segment + 1) * SEGMENT).div_ceil(KEY_BLOCK);
        let kv_head = self.heads.start / self.shape.group();
        for number in first..end {
            let block = Block {
                lanes,
                shape: self.shape,
                first_position: self.span.position(self.rows.start),
                first_row: self.rows.start,
                heads: self.heads.clone(),
                q,
                start: number * KEY_BLOCK,
                now: self.span.blocks[number].head::<T>(kv_head),
                next: self.span.blocks.get(number + 1).map(|block| block.head(kv_head)),
            };
            let mut query = 0;
            while query + 4 <= queries {
                block.attend::<4>(query, &mut running);
                query += 4;
            }
            match queries - query {
                1 => block.attend::<1>(query, &mut running),
                2 => block.attend::<2>(query, &mut running),
                3 => block.attend::<3>(query, &mut running),
                _ => {}
            }
        }
        running.finish(lanes);
    }

    /// Writes what all segments have come to together: the quotient of values and weights.
    #[inline(always)]
    fn write<L: Lanes>(&self, lanes: L, result: &mut [f32], out: &SharedMut<f32>) {
        let head_dim = self.shape.head_dim;
        let mut results = Results::new(result, self.width());
        for (index, row) in self.rows.clone().enumerate() {
            let start = (row * self.shape.heads + self.heads.start) * head_dim;
            // SAFETY: no row is in two spans, and each of its heads belongs to one tile.
            let out = unsafe { out.part(start..start + self.heads.len() * head_dim) };
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let query = index * self.heads.len() + head;
                let sum = lanes.splat(results.sums[query]);
                let totals = results.totals(query);
                for (total, out) in totals.chunks_exact(L::WIDTH).zip(out.chunks_mut(L::WIDTH)) {
                    lanes.store_some(lanes.div(lanes.load(total), sum), out);
                }
            }
        }
    }
}

/// One segment of a tile, on its own.
struct Part<'a, 'b, T> {
    tile: &'a Tile<'b, T>,
    segment: usize,
    /// Of the whole batch.
    q: &'a [f32],
    scratch: &'a mut Scratch,
    to: &'a mut [f32],
}

impl<T: KvValue> Kernel for Part<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let scratch = self.scratch.floats(self.tile.queries() * L::WIDTH);
        self.tile.attend(lanes, self.segment, self.q, scratch, self.to);
    }
}

/// What the parts of a tile come to.
struct Merge<'a, 'b, T> {
    tile: &'a Tile<'b, T>,
    /// One behind the other; the first becomes the sum of all.
    parts: &'a mut [f32],
    out: &'a SharedMut<'a, f32>,
}

impl<T: KvValue> Kernel for Merge<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (all, parts) = self.parts.split_at_mut(self.tile.result_floats());
        for part in parts.chunks_exact_mut(all.len()) {
            merge(lanes, all, part, self.tile.width());
        }
        self.tile.write(lanes, all, self.out);
    }
}

/// A tile with all of its segments.
struct Whole<'a, 'b, T> {
    tile: &'a Tile<'b, T>,
    q: &'a [f32],
    scratch: &'a mut Scratch,
    out: &'a SharedMut<'a, f32>,
}

impl<T: KvValue> Kernel for Whole<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let floats = self.tile.result_floats();
        let scratch = self.scratch.floats(2 * floats + self.tile.queries() * L::WIDTH);
        let (all, scratch) = scratch.split_at_mut(floats);
        let (part, scratch) = scratch.split_at_mut(floats);
        let mut segments = self.tile.segments();
        let first = segments.next().expect("a row sees itself at least");
        self.tile.attend(lanes, first, self.q, scratch, all);
        for segment in segments {
            self.tile.attend(lanes, segment, self.q, scratch, part);
            merge(lanes, all, part, self.tile.width());
        }
        self.tile.write(lanes, all, self.out);
    }
}

/// What segments have come to, for each query.
struct Results<'a> {
    /// Floats for one query in `totals`: a head's size, in whole vectors.
    width: usize,
    /// Values times weights.
    totals: &'a mut [f32],
    /// Of the weights.
    sums: &'a mut [f32],
    /// The largest score; a weight is e^(score - largest).
    largest: &'a mut [f32],
}

impl<'a> Results<'a> {
    #[inline(always)]
    fn new(floats: &'a mut [f32], width: usize) -> Self {
        let queries = floats.len() / (width + 2);
        let (totals, floats) = floats.split_at_mut(queries * width);
        let (sums, largest) = floats.split_at_mut(queries);
        Self { width, totals, sums, largest }
    }

    #[inline(always)]
    fn totals(&mut self, query: usize) -> &mut [f32] {
        &mut self.totals[query * self.width..][..self.width]
    }
}

/// Adds what a later segment has come to.
#[inline(always)]
fn merge<L: Lanes>(lanes: L, all: &mut [f32], later: &mut [f32], width: usize) {
    let (mut all, mut later) = (Results::new(all, width), Results::new(later, width));
    for query in 0..all.sums.len() {
        let largest = all.largest[query].max(later.largest[query]);
        // Where nothing is visible, nothing is added; the smallest power of e is not zero.
        if later.largest[query] == f32::NEG_INFINITY {
            continue;
        }
        if all.largest[query] == f32::NEG_INFINITY {
            all.totals(query).copy_from_slice(later.totals(query));
            (all.sums[query], all.largest[query]) = (later.sums[query], largest);
            continue;
        }
        let of_all = lanes.exp(lanes.splat(all.largest[query] - largest));
        let of_later = lanes.exp(lanes.splat(later.largest[query] - largest));
        let totals = all.totals(query).chunks_exact_mut(L::WIDTH);
        for (all, later) in totals.zip(later.totals(query).chunks_exact(L::WIDTH)) {
            let scaled = lanes.mul(lanes.load(all), of_all);
            lanes.store(lanes.mul_add(lanes.load(later), of_later, scaled), all);
        }
        let sum = lanes.mul(lanes.splat(all.sums[query]), of_all);
        let sum = lanes.mul_add(lanes.splat(later.sums[query]), of_later, sum);
        (all.sums[query], all.largest[query]) = (lanes.largest(sum), largest);
    }
}

/// What the blocks of a segment so far have come to, for each query.
struct Running<'a> {
    results: Results<'a>,
    /// The sums of weights, each lane for itself.
    lanes: &'a mut [f32],
}

impl<'a> Running<'a> {
    #[inline(always)]
    fn new<L: Lanes>(results: Results<'a>, lanes: &'a mut [f32]) -> Self {
        results.totals.fill(0.0);
        results.largest.fill(f32::NEG_INFINITY);
        lanes[..results.sums.len() * L::WIDTH].fill(0.0);
        Self { results, lanes }
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
        let before = self.results.largest[query];
        let mut largest = lanes.splat(before);
        for scores in scores.chunks_exact(L::WIDTH) {
            largest = lanes.max(largest, lanes.load(scores));
        }
        let largest = lanes.largest(largest);
        let sums = &mut self.lanes[query * L::WIDTH..][..L::WIDTH];
        let mut sum = lanes.load(sums);
        // Where the largest stays, the factor would be exactly one.
        if largest > before {
            let factor = lanes.exp(lanes.splat(before - largest));
            sum = lanes.mul(sum, factor);
            for totals in self.results.totals(query).chunks_exact_mut(L::WIDTH) {
                lanes.store(lanes.mul(lanes.load(totals), factor), totals);
            }
            self.results.largest[query] = largest;
        }
        let largest = lanes.splat(largest);
        for scores in scores.chunks_exact_mut(L::WIDTH) {
            lanes.store(lanes.exp(lanes.sub(lanes.load(scores), largest)), scores);
        }
        if edge {
            // The smallest power of e is not zero.
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
        }
        for weights in scores.chunks_exact(L::WIDTH) {
            sum = lanes.add(sum, lanes.load(weights));
        }
        lanes.store(sum, sums);
    }

    #[inline(always)]
    fn finish<L: Lanes>(self, lanes: L) {
        for (sum, of_lanes) in self.results.sums.iter_mut().zip(self.lanes.chunks_exact(L::WIDTH)) {
            *sum = lanes.sum(lanes.load(of_lanes));
        }
    }
}

/// A block of keys and values of one head, and the queries of a tile.
struct Block<'a, L, T> {
    lanes: L,
    shape: AttentionShape,
    first_position: usize,
    first_row: usize,
    heads: Range<usize>,
    /// Of the whole batch.
    q: &'a [f32],
    /// The position of the first key.
    start: usize,
    now: Head<'a, T>,
    /// What will be wanted after this.
    next: Option<Head<'a, T>>,
}

impl<L: Lanes, T: KvValue> Block<'_, L, T> {
    /// `R` queries from `first` on: scores, weights, then the values.
    #[inline(always)]
    fn attend<const R: usize>(&self, first: usize, running: &mut Running) {
        let mut visible = [const { 0..0 }; R];
        for (r, visible) in visible.iter_mut().enumerate() {
            *visible = self.visible(first + r);
        }
        if visible.iter().all(Range::is_empty) {
            return;
        }
        let mut scores = [[0.0; KEY_BLOCK]; R];
        self.scores::<R>(first, &mut scores);
        for r in 0..R {
            if !visible[r].is_empty() {
                running.softmax(self.lanes, first + r, &mut scores[r], &visible[r]);
            }
            if T::SCALED {
                let of_values = self.now.scales[KEY_BLOCK..].chunks_exact(L::WIDTH);
                for (weights, scales) in scores[r].chunks_exact_mut(L::WIDTH).zip(of_values) {
                    let scaled = self.lanes.mul(self.lanes.load(weights), self.lanes.load(scales));
                    self.lanes.store(scaled, weights);
                }
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
        self.weigh::<R>(&scores, start..end, first, running);
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

    /// Two vectors of keys at a time, which keeps the accumulators of four queries in sixteen registers.
    #[inline(always)]
    fn scores<const R: usize>(&self, first: usize, to: &mut [[f32; KEY_BLOCK]; R]) {
        let lanes = self.lanes;
        let next = self.next.filter(|_| first == 0);
        let mut q = [&[][..]; R];
        for (r, q) in q.iter_mut().enumerate() {
            *q = self.query(first + r);
        }
        for place in (0..KEY_BLOCK).step_by(2 * L::WIDTH) {
            let mut sums = [[lanes.splat(0.0); 2]; R];
            for (dim, keys) in self.now.keys.chunks_exact(KEY_BLOCK).enumerate() {
                let keys = &keys[place..][..2 * L::WIDTH];
                let (a, b) = keys.split_at(L::WIDTH);
                let (a, b) = (T::load(lanes, a), T::load(lanes, b));
                if let Some(next) = next {
                    ask_ahead(lanes, &next.keys[dim * KEY_BLOCK + place..][..2 * L::WIDTH]);
                }
                for r in 0..R {
                    let q = lanes.splat(q[r][dim]);
                    sums[r][0] = lanes.mul_add(q, a, sums[r][0]);
                    sums[r][1] = lanes.mul_add(q, b, sums[r][1]);
                }
            }
            let mut scales = [lanes.splat(self.shape.scale); 2];
            if T::SCALED {
                let of_keys = self.now.scales[place..].chunks_exact(L::WIDTH);
                for (scale, of_keys) in scales.iter_mut().zip(of_keys) {
                    *scale = lanes.mul(*scale, lanes.load(of_keys));
                }
            }
            for r in 0..R {
                let (a, b) = to[r][place..][..2 * L::WIDTH].split_at_mut(L::WIDTH);
                lanes.store(lanes.mul(sums[r][0], scales[0]), a);
                lanes.store(lanes.mul(sums[r][1], scales[1]), b);
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
            self.weigh::<1>(std::array::from_ref(weights), positions, query, running);
        }
    }

    #[inline(always)]
    fn weigh<const R: usize>(
        &self,
        weights: &[[f32; KEY_BLOCK]; R],
        positions: Range<usize>,
        first: usize,
        running: &mut Running,
    ) {
        let (width, mut dim) = (running.results.width, 0);
        while L::WIDTH == 16 && dim + 4 * L::WIDTH <= width {
            self.weigh_vectors::<R, 4>(weights, positions.clone(), first, dim, running);
            dim += 4 * L::WIDTH;
        }
        while dim + 2 * L::WIDTH <= width {
            self.weigh_vectors::<R, 2>(weights, positions.clone(), first, dim, running);
            dim += 2 * L::WIDTH;
        }
        while dim < width {
            self.weigh_vectors::<R, 1>(weights, positions.clone(), first, dim, running);
            dim += L::WIDTH;
        }
    }

    /// Adds `C` vectors of the values from `dim` on.
    #[inline(always)]
    fn weigh_vectors<const R: usize, const C: usize>(
        &self,
        weights: &[[f32; KEY_BLOCK]; R],
        positions: Range<usize>,
        first: usize,
        dim: usize,
        running: &mut Running,
    ) {
        let (lanes, width) = (self.lanes, running.results.width);
        let mut totals = [[lanes.splat(0.0); C]; R];
        for (r, totals) in totals.iter_mut().enumerate() {
            let from = &running.results.totals(first + r)[dim..][..C * L::WIDTH];
            for (total, from) in totals.iter_mut().zip(from.chunks_exact(L::WIDTH)) {
                *total = lanes.load(from);
            }
        }
        let next = self.next.filter(|_| first == 0);
        let values = &self.now.values[positions.start * width..positions.end * width];
        for (values, position) in values.chunks_exact(width).zip(positions) {
            let place = dim..dim + C * L::WIDTH;
            let values = &values[place.clone()];
            if let Some(next) = next {
                ask_ahead(lanes, &next.values[position * width..][place]);
            }
            let mut vectors = [lanes.splat(0.0); C];
            for c in 0..C {
                vectors[c] = T::load(lanes, &values[c * L::WIDTH..][..L::WIDTH]);
            }
            for r in 0..R {
                let weight = lanes.splat(weights[r][position]);
                for c in 0..C {
                    totals[r][c] = lanes.mul_add(weight, vectors[c], totals[r][c]);
                }
            }
        }
        for (r, totals) in totals.iter().enumerate() {
            let to = &mut running.results.totals(first + r)[dim..][..C * L::WIDTH];
            for (total, to) in totals.iter().zip(to.chunks_exact_mut(L::WIDTH)) {
                lanes.store(*total, to);
            }
        }
    }
}

/// Says that this will be wanted soon.
#[inline(always)]
fn ask_ahead<L: Lanes, T>(lanes: L, what: &[T]) {
    for part in what.chunks(LINE / size_of::<T>()) {
        lanes.prefetch(&part[0]);
    }
}

/// Positions that one running softmax goes through before the next begins: so many that beginning anew costs nothing, so few
/// that threads can share what a single query sees.
const SEGMENT: usize = 16 * KEY_BLOCK;
/// Queries that share a block while it is in the nearest cache: so many that fetching it costs little next to them.
const TILE_QUERIES: usize = 96;
/// Multiply-adds of about ten microseconds.
const WORK_IN_PIECE: usize = 64 * 1024;
const PIECES_FOR_A_THREAD: usize = 8;
const ITEMS_FOR_A_THREAD: usize = 4;
