use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::TokenId;
use crate::text::Tokenizer;

/// The first `vocab_size` tokens as llguidance wants to see them; `None` if no end token is among them.
pub(super) fn environment(
    tokenizer: &Tokenizer,
    vocab_size: usize,
    end_tokens: &[TokenId],
) -> Option<TokEnv> {
    let is_known = |token: &TokenId| (*token as usize) < vocab_size;
    let end_tokens: Vec<TokenId> = end_tokens.iter().copied().filter(is_known).collect();
    let bytes = |token: TokenId| {
        let bytes = tokenizer.token_bytes(token);
        let is_text = !tokenizer.is_hidden(token) && !end_tokens.contains(&token);
        match is_text && !bytes.is_empty() {
            true => bytes.to_vec(),
            // A byte that no text has sets it apart, and its number makes it one of a kind.
            false => [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<{token}>").as_bytes()].concat(),
        }
    };
    let words: Vec<Vec<u8>> = (0..vocab_size as TokenId).map(bytes).collect();
    let info = TokRxInfo::new(vocab_size as u32, *end_tokens.first()?);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&end_tokens);
    Some(Arc::new(Environment { trie, tokenizer: tokenizer.continuing() }))
}

struct Environment {
    trie: TokTrie,
    tokenizer: Tokenizer,
}

impl TokenizerEnv for Environment {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let encode = |text: &str| {
            let tokens = self.tokenizer.encode_inside(text);
            let is_known = |token: &TokenId| (*token as usize) < self.trie.vocab_size();
            // Some tokenizers write a text in another way than it was: composed, or in small letters.
            let spelled = || tokens.iter().flat_map(|&token| self.trie.token(token)).copied();
            match tokens.iter().all(is_known) && spelled().eq(text.bytes()) {
                true => tokens,
                false => self.trie.greedy_tokenize(text.as_bytes()),
            }
        };
        self.trie.tokenize_with_greedy_fallback(bytes, encode)
    }
}
