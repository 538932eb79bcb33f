//! Matrices of parameters as they lie in a file, and their rows as f32.

use crate::isa::{Isa, Kernel, Lanes};
use crate::pool::Pool;
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

    #[inline(always)]
    fn part(self, start: usize, len: usize) -> Self {
        match self {
            Self::F32(bytes) => Self::F32(&bytes[start * 4..][..len * 4]),
            Self::F16(bytes) => Self::F16(&bytes[start * 2..][..len * 2]),
            Self::BF16(bytes) => Self::BF16(&bytes[start * 2..][..len * 2]),
        }
    }

    /// Up to eight of them; the lanes beyond are zero.
    #[inline(always)]
    pub(crate) fn load<L: Lanes>(self, lanes: L, start: usize, len: usize) -> L::V {
        #[inline(always)]
        fn padded<const N: usize>(bytes: &[u8], start: usize, len: usize) -> [u8; N] {
            let size = N / 8;
            match bytes[start * size..].first_chunk::<N>() {
                Some(whole) if len == 8 => *whole,
                _ => {
                    let mut padded = [0; N];
                    padded[..len * size].copy_from_slice(&bytes[start * size..][..len * size]);
                    padded
                }
            }
        }
        match self {
            Self::F32(bytes) => {
                let bytes = padded::<32>(bytes, start, len);
                let quads = bytes.as_chunks::<4>().0;
                lanes.load(&std::array::from_fn(|lane| f32::from_le_bytes(quads[lane])))
            }
            Self::F16(bytes) => lanes.f16(&padded(bytes, start, len)),
            Self::BF16(bytes) => lanes.bf16(&padded(bytes, start, len)),
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
    /// A multiple of 8.
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
            group > 0 && group.is_multiple_of(8) && inner.is_multiple_of(group),
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
    pub(crate) fn unpack_row<L: Lanes>(&self, lanes: L, output: usize, to: &mut [f32]) {
        assert_eq!(to.len(), self.inner);
        match self.values {
            Values::Dense(floats) => {
                unpack_dense(lanes, floats.part(output * self.inner, self.inner), to);
            }
            Values::Affine(affine) => {
                let row = affine.row(output, self.inner);
                match affine.bits {
                    2 => row.unpack::<L, 2>(lanes, to),
                    3 => row.unpack::<L, 3>(lanes, to),
                    4 => row.unpack::<L, 4>(lanes, to),
                    5 => row.unpack::<L, 5>(lanes, to),
                    6 => row.unpack::<L, 6>(lanes, to),
                    _ => row.unpack::<L, 8>(lanes, to),
                }
            }
        }
    }
}

impl<'a> Affine<'a> {
    /// The matrix that has only this row.
    #[inline(always)]
    pub(crate) fn row(&self, output: usize, inner: usize) -> Self {
        let (bytes, groups) = (inner / 8 * self.bits as usize, inner / self.group);
        Self {
            packed: &self.packed[output * bytes..][..bytes],
            scales: self.scales.part(output * groups, groups),
            biases: self.biases.part(output * groups, groups),
            ..*self
        }
    }

    #[inline(always)]
    fn unpack<L: Lanes, const BITS: usize>(&self, lanes: L, to: &mut [f32]) {
        let (packed, to) = (self.packed.as_chunks::<BITS>().0, to.as_chunks_mut::<8>().0);
        let (vectors, groups) = (self.group / 8, self.scales.len());
        // Scales and biases are converted eight at a time.
        for first in (0..groups).step_by(8) {
            let len = (groups - first).min(8);
            let scales = lanes.to_array(self.scales.load(lanes, first, len));
            let biases = lanes.to_array(self.biases.load(lanes, first, len));
            let some = first * vectors..(first + len) * vectors;
            let (packed, to) = (&packed[some.clone()], &mut to[some]);
            let groups = packed.chunks_exact(vectors).zip(to.chunks_exact_mut(vectors));
            for ((packed, to), (scale, bias)) in groups.zip(scales.into_iter().zip(biases)) {
                let (scale, bias) = (lanes.splat(scale), lanes.splat(bias));
                for (packed, to) in packed.iter().zip(to) {
                    lanes.store(lanes.mul_add(lanes.unsigned(packed), scale, bias), to);
                }
            }
        }
    }
}

#[inline(always)]
fn unpack_dense<L: Lanes>(lanes: L, floats: Floats, to: &mut [f32]) {
    for (index, to) in to.chunks_mut(8).enumerate() {
        let values = floats.load(lanes, index * 8, to.len());
        lanes.store_some(values, to);
    }
}

/// Writes the rows whose numbers are given, in that order, as f32: `[rows.len(), inner]`.
pub fn unpack_rows(pool: &Pool, isa: Isa, matrix: &Matrix, rows: &[u32], to: &mut [f32]) {
    assert_eq!(to.len(), rows.len() * matrix.inner, "unpack_rows");
    let to = SharedMut::new(to);
    let rows_in_piece = (ELEMENTS_IN_PIECE / matrix.inner).max(1);
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

/// Work for some microseconds: less is not worth a second thread.
const ELEMENTS_IN_PIECE: usize = 16 * 1024;
