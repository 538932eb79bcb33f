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
    /// The tokens that end them.
    close: Vec<TokenId>,
    /// How many of these have come, if they are on their way.
    closing: Option<usize>,
}

/// What may come next.
pub(super) enum Allowed {
    All,
    These(Mask),
    /// Whatever else was asked for.
    Only(TokenId),
}

impl Budget {
    pub(super) fn new(thinking: &Thinking, tokenizer: &Tokenizer) -> Self {
        let close = tokenizer.encode_inside(&thinking.close);
        Self { left: thinking.tokens, close, closing: None }
    }
}

impl<B: Backend> Choice<B> {
    /// Nothing but its parameters decides about its next token.
    pub(super) fn is_free(&self) -> bool {
        self.held.is_none() && self.thinking.is_none() && self.params.is_plain()
    }

    pub(super) fn allowed(&mut self) -> Result<Allowed, GenerateError> {
        // Asked in any case, as it is about this token and no later one.
        let mask = self.held.as_mut().map(Held::mask).transpose()?;
        Ok(match (self.closing().first(), mask) {
            (Some(&token), _) => Allowed::Only(token),
            (None, Some(mask)) => Allowed::These(mask),
            (None, None) => Allowed::All,
        })
    }

    /// The tokens that must come next because the model has thought for long enough; mostly none.
    fn closing(&mut self) -> &[TokenId] {
        let Some(budget) = &mut self.thinking else { return &[] };
        if budget.closing.is_none() && budget.left == 0 && self.answer.can_end_thoughts() {
            budget.closing = Some(0);
        }
        budget.closing.map_or(&[], |come| &budget.close[come..])
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
            match budget.closing {
                // Some formats have thoughts again later.
                Some(come) if come + 1 == budget.close.len() => budget.closing = None,
                Some(come) => budget.closing = Some(come + 1),
                None if thought => budget.left = budget.left.saturating_sub(1),
                None => {}
            }
            if budget.closing.is_none() && !self.answer.may_think() {
                self.thinking = None;
            }
        }
        let Some(held) = self.held.as_mut().filter(|_| ended.is_none()) else { return Ok(ended) };
        held.accept(token)?;
        Ok(held.is_over().then_some(FinishReason::Stop))
    }

    /// Tokens that will come next whatever the model says, `most` of them; often none.
    pub(super) fn forced(&mut self, most: usize) -> Vec<TokenId> {
        match self.closing() {
            [] => self.held.as_mut().map(|held| held.forced(most)).unwrap_or_default(),
            close => close[..close.len().min(most)].to_vec(),
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
