//! What products of packed weights are written in: vectors of quads, four neighbouring values of a row for each of some
//! outputs side by side.

use crate::isa::{FUSED, Scalar};

/// As [`Kernel`](crate::Kernel), over [`Quads`].
pub(crate) trait QuadKernel {
    type Output;
    fn run<Q: Quads>(self, quads: Q) -> Self::Output;
}

/// A value of the implementing type proves that the CPU has the instructions.
pub(crate) trait Quads: Copy + Send + Sync + 'static {
    /// How many outputs lie side by side: a divisor of 16.
    const OUTPUTS: usize;
    /// [`Quads::dot`] of 8-bit weights counts them from -128 on.
    const SIGNED_BYTES: bool;
    /// How many rows of x the registers have room for beside the weights: 4 or 8.
    const ROWS: usize;
    /// `OUTPUTS` quads of unsigned bytes.
    type Bytes: Copy;
    /// `OUTPUTS` integers.
    type Ints: Copy;
    /// `OUTPUTS` floats.
    type Floats: Copy;

    /// The first quads of a vector.
    fn load(self, from: &[u8]) -> Self::Bytes;
    /// Each byte shifted right, and of the result what `mask` has.
    fn field<const SHIFT: i32>(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes;
    /// `low | high << SHIFT`; no bit leaves its byte.
    fn join<const SHIFT: i32>(self, low: Self::Bytes, high: Self::Bytes) -> Self::Bytes;
    fn ints(self, value: i32) -> Self::Ints;
    /// Adds the products of four vectors of `BITS`-wide weights and four quads of x, which all outputs share, from -127 to
    /// 127 each. Exact.
    fn dot<const BITS: usize>(
        self,
        sums: Self::Ints,
        weights: [Self::Bytes; 4],
        x: &[[i8; 4]; 4],
    ) -> Self::Ints;
    fn floats(self, value: f32) -> Self::Floats;
    /// Little-endian half floats.
    fn halves(self, from: &[u8]) -> Self::Floats;
    fn convert(self, ints: Self::Ints) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once where the CPU can.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn store(self, floats: Self::Floats, to: &mut [f32]);
    /// Says that what lies so many bytes behind `here` will be wanted soon; there need not be anything.
    #[inline(always)]
    fn prefetch(self, _here: &[u8], _bytes: usize) {}
}

impl Quads for Scalar {
    const OUTPUTS: usize = 4;
    const SIGNED_BYTES: bool = false;
    const ROWS: usize = 4;
    type Bytes = [[u8; 4]; 4];
    type Ints = [i32; 4];
    type Floats = [f32; 4];

    #[inline(always)]
    fn load(self, from: &[u8]) -> [[u8; 4]; 4] {
        *from.as_chunks().0.first_chunk().expect("a vector has sixteen quads")
    }
    #[inline(always)]
    fn field<const SHIFT: i32>(self, bytes: [[u8; 4]; 4], mask: u8) -> [[u8; 4]; 4] {
        bytes.map(|quad| quad.map(|byte| byte >> SHIFT & mask))
    }
    #[inline(always)]
    fn join<const SHIFT: i32>(self, low: [[u8; 4]; 4], high: [[u8; 4]; 4]) -> [[u8; 4]; 4] {
        std::array::from_fn(|o| std::array::from_fn(|i| low[o][i] | high[o][i] << SHIFT))
    }
    #[inline(always)]
    fn ints(self, value: i32) -> [i32; 4] {
        [value; 4]
    }
    #[inline(always)]
    fn dot<const BITS: usize>(
        self,
        mut sums: [i32; 4],
        weights: [[[u8; 4]; 4]; 4],
        x: &[[i8; 4]; 4],
    ) -> [i32; 4] {
        for (weights, x) in weights.iter().zip(x) {
            for (sum, quad) in sums.iter_mut().zip(weights) {
                for (w, x) in quad.iter().zip(x) {
                    *sum += i32::from(*w) * i32::from(*x);
                }
            }
        }
        sums
    }
    #[inline(always)]
    fn floats(self, value: f32) -> [f32; 4] {
        [value; 4]
    }
    #[inline(always)]
    fn halves(self, from: &[u8]) -> [f32; 4] {
        let pairs = from.as_chunks().0;
        std::array::from_fn(|o| half::f16::from_le_bytes(pairs[o]).to_f32())
    }
    #[inline(always)]
    fn convert(self, ints: [i32; 4]) -> [f32; 4] {
        ints.map(|int| int as f32)
    }
    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|o| a[o] * b[o])
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|o| if FUSED { a[o].mul_add(b[o], c[o]) } else { a[o] * b[o] + c[o] })
    }
    #[inline(always)]
    fn store(self, floats: [f32; 4], to: &mut [f32]) {
        to[..4].copy_from_slice(&floats);
    }
}
