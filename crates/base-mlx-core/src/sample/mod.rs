//! Everything that decides about a token, per row: penalties, bias, temperature, filters, random streams, log
//! probabilities. Pure functions of one row's logits and its own history; nothing here knows the batch.
//!
//! Imports nothing of this crate but `TokenId`.

mod chain;
mod history;
mod logprob;
mod mask;
mod params;
mod random;
pub mod range;
mod rank;
mod softmax;
#[cfg(test)]
mod tests;

pub use chain::{Chosen, NoTokenLeft, choose, must};
pub use history::History;
pub use logprob::{Logprob, score};
pub use mask::Mask;
pub use params::SamplingParams;
pub use random::{choice_seed, uniform};
