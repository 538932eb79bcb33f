//! Products `x @ w.T` by plain floats: a tile of rows × outputs is kept in registers while it runs over some places of both.

use std::ops::Range;

use half::{bf16, f16};

use super::{Dense, Kind, PANEL};
use crate::Product;
use crate::floats::Value;
use crate::isa::{Isa, Kernel, Lanes};
use crate::memory::LINE;
use crate::pool::{Pool, Scratch};
use crate::shared::SharedMut;

/// The products of one x, `[rows, inner]`, by some weights. A row's results have the same bits in any company.
pub fn linear(pool: &Pool, isa: Isa, x: &[f32], products: Vec<Product<Dense>>) {
    let mut bytes = 0;
    let inners = || products.iter().map(|product| product.weight.shape()[1]);
    assert!(inners().min() == inners().max(), "one x, by weights of different inner sizes");
    for Product { weight, bias, out } in &products {
        let [outputs, inner] = weight.shape();
        let rows = x.len() / inner;
        assert_eq!((x.len(), out.len()), (rows * inner, rows * outputs), "linear");
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "one bias for each output");
        bytes += weight.bytes();
    }
    let shared: Vec<_> = products
        .into_iter()
        .map(|Product { weight, bias, out }| (weight, bias, SharedMut::new(out)))
        .collect();
    let mut pieces = Vec::new();
    for (weight, bias, out) in &shared {
        let (weight, bias) = (*weight, *bias);
        let rows = x.len() / weight.inner;
        let at_once = rows_at_once(rows, weight.inner);
        let most = BYTES_IN_PIECE / at_once;
        let worth_it = WORK_IN_PIECE / at_once;
        let in_piece = pool.fair_piece(bytes * rows.div_ceil(at_once)).clamp(worth_it, most);
        let in_piece = (in_piece / weight.panel_bytes()).max(1);
        // Threads that go through the same rows at a time find them in the cache.
        for row in (0..rows).step_by(at_once) {
            for panel in (0..weight.panels()).step_by(in_piece) {
                let panels = panel..weight.panels().min(panel + in_piece);
                let rows = row..rows.min(row + at_once);
                pieces.push(Piece { x, rows, weight, bias, panels, out });
            }
        }
    }
    pool.run(pieces.len(), |piece, scratch| isa.run(Run { piece: &pieces[piece], scratch }));
}

/// How many rows of x go over a panel together, at least one: as many as the second cache holds, all blocks being alike.
fn rows_at_once(rows: usize, inner: usize) -> usize {
    let most = (FLOATS_IN_L2 / inner).max(FEW_ROWS);
    let blocks = rows.div_ceil(most).max(1);
    rows.div_ceil(blocks).next_multiple_of(WHOLE_TILES).min(rows.max(1))
}

struct Piece<'a> {
    /// `[rows, inner]`
    x: &'a [f32],
    rows: Range<usize>,
    weight: &'a Dense,
    bias: Option<&'a [f32]>,
    panels: Range<usize>,
    /// The product's, of which each piece writes its own rows and outputs.
    out: &'a SharedMut<'a, f32>,
}

struct Run<'a> {
    piece: &'a Piece<'a>,
    scratch: &'a mut Scratch,
}

impl Kernel for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        match self.piece.weight.kind {
            Kind::F32 => self.piece.panels::<L, f32>(lanes, self.scratch),
            Kind::F16 => self.piece.panels::<L, f16>(lanes, self.scratch),
            Kind::BF16 => self.piece.panels::<L, bf16>(lanes, self.scratch),
        }
    }
}

impl Piece<'_> {
    #[inline(always)]
    fn panels<L: Lanes, T: Value>(&self, lanes: L, scratch: &mut Scratch) {
        let widen = size_of::<T>() < size_of::<f32>() && self.rows.len() > 2 * L::ROWS;
        for panel in self.panels.clone() {
            let weights = self.weight.panel::<T>(panel);
            for (number, weights) in weights.chunks(PLACES).enumerate() {
                let block = Block { lanes, piece: self, panel, place: number * PLACES };
                if widen {
                    block.all_rows::<f32, false>(widened(lanes, weights, scratch));
                } else {
                    block.all_rows::<T, true>(weights);
                }
            }
        }
    }
}

/// The same as f32, at the beginning of a line.
#[inline(always)]
fn widened<'a, L: Lanes, T: Value>(
    lanes: L,
    weights: &[[T; PANEL]],
    scratch: &'a mut Scratch,
) -> &'a [[f32; PANEL]] {
    let floats = scratch.floats(PLACES * PANEL + LINE / size_of::<f32>());
    let start = floats.as_ptr().align_offset(LINE).min(LINE / size_of::<f32>());
    let to = &mut floats[start..].as_chunks_mut::<PANEL>().0[..weights.len()];
    for (from, to) in weights.iter().zip(to.iter_mut()) {
        lanes.prefetch(from, AHEAD);
        for (from, to) in from.chunks_exact(L::WIDTH).zip(to.chunks_exact_mut(L::WIDTH)) {
            lanes.store(T::load(lanes, from), to);
        }
    }
    to
}

/// Some places of a panel. Sums begin anew in each and are added in the order of the places, however many rows there are.
struct Block<'a, L> {
    lanes: L,
    piece: &'a Piece<'a>,
    panel: usize,
    /// The first.
    place: usize,
}

impl<L: Lanes> Block<'_, L> {
    /// The first rows to read weights from memory ask ahead for more.
    #[inline(always)]
    fn all_rows<T: Value, const ASK: bool>(&self, weights: &[[T; PANEL]]) {
        let Range { start, end } = self.piece.rows;
        let first = self.some_rows::<T, ASK>(weights, start, end - start);
        let mut row = start + first;
        while row < end {
            row += self.some_rows::<T, false>(weights, row, end - row);
        }
    }

    /// As many from `row` on as go together, at most `rows`.
    #[inline(always)]
    fn some_rows<T: Value, const ASK: bool>(
        &self,
        weights: &[[T; PANEL]],
        row: usize,
        rows: usize,
    ) -> usize {
        match rows {
            8.. if L::ROWS >= 8 => self.pairs::<T, 8, ASK>(weights, row),
            6.. if L::ROWS >= 6 => self.pairs::<T, 6, ASK>(weights, row),
            4.. if L::ROWS >= 4 => self.pairs::<T, 4, ASK>(weights, row),
            2.. => self.pairs::<T, 2, ASK>(weights, row),
            _ if L::WIDTH == 16 => self.tile::<T, 1, 2, ASK>(weights, row, 0),
            _ => self.tile::<T, 1, 4, ASK>(weights, row, 0),
        }
    }

    /// `R` rows, two vectors of outputs at a time.
    #[inline(always)]
    fn pairs<T: Value, const R: usize, const ASK: bool>(
        &self,
        weights: &[[T; PANEL]],
        row: usize,
    ) -> usize {
        self.tile::<T, R, 2, ASK>(weights, row, 0);
        for column in (2 * L::WIDTH..PANEL).step_by(2 * L::WIDTH) {
            self.tile::<T, R, 2, false>(weights, row, column);
        }
        R
    }

    /// `R` rows and `C` vectors of outputs from `column` on. Each sum has its own lane, so that `R` and `C` change no bit.
    ///
    /// Loops rather than `map` and closures, which are not always inlined, and then miss the instruction set.
    #[inline(always)]
    fn tile<T: Value, const R: usize, const C: usize, const ASK: bool>(
        &self,
        weights: &[[T; PANEL]],
        row: usize,
        column: usize,
    ) -> usize {
        let lanes = self.lanes;
        assert!(column + C * L::WIDTH <= PANEL);
        let inner = self.piece.weight.inner;
        let mut x = [&[][..]; R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = &self.piece.x[(row + r) * inner + self.place..][..weights.len()];
        }
        let mut sums = [[lanes.splat(0.0); C]; R];
        for (place, weights) in weights.iter().enumerate() {
            if ASK {
                for line in weights.chunks(LINE / size_of::<T>()) {
                    lanes.prefetch(line, AHEAD);
                }
            }
            let mut now = [lanes.splat(0.0); C];
            for (c, now) in now.iter_mut().enumerate() {
                *now = T::load(lanes, &weights[column + c * L::WIDTH..][..L::WIDTH]);
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                // SAFETY: each x was cut to as many places as there are weights.
                let x = lanes.splat(unsafe { *x.get_unchecked(place) });
                for (sum, now) in sums.iter_mut().zip(now) {
                    *sum = lanes.mul_add(x, now, *sum);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            self.add(row + r, column, &sums);
        }
        R
    }

    /// Adds to a row's results of the places before, or to the bias.
    #[inline(always)]
    fn add(&self, row: usize, column: usize, sums: &[L::V]) {
        let outputs = self.piece.weight.outputs;
        let first = (self.panel * PANEL + column).min(outputs);
        let count = (sums.len() * L::WIDTH).min(outputs - first);
        let start = row * outputs + first;
        // SAFETY: each piece has its own rows and outputs, and this thread holds no other part of them.
        let out = unsafe { self.piece.out.part(start..start + count) };
        for (index, (sum, out)) in sums.iter().zip(out.chunks_mut(L::WIDTH)).enumerate() {
            let before = match self.piece.bias {
                _ if self.place > 0 => self.lanes.load_some(out),
                Some(bias) => self.lanes.load_some(&bias[first + index * L::WIDTH..][..out.len()]),
                None => self.lanes.splat(0.0),
            };
            self.lanes.store_some(self.lanes.add(before, *sum), out);
        }
    }
}

/// Places of a block: so many that adding sums up costs nothing, so few that widened weights stay in the nearest cache.
const PLACES: usize = 256;
/// Of x.
const FLOATS_IN_L2: usize = 256 * 1024;
/// Rows that make widening weights, and fetching them again for the next rows, cost little.
const FEW_ROWS: usize = 96;
/// A multiple of the rows of any tile.
const WHOLE_TILES: usize = 24;
/// Bytes of weights times rows: some microseconds.
const WORK_IN_PIECE: usize = 32 * 1024;
/// Of weights times rows at most: whoever waits for a thread that was stopped within a piece waits for no more.
const BYTES_IN_PIECE: usize = 1 << 20;
/// Bytes between what is being used and what is asked for.
const AHEAD: usize = 2048;
