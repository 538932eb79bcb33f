//! Numbers about models at work, through the facade of the `metrics` crate: whoever runs the engine chooses what collects
//! them, and nothing is collected where nobody has installed a recorder.

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use super::Usage;
use super::log::RequestLog;
use super::sequence::Cached;

/// What is known of one model. Every number has the label `model`.
pub(super) struct Metrics {
    model: String,
    pub(super) running: Gauge,
    pub(super) waiting: Gauge,
    /// Bytes of keys and values: all, those of them kept for later, and how many there may be of each.
    pub(super) kv: Gauge,
    pub(super) kv_budget: Gauge,
    pub(super) prefix: Gauge,
    pub(super) prefix_budget: Gauge,
    pub(super) preempted: Counter,
    pub(super) evicted: Counter,
    hits: Counter,
    misses: Counter,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    completion_tokens: Counter,
    first_token: Histogram,
}

impl Metrics {
    pub(super) fn new(model: &str) -> Self {
        describe();
        let model = model.to_owned();
        Self {
            running: gauge!(RUNNING, "model" => model.clone()),
            waiting: gauge!(WAITING, "model" => model.clone()),
            kv: gauge!(KV, "model" => model.clone()),
            kv_budget: gauge!(KV_BUDGET, "model" => model.clone()),
            prefix: gauge!(PREFIX, "model" => model.clone()),
            prefix_budget: gauge!(PREFIX_BUDGET, "model" => model.clone()),
            preempted: counter!(PREEMPTED, "model" => model.clone()),
            evicted: counter!(EVICTED, "model" => model.clone()),
            hits: counter!(HITS, "model" => model.clone()),
            misses: counter!(MISSES, "model" => model.clone()),
            prompt_tokens: counter!(PROMPT_TOKENS, "model" => model.clone()),
            cached_tokens: counter!(CACHED_TOKENS, "model" => model.clone()),
            completion_tokens: counter!(COMPLETION_TOKENS, "model" => model.clone()),
            first_token: histogram!(FIRST_TOKEN, "model" => model.clone()),
            model,
        }
    }

    /// A prompt begins to be computed.
    pub(super) fn begun(&self, cached: Cached) {
        if cached.tokens > 0 {
            self.hits.increment(1)
        } else {
            self.misses.increment(1)
        }
        self.prompt_tokens.increment(cached.prompt_tokens as u64);
        self.cached_tokens.increment(cached.tokens as u64);
    }

    /// A request is over, as its log line will say.
    pub(super) fn ended(&self, outcome: &'static str, usage: Usage, log: &RequestLog) {
        counter!(REQUESTS, "model" => self.model.clone(), "outcome" => outcome).increment(1);
        self.completion_tokens.increment(usage.completion_tokens as u64);
        if let Some(waited) = log.time_to_first_token() {
            self.first_token.record(waited);
        }
    }
}

/// A list of texts is encoded, of so many tokens.
pub(super) fn encoded(model: &str, outcome: &'static str, tokens: usize) {
    describe();
    counter!(REQUESTS, "model" => model.to_owned(), "outcome" => outcome).increment(1);
    counter!(PROMPT_TOKENS, "model" => model.to_owned()).increment(tokens as u64);
}

impl Drop for Metrics {
    /// The model is gone, and what it held with it.
    fn drop(&mut self) {
        let all = [&self.running, &self.waiting, &self.kv, &self.kv_budget];
        for gauge in all.into_iter().chain([&self.prefix, &self.prefix_budget]) {
            gauge.set(0.0);
        }
    }
}

const REQUESTS: &str = "base_mlx_requests_total";
const RUNNING: &str = "base_mlx_answers_running";
const WAITING: &str = "base_mlx_answers_waiting";
const PROMPT_TOKENS: &str = "base_mlx_prompt_tokens_total";
const CACHED_TOKENS: &str = "base_mlx_prompt_tokens_cached_total";
const COMPLETION_TOKENS: &str = "base_mlx_completion_tokens_total";
const FIRST_TOKEN: &str = "base_mlx_time_to_first_token_seconds";
const PREEMPTED: &str = "base_mlx_preemptions_total";
const KV: &str = "base_mlx_kv_bytes";
const KV_BUDGET: &str = "base_mlx_kv_budget_bytes";
const PREFIX: &str = "base_mlx_prefix_cache_bytes";
const PREFIX_BUDGET: &str = "base_mlx_prefix_cache_budget_bytes";
const HITS: &str = "base_mlx_prefix_cache_hits_total";
const MISSES: &str = "base_mlx_prefix_cache_misses_total";
const EVICTED: &str = "base_mlx_prefix_cache_evictions_total";
/// Of the folder of all models.
pub(super) const DISK: &str = "base_mlx_kv_disk_bytes";
pub(super) const DISK_BUDGET: &str = "base_mlx_kv_disk_budget_bytes";
pub(super) const DISK_READS: &str = "base_mlx_kv_disk_reads_total";
pub(super) const DISK_WRITES: &str = "base_mlx_kv_disk_writes_total";
pub(super) const DISK_EVICTIONS: &str = "base_mlx_kv_disk_evictions_total";
pub(super) const DISK_FAILURES: &str = "base_mlx_kv_disk_failures_total";

fn describe() {
    describe_counter!(REQUESTS, "Requests by outcome: done, cancelled, failed, sent away, refused");
    describe_gauge!(RUNNING, "Answers that are being computed");
    describe_gauge!(WAITING, "Answers that wait for their turn");
    describe_counter!(PROMPT_TOKENS, "Tokens of prompts");
    describe_counter!(CACHED_TOKENS, "Those of them that need not be computed");
    describe_counter!(COMPLETION_TOKENS, "Tokens of answers");
    describe_histogram!(FIRST_TOKEN, Unit::Seconds, "From a request to its first token");
    describe_counter!(PREEMPTED, "Running answers that had to wait again for lack of memory");
    describe_gauge!(KV, Unit::Bytes, "Keys and values of running answers and kept ones");
    describe_gauge!(KV_BUDGET, Unit::Bytes, "Most that these may have");
    describe_gauge!(PREFIX, Unit::Bytes, "Keys and values kept for prompts to come");
    describe_gauge!(PREFIX_BUDGET, Unit::Bytes, "Most that these may have now");
    describe_counter!(HITS, "Prompts that began like something kept");
    describe_counter!(MISSES, "Prompts that did not");
    describe_counter!(EVICTED, "Kept caches that made room for others");
    describe_gauge!(DISK, Unit::Bytes, "Keys and values on disk, of all models");
    describe_gauge!(DISK_BUDGET, Unit::Bytes, "Most that these may have");
    describe_counter!(DISK_READS, "Chunks of 256 positions read from disk");
    describe_counter!(DISK_WRITES, "Chunks written");
    describe_counter!(DISK_EVICTIONS, "Chunks that made room for others");
    describe_counter!(DISK_FAILURES, "Files that could not be read or written");
}
