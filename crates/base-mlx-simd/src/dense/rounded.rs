//! Numbers rounded to 16 bits in runs, each with a scale of its own (block floating point): products of whole numbers, which
//! many CPUs make twice as many of at a time as of floats, with about the precision of f16.

use std::mem::MaybeUninit;

use super::PANEL;
use crate::floats::Floats;
use crate::isa::{Isa, Kernel, Lanes};
use crate::pool::{Pool, VALUES_IN_PIECE};
use crate::shared::SharedMut;

/// Neighbouring values of a row.
pub(super) type Pair = [i16; 2];

/// Pairs of a run; the last run of a row is shorter where it does not come out even.
pub(super) const PAIRS: usize = RUN / 2;
/// Long enough that scaling sums costs little. A longer run has fewer bits for each value.
const RUN: usize = 128;

/// The length of a rounded run, squared and multiplied by that of another, is less than 2^31: so is, by Cauchy and Schwarz,
/// the size of their product, and of any part of its sum. What rounding adds, half for each value, is taken off, and what is
/// off in the length itself.
const LONGEST: f32 = 46_340.0 - 6.0;

/// Of a row of so many values.
pub(super) fn runs(inner: usize) -> usize {
    inner.div_ceil(RUN)
}

/// Rows of x.
pub(super) struct Rounded {
    /// `[rows, inner / 2]`, an odd last value beside a zero.
    pairs: Vec<Pair>,
    /// `[rows, runs]`
    scales: Vec<f32>,
    inner: usize,
}

impl Rounded {
    /// Of x, `[rows, inner]`.
    pub(super) fn new(pool: &Pool, isa: Isa, x: &[f32], inner: usize) -> Self {
        let (rows, depth, runs) = (x.len() / inner, inner.div_ceil(2), runs(inner));
        let mut pairs: Vec<Pair> = Vec::with_capacity(rows * depth);
        let mut scales = vec![0.0; rows * runs];
        let all_pairs = SharedMut::new(&mut pairs.spare_capacity_mut()[..rows * depth]);
        let all_scales = SharedMut::new(&mut scales);
        let rows_in_piece = (VALUES_IN_PIECE / inner).max(1);
        pool.run(rows.div_ceil(rows_in_piece), |piece, _| {
            let first = piece * rows_in_piece;
            let last = rows.min(first + rows_in_piece);
            // SAFETY: each piece has its own rows.
            let (pairs, scales) = unsafe {
                (
                    all_pairs.part(first * depth..last * depth),
                    all_scales.part(first * runs..last * runs),
                )
            };
            isa.run(RoundRows { x: &x[first * inner..last * inner], inner, pairs, scales });
        });
        // SAFETY: all of these have been written.
        unsafe { pairs.set_len(rows * depth) };
        Self { pairs, scales, inner }
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[Pair] {
        let depth = self.inner.div_ceil(2);
        &self.pairs[row * depth..][..depth]
    }

    #[inline(always)]
    pub(super) fn scale(&self, row: usize, run: usize) -> f32 {
        self.scales[row * runs(self.inner) + run]
    }
}

struct RoundRows<'a> {
    x: &'a [f32],
    inner: usize,
    pairs: &'a mut [MaybeUninit<Pair>],
    scales: &'a mut [f32],
}

impl Kernel for RoundRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let rows = self.x.chunks_exact(self.inner);
        let pairs = self.pairs.chunks_exact_mut(self.inner.div_ceil(2));
        let scales = self.scales.chunks_exact_mut(runs(self.inner));
        for ((row, pairs), scales) in rows.zip(pairs).zip(scales) {
            let pairs = pairs.chunks_mut(PAIRS);
            for ((run, to), scale) in row.chunks(RUN).zip(pairs).zip(scales) {
                to.fill(MaybeUninit::new([0; 2]));
                // SAFETY: these were written by the line above.
                *scale = round(lanes, run, unsafe { to.assume_init_mut() }.as_flattened_mut());
            }
        }
    }
}

/// Writes values, a run or less, as multiples of the scale that it gives. One that is no number, or infinite, makes none of
/// the scale, and so of what is multiplied with it.
#[inline(always)]
fn round<L: Lanes>(lanes: L, values: &[f32], to: &mut [i16]) -> f32 {
    // As bits, so that what is not a number is the largest.
    let mut largest = 0;
    for value in values {
        largest = largest.max(value.to_bits() & 0x7fff_ffff);
    }
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return f32::NAN;
    }
    let scale = largest / 32_767.0;
    if scale < f32::MIN_POSITIVE {
        to.fill(0);
        return 0.0;
    }
    let inverse = lanes.splat(1.0 / scale);
    let mut squares = lanes.splat(0.0);
    for values in values.chunks(L::WIDTH) {
        let value = lanes.mul(lanes.load_some(values), inverse);
        squares = lanes.mul_add(value, value, squares);
    }
    let scale = scale * (lanes.sum(squares).sqrt() / LONGEST).max(1.0);
    let inverse = 1.0 / scale;
    for (to, value) in to.iter_mut().zip(values) {
        // Added to 1.5 * 2^23, a number below 2^15 is rounded, and the lowest two bytes are the result.
        *to = (value * inverse + 12_582_912.0).to_bits() as i16;
    }
    scale
}

/// Thirty-two rows of a matrix as they lie in a panel, or as many as there are.
pub(super) struct RoundPanel<'a> {
    /// Of the matrix, `[outputs, inner]`.
    pub(super) floats: Floats<'a>,
    /// The panel's outputs.
    pub(super) outputs: std::ops::Range<usize>,
    pub(super) inner: usize,
    /// Zeros, which stay where there are no outputs.
    pub(super) cells: &'a mut [[Pair; PANEL]],
    /// Of the runs.
    pub(super) scales: &'a mut [[f32; PANEL]],
}

impl Kernel for RoundPanel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let (mut floats, mut rounded) = ([0.0; RUN], [0; RUN]);
        for (lane, output) in self.outputs.enumerate() {
            for (run, scales) in self.scales.iter_mut().enumerate() {
                let count = RUN.min(self.inner - run * RUN);
                for (place, to) in floats[..count].iter_mut().enumerate() {
                    *to = self.floats.at(output * self.inner + run * RUN + place);
                }
                rounded.fill(0);
                scales[lane] = round(lanes, &floats[..count], &mut rounded);
                let cells = self.cells[run * PAIRS..].iter_mut();
                for (cell, pair) in cells.zip(rounded.as_chunks().0) {
                    cell[lane] = *pair;
                }
            }
        }
    }
}
