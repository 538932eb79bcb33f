//! GGUF: the parser, the block formats, and the translation of names and metadata into the Hugging Face layout.

mod architecture;
mod blocks;
mod metadata;
mod open;
mod parse;
mod repack;

pub use architecture::{Architecture, config};
pub use blocks::{FORMATS, Format};
pub use metadata::{Array, Metadata, Value};
pub(super) use open::open;
pub use parse::{Gguf, parse};
pub use repack::{Blocks, dequantize, repack};
