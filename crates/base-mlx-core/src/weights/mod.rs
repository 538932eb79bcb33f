//! Checkpoints on disk: safetensors (one file or sharded) and GGUF, both seen under the names and shapes of the
//! Hugging Face layout. A family asks for what it needs; what nobody asked for is an error.
//!
//! Files are foreign: every number in them is checked before it is used, no count sets memory aside that the file
//! itself does not fill, and [`safetensors::parse`] and [`gguf::parse`] are fuzzed.
//!
//! May import `tensor` and `backend`. The one function of this crate that needs `unsafe` (mapping a file) is here.

mod checkpoint;
mod config;
mod entry;
mod error;
mod folder;
pub mod gguf;
mod loader;
mod mapping;
mod quantization;
pub mod safetensors;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use config::{Config, read_json};
pub use entry::{Entry, ParseError, Storage};
pub use error::{LoadError, NoRoom};
pub use loader::Loader;
