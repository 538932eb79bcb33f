//! The one log line of a request.

use std::time::{Duration, Instant};

use super::Usage;

/// Bytes on a model's device: what is in use, and what is kept for reuse.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Memory {
    pub(super) active_bytes: usize,
    pub(super) cache_bytes: usize,
}

/// Collects a request's times until its line is written.
pub(super) struct RequestLog {
    model: String,
    tag: &'static str,
    submitted: Instant,
    /// When its first token entered a step.
    started: Option<Instant>,
    /// When its first token was chosen.
    first_token: Option<Instant>,
    before: Memory,
}

impl RequestLog {
    pub(super) fn new(model: &str, streamed: bool) -> Self {
        Self {
            model: model.to_owned(),
            tag: if streamed { "stream" } else { "oneshot" },
            submitted: Instant::now(),
            started: None,
            first_token: None,
            before: Memory::default(),
        }
    }

    pub(super) fn submitted(&mut self, memory: Memory) {
        self.before = memory;
    }

    /// Says whether this was not known before.
    pub(super) fn started(&mut self) -> bool {
        let new = self.started.is_none();
        self.started.get_or_insert_with(Instant::now);
        new
    }

    /// How long it waits already; `None` when it does not any more.
    pub(super) fn waited(&self) -> Option<Duration> {
        self.started.is_none().then(|| self.submitted.elapsed())
    }

    pub(super) fn first_token(&mut self) {
        self.first_token.get_or_insert_with(Instant::now);
    }

    /// Seconds; `None` if there was none.
    pub(super) fn time_to_first_token(&self) -> Option<f64> {
        self.first_token.map(|at| (at - self.submitted).as_secs_f64())
    }

    /// Writes the line. `outcome` is `done`, `cancelled`, `failed`, `sent away` or `refused`.
    pub(super) fn write(self, outcome: &str, usage: Usage, after: Memory) {
        let end = Instant::now();
        let started = self.started.unwrap_or(end);
        let first_token = self.first_token.unwrap_or(end);
        let decode = end - first_token;
        // The first token comes out of the prefill; a rate needs the tokens after it.
        let decoded = usage.completion_tokens.saturating_sub(1) as f64;
        let tok_s = if decode.is_zero() { 0.0 } else { decoded / decode.as_secs_f64() };
        tracing::info!(
            tag = %self.tag,
            model = %self.model,
            elapsed_ms = ms(end - self.submitted),
            queue_ms = ms(started - self.submitted),
            prefill_ms = ms(first_token - started),
            decode_ms = ms(decode),
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            completion_tokens = usage.completion_tokens,
            tok_s = (tok_s * 10.0).round() / 10.0,
            active_mb_before = mb(self.before.active_bytes),
            active_mb_after = mb(after.active_bytes),
            cache_mb_before = mb(self.before.cache_bytes),
            cache_mb_after = mb(after.cache_bytes),
            "gen {outcome}",
        );
    }
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn mb(bytes: usize) -> u64 {
    (bytes as f64 / 1e6).round() as u64
}
