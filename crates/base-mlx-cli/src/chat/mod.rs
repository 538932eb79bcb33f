//! A conversation with one model, as `run` leads it: parameters, messages, and the loop at the terminal.

mod conversation;
mod input;
mod parameters;
mod terminal;

pub(crate) use conversation::{Conversation, Outcome};
pub(crate) use parameters::Parameters;
pub(crate) use terminal::talk;
