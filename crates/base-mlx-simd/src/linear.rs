//! Products `x @ w.T` by plain floats: a few outputs' weights are widened to f32, then tiles of rows × outputs run over them.

use crate::isa::{Isa, Kernel, Lanes};
use crate::matrix::Matrix;
use crate::pool::{Pool, Scratch};
use crate::shared::SharedMut;

/// `out[row, output] = x[row] · w[output] + bias[output]`: `[rows, inner]` → `[rows, outputs]`.
pub fn linear(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    weight: &Matrix,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let [outputs, inner] = weight.shape();
    let rows = x.len() / inner;
    assert_eq!((x.len(), out.len()), (rows * inner, rows * outputs), "linear");
    assert!(bias.is_none_or(|bias| bias.len() == outputs), "one bias for each output");

    let at_once = outputs_at_once(rows, inner);
    let worth_it = WORK_IN_PIECE.div_ceil(rows.max(1) * inner);
    let whole =
        pool.fair_piece(outputs).max(worth_it).next_multiple_of(at_once.min(TILE_OUTPUTS * 4));
    let outputs_in_piece = whole.min(outputs.max(1));
    let out = SharedMut::new(out);
    pool.run(outputs.div_ceil(outputs_in_piece), |piece, scratch| {
        let first = piece * outputs_in_piece;
        let end = outputs.min(first + outputs_in_piece);
        isa.run(Piece { x, inner, rows, weight, bias, first, end, out: &out, scratch });
    });
}

/// How many outputs are unpacked before the rows run over them: as the cache holds.
fn outputs_at_once(rows: usize, inner: usize) -> usize {
    let floats = if rows <= TILE_ROWS { FLOATS_IN_L1 } else { FLOATS_IN_L2 };
    let fit = floats / inner / TILE_OUTPUTS * TILE_OUTPUTS;
    fit.clamp(TILE_OUTPUTS, 16 * TILE_OUTPUTS)
}

struct Piece<'a> {
    /// `[rows, inner]`
    x: &'a [f32],
    inner: usize,
    rows: usize,
    weight: &'a Matrix<'a>,
    bias: Option<&'a [f32]>,
    first: usize,
    end: usize,
    out: &'a SharedMut<'a, f32>,
    scratch: &'a mut Scratch,
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let inner = self.inner;
        let at_once = outputs_at_once(self.rows, inner);
        let weights = self.scratch.floats(at_once * inner);
        for first in (self.first..self.end).step_by(at_once) {
            let count = at_once.min(self.end - first);
            for index in 0..count {
                let to = &mut weights[index * inner..][..inner];
                self.weight.unpack_row(lanes, first + index, to);
            }
            let block = Block {
                lanes,
                x: self.x,
                w: &weights[..count * inner],
                inner,
                bias: self.bias.map(|bias| &bias[first..first + count]),
                first,
                outputs: self.weight.outputs,
                out: self.out,
            };
            let whole = self.rows / TILE_ROWS * TILE_ROWS;
            for row in (0..whole).step_by(TILE_ROWS) {
                block.rows::<TILE_ROWS>(row, count);
            }
            match self.rows - whole {
                1 => block.rows::<1>(whole, count),
                2 => block.rows::<2>(whole, count),
                3 => block.rows::<3>(whole, count),
                _ => {}
            }
        }
    }
}

/// Unpacked weights of the outputs from `first` on, and all rows.
struct Block<'a, L> {
    lanes: L,
    x: &'a [f32],
    /// `[count, inner]`
    w: &'a [f32],
    inner: usize,
    bias: Option<&'a [f32]>,
    first: usize,
    outputs: usize,
    out: &'a SharedMut<'a, f32>,
}

impl<L: Lanes> Block<'_, L> {
    #[inline(always)]
    fn rows<const R: usize>(&self, row: usize, count: usize) {
        let x = std::array::from_fn(|r| &self.x[(row + r) * self.inner..][..self.inner]);
        let whole = count / TILE_OUTPUTS * TILE_OUTPUTS;
        for output in (0..whole).step_by(TILE_OUTPUTS) {
            self.tile::<R, TILE_OUTPUTS>(x, row, output);
        }
        match count - whole {
            1 => self.tile::<R, 1>(x, row, whole),
            2 => self.tile::<R, 2>(x, row, whole),
            _ => {}
        }
    }

    #[inline(always)]
    fn tile<const R: usize, const N: usize>(&self, x: [&[f32]; R], row: usize, output: usize) {
        let w: [&[f32]; N] =
            std::array::from_fn(|n| &self.w[(output + n) * self.inner..][..self.inner]);
        let products = dot_tile(self.lanes, x, w);
        for (r, products) in products.into_iter().enumerate() {
            let start = (row + r) * self.outputs + self.first + output;
            // SAFETY: each piece has its own outputs, and this thread holds no other part of them.
            let out = unsafe { self.out.part(start..start + N) };
            out.copy_from_slice(&products);
            if let Some(bias) = self.bias {
                out.iter_mut().zip(&bias[output..]).for_each(|(out, bias)| *out += bias);
            }
        }
    }
}

/// `R` rows times `N` rows, all of one length. Each product has its own accumulator, so `R` and `N` change no bit.
///
/// Loops rather than `map` and closures, which are not always inlined, and then miss the instruction set.
#[inline(always)]
pub(crate) fn dot_tile<L: Lanes, const R: usize, const N: usize>(
    lanes: L,
    mut x: [&[f32]; R],
    mut w: [&[f32]; N],
) -> [[f32; N]; R] {
    let len = x[0].len();
    for x in &mut x {
        *x = &x[..len];
    }
    for w in &mut w {
        *w = &w[..len];
    }
    let tail = len % L::WIDTH;
    let mut sums = [[lanes.splat(0.0); N]; R];
    let mut now = [lanes.splat(0.0); N];
    for start in (0..len - tail).step_by(L::WIDTH) {
        for (now, w) in now.iter_mut().zip(w) {
            // SAFETY: `start` is a vector or more before the end of each row, which all were cut to `len` above.
            *now = lanes.load(unsafe { w.get_unchecked(start..start + L::WIDTH) });
        }
        for (sums, x) in sums.iter_mut().zip(x) {
            // SAFETY: as above.
            let x = lanes.load(unsafe { x.get_unchecked(start..start + L::WIDTH) });
            for (sum, w) in sums.iter_mut().zip(now) {
                *sum = lanes.mul_add(x, w, *sum);
            }
        }
    }
    if tail > 0 {
        for (now, w) in now.iter_mut().zip(w) {
            *now = lanes.load_some(&w[len - tail..]);
        }
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = lanes.load_some(&x[len - tail..]);
            for (sum, w) in sums.iter_mut().zip(now) {
                *sum = lanes.mul_add(x, w, *sum);
            }
        }
    }
    let mut products = [[0.0; N]; R];
    for (products, sums) in products.iter_mut().zip(sums) {
        for (product, sum) in products.iter_mut().zip(sums) {
            *product = lanes.sum(sum);
        }
    }
    products
}

/// Twelve accumulators, three weights and one x fill sixteen registers.
const TILE_ROWS: usize = 4;
const TILE_OUTPUTS: usize = 3;
/// Multiply-adds of about five microseconds.
const WORK_IN_PIECE: usize = 48 * 1024;
const FLOATS_IN_L1: usize = 5 * 1024;
const FLOATS_IN_L2: usize = 48 * 1024;
