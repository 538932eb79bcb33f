//! AVX2 with FMA and F16C: every x86-64 CPU since 2015 or so.

use std::arch::x86_64::*;

use crate::isa::{Kernel, Lanes};
use crate::quads::{QuadKernel, Quads};

/// Exists only if the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }

    /// Whether [`Lanes::dot_pairs`] multiplies twice as many values in a cycle as [`Lanes::mul_add`]: from AMD's Zen 3 and
    /// Intel's Ice Lake on, which are told by the instructions that came with them.
    pub(crate) fn has_two_multipliers(self) -> bool {
        is_x86_feature_detected!("vaes")
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled_for_avx2<K: Kernel>(avx2: Avx2, kernel: K) -> K::Output {
            kernel.run(avx2)
        }
        // SAFETY: an `Avx2` exists only if the CPU has these features.
        unsafe { compiled_for_avx2(self, kernel) }
    }

    pub(crate) fn run_quads<K: QuadKernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled_for_avx2<K: QuadKernel>(avx2: Avx2, kernel: K) -> K::Output {
            kernel.run(avx2)
        }
        // SAFETY: an `Avx2` exists only if the CPU has these features.
        unsafe { compiled_for_avx2(self, kernel) }
    }
}

/// Instructions on values, without memory: sound wherever an [`Avx2`] exists.
macro_rules! values {
    ($call:expr) => {
        // SAFETY: `self` exists only if the CPU has AVX2, FMA and F16C.
        unsafe { $call }
    };
}

impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    const ROWS: usize = 6;
    type V = __m256;
    type Pairs = __m256i;
    type Ints = __m256i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        values!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from: &[f32; 8] = from.first_chunk().expect("a vector has eight floats");
        // SAFETY: the CPU has AVX, and the array holds the eight floats that are read; no alignment is asked for.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: __m256, to: &mut [f32]) {
        let to: &mut [f32; 8] = to.first_chunk_mut().expect("room for a vector");
        // SAFETY: the CPU has AVX, and the array takes the eight floats that are written.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        values!(_mm256_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        values!(_mm256_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        values!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m256, b: __m256) -> __m256 {
        values!(_mm256_div_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m256, b: __m256) -> __m256 {
        values!(_mm256_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m256, b: __m256) -> __m256 {
        values!(_mm256_min_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        values!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sum(self, v: __m256) -> f32 {
        values!({
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn largest(self, v: __m256) -> f32 {
        values!({
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        })
    }
    #[inline(always)]
    fn pow2(self, value: __m256) -> __m256 {
        values!({
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(value), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn f16(self, from: &[u8]) -> __m256 {
        let from: &[u8; 16] = from.first_chunk().expect("a vector has eight halves");
        // SAFETY: the CPU has F16C, and the array holds the sixteen bytes that are read.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn bf16(self, from: &[u8]) -> __m256 {
        let from: &[u8; 16] = from.first_chunk().expect("a vector has eight bfloats");
        // SAFETY: the CPU has AVX2, and the array holds the sixteen bytes that are read.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn i8(self, from: &[i8]) -> __m256 {
        let from: &[i8; 8] = from.first_chunk().expect("a vector has eight integers");
        // SAFETY: the CPU has AVX2, and the array holds the eight bytes that are read.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn pairs(self, from: &[[i16; 2]]) -> __m256i {
        let from: &[[i16; 2]; 8] = from.first_chunk().expect("a vector has eight pairs");
        // SAFETY: the CPU has AVX2, and the array holds the integers that are read.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_pair(self, [a, b]: [i16; 2]) -> __m256i {
        let pair = i32::from(a as u16) | i32::from(b) << 16;
        values!(_mm256_set1_epi32(pair))
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m256i {
        values!(_mm256_set1_epi32(value))
    }
    #[inline(always)]
    fn dot_pairs(self, sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        values!(_mm256_add_epi32(sums, _mm256_madd_epi16(a, b)))
    }
    #[inline(always)]
    fn convert(self, ints: __m256i) -> __m256 {
        values!(_mm256_cvtepi32_ps(ints))
    }
    #[inline(always)]
    fn nibbles(self, from: &[u8], shift: u32) -> __m256 {
        let from: &[u8; 8] = from.first_chunk().expect("a vector has eight nibbles");
        // SAFETY: the CPU has AVX2, and the array holds the eight bytes that are read.
        unsafe {
            let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            let shifted = _mm256_srlv_epi32(wide, _mm256_set1_epi32(shift as i32));
            let nibbles = _mm256_and_si256(shifted, _mm256_set1_epi32(15));
            _mm256_cvtepi32_ps(_mm256_sub_epi32(nibbles, _mm256_set1_epi32(8)))
        }
    }
    #[inline(always)]
    fn prefetch<T: ?Sized>(self, here: &T, bytes: usize) {
        let there = std::ptr::from_ref(here).cast::<i8>().wrapping_add(bytes);
        // SAFETY: a prefetch of any address is sound: it reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(there) }
    }
}

impl Quads for Avx2 {
    const OUTPUTS: usize = 8;
    const SIGNED_BYTES: bool = true;
    const ROWS: usize = 4;
    type Bytes = __m256i;
    type Ints = __m256i;
    type Floats = __m256;

    #[inline(always)]
    fn load(self, from: &[u8]) -> __m256i {
        let from: &[u8; 32] = from.first_chunk().expect("a vector has sixteen quads");
        // SAFETY: the CPU has AVX2, and the array holds the bytes that are read.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn field<const SHIFT: i32>(self, bytes: __m256i, mask: u8) -> __m256i {
        values!({
            let shifted = if SHIFT == 0 { bytes } else { _mm256_srli_epi16::<SHIFT>(bytes) };
            _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
        })
    }
    #[inline(always)]
    fn join<const SHIFT: i32>(self, low: __m256i, high: __m256i) -> __m256i {
        values!(_mm256_or_si256(low, _mm256_slli_epi16::<SHIFT>(high)))
    }
    #[inline(always)]
    fn ints(self, value: i32) -> __m256i {
        values!(_mm256_set1_epi32(value))
    }
    #[inline(always)]
    fn dot<const BITS: usize>(
        self,
        sums: __m256i,
        weights: [__m256i; 4],
        x: &[[i8; 4]; 4],
    ) -> __m256i {
        // SAFETY: an `Avx2` exists only if the CPU has AVX2.
        unsafe { dot::<BITS>(sums, weights, x) }
    }
    #[inline(always)]
    fn floats(self, value: f32) -> __m256 {
        values!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn halves(self, from: &[u8]) -> __m256 {
        Lanes::f16(self, from)
    }
    #[inline(always)]
    fn convert(self, ints: __m256i) -> __m256 {
        values!(_mm256_cvtepi32_ps(ints))
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        values!(_mm256_mul_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        values!(_mm256_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn store(self, floats: __m256, to: &mut [f32]) {
        Lanes::store(self, floats, to);
    }
    #[inline(always)]
    fn prefetch(self, here: &[u8], bytes: usize) {
        let there = here.as_ptr().cast::<i8>().wrapping_add(bytes);
        // SAFETY: a prefetch of any address is sound: it reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(there) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn dot<const BITS: usize>(sums: __m256i, weights: [__m256i; 4], x: &[[i8; 4]; 4]) -> __m256i {
    let a = pairs::<BITS>(weights[0], x[0]);
    let b = pairs::<BITS>(weights[1], x[1]);
    let c = pairs::<BITS>(weights[2], x[2]);
    let d = pairs::<BITS>(weights[3], x[3]);
    match BITS {
        // Two products of 8 bits take 16, four of up to 6 bits, eight of up to 5.
        8 => add_pairs(add_pairs(add_pairs(add_pairs(sums, a), b), c), d),
        6 => {
            let sums = add_pairs(sums, _mm256_add_epi16(a, b));
            add_pairs(sums, _mm256_add_epi16(c, d))
        }
        _ => add_pairs(sums, _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d))),
    }
}

/// Sums of two products, in 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs<const BITS: usize>(weights: __m256i, x: [i8; 4]) -> __m256i {
    let quad = _mm256_set1_epi32(i32::from_le_bytes(x.map(|x| x as u8)));
    if BITS < 8 {
        return _mm256_maddubs_epi16(weights, quad);
    }
    // Two products with unsigned bytes would overflow; with bytes from -128 on they fit just so.
    let signed = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
    _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(quad, signed))
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs(sums: __m256i, pairs: __m256i) -> __m256i {
    _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}
