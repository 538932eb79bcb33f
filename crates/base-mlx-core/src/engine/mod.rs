//! The door to a running model: [`Engine`] takes requests and gives streams of [`Event`]s. Behind it one thread per
//! device runs the loop: plan, forward, choose, commit.
//!
//! The scheduler and the sequence hold no tensor, clock, thread or await, so a seed replays them. May import
//! everything else in this crate but `store`.

mod answer;
mod event;
mod request;
mod scheduler;
mod sequence;
#[cfg(test)]
mod simulation;
mod stop;

pub use answer::{Added, Answer, Decode};
pub use event::{Event, FinishReason, GenerateError, TokenLogprob, TopLogprob, Usage};
pub use request::GenerateRequest;
pub use scheduler::{Finished, Fork, Limits, Outcome, Plan, PlannedSpan, Refused, Scheduler};
pub use sequence::{Sequence, SequenceId};
