//! The engine of base-mlx: everything between a model's files and its answers.
//!
//! Doors: [`engine`] runs models, [`text`] turns messages into tokens and tokens into text, [`store`] finds and
//! fetches models. The folders below them know nothing of HTTP, of terminals or of each other's insides;
//! ARCHITECTURE.md draws who may import whom, and `cargo xtask tidy` checks it.

pub mod backend;
pub mod engine;
pub mod grammar;
pub mod models;
pub mod nn;
pub mod sample;
pub mod step;
pub mod store;
pub mod tensor;
pub mod text;
pub mod weights;

/// A token's number in the model's vocabulary.
pub type TokenId = u32;
