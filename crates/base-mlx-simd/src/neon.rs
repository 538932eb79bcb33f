//! NEON with products of bytes: Apple's chips, and Arm's own cores since 2018 or so.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use crate::isa::{Kernel, Lanes};
use crate::quads::{QuadKernel, Quads};

/// Exists only if the CPU has NEON and SDOT.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    pub fn detect() -> Option<Self> {
        let has = is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod");
        has.then_some(Self(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn compiled_for_neon<K: Kernel>(neon: Neon, kernel: K) -> K::Output {
            kernel.run(neon)
        }
        // SAFETY: a `Neon` exists only if the CPU has these features.
        unsafe { compiled_for_neon(self, kernel) }
    }

    pub(crate) fn run_quads<K: QuadKernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        fn compiled_for_neon<K: QuadKernel>(neon: Neon, kernel: K) -> K::Output {
            kernel.run(neon)
        }
        // SAFETY: a `Neon` exists only if the CPU has these features.
        unsafe { compiled_for_neon(self, kernel) }
    }
}

/// Instructions on values, without memory: sound wherever a [`Neon`] exists. Unsafe although every build for this
/// architecture may use NEON: what counts is that the calling function does not name it.
macro_rules! values {
    ($call:expr) => {
        // SAFETY: `self` exists only if the CPU has NEON.
        unsafe { $call }
    };
}

/// One instruction on the first four lanes, and on the others.
macro_rules! both {
    ($call:ident, $($value:ident),+) => {
        values!(($call($($value.0),+), $call($($value.1),+)))
    };
}

impl Lanes for Neon {
    const WIDTH: usize = 8;
    const ROWS: usize = 6;
    type V = (float32x4_t, float32x4_t);
    type Pairs = (int16x8_t, int16x8_t);
    type Ints = (int32x4_t, int32x4_t);

    #[inline(always)]
    fn splat(self, value: f32) -> Self::V {
        values!((vdupq_n_f32(value), vdupq_n_f32(value)))
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> Self::V {
        let from: &[f32; 8] = from.first_chunk().expect("a vector has eight floats");
        // SAFETY: the CPU has NEON, and the array holds the eight floats that are read.
        unsafe { (vld1q_f32(from.as_ptr()), vld1q_f32(from[4..].as_ptr())) }
    }
    #[inline(always)]
    fn store(self, value: Self::V, to: &mut [f32]) {
        let to: &mut [f32; 8] = to.first_chunk_mut().expect("room for a vector");
        // SAFETY: the CPU has NEON, and the array takes the eight floats that are written.
        unsafe {
            vst1q_f32(to.as_mut_ptr(), value.0);
            vst1q_f32(to[4..].as_mut_ptr(), value.1);
        }
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        both!(vdivq_f32, a, b)
    }
    // FMAX and FMIN would pass on what is not a number; all other implementations take `b` then.
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        let greater = both!(vcgtq_f32, a, b);
        both!(vbslq_f32, greater, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        let less = both!(vcltq_f32, a, b);
        both!(vbslq_f32, less, a, b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        both!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        values!({
            let four = vaddq_f32(v.0, v.1);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vpadds_f32(two)
        })
    }
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        values!(vmaxnmvq_f32(vmaxnmq_f32(v.0, v.1)))
    }
    #[inline(always)]
    fn pow2(self, value: Self::V) -> Self::V {
        let whole = both!(vcvtq_s32_f32, value);
        let bias = values!((vdupq_n_s32(127), vdupq_n_s32(127)));
        let exponent = both!(vaddq_s32, whole, bias);
        let bits = values!((vshlq_n_s32::<23>(exponent.0), vshlq_n_s32::<23>(exponent.1)));
        both!(vreinterpretq_f32_s32, bits)
    }
    #[inline(always)]
    fn f16(self, from: &[u8]) -> Self::V {
        let from: &[u8; 16] = from.first_chunk().expect("a vector has eight halves");
        // SAFETY: the CPU has NEON, and the array holds the sixteen bytes that are read.
        unsafe {
            let halves = vreinterpretq_f16_u8(vld1q_u8(from.as_ptr()));
            (vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves))
        }
    }
    #[inline(always)]
    fn bf16(self, from: &[u8]) -> Self::V {
        let from: &[u8; 16] = from.first_chunk().expect("a vector has eight bfloats");
        // SAFETY: the CPU has NEON, and the array holds the sixteen bytes that are read.
        unsafe {
            let halves = vreinterpretq_u16_u8(vld1q_u8(from.as_ptr()));
            let (low, high) =
                (vshll_n_u16::<16>(vget_low_u16(halves)), vshll_high_n_u16::<16>(halves));
            (vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }
    #[inline(always)]
    fn i8(self, from: &[i8]) -> Self::V {
        let from: &[i8; 8] = from.first_chunk().expect("a vector has eight integers");
        // SAFETY: the CPU has NEON, and the array holds the eight bytes that are read.
        unsafe {
            let wide = vmovl_s8(vld1_s8(from.as_ptr()));
            let (low, high) = (vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide));
            (vcvtq_f32_s32(low), vcvtq_f32_s32(high))
        }
    }
    #[inline(always)]
    fn pairs(self, from: &[[i16; 2]]) -> Self::Pairs {
        let from: &[i16; 16] = from.as_flattened().first_chunk().expect("a vector has eight pairs");
        // SAFETY: the CPU has NEON, and the array holds the integers that are read.
        unsafe { (vld1q_s16(from.as_ptr()), vld1q_s16(from[8..].as_ptr())) }
    }
    #[inline(always)]
    fn splat_pair(self, [a, b]: [i16; 2]) -> Self::Pairs {
        let pair = i32::from(a as u16) | i32::from(b) << 16;
        values!({
            let pairs = vreinterpretq_s16_s32(vdupq_n_s32(pair));
            (pairs, pairs)
        })
    }
    #[inline(always)]
    fn splat_int(self, value: i32) -> Self::Ints {
        values!((vdupq_n_s32(value), vdupq_n_s32(value)))
    }
    #[inline(always)]
    fn dot_pairs(self, sums: Self::Ints, a: Self::Pairs, b: Self::Pairs) -> Self::Ints {
        values!({
            let low = vpaddq_s32(
                vmull_s16(vget_low_s16(a.0), vget_low_s16(b.0)),
                vmull_high_s16(a.0, b.0),
            );
            let high = vpaddq_s32(
                vmull_s16(vget_low_s16(a.1), vget_low_s16(b.1)),
                vmull_high_s16(a.1, b.1),
            );
            (vaddq_s32(sums.0, low), vaddq_s32(sums.1, high))
        })
    }
    #[inline(always)]
    fn convert(self, ints: Self::Ints) -> Self::V {
        values!((vcvtq_f32_s32(ints.0), vcvtq_f32_s32(ints.1)))
    }
    #[inline(always)]
    fn nibbles(self, from: &[u8], shift: u32) -> Self::V {
        let from: &[u8; 8] = from.first_chunk().expect("a vector has eight nibbles");
        // SAFETY: the CPU has NEON, and the array holds the eight bytes that are read.
        unsafe {
            // By a negative number, which is to the right.
            let shifted = vshl_u8(vld1_u8(from.as_ptr()), vdup_n_s8(-(shift as i8)));
            let nibbles = vreinterpret_s8_u8(vand_u8(shifted, vdup_n_u8(15)));
            let wide = vmovl_s8(vsub_s8(nibbles, vdup_n_s8(8)));
            let (low, high) = (vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide));
            (vcvtq_f32_s32(low), vcvtq_f32_s32(high))
        }
    }
    #[inline(always)]
    fn prefetch<T: ?Sized>(self, here: &T, bytes: usize) {
        let there = std::ptr::from_ref(here).addr().wrapping_add(bytes);
        // SAFETY: a prefetch of any address is sound: it reads nothing and faults nowhere.
        unsafe {
            asm!("prfm pldl2keep, [{}]", in(reg) there, options(nomem, nostack, preserves_flags));
        }
    }
}

impl Quads for Neon {
    const OUTPUTS: usize = 4;
    const SIGNED_BYTES: bool = true;
    const ROWS: usize = 8;
    type Bytes = uint8x16_t;
    type Ints = int32x4_t;
    type Floats = float32x4_t;

    #[inline(always)]
    fn load(self, from: &[u8]) -> uint8x16_t {
        let from: &[u8; 16] = from.first_chunk().expect("a vector has four quads");
        // SAFETY: the CPU has NEON, and the array holds the bytes that are read.
        unsafe { vld1q_u8(from.as_ptr()) }
    }
    #[inline(always)]
    fn field<const SHIFT: i32>(self, bytes: uint8x16_t, mask: u8) -> uint8x16_t {
        values!({
            let shifted = match SHIFT {
                0 => bytes,
                1 => vshrq_n_u8::<1>(bytes),
                2 => vshrq_n_u8::<2>(bytes),
                3 => vshrq_n_u8::<3>(bytes),
                4 => vshrq_n_u8::<4>(bytes),
                5 => vshrq_n_u8::<5>(bytes),
                6 => vshrq_n_u8::<6>(bytes),
                _ => vshrq_n_u8::<7>(bytes),
            };
            vandq_u8(shifted, vdupq_n_u8(mask))
        })
    }
    #[inline(always)]
    fn join<const SHIFT: i32>(self, low: uint8x16_t, high: uint8x16_t) -> uint8x16_t {
        values!(vorrq_u8(low, vshlq_n_u8::<SHIFT>(high)))
    }
    #[inline(always)]
    fn ints(self, value: i32) -> int32x4_t {
        values!(vdupq_n_s32(value))
    }
    #[inline(always)]
    fn dot<const BITS: usize>(
        self,
        sums: int32x4_t,
        weights: [uint8x16_t; 4],
        x: &[[i8; 4]; 4],
    ) -> int32x4_t {
        // SAFETY: a `Neon` exists only if the CPU has SDOT.
        unsafe { dot::<BITS>(sums, weights, x) }
    }
    #[inline(always)]
    fn floats(self, value: f32) -> float32x4_t {
        values!(vdupq_n_f32(value))
    }
    #[inline(always)]
    fn halves(self, from: &[u8]) -> float32x4_t {
        let from: &[u8; 8] = from.first_chunk().expect("a vector has four halves");
        // SAFETY: the CPU has NEON, and the array holds the eight bytes that are read.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(from.as_ptr()))) }
    }
    #[inline(always)]
    fn convert(self, ints: int32x4_t) -> float32x4_t {
        values!(vcvtq_f32_s32(ints))
    }
    #[inline(always)]
    fn mul(self, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        values!(vmulq_f32(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        values!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    fn store(self, floats: float32x4_t, to: &mut [f32]) {
        let to: &mut [f32; 4] = to.first_chunk_mut().expect("room for a vector");
        // SAFETY: the CPU has NEON, and the array takes the floats that are written.
        unsafe { vst1q_f32(to.as_mut_ptr(), floats) }
    }
    #[inline(always)]
    fn prefetch(self, here: &[u8], bytes: usize) {
        let there = here.as_ptr().addr().wrapping_add(bytes);
        // SAFETY: a prefetch of any address is sound: it reads nothing and faults nowhere.
        unsafe {
            asm!("prfm pldl1keep, [{}]", in(reg) there, options(nomem, nostack, preserves_flags));
        }
    }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot<const BITS: usize>(
    sums: int32x4_t,
    weights: [uint8x16_t; 4],
    x: &[[i8; 4]; 4],
) -> int32x4_t {
    // SAFETY: the array holds the sixteen bytes that are read.
    let x = unsafe { vld1q_s8(x.as_ptr().cast()) };
    let sums = dot_quad::<0>(sums, signed::<BITS>(weights[0]), x);
    let sums = dot_quad::<1>(sums, signed::<BITS>(weights[1]), x);
    let sums = dot_quad::<2>(sums, signed::<BITS>(weights[2]), x);
    dot_quad::<3>(sums, signed::<BITS>(weights[3]), x)
}

#[inline]
#[target_feature(enable = "neon")]
fn signed<const BITS: usize>(weights: uint8x16_t) -> int8x16_t {
    // Whole bytes count from -128 on; narrower weights are the same with a sign.
    vreinterpretq_s8_u8(if BITS == 8 { veorq_u8(weights, vdupq_n_u8(0x80)) } else { weights })
}

/// `vdotq_laneq_s32`, which is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_quad<const QUAD: usize>(mut sums: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: the function may use SDOT, which works on these registers alone.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {weights:v}.16b, {x:v}.4b[{quad}]",
            sums = inout(vreg) sums,
            weights = in(vreg) weights,
            x = in(vreg) x,
            quad = const QUAD,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
