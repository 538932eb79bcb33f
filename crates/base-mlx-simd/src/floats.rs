//! Plain floats as they lie in a file, and as kernels load them.

use half::{bf16, f16};

use crate::isa::Lanes;

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
            Self::F16(bytes) => f16::from_le_bytes(bytes.as_chunks().0[index]).to_f32(),
            Self::BF16(bytes) => bf16::from_le_bytes(bytes.as_chunks().0[index]).to_f32(),
        }
    }
}

/// Numbers that become lanes; any bytes are some.
pub(crate) trait Value: Copy + Default + Send + Sync {
    /// As many as there are lanes.
    fn load<L: Lanes>(lanes: L, from: &[Self]) -> L::V;
}

impl Value for f32 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[f32]) -> L::V {
        lanes.load(from)
    }
}

impl Value for f16 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[f16]) -> L::V {
        // SAFETY: a half is two bytes, without padding.
        lanes.f16(unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), 2 * from.len()) })
    }
}

impl Value for bf16 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[bf16]) -> L::V {
        // SAFETY: a bfloat is two bytes, without padding.
        lanes.bf16(unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), 2 * from.len()) })
    }
}

impl Value for i8 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[i8]) -> L::V {
        lanes.i8(from)
    }
}
