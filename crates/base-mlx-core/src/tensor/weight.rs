use super::Shape;
use crate::backend::Backend;

/// A matrix `[out, in]` of parameters on a device, dense or quantised. Families never learn which.
pub enum Weight<B: Backend> {
    Dense {
        array: B::Array,
        shape: Shape,
    },
    /// `w = scale * q + bias`; see [`HostWeight::Affine`](super::HostWeight::Affine).
    Affine {
        packed: B::Array,
        scales: B::Array,
        biases: B::Array,
        bits: u32,
        group_size: usize,
        shape: Shape,
    },
}

impl<B: Backend> Weight<B> {
    /// `[out, in]`
    pub fn shape(&self) -> Shape {
        match self {
            Self::Dense { shape, .. } | Self::Affine { shape, .. } => *shape,
        }
    }
}

impl<B: Backend> Clone for Weight<B> {
    fn clone(&self) -> Self {
        match self {
            Self::Dense { array, shape } => Self::Dense { array: array.clone(), shape: *shape },
            Self::Affine { packed, scales, biases, bits, group_size, shape } => Self::Affine {
                packed: packed.clone(),
                scales: scales.clone(),
                biases: biases.clone(),
                bits: *bits,
                group_size: *group_size,
                shape: *shape,
            },
        }
    }
}
