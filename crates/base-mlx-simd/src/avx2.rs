//! AVX2 with FMA and F16C: every x86-64 CPU since 2015 or so.

use std::arch::x86_64::*;

use crate::isa::{Kernel, Lanes};

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

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn compiled_for_avx2<K: Kernel>(avx2: Avx2, kernel: K) -> K::Output {
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
    type V = __m256;

    #[inline(always)]
    fn splat(self, value: f32) -> __m256 {
        values!(_mm256_set1_ps(value))
    }
    #[inline(always)]
    fn load(self, from: &[f32; 8]) -> __m256 {
        // SAFETY: the CPU has AVX, and the array holds the eight floats that are read; no alignment is asked for.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: __m256, to: &mut [f32; 8]) {
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
    fn sums(self, [a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        let mut to = [0.0; 4];
        // SAFETY: the CPU has AVX2, and the array takes the four floats that are written.
        unsafe {
            // The low half of each is from the first of a pair, the high half from the second.
            let ab = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(a, b),
                _mm256_permute2f128_ps::<0x31>(a, b),
            );
            let cd = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(c, d),
                _mm256_permute2f128_ps::<0x31>(c, d),
            );
            // a a c c, b b d d
            let two = _mm256_add_ps(
                _mm256_shuffle_ps::<0b01_00_01_00>(ab, cd),
                _mm256_shuffle_ps::<0b11_10_11_10>(ab, cd),
            );
            let (ac, bd) = (_mm256_castps256_ps128(two), _mm256_extractf128_ps::<1>(two));
            // a c b d: the even floats plus the odd ones.
            let even = _mm_shuffle_ps::<0b10_00_10_00>(ac, bd);
            let odd = _mm_shuffle_ps::<0b11_01_11_01>(ac, bd);
            let acbd = _mm_add_ps(even, odd);
            _mm_storeu_ps(to.as_mut_ptr(), _mm_permute_ps::<0b11_01_10_00>(acbd));
        }
        to
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
    fn unsigned<const BITS: usize>(self, from: &[u8; BITS]) -> __m256 {
        // SAFETY: the CPU has AVX2, and no load reads beyond the `BITS` bytes of the array.
        unsafe {
            let bytes = from.as_ptr();
            let whole = match BITS {
                8 => _mm256_cvtepu8_epi32(_mm_loadl_epi64(bytes.cast())),
                // All eight fit into 32 bits: one shift by another count in each lane.
                2..=4 => {
                    let mut word = [0; 4];
                    word[..BITS].copy_from_slice(from);
                    let word = _mm256_set1_epi32(i32::from_le_bytes(word));
                    low_bits::<BITS>(_mm256_srlv_epi32(word, bits_below::<BITS>(32)))
                }
                // Each lane takes the two bytes that hold its value.
                _ => {
                    let four = _mm_loadu_si32(bytes);
                    let word = match BITS {
                        5 => _mm_insert_epi8::<4>(four, i32::from(from[4])),
                        _ => _mm_insert_epi16::<2>(
                            four,
                            i32::from(u16::from_le_bytes([from[4], from[5]])),
                        ),
                    };
                    let pairs = lanes_of(|lane| {
                        let first = (lane as usize * BITS / 8) as u8;
                        i32::from_le_bytes([first, first + 1, ZERO, ZERO])
                    });
                    let taken = _mm256_shuffle_epi8(_mm256_broadcastq_epi64(word), pairs);
                    low_bits::<BITS>(_mm256_srlv_epi32(taken, bits_below::<BITS>(8)))
                }
            };
            _mm256_cvtepi32_ps(whole)
        }
    }
    #[inline(always)]
    fn f16(self, from: &[u8; 16]) -> __m256 {
        // SAFETY: the CPU has F16C, and the array holds the sixteen bytes that are read.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn bf16(self, from: &[u8; 16]) -> __m256 {
        // SAFETY: the CPU has AVX2, and the array holds the sixteen bytes that are read.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
}

/// How many bits lie before each lane's value in the `unit` of bits where it begins.
#[inline]
#[target_feature(enable = "avx2")]
fn bits_below<const BITS: usize>(unit: i32) -> __m256i {
    lanes_of(|lane| lane * BITS as i32 % unit)
}

#[inline]
#[target_feature(enable = "avx2")]
fn low_bits<const BITS: usize>(values: __m256i) -> __m256i {
    _mm256_and_si256(values, _mm256_set1_epi32((1 << BITS) - 1))
}

#[inline]
#[target_feature(enable = "avx2")]
fn lanes_of(of: impl Fn(i32) -> i32) -> __m256i {
    _mm256_setr_epi32(of(0), of(1), of(2), of(3), of(4), of(5), of(6), of(7))
}

/// A shuffle writes a zero where the index has its highest bit set.
const ZERO: u8 = 0x80;
