use super::Draft;
use crate::TokenId;
use crate::grammar::Constraint;
use crate::sample::SamplingParams;
use crate::text::output::OutputParser;

/// A budget of thoughts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinking {
    /// Most of them.
    pub tokens: usize,
    /// The text that ends them when there are so many.
    pub close: String,
}

/// A validated request: every limit was checked where it was parsed.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The rendered prompt; at least one token and fewer than the context holds.
    pub prompt: Vec<TokenId>,
    /// Independent answers to one prompt, at least 1; the prompt is computed once.
    pub choices: usize,
    /// `seed` is the request's; each choice derives its own from it.
    pub sampling: SamplingParams,
    /// Most tokens of one answer; `None` is what the context leaves.
    pub max_tokens: Option<usize>,
    /// None of them is empty. The answer ends before the first that appears in it.
    pub stop: Vec<String>,
    /// Do not stop at the model's end tokens.
    pub ignore_end: bool,
    /// Report log probabilities of the prompt's tokens too, before the answer (legacy `echo` with `logprobs`).
    pub score_prompt: bool,
    /// It comes behind all requests that are not of the background.
    pub background: bool,
    /// Who guesses at its tokens, so that they come faster; they are the same all the same.
    pub draft: Draft,
    /// Reads the answer's text, of each choice by itself.
    pub output: OutputParser,
    /// What the answer is held to; each choice begins where this one is.
    pub constraint: Option<Constraint>,
    /// How long the model may think; `None` is as long as it likes.
    pub thinking: Option<Thinking>,
    /// Was the answer asked for as a stream? Only the log line wants to know.
    pub streamed: bool,
}
