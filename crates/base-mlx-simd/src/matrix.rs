//! Matrices of parameters as they lie in a file, and their rows as f32.

use crate::affine::{BLOCK, out_of_order};
use crate::isa::{Isa, Kernel, Lanes};
use crate::pool::{Pool, Scratch};
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

    /// All of them.
    pub(crate) fn to_vec(self) -> Vec<f32> {
        match self {
            Self::F32(bytes) => {
                bytes.as_chunks().0.iter().map(|quad| f32::from_le_bytes(*quad)).collect()
            }
            Self::F16(bytes) => {
                let pairs = bytes.as_chunks().0.iter();
                pairs.map(|pair| half::f16::from_le_bytes(*pair).to_f32()).collect()
            }
            Self::BF16(bytes) => {
                let pairs = bytes.as_chunks().0.iter();
                pairs.map(|pair| half::bf16::from_le_bytes(*pair).to_f32()).collect()
            }
        }
    }

    /// Those from `start` on, up to eight; the lanes beyond `len` hold anything.
    #[inline(always)]
    pub(crate) fn load<L: Lanes>(self, lanes: L, start: usize, len: usize) -> L::V {
        match self {
            Self::F32(bytes) => {
                let bytes = eight_of::<32>(bytes, start, len);
                let quads = bytes.as_chunks::<4>().0;
                let mut values = [0.0; 8];
                for (value, quad) in values.iter_mut().zip(quads) {
                    *value = f32::from_le_bytes(*quad);
                }
                lanes.load(&values)
            }
            Self::F16(bytes) => lanes.f16(&eight_of(bytes, start, len)),
            Self::BF16(bytes) => lanes.bf16(&eight_of(bytes, start, len)),
        }
    }
}

/// Eight elements, `N` bytes in all: whatever follows the `len` that are asked for, or zeros at the very end.
#[inline(always)]
fn eight_of<const N: usize>(bytes: &[u8], start: usize, len: usize) -> [u8; N] {
    let bytes = &bytes[start * (N / 8)..];
    match bytes.first_chunk::<N>() {
        Some(eight) => *eight,
        None => {
            let mut padded = [0; N];
            let len = len * (N / 8);
            padded[..len].copy_from_slice(&bytes[..len]);
            padded
        }
    }
}

/// A matrix `[outputs, inner]`; `inner` is not zero.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    pub(crate) outputs: usize,
    pub(crate) inner: usize,
    pub(crate) values: Values<'a>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Values<'a> {
    Dense(Floats<'a>),
    Affine(Affine<'a>),
}

/// `w = scale * q + bias`, one scale and bias for each `group` values of a row.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// Each row is one little-endian stream of `bits`-wide values.
    pub packed: &'a [u8],
    /// `[outputs, inner / group]`
    pub scales: Floats<'a>,
    /// `[outputs, inner / group]`
    pub biases: Floats<'a>,
    /// 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// A multiple of 16.
    pub group: usize,
}

impl<'a> Matrix<'a> {
    pub fn dense(values: Floats<'a>, outputs: usize, inner: usize) -> Self {
        assert!(inner > 0, "an empty matrix");
        assert_eq!(values.len(), outputs * inner, "a dense matrix [{outputs}, {inner}]");
        Self { outputs, inner, values: Values::Dense(values) }
    }

    pub fn affine(affine: Affine<'a>, outputs: usize, inner: usize) -> Self {
        let Affine { packed, scales, biases, bits, group } = affine;
        assert!(matches!(bits, 2..=6 | 8), "weights of {bits} bits");
        assert!(inner > 0, "an empty matrix");
        assert!(
            group > 0 && group.is_multiple_of(16) && inner.is_multiple_of(group),
            "{inner} in groups of {group}"
        );
        assert_eq!(
            packed.len(),
            outputs * inner / 8 * bits as usize,
            "packed [{outputs}, {inner}]"
        );
        assert_eq!(scales.len(), outputs * inner / group, "scales of [{outputs}, {inner}]");
        assert_eq!(biases.len(), scales.len(), "biases of [{outputs}, {inner}]");
        Self { outputs, inner, values: Values::Affine(affine) }
    }

    /// `[outputs, inner]`
    pub fn shape(&self) -> [usize; 2] {
        [self.outputs, self.inner]
    }

    /// Writes row `output` as f32.
    #[inline(always)]
    pub(crate) fn unpack_row<L: Lanes>(
        &self,
        lanes: L,
        output: usize,
        to: &mut [f32],
        scratch: &mut Scratch,
    ) {
        match self.values {
            Values::Dense(_) => self.unpack_for_products(lanes, output, to),
            Values::Affine(affine) => {
                let blocks = scratch.floats(self.inner.next_multiple_of(BLOCK));
                affine.unpack(lanes, self.inner, output, blocks);
                for (to, block) in to.chunks_mut(BLOCK).zip(blocks.as_chunks().0) {
                    to.copy_from_slice(&out_of_order(block)[..to.len()]);
                }
            }
        }
    }

    /// Writes row `output` as f32, affine ones in the [order of blocks](crate::affine).
    #[inline(always)]
    pub(crate) fn unpack_for_products<L: Lanes>(&self, lanes: L, output: usize, to: &mut [f32]) {
        match self.values {
            Values::Dense(floats) => {
                for (index, to) in to.chunks_mut(8).enumerate() {
                    let start = output * self.inner + index * 8;
                    lanes.store_some(floats.load(lanes, start, to.len()), to);
                }
            }
            Values::Affine(affine) => affine.unpack(lanes, self.inner, output, to),
        }
    }
}

/// Writes the rows whose numbers are given, in that order, as f32: `[rows.len(), inner]`.
pub fn unpack_rows(pool: &Pool, isa: Isa, matrix: &Matrix, rows: &[u32], to: &mut [f32]) {
    assert_eq!(to.len(), rows.len() * matrix.inner, "unpack_rows");
    let to = SharedMut::new(to);
    let rows_in_piece = (ELEMENTS_IN_PIECE / matrix.inner).max(1);
    pool.run(rows.len().div_ceil(rows_in_piece), |piece, scratch| {
        let first = piece * rows_in_piece;
        let rows = &rows[first..rows.len().min(first + rows_in_piece)];
        // SAFETY: each piece has its own rows.
        let to = unsafe { to.part(first * matrix.inner..(first + rows.len()) * matrix.inner) };
        isa.run(Unpack { matrix, rows, to, scratch });
    });
}

struct Unpack<'a> {
    matrix: &'a Matrix<'a>,
    rows: &'a [u32],
    to: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let rows = self.to.chunks_exact_mut(self.matrix.inner);
        for (&row, to) in self.rows.iter().zip(rows) {
            self.matrix.unpack_row(lanes, row as usize, to, self.scratch);
        }
    }
}

/// Work for some microseconds: less is not worth a second thread.
const ELEMENTS_IN_PIECE: usize = 16 * 1024;
