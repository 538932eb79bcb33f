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

/// Plain Rust, which the compiler turns into the instruction set's.
#[inline(always)]
fn split(values: &[f32], high: &mut [u16], low: &mut [u16]) {
    for ((value, high), low) in values.iter().zip(high).zip(low) {
        *high = rounded_half(*value);
        *low = rounded_half(value - widened(*high));
    }
}

/// The nearest bfloat. What is no number, or infinite, stays so, and nothing finite becomes that.
#[inline(always)]
fn rounded_half(value: f32) -> u16 {
    let bits = value.to_bits();
    let half = if bits & 0x7fff_ffff < 0x7f7f_8000 { 0x8000 } else { 0 };
    ((bits + half) >> 16) as u16
}

#[inline(always)]
fn widened(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// Lays out a panel's `outputs` of a matrix, `floats`, `[outputs, inner]`. Where there are none, `halves` are left as they are.
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
                let (row, column) = of_weight(lane, place);
                (halves.high[row][column], halves.low[row][column]) = (high[0], low[0]);
            }
        }
    }
}

/// What [`split_panel`] has laid out of an output.
pub(super) fn unsplit(halves: &[Halves], lane: usize, to: &mut [f32]) {
    for (to, halves) in to.chunks_mut(STEP).zip(halves) {
        for (place, to) in to.iter_mut().enumerate() {
            let (row, column) = of_weight(lane, place);
            *to = widened(halves.high[row][column]) + widened(halves.low[row][column]);
        }
    }
}

/// Where in a tile an output's value at a place is: a pair of places of all outputs is two of the array's rows.
fn of_weight(lane: usize, place: usize) -> (usize, usize) {
    (place / 2 * 2 + lane / (SIDE / 2), lane % (SIDE / 2) * 2 + place % 2)
}

const ZEROS: Halves = Halves { high: [[0; STEP]; SIDE], low: [[0; STEP]; SIDE] };

const _: () = assert!(SIDE == PANEL);

#[cfg(test)]
mod tests {
    use super::*;

    /// What tiles make of them, in f64.
    fn products(x: &[Halves], weights: &[Halves], row: usize, lane: usize) -> f64 {
        let mut sum = 0.0;
        for (x, w) in x.iter().zip(weights) {
            for place in 0..STEP {
                let (at, column) = of_weight(lane, place);
                let of = |half: u16| f64::from(widened(half));
                let (x_high, x_low) = (of(x.high[row][place]), of(x.low[row][place]));
                let (w_high, w_low) = (of(w.high[at][column]), of(w.low[at][column]));
                sum += x_high * w_high + x_low * w_high + x_high * w_low;
            }
        }
        sum
    }

    #[test]
    fn halves_make_the_products_of_what_was_split() {
        let pool = Pool::new(1);
        let value = |i: usize| ((i * 2_654_435_761) % 1009) as f32 / 100.0 - 5.0;
        for (rows, inner, outputs) in [(1, 1, 1), (3, 31, 32), (33, 64, 7), (70, 100, 20)] {
            let x: Vec<f32> = (0..rows * inner).map(value).collect();
            let w: Vec<f32> = (0..outputs * inner).map(|i| value(i + 7)).collect();
            let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
            let mut weights = vec![ZEROS; steps(inner)];
            split_panel(Floats::F32(&bytes), 0..outputs, inner, &mut weights);
            let split = Split::new(&pool, Isa::best(), &x, inner);
            for (row, x) in x.chunks(inner).enumerate() {
                for (lane, w) in w.chunks(inner).enumerate() {
                    let terms = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (expected, size) =
                        (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                    let found =
                        products(split.block(row / SIDE * SIDE), &weights, row % SIDE, lane);
                    assert!((found - expected).abs() <= size / 32_768.0, "{row}, {lane}, {inner}");
                }
            }
            let mut back = vec![0.0; inner];
            for (lane, w) in w.chunks(inner).enumerate() {
                unsplit(&weights, lane, &mut back);
                let near = |(a, b): (&f32, &f32)| (a - b).abs() <= b.abs() / 65_536.0;
                assert!(back.iter().zip(w).all(near), "{lane}, {inner}");
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_so_and_what_is_one_too() {
        let nans = [0x7fff_ffff, 0x7f80_0001, 0xffff_ffff, 0x7fc0_0000].map(f32::from_bits);
        for odd in nans.into_iter().chain([f32::INFINITY, f32::NEG_INFINITY]) {
            let (mut high, mut low) = ([0], [0]);
            split(&[odd], &mut high, &mut low);
            assert!(!(widened(high[0]) + widened(low[0])).is_finite(), "{odd} {:x}", odd.to_bits());
        }
        for value in [f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1.0, -0.0, 3.389e38] {
            let (mut high, mut low) = ([0], [0]);
            split(&[value], &mut high, &mut low);
            // As one f32 the sum may be beyond the largest.
            let back = f64::from(widened(high[0])) + f64::from(widened(low[0]));
            let off = (back - f64::from(value)).abs();
            assert!(off <= f64::from(value.abs()) / 32_768.0, "{back} for {value}");
        }
    }
}
