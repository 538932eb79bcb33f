//! Plain floats as they lie in a file, matrices of them, and their rows as f32.

use crate::isa::{Isa, Kernel, Lanes, MOST_LANES};
use crate::pool::{Pool, VALUES_IN_PIECE};
use crate::shared::SharedMut;

/// Little-endian floats as bytes, which need not be aligned.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    F32(&'a [u8]),
    F16(&'a [u8]),
    BF16(&'a [u8]),
}

impl<'a> Floats<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::F32(bytes) => bytes.len() / 4,
            Self::F16(bytes) | Self::BF16(bytes) => bytes.len() / 2,
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    pub(crate) fn at(self, index: usize) -> f32 {
        match self {
            Self::F32(bytes) => f32::from_le_bytes(bytes.as_chunks().0[index]),
            Self::F16(bytes) => half::f16::from_le_bytes(bytes.as_chunks().0[index]).to_f32(),
            Self::BF16(bytes) => half::bf16::from_le_bytes(bytes.as_chunks().0[index]).to_f32(),
        }
    }

    /// Those from `start` on, up to a vector; the lanes beyond `len` hold anything.
    #[inline(always)]
    pub(crate) fn load<L: Lanes>(self, lanes: L, start: usize, len: usize) -> L::V {
        match self {
            Self::F32(bytes) => {
                let mut values = [0.0; MOST_LANES];
                let quads = bytes[4 * start..].as_chunks::<4>().0;
                for (value, quad) in values[..L::WIDTH].iter_mut().zip(quads) {
                    *value = f32::from_le_bytes(*quad);
                }
                lanes.load(&values)
            }
            Self::F16(bytes) => match bytes[2 * start..].get(..2 * L::WIDTH) {
                Some(whole) => lanes.f16(whole),
                None => lanes.f16(&padded(&bytes[2 * start..], len)),
            },
            Self::BF16(bytes) => match bytes[2 * start..].get(..2 * L::WIDTH) {
                Some(whole) => lanes.bf16(whole),
                None => lanes.bf16(&padded(&bytes[2 * start..], len)),
            },
        }
    }
}

/// The first `len` of values of two bytes each, and zeros.
#[inline(always)]
fn padded(bytes: &[u8], len: usize) -> [u8; 2 * MOST_LANES] {
    let mut padded = [0; 2 * MOST_LANES];
    padded[..2 * len].copy_from_slice(&bytes[..2 * len]);
    padded
}

/// A matrix `[outputs, inner]` of plain floats; `inner` is not zero.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(crate) outputs: usize,
    pub(crate) inner: usize,
    pub(crate) values: Floats<'a>,
}

impl<'a> Matrix<'a> {
    pub fn new(values: Floats<'a>, outputs: usize, inner: usize) -> Self {
        assert!(inner > 0, "an empty matrix");
        assert_eq!(values.len(), outputs * inner, "a dense matrix [{outputs}, {inner}]");
        Self { outputs, inner, values }
    }

    /// `[outputs, inner]`
    pub fn shape(&self) -> [usize; 2] {
        [self.outputs, self.inner]
    }

    /// Writes row `output` as f32.
    #[inline(always)]
    pub(crate) fn unpack_row<L: Lanes>(&self, lanes: L, output: usize, to: &mut [f32]) {
        for (index, to) in to.chunks_mut(L::WIDTH).enumerate() {
            let start = output * self.inner + index * L::WIDTH;
            lanes.store_some(self.values.load(lanes, start, to.len()), to);
        }
    }
}

/// Writes the rows whose numbers are given, in that order, as f32: `[rows.len(), inner]`.
pub fn unpack_rows(pool: &Pool, isa: Isa, matrix: &Matrix, rows: &[u32], to: &mut [f32]) {
    assert_eq!(to.len(), rows.len() * matrix.inner, "unpack_rows");
    let to = SharedMut::new(to);
    let rows_in_piece = (VALUES_IN_PIECE / matrix.inner).max(1);
    pool.run(rows.len().div_ceil(rows_in_piece), |piece, _| {
        let first = piece * rows_in_piece;
        let rows = &rows[first..rows.len().min(first + rows_in_piece)];
        // SAFETY: each piece has its own rows.
        let to = unsafe { to.part(first * matrix.inner..(first + rows.len()) * matrix.inner) };
        isa.run(Unpack { matrix, rows, to });
    });
}

struct Unpack<'a> {
    matrix: &'a Matrix<'a>,
    rows: &'a [u32],
    to: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let rows = self.to.chunks_exact_mut(self.matrix.inner);
        for (&row, to) in self.rows.iter().zip(rows) {
            self.matrix.unpack_row(lanes, row as usize, to);
        }
    }
}
