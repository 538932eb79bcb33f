//! What a device can do. Models are written once over [`Backend`]; `reference` is the plain judge, `cpu` the fast
//! one for machines without a GPU, `mlx` runs Apple's MLX on Metal and CUDA. They mirror each other operation by
//! operation, and every row of the table in `tests/support/ops.rs` is compared on all of them.
//!
//! May import `tensor`, `base-mlx-simd` and `base-mlx-sys`; nothing here knows a model, a tokenizer or a request.

mod cpu;
mod mlx;
mod reference;
mod rope;

pub use cpu::{CpuArray, CpuBackend, CpuKv};
pub use mlx::{MlxArray, MlxBackend, MlxDevice, MlxKv, MlxOptions};
pub use reference::{ReferenceArray, ReferenceBackend, ReferenceKv};
pub use rope::Rope;

use std::ops::Range;
use std::sync::Arc;

pub use base_mlx_simd::{Activation, KvFormat, Pool};

use crate::tensor::{Dtype, HostArray, HostWeight, Tensor, Weight};

/// What a device can do. Building work cannot fail, running it can: only uploads, `download`, a new cache and the
/// layout of a batch return errors. Shapes live on the host; a wrong one is our bug and panics at the family's line.
///
/// On `reference` and `cpu` a row's result never depends on which other rows share the call: the same bits alone and
/// in company. MLX chooses its kernels by the number of rows, so there it is the same but for rounding.
pub trait Backend: Clone + Send + Sync + 'static {
    /// CPU: a shared buffer. A lazy backend: a node of its graph.
    type Array: Clone + Send + Sync;
    /// One sequence's memory, all layers.
    type Kv: KvCache;
    /// What attention wants to know of a whole step, made once for all layers.
    type Layout;
    /// Whether [`Backend::choose`] chooses.
    const CHOOSES: bool = false;

    /// The same device, for a model whose checkpoint is in this float type, and whose keys and values are to be kept like
    /// this, or as the device likes best. Fails where it cannot.
    fn for_model(&self, dtype: Dtype, kv: Option<KvFormat>) -> Result<Self, DeviceError>;

    fn upload(&self, data: HostArray) -> Result<Self::Array, DeviceError>;
    /// Lays a weight out the way this device's products read it.
    fn upload_weight(&self, data: HostWeight, role: Role) -> Result<Weight<Self>, DeviceError>;
    /// Bytes of memory that such a weight takes, all of which a product by it reads.
    fn weight_bytes(&self, weight: &Weight<Self>) -> usize;
    fn download(&self, x: &Self::Array) -> Result<HostArray, DeviceError>;
    /// Starts the work behind these arrays without waiting for it. An eager backend has already finished.
    fn start(&self, _: &[&Self::Array]) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Waits for all that was started.
    fn finish(&self) {}
    fn new_kv(&self, layers: &[LayerSpec]) -> Result<Self::Kv, DeviceError>;
    /// Bytes that such a layer remembers of a token.
    fn kv_bytes(&self, layer: LayerSpec) -> usize;
    /// What keys and values are kept as; `None` if that has no name.
    fn kv_format(&self) -> Option<KvFormat>;
    /// Names what the bytes of [`KvCache::save`] mean, and everything beside the model that they depend on.
    fn kv_identity(&self) -> String;
    /// Forks of a cache for such layers share memory in blocks of so many positions; `None` if one that is written to copies
    /// all of it.
    fn kv_block(&self, _layers: &[LayerSpec]) -> Option<usize> {
        None
    }
    /// Bytes that all models on this device hold, where the device counts them itself.
    fn active_bytes(&self) -> Option<usize> {
        None
    }
    /// Bytes that are free but kept for reuse.
    fn cached_bytes(&self) -> usize {
        0
    }
    /// Threads for what the host does to a model while it is loaded: those that compute, where the host does that too, so
    /// that loading takes no more cores than computing may; elsewhere new ones, one for each core.
    fn host_pool(&self) -> Arc<Pool> {
        Arc::new(Pool::new(usize::MAX))
    }
    /// Gives what is kept for reuse back to the system.
    fn clear_cache(&self) {}
    /// Bytes that keys and values could still get, where the device has memory of its own.
    fn free_bytes(&self) -> Option<usize> {
        None
    }
    /// Most tokens of one step: more of them share the reading of the weights, fewer let running answers wait less
    /// for a prompt beside them.
    fn step_tokens(&self) -> usize {
        128
    }
    /// Numbers of tokens that a model tries steps with when it is loaded, last one first: a device that compiles its
    /// kernels when they are first used does it then.
    fn warm_ups(&self) -> &[usize] {
        &[]
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
    /// The products of one x by some weights, each with its bias: what [`Backend::linear`] gives for each. A device may
    /// read x once for all.
    fn linears<const N: usize>(
        &self,
        x: &Tensor<Self>,
        layers: [(&Weight<Self>, Option<&Tensor<Self>>); N],
    ) -> [Self::Array; N] {
        layers.map(|(w, bias)| self.linear(x, w, bias))
    }
    /// `x / sqrt(mean(x²) + eps) * w` over the last dimension, of any shape; `w` is `[width]`.
    fn rms_norm(&self, x: &Tensor<Self>, w: &Tensor<Self>, eps: f32) -> Self::Array;
    /// `(x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * w + bias` over the last dimension; `w` and `bias` are `[width]`.
    fn layer_norm(&self, x: &Tensor<Self>, norm: LayerNorm<Self>) -> Self::Array;
    /// Elementwise.
    fn activate(&self, x: &Tensor<Self>, activation: Activation) -> Self::Array;
    /// Rotates the pairs (i, i + head_dim / 2) of each head of `[tokens, heads, head_dim]`.
    fn rope(&self, x: &Tensor<Self>, positions: &Tensor<Self>, rope: &Rope) -> Self::Array;
    /// `silu(gate) * up`, elementwise.
    fn swiglu(&self, gate: &Tensor<Self>, up: &Tensor<Self>) -> Self::Array;
    fn add(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> Self::Array;
    fn take_rows(&self, x: &Tensor<Self>, rows: &[u32]) -> Self::Array;
    /// Called once a step, before the first layer attends.
    fn layout(&self, spans: &mut [Span<Self>]) -> Result<Self::Layout, DeviceError>;
    /// Appends k and v to every span's cache at `layer`, then lets each query look at its own sequence: the query
    /// at position p sees the keys at positions 0..=p. Returns `[tokens, heads, head_dim]`.
    fn attend(
        &self,
        layer: usize,
        qkv: Qkv<Self>,
        batch: &mut Batch<Self>,
        how: Attend,
    ) -> Self::Array;
    /// Lets each query look at all keys of its own text, whose rows are given. Nothing is remembered. Rows of no text may be
    /// anything. Returns `[tokens, heads, head_dim]`.
    fn attend_within(&self, qkv: Qkv<Self>, texts: &[Range<usize>], scale: f32) -> Self::Array;
    /// Chooses a token from each row of logits `[rows, vocab_size]`, among its first `vocab_size` entries: U32 `[rows]`,
    /// [`NO_TOKEN`] where none is left. Asked only where [`Backend::CHOOSES`]; elsewhere choosing is the host's affair.
    fn choose(&self, _logits: &Tensor<Self>, _vocab_size: usize, _rows: &[Draw]) -> Self::Array {
        unreachable!("this backend leaves choosing to the host")
    }
}

/// How [`Backend::choose`] chooses from one row; see `sample::choose` for what the parameters mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// 0 takes the best token, the lowest id among equals.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    /// The random number, in [0, 1).
    pub uniform: f32,
}

impl Draw {
    pub const GREEDY: Self =
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, uniform: 0.0 };
}

/// No row of logits has so many entries.
pub const NO_TOKEN: u32 = u32::MAX;

/// The parameters of [`Backend::layer_norm`].
pub struct LayerNorm<'a, B: Backend> {
    /// `[width]`
    pub w: &'a Tensor<B>,
    /// `[width]`
    pub bias: &'a Tensor<B>,
    pub eps: f32,
}

/// All sequences of a step, laid end to end.
pub struct Batch<'a, B: Backend> {
    pub spans: Vec<Span<'a, B>>,
    pub layout: B::Layout,
}

impl<'a, B: Backend> Batch<'a, B> {
    pub fn new(backend: &B, mut spans: Vec<Span<'a, B>>) -> Result<Self, DeviceError> {
        let layout = backend.layout(&mut spans)?;
        Ok(Self { spans, layout })
    }
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

/// What a matrix is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Products by it.
    Factor,
    /// Rows are looked up in it, and products by it are as exact as they get.
    Table,
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
    /// Takes `from`'s memory for its first `len` positions, which both hold the same tokens of, and gives its own for them
    /// back, where forks share memory.
    fn share(&mut self, _from: &Self, _len: usize) {}
    /// Bytes held, shared ones included.
    fn bytes(&self) -> usize;
    /// Positions `KV_CHUNK * chunk..KV_CHUNK * (chunk + 1)`, all of which are there, as [`KvCache::restore`] reads them.
    fn save(&self, chunk: usize) -> Result<Vec<u8>, DeviceError>;
    /// Appends what another cache for the same layers, whose backend has the same [`Backend::kv_identity`], has saved. The
    /// length must be a multiple of [`KV_CHUNK`]. Where it fails, the length may be anything: truncate it to what it was.
    fn restore(&mut self, saved: &[u8]) -> Result<(), DeviceError>;
}

/// Positions that are saved together: whole blocks of every backend.
pub const KV_CHUNK: usize = 256;

/// What [`KvCache::restore`] says of bytes that are not a chunk.
fn not_a_chunk(bytes: usize, expected: usize) -> DeviceError {
    DeviceError::Failed(format!("{bytes} bytes of saved keys and values, expected {expected}"))
}

/// What a device can fail at.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// It is not there, or this build cannot use it.
    #[error("{0}")]
    Unavailable(String),
    /// A parameter that the type in which the device computes its model cannot hold.
    #[error("a value of {value} is beyond {dtype}")]
    Beyond { value: f32, dtype: Dtype },
    #[error("not enough memory on {device}: {bytes} bytes were asked for")]
    OutOfMemory { device: String, bytes: usize },
    #[error("the device failed: {0}")]
    Failed(String),
}
