use std::collections::HashSet;

use base_mlx_core::TokenId;
use base_mlx_core::grammar::{Constraint, GrammarError, Grammars};
use base_mlx_core::sample::Mask;
use base_mlx_core::text::output::{GrammarSource, Part, Rule, Spacing};
use base_mlx_core::text::{Text, Tokenizer};
use base_mlx_core::weights::Checkpoint;
use serde_json::Value;

use crate::support::dice::Dice;
use crate::support::test_models::test_model;

/// A model's tokens, and grammars for them.
pub(crate) struct Vocabulary {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) end_tokens: Vec<TokenId>,
    pub(crate) size: usize,
    pub(crate) grammars: Grammars,
    /// Tokens that end strings, arrays and objects.
    closing: Vec<TokenId>,
}

impl Vocabulary {
    pub(crate) fn new(model: &str) -> Self {
        let Text { tokenizer, end_tokens, .. } =
            Text::load(&Checkpoint::open(&test_model(model)).unwrap()).unwrap();
        let size = tokenizer.vocab_size();
        let grammars = Grammars::new(&tokenizer, size, &end_tokens).unwrap();
        let closes = |token: &TokenId| {
            let bytes = tokenizer.token_bytes(*token);
            !bytes.is_empty() && bytes.iter().all(|byte| b"\"}],:".contains(byte))
        };
        let closing = (0..size as TokenId).filter(closes).collect();
        Self { tokenizer, end_tokens, size, grammars, closing }
    }

    pub(crate) fn smollm2() -> Self {
        Self::new("smollm2.gguf")
    }

    pub(crate) fn compile(&self, rule: Rule) -> Result<Constraint, GrammarError> {
        self.grammars.compile(&source(rule))
    }

    pub(crate) fn strict(&self, schema: &Value) -> Result<Constraint, GrammarError> {
        self.compile(json(schema, true))
    }

    pub(crate) fn bytes(&self, tokens: &[TokenId]) -> Vec<u8> {
        tokens.iter().flat_map(|&token| self.tokenizer.token_bytes(token)).copied().collect()
    }

    pub(crate) fn allowed(&self, mask: &Mask) -> Vec<TokenId> {
        (0..self.size as TokenId).filter(|&token| mask.allows(token)).collect()
    }

    pub(crate) fn may_end(&self, mask: &Mask) -> bool {
        self.end_tokens.iter().any(|&end| mask.allows(end))
    }

    /// Whether masks let the text through and may end there, in any spelling.
    pub(crate) fn lets_through(&self, constraint: &Constraint, text: &str) -> bool {
        let mut constraint = constraint.clone();
        self.goes_on(&mut constraint, text.as_bytes(), text.len(), &mut HashSet::new())
    }

    fn goes_on(
        &self,
        constraint: &mut Constraint,
        rest: &[u8],
        end: usize,
        failed: &mut HashSet<usize>,
    ) -> bool {
        let mask = constraint.allowed().unwrap();
        if rest.is_empty() {
            return self.may_end(&mask);
        }
        if failed.contains(&(end - rest.len())) {
            return false;
        }
        let mut candidates = self.allowed(&mask);
        candidates.retain(|&token| {
            let bytes = self.tokenizer.token_bytes(token);
            !bytes.is_empty() && !self.tokenizer.is_hidden(token) && rest.starts_with(bytes)
        });
        candidates.sort_by_key(|&token| std::cmp::Reverse(self.tokenizer.token_bytes(token).len()));
        for token in candidates {
            constraint.accept(token).unwrap();
            let rest = &rest[self.tokenizer.token_bytes(token).len()..];
            let goes_on = self.goes_on(constraint, rest, end, failed);
            constraint.rollback(1).unwrap();
            if goes_on {
                return true;
            }
        }
        failed.insert(end - rest.len());
        false
    }

    /// Tokens as dice throw them, mostly such that it comes to an end; `None` if it did not within so many.
    pub(crate) fn walk(
        &self,
        constraint: &Constraint,
        seed: u64,
        most: usize,
    ) -> Option<Vec<TokenId>> {
        let mut constraint = constraint.clone();
        let mut dice = Dice(seed);
        let mut tokens = Vec::new();
        while tokens.len() < most {
            let mask = constraint.allowed().unwrap();
            if self.may_end(&mask) && (constraint.is_over() || dice.below(2) == 0) {
                return Some(tokens);
            }
            let closing = self.closing.iter().copied().filter(|&token| mask.allows(token));
            let mut choice: Vec<TokenId> = closing.collect();
            if choice.is_empty() || dice.below(4) == 0 {
                choice = self.allowed(&mask);
                choice.retain(|token| !self.end_tokens.contains(token));
                if choice.is_empty() {
                    return Some(tokens);
                }
            }
            let token = dice.one_of(&choice);
            constraint.accept(token).unwrap();
            tokens.push(token);
        }
        None
    }
}

pub(crate) fn source(rule: Rule) -> GrammarSource {
    let part = Part { name: "part".to_owned(), origin: "field".to_owned(), rule };
    GrammarSource { lark: "start: @part".to_owned(), parts: vec![part] }
}

pub(crate) fn json(schema: &Value, strict: bool) -> Rule {
    Rule::Json { schema: schema.clone(), strict, spacing: Spacing::Flexible }
}
