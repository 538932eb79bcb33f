//! AVX-512 with VNNI: Intel's servers since 2019, AMD's since Zen 4.

use std::arch::x86_64::*;

use crate::amx::Amx;
use crate::avx2::Avx2;
use crate::isa::{Kernel, Lanes};
use crate::quads::{QuadKernel, Quads};

/// Exists only if the CPU has AVX-512 F, BW, VL and VNNI, and all that `Avx2` stands for.
#[derive(Clone, Copy, Debug)]
pub struct Avx512 {
    pub(crate) avx2: Avx2,
    /// Which some have besides.
    pub(crate) amx: Option<Amx>,
}

impl Avx512 {
    pub fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        Avx2::detect().filter(|_| has).map(|avx2| Self { avx2, amx: None })
    }

    pub(crate) fn with_amx(self) -> Option<Self> {
        Amx::detect().map(|amx| Self { amx: Some(amx), ..self })
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn compiled_for_avx512<K: Kernel>(avx512: Avx512, kernel: K) -> K::Output {
            kernel.run(avx512)
        }
        // SAFETY: an `Avx512` exists only if the CPU has these features.
        unsafe { compiled_for_avx512(self, kernel) }
    }

    pub(crate) fn run_quads<K: QuadKernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
        fn compiled_for_avx512<K: QuadKernel>(avx512: Avx512, kernel: K) -> K::Output {
            kernel.run(avx512)
        }
        // SAFETY: an `Avx512` exists only if the CPU has these features.
        unsafe { compiled_for_avx512(self, kernel) }
    }
}

/// Instructions on values, without memory: sound wherever an [`Avx512`] exists.
macro_rules! values {
    ($call:expr) => {
        // SAFETY: `self` exists only if the CPU has AVX-512 F, BW, VL and VNNI.
        unsafe { $call }
    };
}

impl Lanes for Avx512 {
    const WIDTH: usize = 16;
    const ROWS: usize = 8;
    type V = __m512;
    type Pairs = __m512i;
    type Ints = __m512i;

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        values!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from: &[f32; 16] = from.first_chunk().expect("a vector has sixteen floats");
        // SAFETY: the CPU has AVX-512, and the array holds the floats that are read.
        unsafe { _mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: __m512, to: &mut [f32]) {
        let to: &mut [f32; 16] = to.first_chunk_mut().expect("room for a vector");
        // SAFETY: the CPU has AVX-512, and the array takes the floats that are written.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        values!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        values!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        values!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        values!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        values!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        values!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        values!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        values!({
            let low = _mm512_castps512_ps256(v);
            let high = _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b11_10_11_10>(v, v));
            Lanes::sum(self.avx2, _mm256_add_ps(low, high))
        })
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        values!(_mm512_reduce_max_ps(v))
    }
    #[inline(always)]
    fn pow2(self, value: __m512) -> __m512 {
        values!({
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(value), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        })
    }
    #[inline(always)]
    fn f16(self, from: &[u8]) -> __m512 {
        let from: &[u8; 32] = from.first_chunk().expect("a vector has sixteen halves");
        // SAFETY: the CPU has AVX-512, and the array holds the bytes that are read.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
    }
    #[inline(always)]
    fn bf16(self, from: &[u8]) -> __m512 {
        let from: &[u8; 32] = from.first_chunk().expect("a vector has sixteen bfloats");
        // SAFETY: the CPU has AVX-512, and the array holds the bytes that are read.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn i8(self, from: &[i8]) -> __m512 {
        let from: &[i8; 16] = from.first_chunk().expect("a vector has sixteen integers");
        // SAFETY: the CPU has AVX-512, and the array holds the sixteen bytes that are read.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn pairs(self, from: &[[i16; 2]]) -> __m512i {
        let from: &[[i16; 2]; 16] = from.first_chunk().expect("a vector has sixteen pairs");
        // SAFETY: the CPU has AVX-512, and the array holds the integers that are read.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat_pair(self, [a, b]: [i16; 2]) -> __m512i {
        let pair = i32::from(a as u16) | i32::from(b) << 16;
        values!(_mm512_set1_epi32(pair))
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> __m512i {
        values!(_mm512_set1_epi32(value))
    }
    #[inline(always)]
    fn dot_pairs(self, sums: __m512i, a: __m512i, b: __m512i) -> __m512i {
        values!(_mm512_dpwssd_epi32(sums, a, b))
    }
    #[inline(always)]
    fn convert(self, ints: __m512i) -> __m512 {
        values!(_mm512_cvtepi32_ps(ints))
    }
    #[inline(always)]
    fn nibbles(self, from: &[u8], shift: u32) -> __m512 {
        let from: &[u8; 16] = from.first_chunk().expect("a vector has sixteen nibbles");
        // SAFETY: the CPU has AVX-512, and the array holds the sixteen bytes that are read.
        unsafe {
            let wide = _mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let shifted = _mm512_srlv_epi32(wide, _mm512_set1_epi32(shift as i32));
            // Looks at four bits only.
            let all = [-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.];
            _mm512_permutexvar_ps(shifted, Lanes::load(self, &all))
        }
    }
    #[inline(always)]
    fn prefetch<T: ?Sized>(self, here: &T, bytes: usize) {
        let there = std::ptr::from_ref(here).cast::<i8>().wrapping_add(bytes);
        // SAFETY: a prefetch of any address is sound: it reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(there) }
    }
}

impl Quads for Avx512 {
    const OUTPUTS: usize = 16;
    const SIGNED_BYTES: bool = false;
    const ROWS: usize = 8;
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;

    #[inline(always)]
    fn load(self, from: &[u8]) -> __m512i {
        let from: &[u8; 64] = from.first_chunk().expect("a vector has sixteen quads");
        // SAFETY: the CPU has AVX-512, and the array holds the bytes that are read.
        unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
    }
    #[inline(always)]
    fn field<const SHIFT: i32>(self, bytes: __m512i, mask: u8) -> __m512i {
        values!({
            let shifted = match SHIFT {
                0 => bytes,
                1 => _mm512_srli_epi16::<1>(bytes),
                2 => _mm512_srli_epi16::<2>(bytes),
                3 => _mm512_srli_epi16::<3>(bytes),
                4 => _mm512_srli_epi16::<4>(bytes),
                5 => _mm512_srli_epi16::<5>(bytes),
                6 => _mm512_srli_epi16::<6>(bytes),
                _ => _mm512_srli_epi16::<7>(bytes),
            };
            _mm512_and_si512(shifted, _mm512_set1_epi8(mask as i8))
        })
    }
    #[inline(always)]
    fn join<const SHIFT: i32>(self, low: __m512i, high: __m512i) -> __m512i {
        values!({
            let high = match SHIFT {
                2 => _mm512_slli_epi16::<2>(high),
                _ => _mm512_slli_epi16::<4>(high),
            };
            _mm512_or_si512(low, high)
        })
    }
    #[inline(always)]
    fn ints(self, value: i32) -> __m512i {
        values!(_mm512_set1_epi32(value))
    }
    #[inline(always)]
    fn dot<const BITS: usize>(
        self,
        mut sums: __m512i,
        weights: [__m512i; 4],
        x: &[[i8; 4]; 4],
    ) -> __m512i {
        for i in 0..4 {
            let quad = i32::from_le_bytes(x[i].map(|x| x as u8));
            sums = values!(_mm512_dpbusd_epi32(sums, weights[i], _mm512_set1_epi32(quad)));
        }
        sums
    }
    #[inline(always)]
    fn floats(self, value: f32) -> __m512 {
        values!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn halves(self, from: &[u8]) -> __m512 {
        Lanes::f16(self, from)
    }
    #[inline(always)]
    fn convert(self, ints: __m512i) -> __m512 {
        values!(_mm512_cvtepi32_ps(ints))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        values!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        values!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn store(self, floats: __m512, to: &mut [f32]) {
        let to: &mut [f32; 16] = to.first_chunk_mut().expect("room for a vector");
        // SAFETY: the CPU has AVX-512, and the array takes the floats that are written.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), floats) }
    }
    #[inline(always)]
    fn prefetch(self, here: &[u8], bytes: usize) {
        let there = here.as_ptr().cast::<i8>().wrapping_add(bytes);
        // SAFETY: a prefetch of any address is sound: it reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(there) }
    }
}
