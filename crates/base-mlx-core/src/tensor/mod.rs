//! Shapes, data types, and the two things a family handles: [`Tensor`] (values) and [`Weight`] (parameters).
//!
//! Shapes live on the host and are checked here; a wrong one is a bug of ours and panics at the family's line.
//! What an array is, and where it lies, is the backend's affair.

mod dtype;
mod host;
mod shape;
mod weight;

pub use dtype::Dtype;
pub use host::{HostArray, HostWeight};
pub use shape::Shape;
pub use weight::Weight;

use crate::backend::{Activation, Backend, Rope};

/// Values on a device, with their shape.
pub struct Tensor<B: Backend> {
    backend: B,
    array: B::Array,
    shape: Shape,
}

impl<B: Backend> Clone for Tensor<B> {
    fn clone(&self) -> Self {
        Self { backend: self.backend.clone(), array: self.array.clone(), shape: self.shape }
    }
}

impl<B: Backend> Tensor<B> {
    pub fn new(backend: &B, array: B::Array, shape: Shape) -> Self {
        Self { backend: backend.clone(), array, shape }
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    pub fn array(&self) -> &B::Array {
        &self.array
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The size of the first dimension: tokens, rows.
    pub fn rows(&self) -> usize {
        self.shape.dim(0)
    }

    /// The size of the last dimension.
    pub fn width(&self) -> usize {
        self.shape.last()
    }

    /// `[tokens, heads * head_dim]` seen as `[tokens, heads, head_dim]`.
    pub fn split_heads(self, head_dim: usize) -> Self {
        let heads = self.width() / head_dim;
        assert_eq!(heads * head_dim, self.width(), "width {} in heads of {head_dim}", self.width());
        let shape = Shape::new(&[self.rows(), heads, head_dim]);
        Self { shape, ..self }
    }

    /// `[tokens, heads, head_dim]` seen as `[tokens, heads * head_dim]`.
    pub fn merge_heads(self) -> Self {
        let shape = Shape::new(&[self.rows(), self.shape.dim(1) * self.shape.dim(2)]);
        Self { shape, ..self }
    }

    /// Rotates each head of `[tokens, heads, head_dim]` by its token's position.
    pub fn rope(&self, positions: &Tensor<B>, rope: &Rope) -> Self {
        self.with(self.backend.rope(self, positions, rope))
    }

    pub fn activate(&self, activation: Activation) -> Self {
        self.with(self.backend.activate(self, activation))
    }

    /// Elementwise sum of two tensors of one shape.
    pub fn add(&self, other: &Tensor<B>) -> Self {
        assert_eq!(self.shape, other.shape, "add");
        self.with(self.backend.add(self, other))
    }

    /// The rows whose numbers are given, in that order: `[rows.len(), width]`.
    pub fn take_rows(&self, rows: &[u32]) -> Self {
        let array = self.backend.take_rows(self, rows);
        Self::new(&self.backend, array, Shape::new(&[rows.len(), self.width()]))
    }

    /// Another array of the same shape.
    fn with(&self, array: B::Array) -> Self {
        Self { backend: self.backend.clone(), array, shape: self.shape }
    }
}
