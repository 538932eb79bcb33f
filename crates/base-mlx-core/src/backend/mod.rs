//! What a device can do. Models are written once over [`Backend`]; `reference` is the plain judge, `cpu` the fast
//! one for machines without a GPU. The two mirror each other operation by operation, and `tests/ops.rs` compares
//! every row of its table on all of them.
//!
//! May import `tensor` and `base-mlx-simd`; nothing here knows a model, a tokenizer or a request.

mod cpu;
mod reference;
mod rope;

pub use cpu::{CpuArray, CpuBackend, CpuKv};
pub use reference::{ReferenceArray, ReferenceBackend, ReferenceKv};
pub use rope::Rope;

use std::ops::Range;

use crate::tensor::{Dtype, HostArray, HostWeight, Tensor, Weight};

/// What a device can do. Building work cannot fail, running it can: only `upload`, `upload_weight`, `download` and a
/// new cache return errors. Shapes live on the host; a wrong one is our bug and panics at the family's line.
///
/// A row's result never depends on which other rows share the call: the same bits alone and in company.
pub trait Backend: Clone + Send + Sync + 'static {
    /// CPU: a shared buffer. A lazy backend: a node of its graph.
    type Array: Clone + Send + Sync;
    /// One sequence's memory, all layers.
    type Kv: KvCache;

    fn upload(&self, data: HostArray) -> Result<Self::Array, DeviceError>;
    /// Lays a weight out the way this device's products read it.
    fn upload_weight(&self, data: HostWeight) -> Result<Weight<Self>, DeviceError>;
    fn download(&self, x: &Self::Array) -> Result<HostArray, DeviceError>;
    /// Starts the work behind these arrays without waiting for it. An eager backend has already finished.
    fn start(&self, _: &[&Self::Array]) {}
    fn new_kv(&self, layers: &[LayerSpec]) -> Result<Self::Kv, DeviceError>;
    /// The type that keys and values are kept in.
    fn kv_dtype(&self) -> Dtype {
        Dtype::F32
    }
    /// Bytes that are free but kept for reuse.
    fn cached_bytes(&self) -> usize {
        0
    }

    /// Rows of `table` `[vocab_size, hidden_size]` by token: U32 `[tokens]` → `[tokens, hidden_size]`.
    fn embed(&self, table: &Weight<Self>, tokens: &Tensor<Self>) -> Self::Array;
    /// `x @ w.T + bias`: `[rows, in]` → `[rows, out]`; `bias` is `[out]`.
    fn linear(
        &self,
        x: &Tensor<Self>,
        w: &Weight<Self>,
        bias: Option<&Tensor<Self>>,
    ) -> Self::Array;
    /// `x / sqrt(mean(x²) + eps) * w` over the last dimension, of any shape; `w` is `[width]`.
    fn rms_norm(&self, x: &Tensor<Self>, w: &Tensor<Self>, eps: f32) -> Self::Array;
    /// Rotates the pairs (i, i + head_dim / 2) of each head of `[tokens, heads, head_dim]`.
    fn rope(&self, x: &Tensor<Self>, positions: &Tensor<Self>, rope: &Rope) -> Self::Array;
    /// `silu(gate) * up`, elementwise.
    fn swiglu(&self, gate: &Tensor<Self>, up: &Tensor<Self>) -> Self::Array;
    fn add(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Self::Array;
    fn take_rows(&self, x: &Tensor<Self>, rows: &[u32]) -> Self::Array;
    /// Appends k and v to every span's cache at `layer`, then lets each query look at its own sequence: the query
    /// at position p sees the keys at positions 0..=p. Returns `[tokens, heads, head_dim]`.
    fn attend(
        &self,
        layer: usize,
        qkv: Qkv<Self>,
        spans: &mut [Span<Self>],
        how: Attend,
    ) -> Self::Array;
}

/// The three inputs of attention, already normed and rotated.
pub struct Qkv<'a, B: Backend> {
    /// `[tokens, heads, head_dim]`
    pub q: &'a Tensor<B>,
    /// `[tokens, kv_heads, head_dim]`
    pub k: &'a Tensor<B>,
    /// `[tokens, kv_heads, head_dim]`
    pub v: &'a Tensor<B>,
}

/// How a query looks at its keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attend {
    /// Factor of `q · k`.
    pub scale: f32,
    /// A query at position p sees only keys at positions > p - window.
    pub window: Option<usize>,
}

impl Attend {
    pub fn causal(scale: f32) -> Self {
        Self { scale, window: None }
    }
}

/// A sequence's rows in a step, and the memory they extend.
pub struct Span<'a, B: Backend> {
    pub kv: &'a mut B::Kv,
    /// Which rows of the ragged batch are this sequence's; the first has position `kv.len()` at the step's start.
    pub rows: Range<usize>,
}

/// What one layer remembers of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// One sequence's keys and values, all layers. Prefix reuse is fork + truncate, `n > 1` is fork, a rejected draft
/// is truncate, preemption is drop.
pub trait KvCache: Send {
    /// How many tokens every layer holds.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Forgets all tokens from `len` on. Says how far back it got: attention can stop anywhere, recurrent layers
    /// only at their snapshots.
    fn truncate(&mut self, len: usize) -> usize;
    /// A second cache with the same past, which costs no copy until one of the two writes.
    fn fork(&self) -> Self;
    /// Bytes held, shared ones included.
    fn bytes(&self) -> usize;
}

/// What a device can fail at.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    #[error("not enough memory on {device}: {bytes} bytes were asked for")]
    OutOfMemory { device: String, bytes: usize },
    #[error("the device failed: {0}")]
    Failed(String),
}
