use std::sync::Arc;

use base_mlx_simd::{Dense, Packed};
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
    Bytes(Bytes),
    /// A matrix of floats, in an order of its own.
    Dense(Arc<Dense>),
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
            Dtype::U8 => Self(Values::Bytes(data.data)),
        }
    }

    pub(super) fn dense(matrix: Dense) -> Self {
        Self(Values::Dense(Arc::new(matrix)))
    }

    pub(super) fn packed(matrix: Packed) -> Self {
        Self(Values::Packed(Arc::new(matrix)))
    }

    pub(super) fn as_dense(&self) -> &Dense {
        match &self.0 {
            Values::Dense(matrix) => matrix,
            _ => panic!("an array read as a matrix of floats"),
        }
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
            Values::Bytes(data) => data.len(),
            Values::Dense(matrix) => matrix.bytes(),
            Values::Packed(matrix) => matrix.bytes(),
        }
    }

    /// As one dimension: an array has no shape of its own.
    pub(super) fn to_host(&self) -> HostArray {
        match &self.0 {
            Values::F32(values) => HostArray::from_f32(&[values.len()], values),
            Values::U32(values) => HostArray::from_u32(&[values.len()], values),
            Values::Bytes(data) => {
                HostArray { dtype: Dtype::U8, shape: vec![data.len()], data: data.clone() }
            }
            Values::Dense(_) | Values::Packed(_) => panic!("a weight is not downloaded"),
        }
    }

    pub(super) fn as_f32(&self) -> &[f32] {
        match &self.0 {
            Values::F32(values) => values,
            Values::U32(_) => panic!("an array of U32 read as floats"),
            Values::Bytes(_) => panic!("an array of U8 read as floats"),
            Values::Dense(_) | Values::Packed(_) => panic!("a weight used as activations"),
        }
    }

    pub(super) fn as_u32(&self) -> &Arc<Vec<u32>> {
        match &self.0 {
            Values::U32(values) => values,
            _ => panic!("an array of floats read as U32"),
        }
    }
}
