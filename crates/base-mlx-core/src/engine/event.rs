use super::sequence::Cached;
use crate::TokenId;
use crate::grammar::Broken;
use crate::sample::{Logprob, NoTokenLeft};
use crate::text::Text;

/// What an answer consists of, in order. A non-streamed answer is the fold of the streamed one.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The first event, once a request: its prompt is computed from here on, but for what is cached.
    Begun(Cached),
    /// The prompt's log probabilities, once a request (with its first choice), before any text, if they were asked
    /// for; the first token has none.
    Prompt { choice: usize, logprobs: Vec<TokenLogprob> },
    /// Whole characters of visible text, never empty of both text and entries. `logprobs` are the entries of the
    /// tokens whose text ends in this piece.
    Text { choice: usize, text: String, logprobs: Vec<TokenLogprob> },
    /// A piece of what the model thinks, without the marks around it. Whole characters.
    Reasoning { choice: usize, text: String },
    /// The call of that number, from 0 within its choice, begins.
    ToolStart { choice: usize, call: usize, name: String },
    /// The next piece of that call's arguments; all of them together are one JSON object.
    ToolArgs { choice: usize, call: usize, text: String },
    /// The last event of a choice.
    Finish { choice: usize, reason: FinishReason },
    /// The last event of a request that did not fail.
    Usage(Usage),
    /// The last event of a request that did.
    Error(GenerateError),
}

/// A token's log probability under the model's raw distribution: before bias, penalties, temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub token: TokenId,
    /// The token's own bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm. NaN for the first token of a prompt, which nothing predicts.
    pub logprob: f32,
    /// The most probable tokens, best first, as many as were asked for.
    pub top: Vec<TopLogprob>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TopLogprob {
    pub token: TokenId,
    pub bytes: Vec<u8>,
    pub logprob: f32,
}

impl TokenLogprob {
    pub(super) fn new(text: &Text, token: TokenId, found: Logprob) -> Self {
        let bytes = |token| text.tokenizer.token_bytes(token).to_vec();
        let top = |(token, logprob)| TopLogprob { token, bytes: bytes(token), logprob };
        let Logprob { logprob, top: found } = found;
        Self { token, bytes: bytes(token), logprob, top: found.into_iter().map(top).collect() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// It has ended by itself, and has calls in it.
    ToolCalls,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// The whole prompt, counted once, cached tokens included.
    pub prompt_tokens: usize,
    /// Prompt tokens that were not computed for this request.
    pub cached_tokens: usize,
    /// Sum over all choices, end tokens included.
    pub completion_tokens: usize,
    /// Those of them that are thoughts.
    pub reasoning_tokens: usize,
}

/// Why a request that was accepted could not be answered.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError {
    #[error("the prompt has {prompt} tokens, the context holds {context}")]
    PromptTooLong { prompt: usize, context: usize },
    #[error("the prompt is empty")]
    PromptEmpty,
    #[error("token {token} is not in the model's vocabulary of {vocab_size}")]
    UnknownToken { token: TokenId, vocab_size: usize },
    #[error("{waiting} answers wait already, which is as many as may")]
    QueueFull { waiting: usize },
    #[error("no place came free within {ms} ms")]
    WaitedTooLong { ms: u64 },
    #[error("{draft} cannot draft for {model}: {why}")]
    DraftUnfit { draft: String, model: String, why: String },
    /// The step panicked or the device failed; the batch it happened in is lost, the engine goes on.
    #[error("the model failed: {0}")]
    Failed(String),
    #[error(transparent)]
    NoTokenLeft(#[from] NoTokenLeft),
    #[error(transparent)]
    GrammarBroken(#[from] Broken),
    #[error("the engine is shutting down")]
    ShuttingDown,
}
