//! Rows of affine weights, unpacked and multiplied in the order in which they are cheapest to unpack.
//!
//! A row is cut into blocks of 32 values, which are four vectors: lane `l` of vector `v` is value `4 * l + v`. Thus a
//! lane's 32 bits hold the four values that it wants, and one mask takes out each. The other factor is brought into
//! the same order once for all outputs. Behind the end of a row that is half a block longer, both are zero.

use crate::isa::{Isa, Kernel, Lanes, place};
use crate::matrix::{Affine, Floats};
use crate::pool::Pool;
use crate::shared::SharedMut;

pub(crate) const BLOCK: usize = 32;

/// Rows of `inner` values in the order of blocks, each filled up to whole blocks.
pub(crate) fn in_order_of_blocks(pool: &Pool, isa: Isa, x: &[f32], inner: usize) -> Vec<f32> {
    let (rows, width) = (x.len() / inner, inner.next_multiple_of(BLOCK));
    let mut ordered = vec![0.0; rows * width];
    let to = SharedMut::new(&mut ordered);
    let rows_in_piece = (VALUES_IN_PIECE / width).max(1);
    pool.run(rows.div_ceil(rows_in_piece), |piece, _| {
        let (first, end) = (piece * rows_in_piece, rows.min((piece + 1) * rows_in_piece));
        // SAFETY: each piece has its own rows.
        let to = unsafe { to.part(first * width..end * width) };
        isa.run(Order { x: &x[first * inner..end * inner], inner, to });
    });
    ordered
}

struct Order<'a> {
    x: &'a [f32],
    inner: usize,
    to: &'a mut [f32],
}

impl Kernel for Order<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let rows = self.to.chunks_exact_mut(self.inner.next_multiple_of(BLOCK));
        for (x, to) in self.x.chunks_exact(self.inner).zip(rows) {
            let (blocks, tail) = x.as_chunks::<BLOCK>();
            let mut last = [0.0; BLOCK];
            last[..tail.len()].copy_from_slice(tail);
            for (block, to) in blocks.iter().chain([&last]).zip(to.as_chunks_mut::<BLOCK>().0) {
                let mut values = [lanes.splat(0.0); 4];
                for (value, block) in values.iter_mut().zip(block.as_chunks().0) {
                    *value = lanes.load(block);
                }
                let ordered = lanes.in_order_of_block(values);
                for (ordered, to) in ordered.into_iter().zip(to.as_chunks_mut().0) {
                    lanes.store(ordered, to);
                }
            }
        }
    }
}

/// From the order of blocks to that of the row.
#[inline(always)]
pub(crate) fn out_of_order(ordered: &[f32; BLOCK]) -> [f32; BLOCK] {
    let mut block = [0.0; BLOCK];
    for (index, to) in block.iter_mut().enumerate() {
        *to = ordered[index % 4 * 8 + index / 4];
    }
    block
}

impl Affine<'_> {
    /// One row, in the order of blocks, times the outputs from `first` on: the same bits as unpacking them and
    /// [`dot_tile`](crate::linear::dot_tile), without the detour through memory.
    #[inline(always)]
    pub(crate) fn dot<L: Lanes>(
        &self,
        lanes: L,
        x: &[f32],
        inner: usize,
        first: usize,
        out: &mut [f32],
    ) {
        match self.bits {
            2 => self.dot_bits::<L, 2>(lanes, x, inner, first, out),
            3 => self.dot_bits::<L, 3>(lanes, x, inner, first, out),
            4 => self.dot_bits::<L, 4>(lanes, x, inner, first, out),
            5 => self.dot_bits::<L, 5>(lanes, x, inner, first, out),
            6 => self.dot_bits::<L, 6>(lanes, x, inner, first, out),
            _ => self.dot_bits::<L, 8>(lanes, x, inner, first, out),
        }
    }

    /// Writes row `output` in the order of blocks.
    #[inline(always)]
    pub(crate) fn unpack<L: Lanes>(&self, lanes: L, inner: usize, output: usize, to: &mut [f32]) {
        let to = &mut Store(to.as_chunks_mut().0.as_chunks_mut().0);
        match self.bits {
            2 => self.rows::<L, 2, 1>(lanes, inner, output, to),
            3 => self.rows::<L, 3, 1>(lanes, inner, output, to),
            4 => self.rows::<L, 4, 1>(lanes, inner, output, to),
            5 => self.rows::<L, 5, 1>(lanes, inner, output, to),
            6 => self.rows::<L, 6, 1>(lanes, inner, output, to),
            _ => self.rows::<L, 8, 1>(lanes, inner, output, to),
        }
    }

    #[inline(always)]
    fn dot_bits<L: Lanes, const BITS: usize>(
        &self,
        lanes: L,
        x: &[f32],
        inner: usize,
        first: usize,
        out: &mut [f32],
    ) {
        let x = x.as_chunks().0.as_chunks().0;
        let (fours, rest) = out.as_chunks_mut::<4>();
        let mut output = first;
        for out in fours {
            let mut dot = Dot { x, sums: [lanes.splat(0.0); 4] };
            self.rows::<L, BITS, 4>(lanes, inner, output, &mut dot);
            *out = lanes.sums(dot.sums);
            output += 4;
        }
        for out in rest {
            let mut dot = Dot { x, sums: [lanes.splat(0.0); 1] };
            self.rows::<L, BITS, 1>(lanes, inner, output, &mut dot);
            *out = lanes.sum(dot.sums[0]);
            output += 1;
        }
    }

    /// Hands out `N` rows from `output` on, block by block.
    #[inline(always)]
    fn rows<L: Lanes, const BITS: usize, const N: usize>(
        &self,
        lanes: L,
        inner: usize,
        output: usize,
        to: &mut impl Take<L, N>,
    ) {
        if self.group.is_multiple_of(BLOCK) {
            self.whole_blocks::<L, BITS, N>(lanes, inner, output, to);
        } else {
            self.half_blocks::<L, BITS, N>(lanes, inner, output, to);
        }
    }

    /// Each group is some whole blocks.
    #[inline(always)]
    fn whole_blocks<L: Lanes, const BITS: usize, const N: usize>(
        &self,
        lanes: L,
        inner: usize,
        output: usize,
        to: &mut impl Take<L, N>,
    ) {
        let (blocks_in_group, groups) = (self.group / BLOCK, inner / self.group);
        let mut packed = [&[][..]; N];
        for (n, packed) in packed.iter_mut().enumerate() {
            *packed = &self.packed_row::<BITS>(output + n, inner).0[..inner / BLOCK];
        }
        for first in (0..groups).step_by(8) {
            let mut scales = [Eight::ZERO; N];
            let len = (groups - first).min(8);
            for (n, scales) in scales.iter_mut().enumerate() {
                let start = (output + n) * groups + first;
                let scale = self.scales.load(lanes, start, len);
                *scales = Eight::new::<L, BITS>(lanes, scale, self.biases.load(lanes, start, len));
            }
            for group in 0..len {
                let start = (first + group) * blocks_in_group;
                for block in start..start + blocks_in_group {
                    for n in 0..N {
                        let packed = &packed[n][block];
                        lanes.prefetch(packed, inner / 8 * BITS * N);
                        let q = lanes.block(packed);
                        let mut w = [lanes.splat(0.0); 4];
                        let bias = lanes.splat(scales[n].biases[group]);
                        for v in 0..4 {
                            let scale = lanes.splat(scales[n].scales[v][group]);
                            w[v] = lanes.mul_add(q[v], scale, bias);
                        }
                        to.take(lanes, n, block, w);
                    }
                }
            }
        }
    }

    /// A scale and a bias for each half of a block, and the row may end with half a one.
    #[inline(always)]
    fn half_blocks<L: Lanes, const BITS: usize, const N: usize>(
        &self,
        lanes: L,
        inner: usize,
        output: usize,
        to: &mut impl Take<L, N>,
    ) {
        let halves = inner / HALF;
        let mut packed = [&[][..]; N];
        let mut last = [[[0; BITS]; 4]; N];
        for n in 0..N {
            let (blocks, half) = self.packed_row::<BITS>(output + n, inner);
            packed[n] = &blocks[..halves / 2];
            last[n][..half.len()].copy_from_slice(half);
        }
        for first in (0..halves).step_by(8) {
            let len = (halves - first).min(8);
            let mut scales = [Eight::ZERO; N];
            for (n, scales) in scales.iter_mut().enumerate() {
                let row = (output + n) * (inner / self.group);
                let scale = self.of_halves(lanes, self.scales, row, first, len);
                let bias = self.of_halves(lanes, self.biases, row, first, len);
                *scales = Eight::new::<L, BITS>(lanes, scale, bias);
            }
            for pair in 0..len.div_ceil(2) {
                let block = first / 2 + pair;
                for n in 0..N {
                    let packed = packed[n].get(block).unwrap_or(&last[n]);
                    lanes.prefetch(packed, inner / 8 * BITS * N);
                    let q = lanes.block(packed);
                    let bias = lanes.halves(&pairs(&scales[n].biases)[pair]);
                    let mut w = [lanes.splat(0.0); 4];
                    for v in 0..4 {
                        let scale = lanes.halves(&pairs(&scales[n].scales[v])[pair]);
                        w[v] = lanes.mul_add(q[v], scale, bias);
                    }
                    to.take(lanes, n, block, w);
                }
            }
        }
    }

    /// The scales or biases of up to eight halves, zero beyond them; `row` is where those of the row begin.
    #[inline(always)]
    fn of_halves<L: Lanes>(
        &self,
        lanes: L,
        floats: Floats,
        row: usize,
        first: usize,
        len: usize,
    ) -> L::V {
        if self.group == HALF && len == 8 {
            return floats.load(lanes, row + first, len);
        }
        let mut eight = [0.0; 8];
        if self.group == HALF {
            let all = lanes.to_array(floats.load(lanes, row + first, len));
            eight[..len].copy_from_slice(&all[..len]);
        } else {
            for (half, to) in eight[..len].iter_mut().enumerate() {
                let group = row + (first + half) * HALF / self.group;
                *to = lanes.to_array(floats.load(lanes, group, 1))[0];
            }
        }
        lanes.load(&eight)
    }

    /// The whole blocks of a row, and what follows them.
    #[inline(always)]
    fn packed_row<const BITS: usize>(
        &self,
        output: usize,
        inner: usize,
    ) -> (&[[[u8; BITS]; 4]], &[[u8; BITS]]) {
        let bytes = inner / 8 * BITS;
        self.packed[output * bytes..][..bytes].as_chunks().0.as_chunks()
    }
}

/// Eight scales and biases of a row.
#[derive(Clone, Copy)]
struct Eight {
    /// For each vector of a block: smaller by as much as [`Lanes::block`] leaves the values too large.
    scales: [[f32; 8]; 4],
    biases: [f32; 8],
}

impl Eight {
    const ZERO: Self = Self { scales: [[0.0; 8]; 4], biases: [0.0; 8] };

    #[inline(always)]
    fn new<L: Lanes, const BITS: usize>(lanes: L, scale: L::V, bias: L::V) -> Self {
        let mut eight = Self::ZERO;
        for (vector, to) in eight.scales.iter_mut().enumerate() {
            let smaller = lanes.splat(1.0 / (1u32 << place(BITS, vector)) as f32);
            lanes.store(lanes.mul(scale, smaller), to);
        }
        lanes.store(bias, &mut eight.biases);
        eight
    }
}

#[inline(always)]
fn pairs(eight: &[f32; 8]) -> &[[f32; 2]; 4] {
    eight.as_chunks().0.as_array().expect("four pairs are eight")
}

/// What is done with the blocks of `N` rows, which come in order.
trait Take<L: Lanes, const N: usize> {
    fn take(&mut self, lanes: L, n: usize, block: usize, w: [L::V; 4]);
}

struct Dot<'a, L: Lanes, const N: usize> {
    x: &'a [[[f32; 8]; 4]],
    sums: [L::V; N],
}

impl<L: Lanes, const N: usize> Take<L, N> for Dot<'_, L, N> {
    #[inline(always)]
    fn take(&mut self, lanes: L, n: usize, block: usize, w: [L::V; 4]) {
        for (x, w) in self.x[block].iter().zip(w) {
            self.sums[n] = lanes.mul_add(lanes.load(x), w, self.sums[n]);
        }
    }
}

struct Store<'a>(&'a mut [[[f32; 8]; 4]]);

impl<L: Lanes> Take<L, 1> for Store<'_> {
    #[inline(always)]
    fn take(&mut self, lanes: L, _: usize, block: usize, w: [L::V; 4]) {
        for (to, w) in self.0[block].iter_mut().zip(w) {
            lanes.store(w, to);
        }
    }
}

const HALF: usize = BLOCK / 2;
const VALUES_IN_PIECE: usize = 16 * 1024;
