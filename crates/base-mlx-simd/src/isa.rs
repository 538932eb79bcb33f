//! Which instructions a kernel may use, and the vectors of f32 that it is written in.

use crate::amx::Amx;
#[cfg(target_arch = "x86_64")]
pub(crate) use crate::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use crate::avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use crate::neon::Neon;
use crate::quads::QuadKernel;

/// An instruction set that this CPU has. Found once, then handed to every kernel.
#[derive(Clone, Copy, Debug)]
pub enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

impl Isa {
    /// The fastest one that this CPU has.
    pub fn best() -> Self {
        Self::all().into_iter().next_back().unwrap_or(Self::Scalar)
    }

    /// Every one that this CPU has, the slowest first.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Avx2::detect().map(Self::Avx2));
            let avx512 = Avx512::detect();
            all.extend(avx512.map(Self::Avx512));
            all.extend(avx512.and_then(Avx512::with_amx).map(Self::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(Neon::detect().map(Self::Neon));
        all
    }

    /// Of what it computes floats with: whether there are tiles besides makes no difference to them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
        }
    }

    /// Whether products of [`Dense::rounded`](crate::Dense::rounded) are faster than those of floats here.
    pub fn rounds_to_gain(self) -> bool {
        match self {
            Self::Scalar => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.has_two_multipliers(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => false,
        }
    }

    /// Whether it has AMX, with which [`Dense::rounded`](crate::Dense::rounded) splits values in two.
    pub fn has_tiles(self) -> bool {
        self.amx().is_some()
    }

    #[inline(always)]
    pub(crate) fn amx(self) -> Option<Amx> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) => avx512.amx,
            _ => None,
        }
    }

    /// Runs a kernel compiled for this instruction set.
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) => avx512.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(neon) => neon.run(kernel),
        }
    }

    pub(crate) fn run_quads<K: QuadKernel>(self, kernel: K) -> K::Output {
        match self {
            Self::Scalar => kernel.run(Scalar),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.run_quads(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) => avx512.run_quads(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(neon) => neon.run_quads(kernel),
        }
    }
}

/// Work written over [`Lanes`]. `run` and all it calls must be `#[inline(always)]`: the body takes on the instruction
/// set of the function that it is inlined into.
pub trait Kernel {
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Some f32 lanes. A value of the implementing type proves that the CPU has the instructions.
pub trait Lanes: Copy + Send + Sync + 'static {
    /// 8 or 16.
    const WIDTH: usize;
    /// How many rows of two vectors of sums the registers have room for beside two vectors of weights: 2, 4, 6 or 8.
    const ROWS: usize;
    type V: Copy;
    /// As many pairs of 16-bit integers.
    type Pairs: Copy;
    /// As many 32-bit integers.
    type Ints: Copy;

    fn splat(self, value: f32) -> Self::V;
    /// The first `WIDTH` values.
    fn load(self, from: &[f32]) -> Self::V;
    fn store(self, value: Self::V, to: &mut [f32]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `b` where one of both is not a number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `b` where one of both is not a number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the CPU can.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Halves are added to each other until one lane is left.
    fn sum(self, value: Self::V) -> f32;
    /// The largest lane; any if one is not a number.
    fn largest(self, value: Self::V) -> f32;
    /// 2 to the power of each lane, which holds a whole number from -126 to 127.
    fn pow2(self, value: Self::V) -> Self::V;
    /// Little-endian half floats, the first `WIDTH`.
    fn f16(self, from: &[u8]) -> Self::V;
    /// Little-endian bfloats, the first `WIDTH`.
    fn bf16(self, from: &[u8]) -> Self::V;
    /// The first `WIDTH` integers.
    fn i8(self, from: &[i8]) -> Self::V;
    /// The first `WIDTH` pairs.
    fn pairs(self, from: &[[i16; 2]]) -> Self::Pairs;
    fn splat_pair(self, pair: [i16; 2]) -> Self::Pairs;
    fn splat_int(self, value: i32) -> Self::Ints;
    /// To each lane both products of its pairs are added; what is too large wraps around.
    fn dot_pairs(self, sums: Self::Ints, a: Self::Pairs, b: Self::Pairs) -> Self::Ints;
    /// Rounded.
    fn convert(self, ints: Self::Ints) -> Self::V;
    /// Of the first `WIDTH` bytes four bits each, from `shift` on, which is 0 or 4: integers from -8 to 7 with 8 added.
    fn nibbles(self, from: &[u8], shift: u32) -> Self::V;
    /// Says that what lies so many bytes behind `here` will be wanted soon; there need not be anything.
    #[inline(always)]
    fn prefetch<T: ?Sized>(self, _here: &T, _bytes: usize) {}

    /// Up to `WIDTH` values; the lanes beyond are zero.
    #[inline(always)]
    fn load_some(self, from: &[f32]) -> Self::V {
        if from.len() == Self::WIDTH {
            return self.load(from);
        }
        let mut padded = [0.0; MOST_LANES];
        padded[..from.len()].copy_from_slice(from);
        self.load(&padded)
    }

    /// The first `to.len()` lanes, `WIDTH` at most.
    #[inline(always)]
    fn store_some(self, value: Self::V, to: &mut [f32]) {
        if to.len() == Self::WIDTH {
            return self.store(value, to);
        }
        let mut all = [0.0; MOST_LANES];
        self.store(value, &mut all);
        to.copy_from_slice(&all[..to.len()]);
    }

    /// e to the power of each lane, to about one unit in the last place; clamped where f32 would over- or underflow;
    /// what is not a number stays none. (The polynomial is Cephes' expf.)
    #[inline(always)]
    fn exp(self, x: Self::V) -> Self::V {
        let x = self.min(self.splat(88.37), self.max(self.splat(-87.33), x));
        // Adding and subtracting 1.5 * 2^23 rounds to a whole number.
        let magic = self.splat(12_582_912.0);
        let n = self.sub(self.mul_add(x, self.splat(std::f32::consts::LOG2_E), magic), magic);
        // ln 2 in two parts, the first exact in few bits, so that r keeps its low bits.
        let r = self.mul_add(n, self.splat(-0.693_359_4), x);
        let r = self.mul_add(n, self.splat(2.121_944_4e-4), r);
        let mut p = self.splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = self.mul_add(p, r, self.splat(c));
        }
        let y = self.add(self.mul_add(p, self.mul(r, r), r), self.splat(1.0));
        self.mul(y, self.pow2(n))
    }
}

/// Of any instruction set.
pub(crate) const MOST_LANES: usize = 16;

/// Plain Rust, for any CPU; the judge of the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

/// A fused multiply-add is a call into a library, and slow, where the compiler may not use the instruction.
pub(crate) const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

impl Scalar {
    #[inline(always)]
    fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
        std::array::from_fn(|lane| f(a[lane], b[lane]))
    }
}

impl Lanes for Scalar {
    const WIDTH: usize = 8;
    const ROWS: usize = 2;
    type V = [f32; 8];
    type Pairs = [[i16; 2]; 8];
    type Ints = [i32; 8];

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 8] {
        [value; 8]
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; 8] {
        *from.first_chunk().expect("a vector has eight floats")
    }
    #[inline(always)]
    fn store(self, value: [f32; 8], to: &mut [f32]) {
        to[..8].copy_from_slice(&value);
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|lane| {
            if FUSED { a[lane].mul_add(b[lane], c[lane]) } else { a[lane] * b[lane] + c[lane] }
        })
    }
    #[inline(always)]
    fn sum(self, v: [f32; 8]) -> f32 {
        let [a, b, c, d] = [v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]];
        (a + c) + (b + d)
    }
    #[inline(always)]
    fn largest(self, value: [f32; 8]) -> f32 {
        value.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn pow2(self, value: [f32; 8]) -> [f32; 8] {
        value.map(|n| f32::from_bits((((n as i32) + 127) as u32) << 23))
    }
    #[inline(always)]
    fn f16(self, from: &[u8]) -> [f32; 8] {
        let pairs = from.as_chunks::<2>().0;
        std::array::from_fn(|lane| half::f16::from_le_bytes(pairs[lane]).to_f32())
    }
    #[inline(always)]
    fn bf16(self, from: &[u8]) -> [f32; 8] {
        let pairs = from.as_chunks::<2>().0;
        std::array::from_fn(|lane| half::bf16::from_le_bytes(pairs[lane]).to_f32())
    }
    #[inline(always)]
    fn i8(self, from: &[i8]) -> [f32; 8] {
        std::array::from_fn(|lane| f32::from(from[lane]))
    }
    #[inline(always)]
    fn pairs(self, from: &[[i16; 2]]) -> [[i16; 2]; 8] {
        *from.first_chunk().expect("a vector has eight pairs")
    }
    #[inline(always)]
    fn splat_pair(self, pair: [i16; 2]) -> [[i16; 2]; 8] {
        [pair; 8]
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> [i32; 8] {
        [value; 8]
    }
    #[inline(always)]
    fn dot_pairs(self, sums: [i32; 8], a: [[i16; 2]; 8], b: [[i16; 2]; 8]) -> [i32; 8] {
        std::array::from_fn(|lane| {
            let [a, b] = [a[lane].map(i32::from), b[lane].map(i32::from)];
            sums[lane].wrapping_add((a[0] * b[0]).wrapping_add(a[1] * b[1]))
        })
    }
    #[inline(always)]
    fn convert(self, ints: [i32; 8]) -> [f32; 8] {
        ints.map(|int| int as f32)
    }
    #[inline(always)]
    fn nibbles(self, from: &[u8], shift: u32) -> [f32; 8] {
        std::array::from_fn(|lane| f32::from(from[lane] >> shift & 15) - 8.0)
    }
}
