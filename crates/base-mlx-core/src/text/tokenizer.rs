use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::normalizers::{NormalizerWrapper, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{Encoding, PostProcessor};

use tokenizers::utils::truncation::TruncationDirection;

use super::{Decoder, Opening};
use crate::TokenId;

/// Text to tokens and back. Immutable and cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    pieces: Arc<Pieces>,
    /// Added around a text beyond what `inner` adds.
    before: Vec<TokenId>,
    after: Vec<TokenId>,
    /// Special tokens that show in an answer's text all the same, as who reads it looks for them.
    shown: Arc<[TokenId]>,
}

/// Are the tokens wanted that the model expects around every text (mostly one at its beginning)? A chat template
/// writes them itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSpecial {
    Yes,
    No,
}

impl Tokenizer {
    /// Special tokens written out in `text` become those tokens. A character that the vocabulary cannot express,
    /// not even as bytes, is left out.
    pub fn encode(&self, text: &str, special: AddSpecial) -> Vec<TokenId> {
        if special == AddSpecial::No {
            return self.encode_inner(text, false);
        }
        let mut tokens = self.before.clone();
        tokens.extend(self.encode_inner(text, true));
        tokens.extend(&self.after);
        tokens
    }

    /// A text with the tokens that go around it, `longest` tokens of all at most: the text loses its end.
    pub fn encode_within(&self, text: &str, longest: usize) -> Vec<TokenId> {
        let whole = self.encode(text, AddSpecial::Yes);
        if whole.len() <= longest {
            return whole;
        }
        let Ok(mut inside) = self.inner.encode_fast(text, false) else { return whole };
        let around = whole.len() - inside.len();
        shorten(&mut inside, longest.saturating_sub(around));
        let Ok(inside) = self.inner.post_process(inside, None, true) else { return whole };
        let mut tokens = self.before.clone();
        tokens.extend(inside.get_ids());
        tokens.extend(&self.after);
        tokens.truncate(longest);
        tokens
    }

    /// One text and others, each of those as a pair with the first: the tokens with those that go around a pair, and which of
    /// both each belongs to. The second text loses its end where they have more than `longest` tokens together; `None` if
    /// that would leave nothing of it, or a text cannot be expressed.
    pub fn encode_pairs(
        &self,
        first: &str,
        seconds: &[String],
        longest: usize,
    ) -> Option<Vec<(Vec<TokenId>, Vec<u32>)>> {
        let first = self.inner.encode_fast(first, false).ok()?;
        let pair = |second: &String| self.encode_pair(&first, second, longest);
        seconds.iter().map(pair).collect()
    }

    fn encode_pair(
        &self,
        first: &Encoding,
        second: &str,
        longest: usize,
    ) -> Option<(Vec<TokenId>, Vec<u32>)> {
        let mut second = self.inner.encode_fast(second, false).ok()?;
        let around = self.inner.get_post_processor().map_or(0, |post| post.added_tokens(true));
        let room = longest.checked_sub(first.len() + around)?;
        if second.len() > room {
            if room == 0 {
                return None;
            }
            shorten(&mut second, room);
        }
        let pair = self.inner.post_process(first.clone(), Some(second), true).ok()?;
        Some((pair.get_ids().to_vec(), pair.get_type_ids().to_vec()))
    }

    /// All of `tokens` as text, special tokens left out.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let mut decoder = self.decoder();
        let mut text: String = tokens.iter().map(|&token| decoder.push(token)).collect();
        text.push_str(&decoder.finish());
        text.drain(..self.opening_after(&[]).skip(text.as_bytes()));
        text
    }

    /// For the text that follows `tokens`: it begins a text only if they show nothing.
    pub fn opening_after(&self, tokens: &[TokenId]) -> Opening {
        let shows =
            |&token: &TokenId| !self.is_hidden(token) && !self.token_bytes(token).is_empty();
        Opening::new(self.pieces.strips_first_space() && !tokens.iter().any(shows))
    }

    /// For one answer's tokens, as they come.
    pub fn decoder(&self) -> Decoder {
        Decoder::new(Arc::clone(&self.pieces), Arc::clone(&self.shown))
    }

    /// The tokens of a piece of text that others are before. Names of special tokens in it are text, but for those that
    /// show.
    pub fn encode_inside(&self, text: &str) -> Vec<TokenId> {
        let tokens = self.encode_inner(text, false);
        let hidden: BTreeSet<TokenId> =
            tokens.iter().copied().filter(|&token| self.is_hidden(token)).collect();
        // Nothing is a name without its first character, so there it is cut.
        let mut cuts = vec![0, text.len()];
        for &token in &hidden {
            let Ok(name) = std::str::from_utf8(self.token_bytes(token)) else { continue };
            let first = name.chars().next().map_or(0, char::len_utf8);
            if 0 < first && first < name.len() {
                cuts.extend(text.match_indices(name).map(|(at, _)| at + first));
            }
        }
        if cuts.len() == 2 {
            return tokens;
        }
        cuts.sort_unstable();
        // Every name in it is cut now, so that what may be found in the pieces is of other names.
        cuts.windows(2).flat_map(|ends| self.encode_inside(&text[ends[0]..ends[1]])).collect()
    }

    /// The same for texts that go on where others end: no space is put before them.
    pub fn continuing(&self) -> Self {
        if !self.pieces.strips_first_space() {
            return self.clone();
        }
        let mut inner = tokenizers::Tokenizer::clone(&self.inner);
        let normalizer = inner.get_normalizer().cloned().and_then(without_prepend);
        // Nothing is added to the vocabulary, which is all that could be refused.
        let _ = inner.with_normalizer(normalizer);
        if let Some(PreTokenizerWrapper::Metaspace(metaspace)) = inner.get_pre_tokenizer().cloned()
        {
            let mut metaspace = metaspace;
            metaspace.set_prepend_scheme(PrependScheme::Never);
            inner.with_pre_tokenizer(Some(metaspace));
        }
        Self { inner: Arc::new(inner), ..self.clone() }
    }

    /// The token's own bytes, which need not be whole characters; of a special token, its name. Empty for an id
    /// that the vocabulary does not have.
    pub fn token_bytes(&self, token: TokenId) -> &[u8] {
        self.pieces.bytes(token)
    }

    /// The highest id plus one; ids below it may be unused.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Is it a marker, and not a piece of text?
    pub fn is_special(&self, token: TokenId) -> bool {
        self.pieces.is_special(token)
    }

    /// Is it a special token that does not show?
    pub fn is_hidden(&self, token: TokenId) -> bool {
        self.is_special(token) && !self.shown.contains(&token)
    }

    /// The token that is written exactly so, a special one or not.
    pub fn token(&self, text: &str) -> Option<TokenId> {
        self.inner.token_to_id(text)
    }

    /// The first token that does not stand for the same in the other vocabulary; `None` if both are equal.
    pub fn difference(&self, other: &Self) -> Option<TokenId> {
        if self.pieces == other.pieces {
            return None;
        }
        let same = |token: TokenId| {
            self.token_bytes(token) == other.token_bytes(token)
                && self.is_special(token) == other.is_special(token)
        };
        let longest = self.vocab_size().max(other.vocab_size()) as TokenId;
        (0..longest).find(|&token| !same(token))
    }

    pub(super) fn new(inner: tokenizers::Tokenizer, pieces: Pieces) -> Self {
        let (before, after) = (Vec::new(), Vec::new());
        let shown = Arc::default();
        Self { inner: Arc::new(inner), pieces: Arc::new(pieces), before, after, shown }
    }

    /// The tokens of these names show in an answer's text, special ones too.
    pub(super) fn showing<'a>(self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let tokens = names.into_iter().filter_map(|name| self.token(name));
        let shown = tokens.filter(|&token| self.is_special(token)).collect();
        Self { shown, ..self }
    }

    /// Whether it has a special token of this name.
    pub(super) fn has_special(&self, name: &str) -> bool {
        self.token(name).is_some_and(|token| self.is_special(token))
    }

    pub(super) fn surrounded(self, before: Vec<TokenId>, after: Vec<TokenId>) -> Self {
        Self { before, after, ..self }
    }

    fn encode_inner(&self, text: &str, special: bool) -> Vec<TokenId> {
        match self.inner.encode_fast(text, special) {
            Ok(encoding) => encoding.get_ids().to_vec(),
            // Some vocabularies have neither bytes nor an unknown token, and fail as a whole.
            Err(_) => text
                .chars()
                .filter_map(|c| self.inner.encode_fast(c.to_string(), false).ok())
                .flat_map(|encoding| encoding.get_ids().to_vec())
                .collect(),
        }
    }

    /// The special token that `text` begins with, the longest if several do.
    pub(super) fn leading_special(&self, text: &str) -> Option<TokenId> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added
            .iter()
            .filter(|(id, token)| {
                self.is_special(**id)
                    && !token.content.is_empty()
                    && text.starts_with(&token.content)
            })
            .max_by_key(|(_, token)| token.content.len())
            .map(|(&id, _)| id)
    }
}

/// Keeps the first `tokens`. The rest, which the library would keep in parts beside them, is given up.
fn shorten(encoding: &mut Encoding, tokens: usize) {
    encoding.truncate(tokens, 0, TruncationDirection::Right);
    encoding.take_overflowing();
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish()
    }
}

/// Leaves out what puts a space before every text.
fn without_prepend(normalizer: NormalizerWrapper) -> Option<NormalizerWrapper> {
    match normalizer {
        NormalizerWrapper::Prepend(_) => None,
        NormalizerWrapper::Sequence(steps) => {
            let steps = steps.as_ref().iter().cloned().filter_map(without_prepend);
            Some(NormalizerWrapper::Sequence(Sequence::new(steps.collect())))
        }
        other => Some(other),
    }
}

/// Every token's bytes end to end, and which tokens are special: all that decoding needs.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where those of the token before end.
    ends: Vec<usize>,
    special: Vec<bool>,
    strips_first_space: bool,
}

impl Pieces {
    /// The pieces of tokens 0, 1, 2, …: their bytes, and whether they are special.
    pub(super) fn new(
        pieces: impl Iterator<Item = (Vec<u8>, bool)>,
        strips_first_space: bool,
    ) -> Self {
        let mut table = Self { strips_first_space, ..Self::default() };
        for (bytes, special) in pieces {
            table.bytes.extend_from_slice(&bytes);
            table.ends.push(table.bytes.len());
            table.special.push(special);
        }
        table
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self, token: TokenId) -> &[u8] {
        let token = token as usize;
        let Some(&end) = self.ends.get(token) else { return &[] };
        let start = if token == 0 { 0 } else { self.ends[token - 1] };
        &self.bytes[start..end]
    }

    pub(super) fn is_special(&self, token: TokenId) -> bool {
        self.special.get(token as usize).copied().unwrap_or(false)
    }

    /// Vocabularies that put a space before every text take it away again.
    pub(super) fn strips_first_space(&self) -> bool {
        self.strips_first_space
    }
}

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// GPT-2's alphabet: each character of a token stands for one byte.
    ByteLevel,
    /// SentencePiece: `▁` is a space, `<0x0A>` a byte.
    SentencePiece { strips_first_space: bool },
    /// Words: a token that does not begin with `prefix` follows a space.
    Words { prefix: &'static str },
}

impl Spelling {
    /// Reads it off a tokenizer.json's decoder; an unknown one is named.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self, String> {
        let Some(decoder) = tokenizer.get_decoder() else { return Ok(Self::Words { prefix: "" }) };
        let steps: &[DecoderWrapper] = match decoder {
            DecoderWrapper::Sequence(sequence) => sequence.get_decoders(),
            single => std::slice::from_ref(single),
        };
        let mut spelling = None;
        let mut strips = false;
        for step in steps {
            match step {
                DecoderWrapper::ByteLevel(_) => spelling = Some(Self::ByteLevel),
                DecoderWrapper::WordPiece(_) => spelling = Some(Self::Words { prefix: "##" }),
                DecoderWrapper::Metaspace(metaspace) => {
                    strips = metaspace.get_prepend_scheme() != PrependScheme::Never;
                    spelling = Some(Self::SentencePiece { strips_first_space: true });
                }
                DecoderWrapper::Replace(_) | DecoderWrapper::ByteFallback(_) => {
                    spelling = spelling.or(Some(Self::SentencePiece { strips_first_space: false }));
                }
                DecoderWrapper::Strip(strip) => strips = strip.content == ' ' && strip.start > 0,
                DecoderWrapper::Fuse(_) => {}
                other => return Err(format!("its decoder is not supported: {other:?}")),
            }
        }
        match spelling {
            Some(Self::SentencePiece { .. }) => {
                Ok(Self::SentencePiece { strips_first_space: strips })
            }
            Some(spelling) => Ok(spelling),
            None => Err(format!("its decoder is not supported: {decoder:?}")),
        }
    }

    pub(super) fn strips_first_space(self) -> bool {
        match self {
            Self::ByteLevel => false,
            Self::SentencePiece { strips_first_space } => strips_first_space,
            Self::Words { .. } => true,
        }
    }

    /// The bytes that a token of the vocabulary proper stands for.
    pub(super) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => token
                .chars()
                .map(byte_level)
                .collect::<Option<Vec<u8>>>()
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Self::SentencePiece { .. } => match byte_token(token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
            Self::Words { prefix } => match token.strip_prefix(prefix) {
                Some(rest) if !prefix.is_empty() => rest.as_bytes().to_vec(),
                _ => format!(" {token}").into_bytes(),
            },
        }
    }
}

/// The byte that a character of GPT-2's alphabet stands for: printable Latin-1 stands for itself, the other bytes
/// were given U+0100 onwards, in their order.
fn byte_level(c: char) -> Option<u8> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(c) {
        code if printable(code) => u8::try_from(code).ok(),
        code @ 0x100..=0x143 => {
            let mut others = (0u8..=255).filter(|&byte| !printable(u32::from(byte)));
            others.nth(code as usize - 0x100)
        }
        _ => None,
    }
}

/// `<0x0A>` is the byte 10.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_not_kept() {
        let token = |id| tokenizers::Token::new(id, "a".to_owned(), (0, 1));
        let mut encoding = Encoding::from_tokens((0..100).map(token).collect(), 0);
        shorten(&mut encoding, 3);
        assert_eq!(encoding.get_ids(), [0, 1, 2]);
        assert!(encoding.get_overflowing().is_empty());
    }
}
