use std::fmt;
use std::sync::Arc;

use llguidance::{Matcher, TokenParser};

use super::GrammarError;
use crate::TokenId;
use crate::sample::Mask;

/// One answer's place in a grammar. It moves only by tokens that the mask allowed.
pub struct Constraint {
    matcher: Matcher,
    warnings: Arc<[String]>,
}

/// The grammar allows nothing, or its limits are used up: a bug or a hostile grammar, and in no case a reason to let the
/// answer go on without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the grammar cannot go on: {0}")]
pub struct Broken(String);

impl Broken {
    /// Who had it is gone.
    pub(crate) fn lost() -> Self {
        Self("it was lost".to_owned())
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Constraint").field("error", &self.matcher.get_error()).finish()
    }
}

impl Clone for Constraint {
    /// One that shares nothing, so that both may move on different threads.
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), warnings: Arc::clone(&self.warnings) }
    }
}

impl Constraint {
    pub(super) fn new(parser: TokenParser) -> Result<Self, GrammarError> {
        let mut matcher = Matcher::new(Ok(parser));
        let warnings = matcher.grammar_warnings().into();
        Ok(Self { matcher, warnings })
    }

    /// What was left out of the grammar, for people.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The tokens that may come next; at least one.
    pub fn allowed(&mut self) -> Result<Mask, Broken> {
        let mask = self.matcher.compute_mask_or_eos().map_err(broken)?;
        let mask = Mask::of_words(mask.as_slice());
        if mask.is_empty() { Err(Broken("no token is allowed".to_owned())) } else { Ok(mask) }
    }

    /// Goes on by a token that is allowed.
    pub fn accept(&mut self, token: TokenId) -> Result<(), Broken> {
        self.matcher.consume_token(token).map_err(broken)
    }

    /// Goes back by so many tokens.
    pub fn rollback(&mut self, tokens: usize) -> Result<(), Broken> {
        self.matcher.rollback(tokens).map_err(broken)
    }

    /// The tokens that come next because nothing else may; none at a place where the model has a choice.
    pub fn forced(&mut self) -> Vec<TokenId> {
        self.matcher.compute_ff_tokens()
    }

    /// How many of these may follow one after another.
    pub fn follows(&mut self, tokens: &[TokenId]) -> usize {
        self.matcher.validate_tokens(tokens).unwrap_or(0)
    }

    /// Whether the text may end here.
    pub fn may_stop(&mut self) -> bool {
        self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether nothing can follow.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

fn broken(error: impl fmt::Display) -> Broken {
    Broken(error.to_string())
}
