//! Small made-up checkpoints, written as their formats demand, or on purpose otherwise; the table of operations; random
//! numbers that a seed repeats; tiny encoders; folded answers; and where the test models are.

#![allow(dead_code)] // Each test file that includes this uses its own part.

pub(crate) mod answer;
pub(crate) mod dice;
pub(crate) mod encoders;
pub(crate) mod gguf;
pub(crate) mod golden;
pub(crate) mod ops;
pub(crate) mod safetensors;
pub(crate) mod test_models;
