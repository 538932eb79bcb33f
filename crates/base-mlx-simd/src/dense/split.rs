//! Numbers split into two bfloats, sixteen bits of them: AMX multiplies those several times as fast as floats.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::PANEL;
use crate::amx::{Halves, SIDE, STEP};
use crate::floats::Floats;
use crate::isa::{Isa, Kernel, Lanes};
use crate::pool::Pool;
use crate::shared::SharedMut;

/// Halves, thirty-two places each, of a row of so many values.
pub(super) fn steps(inner: usize) -> usize {
    inner.div_ceil(STEP)
}

/// Rows of x, in blocks of [`SIDE`].
pub(super) struct Split {
    /// `[blocks, steps]`. Rows and places beyond those of x are zeros.
    halves: Vec<Halves>,
    steps: usize,
}

impl Split {
    /// Of x, `[rows, inner]`.
    pub(super) fn new(pool: &Pool, isa: Isa, x: &[f32], inner: usize) -> Self {
        let (blocks, steps) = ((x.len() / inner).div_ceil(SIDE), steps(inner));
        let mut halves = Vec::with_capacity(blocks * steps);
        let all = SharedMut::new(&mut halves.spare_capacity_mut()[..blocks * steps]);
        pool.run(blocks, |block, _| {
            // SAFETY: each piece has its own block.
            let halves = unsafe { all.part(block * steps..(block + 1) * steps) };
            let first = block * SIDE * inner;
            let x = &x[first..x.len().min(first + SIDE * inner)];
            isa.run(SplitRows { x, inner, halves });
        });
        // SAFETY: so many have been written.
        unsafe { halves.set_len(blocks * steps) };
        Self { halves, steps }
    }

    /// That of [`SIDE`] rows from `row` on, with which a block begins.
    #[inline(always)]
    pub(super) fn block(&self, row: usize) -> &[Halves] {
        assert!(row.is_multiple_of(SIDE), "rows from {row} on");
        &self.halves[row / SIDE * self.steps..][..self.steps]
    }
}

struct SplitRows<'a> {
    x: &'a [f32],
    inner: usize,
    halves: &'a mut [MaybeUninit<Halves>],
}

impl Kernel for SplitRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (step, halves) in self.halves.iter_mut().enumerate() {
            let Halves { high, low } = halves.write(ZEROS);
            let rows = self.x.chunks_exact(self.inner).zip(high).zip(low);
            for ((x, high), low) in rows {
                let x = &x[step * STEP..];
                split(&x[..x.len().min(STEP)], high, low);
            }
        }
    }
}

/// Plain Rust, which the compiler turns into the instruction set's. What is no number, or infinite, has such a high half.
#[inline(always)]
fn split(values: &[f32], high: &mut [u16], low: &mut [u16]) {
    for ((value, high), low) in values.iter().zip(high).zip(low) {
        let bits = value.to_bits();
        *high = (bits >> 16) as u16;
        let rest = value - f32::from_bits(bits & 0xffff_0000);
        *low = (rest.to_bits().wrapping_add(0x8000) >> 16) as u16;
    }
}

/// Lays out a panel's `outputs` of a matrix, `floats`, `[outputs, inner]`, in `halves`, which are zeros.
pub(super) fn split_panel(
    floats: Floats,
    outputs: Range<usize>,
    inner: usize,
    halves: &mut [Halves],
) {
    for (lane, output) in outputs.enumerate() {
        for (step, halves) in halves.iter_mut().enumerate() {
            for place in 0..STEP.min(inner - step * STEP) {
                let value = floats.at(output * inner + step * STEP + place);
                let (mut high, mut low) = ([0], [0]);
                split(&[value], &mut high, &mut low);
                let (pair, of_pair) = (place / 2, place % 2);
                // A pair of all outputs is two rows of the tile's array.
                let (row, column) = (2 * pair + lane / (SIDE / 2), lane % (SIDE / 2) * 2 + of_pair);
                (halves.high[row][column], halves.low[row][column]) = (high[0], low[0]);
            }
        }
    }
}

/// What [`split_panel`] has laid out of an output.
pub(super) fn unsplit(halves: &[Halves], lane: usize, to: &mut [f32]) {
    for (to, halves) in to.chunks_mut(STEP).zip(halves) {
        for (place, to) in to.iter_mut().enumerate() {
            let (row, column) =
                (2 * (place / 2) + lane / (SIDE / 2), lane % (SIDE / 2) * 2 + place % 2);
            let float = |half: u16| f32::from_bits(u32::from(half) << 16);
            *to = float(halves.high[row][column]) + float(halves.low[row][column]);
        }
    }
}

const ZEROS: Halves = Halves { high: [[0; STEP]; SIDE], low: [[0; STEP]; SIDE] };

const _: () = assert!(SIDE == PANEL);
