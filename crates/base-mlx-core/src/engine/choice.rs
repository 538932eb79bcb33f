use std::sync::Arc;

use super::answer::Answer;
use super::device::RequestId;
use super::draft::{DraftModel, Drafting};
use super::held::Held;
use super::{FinishReason, GenerateError, Thinking, TokenLogprob};
use crate::TokenId;
use crate::backend::Backend;
use crate::grammar::Broken;
use crate::sample::{History, Mask, SamplingParams};
use crate::text::{Decoder, Tokenizer};

/// One answer of a request.
pub(super) struct Choice<B: Backend> {
    pub(super) request: RequestId,
    pub(super) params: SamplingParams,
    pub(super) history: History,
    pub(super) answer: Answer<Decoder>,
    /// What it is held to.
    pub(super) held: Option<Held>,
    pub(super) thinking: Option<Budget>,
    pub(super) drafting: Option<Drafting>,
    /// Who drafts, if it is a model.
    pub(super) draft_model: Option<Arc<DraftModel<B>>>,
    /// Of the prompt's tokens, until they are sent; `None` when nobody asked or they were sent.
    pub(super) prompt_scores: Option<Vec<TokenLogprob>>,
}

/// What is left of a budget of thoughts.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
    /// The tokens that end them, the last one first.
    close: Vec<TokenId>,
    closing: bool,
}

impl Budget {
    pub(super) fn new(thinking: &Thinking, tokenizer: &Tokenizer) -> Self {
        let mut close = tokenizer.encode_inside(&thinking.close);
        close.reverse();
        Self { left: thinking.tokens, close, closing: false }
    }
}

impl<B: Backend> Choice<B> {
    /// Nothing but its parameters decides about its next token.
    pub(super) fn is_free(&self) -> bool {
        self.held.is_none() && self.thinking.is_none() && self.params.is_plain()
    }

    /// The tokens that may come next; `None` if all may.
    pub(super) fn mask(&mut self) -> Result<Option<Mask>, GenerateError> {
        let mask = self.held.as_mut().map(Held::mask).transpose()?;
        Ok(self.closes().map(Mask::single).or(mask))
    }

    /// The token that must come next because the model has thought for long enough.
    fn closes(&mut self) -> Option<TokenId> {
        let budget = self.thinking.as_mut()?;
        budget.closing |= budget.left == 0 && self.answer.is_reasoning();
        budget.closing.then(|| budget.close.last().copied()).flatten()
    }

    /// Goes on by a token that the answer was given. `thought` if it is one of the model's thoughts, `ended` if it was the
    /// answer's last; says why if it is the last one, as nothing can follow.
    pub(super) fn accept(
        &mut self,
        token: TokenId,
        thought: bool,
        ended: Option<FinishReason>,
    ) -> Result<Option<FinishReason>, Broken> {
        if let Some(budget) = &mut self.thinking {
            if budget.closing {
                budget.close.pop();
            } else if thought {
                budget.left = budget.left.saturating_sub(1);
            }
            if budget.close.is_empty() {
                self.thinking = None;
            }
        }
        let Some(held) = self.held.as_mut().filter(|_| ended.is_none()) else { return Ok(ended) };
        held.accept(token)?;
        Ok(held.is_over().then_some(FinishReason::Stop))
    }

    /// Tokens that will come next whatever the model says; often none.
    pub(super) fn forced(&mut self) -> Vec<TokenId> {
        match self.closes() {
            Some(_) => {
                let close = self.thinking.iter().flat_map(|budget| budget.close.iter().rev());
                close.copied().collect()
            }
            None => self.held.as_mut().map(Held::forced).unwrap_or_default(),
        }
    }

    /// Writes what drafts and grammar came to.
    pub(super) fn log(&self, model: &str) {
        if let Some(drafting) = &self.drafting {
            drafting.log(model);
        }
        if let Some(held) = &self.held {
            held.log(model);
        }
    }
}
