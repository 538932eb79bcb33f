//! Parts that families share: linear, embedding and head, norm, gated MLP, rope and windows from a config.
//!
//! May import `weights`, `tensor`, `backend` and `step`. A part loads itself from a [`Loader`](crate::weights::Loader)
//! and never learns which format its weights have.

mod embedding;
mod linear;
mod mlp;
mod norm;
mod rope;
mod window;

pub use embedding::{Embedding, Head};
pub use linear::{Bias, Linear};
pub use mlp::GatedMlp;
pub use norm::{LayerNorm, RmsNorm};
pub use rope::rope;
pub use window::Windows;
