//! Checkpoints on disk: safetensors (one file or sharded) and GGUF, both seen under the names and shapes of the
//! Hugging Face layout. A family asks for what it needs; what nobody asked for is an error.
//!
//! May import `tensor` and `backend`. The one function of this crate that needs `unsafe` (mapping a file) is here.

mod config;
mod error;

pub use config::Config;
pub use error::LoadError;
