use std::collections::HashMap;

use crate::TokenId;

/// What penalties ask about one sequence: which tokens it has, and how often its answer has them. Kept up to date token
/// by token.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How often the answer has each token of the prompt or the answer.
    answer: HashMap<TokenId, usize>,
}

impl History {
    pub fn new(prompt: &[TokenId]) -> Self {
        Self { answer: prompt.iter().map(|&token| (token, 0)).collect() }
    }

    /// Adds a token of the answer.
    pub fn push(&mut self, token: TokenId) {
        *self.answer.entry(token).or_insert(0) += 1;
    }

    /// Every token seen, in no order, with how often the answer has it.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (TokenId, usize)> {
        self.answer.iter().map(|(&token, &count)| (token, count))
    }
}
