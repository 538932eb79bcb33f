//! Small made-up checkpoints, written as their formats demand, or on purpose otherwise.

#![allow(dead_code)] // Each test file that includes this uses its own part.

pub(crate) mod gguf;
pub(crate) mod safetensors;
