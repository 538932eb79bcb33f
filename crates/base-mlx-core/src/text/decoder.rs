use std::sync::Arc;

use super::tokenizer::Pieces;
use crate::TokenId;

/// Turns the tokens of one answer into text, piece by piece. The pieces joined are what these tokens add to the text
/// before them: no character is ever split, and at most three bytes wait for the rest of theirs. What begins a text
/// goes through its [`Opening`] too.
#[derive(Clone, Debug)]
pub struct Decoder {
    pieces: Arc<Pieces>,
    /// Special tokens that are text.
    shown: Arc<[TokenId]>,
    utf8: Utf8,
}

impl Decoder {
    pub(super) fn new(pieces: Arc<Pieces>, shown: Arc<[TokenId]>) -> Self {
        Self { pieces, shown, utf8: Utf8::default() }
    }

    /// The characters that `token` completes; empty for a special token and while bytes are held.
    pub fn push(&mut self, token: TokenId) -> String {
        if self.pieces.is_special(token) && !self.shown.contains(&token) {
            return String::new();
        }
        self.utf8.push(self.pieces.bytes(token))
    }

    /// Whether a character is begun and not complete.
    pub fn is_within_character(&self) -> bool {
        !self.utf8.held.is_empty()
    }

    /// What was held: a character that nothing will complete any more becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        self.utf8.finish()
    }
}

/// Where a text may begin with a space that is not its own: some vocabularies put one before every text.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// No text has come, and a space that it begins with is to go.
    strips: bool,
}

impl Opening {
    pub(super) fn new(strips: bool) -> Self {
        Self { strips }
    }

    /// How many bytes at the beginning of the next piece of text are to be left out.
    pub fn skip(&mut self, piece: &[u8]) -> usize {
        if piece.is_empty() {
            return 0;
        }
        let strips = std::mem::take(&mut self.strips);
        usize::from(strips && piece[0] == b' ')
    }
}

/// Bytes in, whole characters out. Invalid bytes become U+FFFD exactly where `String::from_utf8_lossy` of the whole
/// puts them.
#[derive(Clone, Debug, Default)]
struct Utf8 {
    /// The beginning of one character, at most three bytes.
    held: Vec<u8>,
}

impl Utf8 {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut done = 0;
        loop {
            match std::str::from_utf8(&self.held[done..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    done = self.held.len();
                    break;
                }
                Err(error) => {
                    let valid = done..done + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[valid]));
                    done += error.valid_up_to();
                    let Some(invalid) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += invalid;
                }
            }
        }
        self.held.drain(..done);
        text
    }

    fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces of characters, whole ones, and bytes that no character has.
    fn chunk() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..4),
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            any::<char>().prop_map(|c| c.to_string().into_bytes()[..1].to_vec()),
            prop::sample::select(vec![
                0x80u8, 0xbf, 0xc0, 0xe2, 0xed, 0xa0, 0xf0, 0x9f, 0xf4, 0xff
            ])
            .prop_map(|byte| vec![byte]),
        ]
    }

    proptest! {
        #[test]
        fn pieces_joined_are_the_lossy_whole(chunks in prop::collection::vec(chunk(), 0..40)) {
            let mut utf8 = Utf8::default();
            let mut text = String::new();
            for chunk in &chunks {
                text.push_str(&utf8.push(chunk));
                prop_assert!(utf8.held.len() <= 3);
            }
            text.push_str(&utf8.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&chunks.concat()).into_owned());
            prop_assert!(utf8.held.is_empty());
        }

        #[test]
        fn a_valid_text_cut_anywhere_never_shows_a_broken_character(text: String, cuts: Vec<u8>) {
            let mut utf8 = Utf8::default();
            let mut rest = text.as_bytes();
            let mut shown = String::new();
            for cut in cuts {
                let (head, tail) = rest.split_at(usize::from(cut % 5).min(rest.len()));
                shown.push_str(&utf8.push(head));
                prop_assert!(text.starts_with(&shown));
                rest = tail;
            }
            shown.push_str(&utf8.push(rest));
            prop_assert_eq!(&shown, &text);
            prop_assert_eq!(utf8.finish(), "");
        }
    }
}
