use std::sync::Arc;

use base_mlx_simd::{Floats, Packed};
use bytes::Bytes;

use super::buffer::Buffer;
use crate::tensor::{Dtype, HostArray};

/// Values in the host's memory, shared by those who hold them.
#[derive(Clone)]
pub struct CpuArray(Values);

#[derive(Clone)]
enum Values {
    F32(Arc<Buffer>),
    U32(Arc<Vec<u32>>),
    /// Parameters in the type and place that the checkpoint has them in, which may be a mapped file.
    Stored(Dtype, Bytes),
    /// A quantised matrix, with its scales.
    Packed(Arc<Packed>),
}

impl CpuArray {
    pub(super) fn f32(values: impl Into<Buffer>) -> Self {
        Self(Values::F32(Arc::new(values.into())))
    }

    /// Floats of any type become f32, ready for arithmetic.
    pub(super) fn from_host(data: HostArray) -> Self {
        match data.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Self::f32(data.to_f32()),
            Dtype::U32 => Self(Values::U32(Arc::new(data.to_u32()))),
            Dtype::U8 => Self::as_it_lies(data),
        }
    }

    /// No copy, no conversion.
    pub(super) fn as_it_lies(data: HostArray) -> Self {
        Self(Values::Stored(data.dtype, data.data))
    }

    pub(super) fn packed(matrix: Packed) -> Self {
        Self(Values::Packed(Arc::new(matrix)))
    }

    pub(super) fn as_packed(&self) -> &Packed {
        match &self.0 {
            Values::Packed(matrix) => matrix,
            _ => panic!("an array read as a quantised matrix"),
        }
    }

    /// Of memory.
    pub(super) fn bytes(&self) -> usize {
        match &self.0 {
            Values::F32(values) => size_of_val(&values[..]),
            Values::U32(values) => size_of_val(&values[..]),
            Values::Stored(_, data) => data.len(),
            Values::Packed(matrix) => matrix.bytes(),
        }
    }

    /// As one dimension: an array has no shape of its own.
    pub(super) fn to_host(&self) -> HostArray {
        match &self.0 {
            Values::F32(values) => HostArray::from_f32(&[values.len()], values),
            Values::U32(values) => HostArray::from_u32(&[values.len()], values),
            Values::Stored(dtype, data) => HostArray {
                dtype: *dtype,
                shape: vec![data.len() / dtype.size()],
                data: data.clone(),
            },
            Values::Packed(_) => panic!("a quantised matrix is not downloaded"),
        }
    }

    pub(super) fn as_f32(&self) -> &[f32] {
        match &self.0 {
            Values::F32(values) => values,
            Values::U32(_) => panic!("an array of U32 read as floats"),
            Values::Packed(_) => panic!("a quantised matrix read as floats"),
            Values::Stored(dtype, _) => panic!("stored {dtype} used as activations"),
        }
    }

    pub(super) fn as_u32(&self) -> &Arc<Vec<u32>> {
        match &self.0 {
            Values::U32(values) => values,
            _ => panic!("an array of floats read as U32"),
        }
    }

    /// Parameters as little-endian floats.
    pub(super) fn floats(&self) -> Floats<'_> {
        match &self.0 {
            Values::F32(values) => Floats::F32(bytemuck::cast_slice(&values[..])),
            Values::Stored(Dtype::F32, data) => Floats::F32(data),
            Values::Stored(Dtype::F16, data) => Floats::F16(data),
            Values::Stored(Dtype::BF16, data) => Floats::BF16(data),
            _ => panic!("an array of integers read as floats"),
        }
    }
}
