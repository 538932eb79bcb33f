//! Attention of a ragged batch: each query looks at the keys of its own sequence, up to its own position.
//!
//! Neighbouring rows go together over one block of keys after the other, with a running softmax (Milakov and Gimelshein,
//! arXiv:1805.02867); each segment of blocks begins anew, and what segments come to is merged in their order. So threads can
//! share a long past (Flash-Decoding, <https://crfm.stanford.edu/2023/10/12/flashdecoding.html>), and since blocks and segments
//! are counted from position 0 and each sum has its own accumulator, a row's bits are the same in any company.

mod block;
mod nibbles;
mod queries;
mod softmax;

use std::marker::PhantomData;
use std::ops::Range;

use half::f16;

use self::block::{KvValue, width};
use self::nibbles::{Nibbles, rotate};
use self::queries::Block;
use self::softmax::{Results, Running, merge};
use crate::isa::{Isa, Kernel, Lanes, MOST_LANES};
use crate::pool::Pool;
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
    pub sees: Sees,
}

/// Which keys of its own sequence a query at position p sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    All,
    /// Those up to its own.
    Past,
    /// Of those, only the ones at positions > p - window.
    Window(usize),
}

/// A sequence's rows in the batch, and its memory, which already holds them.
pub struct AttentionSpan<'a> {
    pub rows: Range<usize>,
    /// The position of the first row.
    pub start: usize,
    /// Of [`KEY_BLOCK`] positions each, from position 0 on.
    pub blocks: Vec<&'a KvBlock>,
}

/// Writes what each block is to hold, from its first position on: rows of `keys` and `values`, `[rows, kv_heads, head_dim]`
/// each.
pub fn write_blocks(
    pool: &Pool,
    blocks: &mut [KvBlock],
    rows: &[Range<usize>],
    keys: &[f32],
    values: &[f32],
) {
    assert_eq!(blocks.len(), rows.len(), "rows for each block");
    let blocks = SharedMut::new(blocks);
    pool.run(rows.len(), |piece, _| {
        // SAFETY: each piece has its own block.
        let block = &mut unsafe { blocks.part(piece..piece + 1) }[0];
        let [kv_heads, head_dim] = block.of().shape();
        let width = kv_heads * head_dim;
        let floats = rows[piece].start * width..rows[piece].end * width;
        block.write(0, &keys[floats.clone()], &values[floats]);
    });
}

impl AttentionShape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// The positions that a query at `position` of `span` sees.
    fn visible(&self, span: &AttentionSpan, position: usize) -> Range<usize> {
        let end = position + 1;
        match self.sees {
            Sees::All => 0..span.position(span.rows.end),
            Sees::Past => 0..end,
            Sees::Window(window) => end.saturating_sub(window)..end,
        }
    }

    /// How many keys a span's rows see, counted for each row.
    fn keys_seen(&self, span: &AttentionSpan) -> usize {
        span.rows.clone().map(|row| self.visible(span, span.position(row)).len()).sum()
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
    let AttentionShape { heads, kv_heads, head_dim, sees, .. } = shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads, {kv_heads} of keys");
    assert!(sees != Sees::Window(0), "a window of nothing");
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
        Some(KvFormat::Q4) => attend::<Nibbles>(pool, isa, shape, q, spans, out),
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
    let (mut rotated, mut sums) = (Vec::new(), Vec::new());
    if T::ROTATED {
        rotated.extend_from_slice(q);
        for q in rotated.chunks_exact_mut(head_dim) {
            rotate(q);
            let groups = q.chunks(T::GROUP.unwrap_or(head_dim));
            sums.extend(groups.map(|group| group.iter().sum::<f32>()));
        }
    }
    let for_keys = if T::ROTATED { &rotated[..] } else { q };
    let q = Queries { plain: q, for_keys, sums: &sums };
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
                let floats = tile.result_floats();
                let scratch = scratch.floats(2 * floats + tile.queries() * MOST_LANES);
                let (all, scratch) = scratch.split_at_mut(floats);
                let (later, sums) = scratch.split_at_mut(floats);
                for segment in tile.segments() {
                    let first = segment == tile.segments().start;
                    let to = if first { &mut *all } else { &mut *later };
                    isa.run(Part { tile, segment, q, sums, to });
                    if !first {
                        isa.run(Join { all, later, width: tile.width() });
                    }
                }
                isa.run(Write { tile, result: all, out: &out });
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
            let sums = scratch.floats(tile.queries() * MOST_LANES);
            isa.run(Part { tile, segment: *segment, q, sums, to });
        }
    });
    let mut rest = &mut parts[..];
    for tile in &tiles {
        let (of_tile, others) = rest.split_at_mut(tile.segments().len() * tile.result_floats());
        rest = others;
        let (all, later) = of_tile.split_at_mut(tile.result_floats());
        for later in later.chunks_exact_mut(all.len()) {
            isa.run(Join { all, later, width: tile.width() });
        }
        isa.run(Write { tile, result: all, out: &out });
    }
}

/// Cut so that every thread gets some, if there are enough.
fn tiles<'a, T: KvValue>(
    threads: usize,
    shape: AttentionShape,
    spans: &'a [AttentionSpan<'a>],
) -> Vec<Tile<'a, T>> {
    let count: usize = spans.iter().map(|span| span.rows.len()).sum();
    let (group, kv_heads) = (shape.group(), shape.kv_heads);
    let fair = (count * kv_heads).div_ceil(threads * ITEMS_FOR_A_THREAD);
    let rows_in_tile = (TILE_QUERIES / group).min(fair).max(1);
    let mut tiles = Vec::new();
    for span in spans {
        for row in span.rows.clone().step_by(rows_in_tile) {
            for kv_head in 0..kv_heads {
                let rows = row..span.rows.end.min(row + rows_in_tile);
                tiles.push(Tile { values: PhantomData, shape, span, rows, kv_head });
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

/// All of a call, `[rows, heads, head_dim]`.
#[derive(Clone, Copy)]
struct Queries<'a> {
    plain: &'a [f32],
    /// The same, rotated if keys are.
    for_keys: &'a [f32],
    /// Of groups of those, if they are rotated: `[rows, heads, groups]`.
    sums: &'a [f32],
}

impl<'a> Queries<'a> {
    #[inline(always)]
    fn sums_of<T: KvValue>(&self, query: usize, head_dim: usize) -> &'a [f32] {
        let groups = head_dim.div_ceil(T::GROUP.unwrap_or(head_dim));
        &self.sums[query * groups..][..groups]
    }
}

/// Neighbouring rows of a span and the heads that share a head of keys: `[rows, group]` queries.
struct Tile<'a, T> {
    /// What the span's blocks hold.
    values: PhantomData<T>,
    shape: AttentionShape,
    span: &'a AttentionSpan<'a>,
    rows: Range<usize>,
    kv_head: usize,
}

impl<T: KvValue> Tile<'_, T> {
    fn queries(&self) -> usize {
        self.rows.len() * self.shape.group()
    }

    /// The positions that some row sees.
    fn visible(&self) -> Range<usize> {
        let of = |row| self.shape.visible(self.span, self.span.position(row));
        of(self.rows.start).start..of(self.rows.end - 1).end
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
        width::<T>(self.shape.head_dim)
    }
}

/// What a tile's queries see of a segment.
struct Part<'a, 'b, T> {
    tile: &'a Tile<'b, T>,
    segment: usize,
    q: Queries<'a>,
    /// A vector for each query.
    sums: &'a mut [f32],
    to: &'a mut [f32],
}

impl<T: KvValue> Kernel for Part<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { tile, segment, q, sums, to } = self;
        let mut running = Running::new::<L>(Results::new(to, tile.width()), sums);
        let visible = tile.visible();
        let first = visible.start.max(segment * SEGMENT) / KEY_BLOCK;
        let end = visible.end.min((segment + 1) * SEGMENT).div_ceil(KEY_BLOCK);
        let head =
            |number: usize| tile.span.blocks.get(number).map(|block| block.head::<T>(tile.kv_head));
        let mut next = head(first);
        let queries = tile.queries();
        for number in first..end {
            let now = next.expect("the span's blocks hold what it sees");
            next = head(number + 1);
            let block = Block {
                lanes,
                shape: tile.shape,
                span: tile.span,
                first_row: tile.rows.start,
                kv_head: tile.kv_head,
                q,
                start: number * KEY_BLOCK,
                now,
                next,
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
}

/// Two results, the second of a later segment, become one in the first.
struct Join<'a> {
    all: &'a mut [f32],
    later: &'a mut [f32],
    width: usize,
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        merge(lanes, self.all, self.later, self.width);
    }
}

/// Writes what all segments of a tile have come to together: the quotient of values and weights.
struct Write<'a, 'b, T> {
    tile: &'a Tile<'b, T>,
    result: &'a mut [f32],
    out: &'a SharedMut<'a, f32>,
}

impl<T: KvValue> Kernel for Write<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let Self { tile, result, out } = self;
        let head_dim = tile.shape.head_dim;
        let mut results = Results::new(result, tile.width());
        let group = tile.shape.group();
        for (index, row) in tile.rows.clone().enumerate() {
            let start = (row * tile.shape.heads + tile.kv_head * group) * head_dim;
            // SAFETY: no row is in two spans, and each of its heads belongs to one tile.
            let out = unsafe { out.part(start..start + group * head_dim) };
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let query = index * group + head;
                let sum = lanes.splat(results.sums[query]);
                let totals = results.totals(query);
                for (total, out) in totals.chunks_exact(L::WIDTH).zip(out.chunks_mut(L::WIDTH)) {
                    lanes.store_some(lanes.div(lanes.load(total), sum), out);
                }
            }
        }
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
