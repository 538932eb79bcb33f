//! From a request's bytes to types that cannot be wrong. Every limit that does not depend on the model is checked
//! here, before a model is looked for; the rest when the model's [`Text`](base_mlx_core::text::Text) is at hand.

mod body;
mod field;
mod grammar;
pub(crate) mod in_words;
mod messages;
mod parameters;
mod prompts;
mod reasoning;
mod tools;
mod unsupported;

pub(crate) use body::{JsonObject, OptionalObject};
pub(crate) use field::{Field, Object};
pub(crate) use grammar::content_rule;
pub(crate) use messages::Conversation;
pub use parameters::DraftName;
pub(crate) use parameters::{Defaults, KeepAlive, Parameters, in_range, max_tokens};
pub(crate) use prompts::{Prompt, prompts};
pub(crate) use reasoning::{Reasoning, Thoughts};
pub(crate) use tools::Tools;
pub(crate) use unsupported::{Known, refuse};
