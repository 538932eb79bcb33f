//! How answers are written: each API's chunks and whole answers, made of the same events. Nothing here knows engines,
//! models or HTTP.

pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod logprobs;
pub(crate) mod message;
mod usage;

use std::time::{SystemTime, UNIX_EPOCH};

use base_mlx_core::engine::Event;

use crate::events::Answer;

/// How one API writes answers, as JSON texts.
pub(crate) trait Dialect {
    /// What the prompt is called in a request.
    const PROMPT: &'static str;
    /// A whole answer, to a client that does not stream.
    fn answer(&mut self, answer: Answer) -> String;
    /// The chunks that come before anything was generated.
    fn opening(&self) -> Vec<String>;
    /// The chunk of an event, if it has one; errors never get here.
    fn chunk(&mut self, event: Event) -> Option<String>;
}

/// What all chunks of an answer say about it.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The name that the client used.
    pub model: String,
}

impl Header {
    pub(crate) fn new(id_prefix: &str, model: String) -> Self {
        let id = format!("{id_prefix}{}", uuid::Uuid::now_v7().simple());
        Self { id, created: seconds(SystemTime::now()), model }
    }
}

/// Seconds since 1970, as the API counts.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Answers to the same request with the same seed are the same as long as this is.
const FINGERPRINT: &str = concat!("fp_base_mlx_", env!("CARGO_PKG_VERSION"));
