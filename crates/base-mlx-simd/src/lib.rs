//! CPU kernels over plain slices, and the threads that run them. Knows no tensor and no model.
//!
//! Every kernel is written once over [`Lanes`], eight or sixteen f32 values side by side, and compiled for each instruction set
//! of [`Isa`]; [`Isa::Scalar`] is the portable twin that judges the others in the tests. To add an instruction set:
//! one implementation of `Lanes`, one variant of `Isa`. Products by [`Packed`] matrices are written over `Quads`
//! in the same way, bytes that are multiplied exactly. There are AVX2, AVX-512 with VNNI, and NEON with its dot product.
//!
//! A row's result has the same bits alone and in company: every product has one vector as accumulator for each
//! (row, output) that runs over the inner dimension in order, however many rows share the call, and attention walks a
//! sequence's keys in the order of their positions, in blocks counted from position 0.

mod activation;
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bandwidth;
mod cores;
mod dense;
mod elementwise;
mod floats;
mod isa;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod packed;
mod pool;
mod quads;
mod rope;
mod shared;
mod sync;

pub use activation::{Activation, activate};
pub use attention::{
    AttentionShape, AttentionSpan, KEY_BLOCK, KvBlock, KvBlocks, KvFormat, Sees, attention,
    write_blocks,
};
pub use bandwidth::read_bandwidth;
pub use cores::cores;
pub use dense::{Dense, linear};
pub use elementwise::{LayerNorm, add, layer_norm, rms_norm, swiglu};
pub use floats::Floats;
pub use isa::{Isa, Kernel, Lanes};
pub use memory::Arena;
pub use packed::{Affine, Packed, linear_packed};
pub use pool::{Pool, Scratch};
pub use rope::{RopeTable, rope};

/// A product by one of some weights: `out[row, output] = x[row] · weight[output] + bias[output]`.
pub struct Product<'a, W> {
    pub weight: &'a W,
    pub bias: Option<&'a [f32]>,
    /// `[rows, outputs]`
    pub out: &'a mut [f32],
}
