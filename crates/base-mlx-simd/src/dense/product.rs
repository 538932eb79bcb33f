//! Products `x @ w.T`, also of rounded numbers: a tile of rows × outputs is kept in registers while it runs over some places.

use std::ops::Range;

use half::{bf16, f16};

use super::rounded::{PAIRS, Pair, Rounded};
use super::split::Split;
use super::{Dense, Kind, PANEL};
use crate::Product;
use crate::amx::{Amx, SIDE, Sums};
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
    let inner = inners().next().unwrap_or(1);
    let some_are = |kind| products.iter().any(|product| product.weight.kind == kind);
    let rounded = some_are(Kind::Rounded).then(|| Rounded::new(pool, isa, x, inner));
    let split = some_are(Kind::Split).then(|| {
        let amx = isa.amx().expect("weights were split for AMX");
        (amx, Split::new(pool, isa, x, inner))
    });
    let x = X { floats: x, rounded, split };
    let x = &x;
    let shared: Vec<_> = products
        .into_iter()
        .map(|Product { weight, bias, out }| (weight, bias, SharedMut::new(out)))
        .collect();
    let mut pieces = Vec::new();
    for (weight, bias, out) in &shared {
        let (weight, bias) = (*weight, *bias);
        let rows = x.floats.len() / weight.inner;
        let at_once = rows_at_once(rows, weight);
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
fn rows_at_once(rows: usize, weight: &Dense) -> usize {
    let most = (FLOATS_IN_L2 / weight.inner).max(FEW_ROWS);
    let blocks = rows.div_ceil(most).max(1);
    let whole_tiles = if weight.kind == Kind::Split { SIDE } else { WHOLE_TILES };
    rows.div_ceil(blocks).next_multiple_of(whole_tiles).min(rows.max(1))
}

/// What is multiplied, in the forms that the weights are in.
struct X<'a> {
    /// `[rows, inner]`
    floats: &'a [f32],
    rounded: Option<Rounded>,
    split: Option<(Amx, Split)>,
}

struct Piece<'a> {
    x: &'a X<'a>,
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
            Kind::Rounded => self.piece.rounded_panels(lanes),
            Kind::Split => self.piece.split_panels(lanes),
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
                let block = Block { lanes, piece: self, panel, number };
                if widen {
                    block.all_rows::<f32, false>(widened(lanes, weights, scratch));
                } else {
                    block.all_rows::<T, true>(weights);
                }
            }
        }
    }

    #[inline(always)]
    fn rounded_panels<L: Lanes>(&self, lanes: L) {
        for panel in self.panels.clone() {
            let weights = self.weight.panel::<Pair>(panel);
            for (number, weights) in weights.chunks(PAIRS).enumerate() {
                let block = Block { lanes, piece: self, panel, number };
                block.all_rows::<Pair, true>(weights);
            }
        }
    }

    #[inline(always)]
    fn split_panels<L: Lanes>(&self, lanes: L) {
        let (amx, x) = self.x.split.as_ref().expect("x was split for weights that are");
        // SAFETY: this thread has no other tiles, as nothing is called below that would begin any.
        let (tiles, mut sums) = (unsafe { amx.begin() }, Sums([[0.0; SIDE]; SIDE]));
        for panel in self.panels.clone() {
            let weights = self.weight.halves(panel);
            let block = Block { lanes, piece: self, panel, number: 0 };
            for first in self.rows.clone().step_by(SIDE) {
                tiles.products(x.block(first), weights, &mut sums);
                for (row, sums) in (first..self.rows.end).zip(&sums.0) {
                    for (number, sums) in sums.chunks_exact(L::WIDTH).enumerate() {
                        block.add(row, number * L::WIDTH, &[lanes.load(sums)]);
                    }
                }
            }
        }
    }
}

/// What a panel has for each output at each place, and how it is multiplied.
trait Cell: Copy {
    /// What x has at a place.
    type X: Copy;
    /// The cells of as many outputs as there are lanes.
    type Cells<L: Lanes>: Copy;
    type Sums<L: Lanes>: Copy;

    /// A row of x at the places of a block.
    fn row<'a, L: Lanes>(block: &Block<'a, L>, row: usize, places: usize) -> &'a [Self::X];
    fn no_sums<L: Lanes>(lanes: L) -> Self::Sums<L>;
    fn no_cells<L: Lanes>(lanes: L) -> Self::Cells<L>;
    fn load<L: Lanes>(lanes: L, from: &[Self]) -> Self::Cells<L>;
    /// Adds the products of x with some cells.
    fn add<L: Lanes>(
        lanes: L,
        sums: Self::Sums<L>,
        x: Self::X,
        cells: Self::Cells<L>,
    ) -> Self::Sums<L>;
    /// The block's sums of a row, and outputs from `column` of the panel on.
    fn total<L: Lanes>(block: &Block<L>, row: usize, column: usize, sums: Self::Sums<L>) -> L::V;
}

impl<T: Value> Cell for T {
    type X = f32;
    type Cells<L: Lanes> = L::V;
    type Sums<L: Lanes> = L::V;

    #[inline(always)]
    fn row<'a, L: Lanes>(block: &Block<'a, L>, row: usize, places: usize) -> &'a [f32] {
        let inner = block.piece.weight.inner;
        &block.piece.x.floats[row * inner + block.number * PLACES..][..places]
    }
    #[inline(always)]
    fn no_sums<L: Lanes>(lanes: L) -> L::V {
        lanes.splat(0.0)
    }
    #[inline(always)]
    fn no_cells<L: Lanes>(lanes: L) -> L::V {
        lanes.splat(0.0)
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self]) -> L::V {
        T::load(lanes, from)
    }
    #[inline(always)]
    fn add<L: Lanes>(lanes: L, sums: L::V, x: f32, cells: L::V) -> L::V {
        lanes.mul_add(lanes.splat(x), cells, sums)
    }
    #[inline(always)]
    fn total<L: Lanes>(_: &Block<L>, _row: usize, _column: usize, sums: L::V) -> L::V {
        sums
    }
}

impl Cell for Pair {
    type X = Self;
    type Cells<L: Lanes> = L::Pairs;
    type Sums<L: Lanes> = L::Ints;

    #[inline(always)]
    fn row<'a, L: Lanes>(block: &Block<'a, L>, row: usize, places: usize) -> &'a [Self] {
        &block.rounded().row(row)[block.number * PAIRS..][..places]
    }
    #[inline(always)]
    fn no_sums<L: Lanes>(lanes: L) -> L::Ints {
        lanes.splat_int(0)
    }
    #[inline(always)]
    fn no_cells<L: Lanes>(lanes: L) -> L::Pairs {
        lanes.splat_pair([0; 2])
    }
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self]) -> L::Pairs {
        lanes.pairs(from)
    }
    #[inline(always)]
    fn add<L: Lanes>(lanes: L, sums: L::Ints, x: Self, cells: L::Pairs) -> L::Ints {
        lanes.dot_pairs(sums, lanes.splat_pair(x), cells)
    }
    #[inline(always)]
    fn total<L: Lanes>(block: &Block<L>, row: usize, column: usize, sums: L::Ints) -> L::V {
        let scales = &block.piece.weight.scales(block.panel)[block.number];
        let scales = block.lanes.load(&scales[column..]);
        let scale = block.lanes.splat(block.rounded().scale(row, block.number));
        // The weights' first, which are of ordinary size: those of x may be so large that sums times them are infinite.
        block.lanes.mul(block.lanes.mul(block.lanes.convert(sums), scales), scale)
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
    /// How many come before it.
    number: usize,
}

impl<'a, L: Lanes> Block<'a, L> {
    #[inline(always)]
    fn rounded(&self) -> &'a Rounded {
        self.piece.x.rounded.as_ref().expect("x was rounded for weights that are")
    }

    /// The first rows to read weights from memory ask ahead for more.
    #[inline(always)]
    fn all_rows<T: Cell, const ASK: bool>(&self, weights: &[[T; PANEL]]) {
        let Range { start, end } = self.piece.rows;
        let first = self.some_rows::<T, ASK>(weights, start, end - start);
        let mut row = start + first;
        while row < end {
            row += self.some_rows::<T, false>(weights, row, end - row);
        }
    }

    /// As many from `row` on as go together, at most `rows`.
    #[inline(always)]
    fn some_rows<T: Cell, const ASK: bool>(
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
    fn pairs<T: Cell, const R: usize, const ASK: bool>(
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
    fn tile<T: Cell, const R: usize, const C: usize, const ASK: bool>(
        &self,
        weights: &[[T; PANEL]],
        row: usize,
        column: usize,
    ) -> usize {
        let lanes = self.lanes;
        assert!(column + C * L::WIDTH <= PANEL);
        let mut x = [&[][..]; R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = T::row(self, row + r, weights.len());
        }
        let mut sums = [[T::no_sums(lanes); C]; R];
        for (place, weights) in weights.iter().enumerate() {
            if ASK {
                for line in weights.chunks(LINE / size_of::<T>()) {
                    lanes.prefetch(line, AHEAD);
                }
            }
            let mut now = [T::no_cells(lanes); C];
            for (c, now) in now.iter_mut().enumerate() {
                *now = T::load(lanes, &weights[column + c * L::WIDTH..][..L::WIDTH]);
            }
            for (sums, x) in sums.iter_mut().zip(x) {
                // SAFETY: each x was cut to as many places as there are weights.
                let x = unsafe { *x.get_unchecked(place) };
                for (sum, now) in sums.iter_mut().zip(now) {
                    *sum = T::add(lanes, *sum, x, now);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            let mut totals = [lanes.splat(0.0); C];
            for (c, total) in totals.iter_mut().enumerate() {
                *total = T::total(self, row + r, column + c * L::WIDTH, sums[c]);
            }
            self.add(row + r, column, &totals);
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
                _ if self.number > 0 => self.lanes.load_some(out),
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
