//! Attention of a ragged batch: each query looks at the keys of its own sequence, up to its own position.
//!
//! Neighbouring rows go together over one block of keys after the other, with a running softmax (Milakov and Gimelshein,
//! arXiv:1805.02867); each segment of blocks begins anew, and what segments come to is merged in their order. So threads can
//! share a long past (Flash-Decoding, <https://crfm.stanford.edu/2023/10/12/flashdecoding.html>), and since blocks and segments
//! are counted from position 0 and each sum has its own accumulator, a row's bits are the same in any company.

mod block;
mod queries;
mod softmax;

use std::marker::PhantomData;
use std::ops::Range;

use half::f16;

use self::block::{KvValue, padded};
use self::queries::Block;
use self::softmax::{Results, Running, merge};
use crate::isa::{Isa, Kernel, Lanes};
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
    let lengths = || tiles.iter().map(|tile| tile.segments().len());
    let segments: usize = lengths().sum();
    // One long past among short ones would be some threads' work alone.
    let longest = lengths().max().unwrap_or(0);
    let even = longest * pool.threads() * ITEMS_FOR_A_THREAD <= segments;
    if tiles.len() >= pool.threads() * ITEMS_FOR_A_THREAD && even || segments == tiles.len() {
        pool.run(pieces.min(tiles.len()), |piece, scratch| {
            for tile in share(&tiles, piece, pieces.min(tiles.len())) {
                isa.run(Whole { tile, q, scratch, out: &out });
            }
        });
        return;
    }
    // Few tiles, or few of a long past: threads share their segments.
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

/// Positions that one running softmax goes through before the next begins: so many that beginning anew costs nothing, so few
/// that threads can share what a single query sees.
const SEGMENT: usize = 16 * KEY_BLOCK;
/// Queries that share a block while it is in the nearest cache: so many that fetching it costs little next to them.
const TILE_QUERIES: usize = 96;
/// Multiply-adds of about ten microseconds.
const WORK_IN_PIECE: usize = 64 * 1024;
const PIECES_FOR_A_THREAD: usize = 8;
const ITEMS_FOR_A_THREAD: usize = 4;
