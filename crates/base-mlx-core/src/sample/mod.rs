//! Everything that decides about a token, per row: penalties, bias, temperature, filters, random streams, log
//! probabilities. Pure functions of one row's logits and its own history; nothing here knows the batch.
//!
//! Imports nothing of this crate but `TokenId`.

mod params;

pub use params::SamplingParams;
