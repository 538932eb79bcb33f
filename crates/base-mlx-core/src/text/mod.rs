//! Tokenizers, incremental decoding, chat templates and the markup of answers.
//!
//! May import `weights` (for GGUF metadata and errors) and nothing else of this crate.
