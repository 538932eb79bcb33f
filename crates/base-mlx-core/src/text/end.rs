use serde_json::{Value, json};

use super::template::{ChatInput, ChatTemplate};
use super::tokenizer::Tokenizer;
use crate::TokenId;

/// Collects the tokens that end an answer. No single place knows them all: a folder's four say different things,
/// and converted files lose some.
pub(super) struct EndTokens<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<TokenId>,
}

impl<'a> EndTokens<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new() }
    }

    pub(super) fn add(&mut self, tokens: impl Iterator<Item = TokenId>) {
        self.tokens.extend(tokens);
    }

    /// A token by its text.
    pub(super) fn add_named(&mut self, text: Option<&String>) {
        self.tokens.extend(text.and_then(|text| self.tokenizer.token(text)));
    }

    /// `eos_token_id` as config.json and generation_config.json have it: a number, or a list of them.
    pub(super) fn add_ids(&mut self, value: Option<&Value>) {
        let ids = match value {
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(id) => std::slice::from_ref(id),
            None => &[],
        };
        let known = |id: u64| usize::try_from(id).is_ok_and(|id| id < self.tokenizer.vocab_size());
        let ids = ids.iter().filter_map(Value::as_u64).filter(|&id| known(id));
        self.tokens.extend(ids.map(|id| id as TokenId));
    }

    /// The special tokens that can only mean that the turn is over, and the one that the template writes behind
    /// an assistant's words, whatever its name.
    pub(super) fn add_turn_ends(&mut self, template: Option<&ChatTemplate>) {
        let special = |text: &&str| {
            let token = self.tokenizer.token(text)?;
            self.tokenizer.is_special(token).then_some(token)
        };
        self.tokens.extend(TURN_ENDS.iter().filter_map(special));
        if let Some(rendered) = template.and_then(one_turn)
            && let Some((_, behind)) = rendered.rsplit_once(ANSWER)
        {
            self.tokens.extend(self.tokenizer.leading_special(behind.trim_start()));
        }
    }

    pub(super) fn finish(mut self) -> Vec<TokenId> {
        self.tokens.sort_unstable();
        self.tokens.dedup();
        self.tokens
    }
}

/// A question and its answer, as the template writes them.
fn one_turn(template: &ChatTemplate) -> Option<String> {
    let messages = json!([
        { "role": "user", "content": "question" },
        { "role": "assistant", "content": ANSWER },
    ]);
    template
        .render(&ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: false,
            kwargs: &serde_json::Map::new(),
        })
        .ok()
}

/// Nothing that a template would write by itself.
const ANSWER: &str = "zwölf Boxkämpfer";

/// Not here: `<|end|>`, which in some formats only ends a part of an answer.
const TURN_ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
];
