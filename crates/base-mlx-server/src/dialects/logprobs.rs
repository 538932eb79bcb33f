//! Log probabilities, as both endpoints write them: the model's own, before temperature, penalties and filters.

use std::collections::BTreeMap;
use std::sync::Arc;

use base_mlx_core::engine::TokenLogprob;
use base_mlx_core::text::{Opening, Tokenizer};
use serde::Serialize;

use crate::events::Echo;

#[derive(Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<ChatEntry>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatEntry {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatAlternative>,
}

#[derive(Serialize)]
struct ChatAlternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(super) fn new(entries: Vec<TokenLogprob>) -> Self {
        let entry = |entry: TokenLogprob| ChatEntry {
            token: token_text(&entry.bytes, ""),
            logprob: finite(entry.logprob),
            bytes: entry.bytes,
            top_logprobs: entry
                .top
                .into_iter()
                .map(|top| ChatAlternative {
                    token: token_text(&top.bytes, ""),
                    logprob: finite(top.logprob),
                    bytes: top.bytes,
                })
                .collect(),
        };
        Self { content: entries.into_iter().map(entry).collect(), refusal: None }
    }
}

/// The legacy endpoint's columns.
#[derive(Default, Serialize)]
pub(super) struct LegacyLogprobs {
    tokens: Vec<String>,
    /// Null for the first token of a prompt, which nothing predicts.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    text_offset: Vec<usize>,
}

impl LegacyLogprobs {
    pub(super) fn new(entries: Vec<TokenLogprob>, offsets: &mut Offsets) -> Self {
        let mut columns = Self::default();
        for entry in entries {
            columns.text_offset.push(offsets.next(&entry));
            let predicted = !entry.logprob.is_nan();
            let token = token_text(&entry.bytes, "bytes:");
            let logprob = finite(entry.logprob);
            columns.token_logprobs.push(predicted.then_some(logprob));
            let mut top: BTreeMap<String, f32> = entry
                .top
                .iter()
                .map(|top| (token_text(&top.bytes, "bytes:"), finite(top.logprob)))
                .collect();
            // The token that was chosen is always listed, even if it was not among the best.
            top.entry(token.clone()).or_insert(logprob);
            columns.top_logprobs.push(predicted.then_some(top));
            columns.tokens.push(token);
        }
        columns
    }
}

/// Where the tokens of a choice start in its text, counted in characters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offsets {
    begun: usize,
    /// Tokens of an echoed prompt that are still to come: its text spells all of them.
    echoed: usize,
    /// The echoed prompt, and how many of its bytes the tokens so far have spelled.
    echo: Arc<str>,
    spelled: usize,
    /// Of the answer's tokens it tells which are not seen; `None` if all are.
    tokenizer: Option<Tokenizer>,
    /// Of the echo, then of the answer.
    echo_opening: Opening,
    opening: Opening,
}

impl Offsets {
    /// Of a text that begins with what `echo` scores, and of whose answer `opening` is the beginning.
    pub(crate) fn new(tokenizer: &Tokenizer, echo: &Echo, opening: Opening) -> Self {
        Self {
            begun: 0,
            echoed: echo.scored_tokens,
            echo: Arc::clone(&echo.text),
            spelled: 0,
            tokenizer: Some(tokenizer.clone()),
            echo_opening: tokenizer.opening_after(&[]),
            opening,
        }
    }

    fn next(&mut self, entry: &TokenLogprob) -> usize {
        let mut bytes = &entry.bytes[..];
        let echoed = self.echoed > 0;
        if echoed {
            self.echoed -= 1;
            bytes = &bytes[self.echo_opening.skip(bytes)..];
            // Behind a special token there may be another space that the prompt does not have.
            if bytes.starts_with(b" ") && !self.echo[self.spelled..].starts_with(' ') {
                bytes = &bytes[1..];
            }
        } else if self.tokenizer.as_ref().is_some_and(|known| known.is_special(entry.token)) {
            return self.begun;
        } else {
            bytes = &bytes[self.opening.skip(bytes)..];
        }
        // A token that goes on with a character starts where that character does.
        let inside = bytes.first().is_some_and(|byte| is_continuation(*byte));
        let start = self.begun.saturating_sub(usize::from(inside));
        let characters = bytes.iter().filter(|byte| !is_continuation(**byte)).count();
        self.begun += characters;
        if echoed {
            let spelled = self.echo[self.spelled..].chars().take(characters);
            self.spelled += spelled.map(char::len_utf8).sum::<usize>();
        }
        start
    }
}

/// A token's text; of a token that is not whole characters its bytes, written out.
fn token_text(bytes: &[u8], prefix: &str) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold(prefix.to_owned(), |mut text, byte| {
            text.push_str(&format!("\\x{byte:02x}"));
            text
        }),
    }
}

/// JSON knows no infinity.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

const LEAST: f32 = -9999.0;

#[cfg(test)]
mod tests {
    use base_mlx_core::engine::TopLogprob;
    use serde_json::json;

    use super::*;

    fn entry(bytes: &[u8], logprob: f32) -> TokenLogprob {
        let top = vec![TopLogprob { token: 1, bytes: b"x".to_vec(), logprob: -0.5 }];
        TokenLogprob { token: 0, bytes: bytes.to_vec(), logprob, top }
    }

    #[test]
    fn point_45_split_characters_keep_their_bytes_and_infinities_are_written_as_numbers() {
        let emoji = "😀".as_bytes();
        let entries = vec![entry(b"a", f32::NEG_INFINITY), entry(&emoji[..2], -1.0)];
        let body = json!(ChatLogprobs::new(entries));
        assert_eq!(body["content"][0]["logprob"], -9999.0);
        assert_eq!(body["content"][1]["token"], "\\xf0\\x9f");
        assert_eq!(body["content"][1]["bytes"], json!([0xf0, 0x9f]));
        assert_eq!(body["refusal"], json!(null));
    }

    #[test]
    fn point_47_columns_hold_the_chosen_token_and_null_for_what_nothing_predicts() {
        let entries = vec![entry(b"a", f32::NAN), entry(b" b", -2.0)];
        let body = json!(LegacyLogprobs::new(entries, &mut Offsets::default()));
        assert_eq!(
            body,
            json!({
                "tokens": ["a", " b"],
                "token_logprobs": [null, -2.0],
                "top_logprobs": [null, { " b": -2.0, "x": -0.5 }],
                "text_offset": [0, 1],
            })
        );
    }

    #[test]
    fn point_47_offsets_count_characters_not_bytes() {
        let mut offsets = Offsets::default();
        let emoji = "😀".as_bytes();
        let tokens = ["é".as_bytes(), b" b", &emoji[..2], &emoji[2..], b"c"];
        let entries = tokens.iter().map(|bytes| entry(bytes, -1.0));
        let starts: Vec<usize> = entries.map(|entry| offsets.next(&entry)).collect();
        assert_eq!(starts, [0, 1, 3, 3, 4]);
    }
}
