//! Tokenizers and templates from GGUF metadata.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{
    BertNormalizer, NFC, NormalizerWrapper, Precompiled, Prepend, Replace, Sequence as Normalizers,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::charsmap;
use super::end::EndTokens;
use super::pretokenize::PreTokenizer;
use super::template::{ChatTemplate, SpecialTokens};
use super::tokenizer::{Pieces, Spelling, Tokenizer};
use super::{MAX_TOKENS, Text};
use crate::TokenId;
use crate::weights::LoadError;
use crate::weights::gguf::{Array, Metadata, Value};

pub(super) fn load(path: &Path, metadata: &Metadata) -> Result<Text, LoadError> {
    let error = |what| LoadError::Tokenizer { path: path.to_owned(), what };
    let vocabulary = Vocabulary::read(metadata).map_err(error)?;
    for doubt in &vocabulary.doubts {
        tracing::warn!("{}: {doubt}", path.display());
    }
    // Long lists from a foreign file meet a library that trusts them; whatever it trips over is the file's fault.
    let tokenizer = catch_unwind(AssertUnwindSafe(|| vocabulary.tokenizer()))
        .unwrap_or_else(|_| Err("its vocabulary is damaged".to_owned()))
        .map_err(error)?;

    let mut special = SpecialTokens::new();
    let keys = Keys(metadata);
    for name in ["bos", "eos", "unk", "padding"] {
        let key = if name == "unk" { "unknown" } else { name };
        if let Some(token) = vocabulary.id(keys, key).map_err(error)? {
            let name = if name == "padding" { "pad" } else { name };
            special.insert(format!("{name}_token"), vocabulary.text(token as usize).into_owned());
        }
    }
    let mut sources = BTreeMap::new();
    for (key, value) in metadata.iter() {
        let Some(name) = key.strip_prefix("tokenizer.chat_template") else { continue };
        if let Value::String(source) = value {
            let name = name.strip_prefix('.').unwrap_or("default");
            sources.insert(name.to_owned(), source.clone());
        }
    }
    let (template, template_error) = match ChatTemplate::load(sources, special) {
        Ok(template) => (template, None),
        Err(error) => (None, Some(error)),
    };

    let mut end = EndTokens::new(&tokenizer);
    for name in ["eos", "eot", "eom"] {
        end.add(vocabulary.id(keys, name).map_err(error)?.into_iter());
    }
    end.add_turn_ends(template.as_ref());
    let end_tokens = end.finish();
    Ok(Text::new(tokenizer, template, template_error, end_tokens))
}

/// What `tokenizer.ggml.*` says.
struct Vocabulary<'a> {
    model: Model,
    tokens: &'a [String],
    kinds: Vec<Kind>,
    /// In descending order of preference for SentencePiece, empty for the others.
    scores: &'a [f32],
    /// Pairs written `left right`, the first merged first.
    merges: &'a [String],
    /// What SentencePiece writes for what, in its own form.
    charsmap: Vec<u8>,
    before: Vec<TokenId>,
    after: Vec<TokenId>,
    /// What the file leaves open and whoever compares its vectors should know.
    doubts: Vec<String>,
}

/// The keys `tokenizer.ggml.*`.
#[derive(Clone, Copy)]
struct Keys<'a>(&'a Metadata);

enum Model {
    ByteLevel(&'static PreTokenizer),
    SentencePiece {
        adds_space: bool,
    },
    /// SentencePiece's spelling with the merges written out.
    MergedSentencePiece,
    /// BERT's words and the pieces that go on with them.
    WordPiece {
        lowercase: bool,
        strips_accents: bool,
        around: Around,
    },
    /// SentencePiece's likeliest way to cut a text.
    Unigram {
        around: Around,
    },
}

/// The tokens that an encoder's texts stand between, and the one for what the vocabulary lacks.
#[derive(Clone, Copy)]
struct Around {
    first: TokenId,
    last: TokenId,
    unknown: TokenId,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    /// Markers: never part of an answer's text.
    Control,
    /// Recognised before everything else, and part of the text.
    UserDefined,
    Unused,
    Byte,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, String> {
        let keys = Keys(metadata);
        let name =
            keys.str("model")?.ok_or("the file has none (`tokenizer.ggml.model` is missing)")?;
        let tokens = keys.strings("tokens")?.ok_or("`tokenizer.ggml.tokens` is missing")?;
        if tokens.is_empty() || tokens.len() > MAX_TOKENS {
            return Err(format!("it has {} tokens, expected 1..={MAX_TOKENS}", tokens.len()));
        }
        let mut doubts = Vec::new();
        let (model, adds_bos) = match name {
            "gpt2" => {
                let pre = keys.str("pre")?.ok_or(
                    "`tokenizer.ggml.pre` is missing, so how it cuts words is unknown\n\
                     hint: the file was made by an old converter; use a newer one",
                )?;
                let pre = PreTokenizer::named(pre)
                    .ok_or_else(|| format!("`tokenizer.ggml.pre` is `{pre}`, which is unknown"))?;
                (Model::ByteLevel(pre), pre.adds_bos)
            }
            "llama" => (
                Model::SentencePiece { adds_space: keys.bool("add_space_prefix")?.unwrap_or(true) },
                true,
            ),
            "gemma4" => (Model::MergedSentencePiece, true),
            // Files without the flags are read by everybody as those of a model that knows small letters only.
            "bert" => {
                let lowercase = keys.bool("normalizer.lowercase")?.unwrap_or(true);
                let strips_accents = keys.bool("normalizer.strip_accents")?.unwrap_or(lowercase);
                let around = Around::read(keys, tokens, ["[CLS]", "[SEP]", "[UNK]"])?;
                (Model::WordPiece { lowercase, strips_accents, around }, false)
            }
            "t5" => {
                if keys.bool("add_space_prefix")? == Some(false) {
                    return Err(
                        "`tokenizer.ggml.add_space_prefix` is false, only true is supported \
                                of a `t5` vocabulary"
                            .to_owned(),
                    );
                }
                // Converters that read tokenizer.json take this from a setting of how tokens are written as text, and say
                // it of models that cut at all spaces. SentencePiece's own files say true.
                if keys.bool("remove_extra_whitespaces")? == Some(false) {
                    doubts.push(
                        "`tokenizer.ggml.remove_extra_whitespaces` is false, and yet several \
                         spaces count as one"
                            .to_owned(),
                    );
                }
                let around = Around::read(keys, tokens, ["<s>", "</s>", "<unk>"])?;
                (Model::Unigram { around }, false)
            }
            other => {
                return Err(format!(
                    "`tokenizer.ggml.model` is `{other}`\n\
                     hint: `gpt2`, `llama`, `gemma4`, `bert` and `t5` are read"
                ));
            }
        };
        let kinds = match keys.list("token_type", "whole numbers", Array::integers)? {
            Some(kinds) => kinds.into_iter().map(Kind::of).collect(),
            None => vec![Kind::Normal; tokens.len()],
        };
        let scores = keys.list("scores", "F32 numbers", Array::f32s)?.unwrap_or_default();
        let merges = keys.strings("merges")?.unwrap_or_default();
        for (name, texts) in [("tokens", tokens), ("merges", merges)] {
            let bytes: usize = texts.iter().map(String::len).sum();
            if bytes > MAX_VOCABULARY_BYTES {
                return Err(format!(
                    "`tokenizer.ggml.{name}` has {bytes} bytes, expected at most \
                     {MAX_VOCABULARY_BYTES}"
                ));
            }
        }
        if let Model::WordPiece { .. } | Model::Unigram { .. } = model {
            for (id, token) in tokens.iter().enumerate() {
                check_length(id, token)?;
            }
        }
        let scored = matches!(model, Model::SentencePiece { .. } | Model::Unigram { .. });
        for (name, len) in [("token_type", kinds.len()), ("scores", scores.len())] {
            if len != tokens.len() && (name == "token_type" || scored) {
                return Err(format!(
                    "`tokenizer.ggml.{name}` has {len} entries, `tokenizer.ggml.tokens` has {}",
                    tokens.len()
                ));
            }
        }
        let charsmap = keys.list("precompiled_charsmap", "bytes", |bytes| match bytes {
            Array::U8(bytes) => Some(bytes.clone()),
            Array::I8(bytes) => Some(bytes.iter().map(|&byte| byte as u8).collect()),
            _ => None,
        })?;
        let mut vocabulary = Self {
            model,
            tokens,
            kinds,
            scores,
            merges,
            charsmap: charsmap.unwrap_or_default(),
            before: Vec::new(),
            after: Vec::new(),
            doubts,
        };
        if let Some(Around { first, last, unknown }) = vocabulary.around() {
            // SentencePiece counts the last apart, and Hugging Face's vocabularies do not.
            for id in [first, last, unknown] {
                vocabulary.kinds[id as usize] = Kind::Control;
            }
            return Ok(vocabulary);
        }
        if keys.bool("add_bos_token")?.unwrap_or(adds_bos) {
            vocabulary.before.extend(vocabulary.id(keys, "bos")?);
        }
        vocabulary.end(keys)?;
        Ok(vocabulary)
    }

    /// Reads what is put behind every text.
    ///
    /// Models whose vector is that of the last token were trained with the end token there. Early files of such models do not
    /// say that it is to be added, and with them others take the vector of the text's own last token, which finds little.
    /// Nobody wants that, so it is added unless the file says no.
    fn end(&mut self, keys: Keys) -> Result<(), String> {
        let (added, eos) = (keys.bool("add_eos_token")?, self.id(keys, "eos")?);
        let last = keys.pools_last()?;
        if added.unwrap_or(last) {
            self.after.extend(eos);
        }
        let doubt = match (added, eos) {
            _ if !last => return Ok(()),
            (Some(true), Some(_)) => return Ok(()),
            (None, Some(eos)) => format!(
                "`tokenizer.ggml.add_eos_token` is missing, and vectors are those of the last \
                 token: {:?} is put behind every text",
                self.text(eos as usize)
            ),
            (Some(false), _) => {
                "`tokenizer.ggml.add_eos_token` is false, and vectors are those of \
                                 the last token: a text's own, where mostly an end token is meant"
                    .to_owned()
            }
            (_, None) => "`tokenizer.ggml.eos_token_id` names no token, and vectors are those of \
                          the last token: a text's own, where mostly an end token is meant"
                .to_owned(),
        };
        self.doubts.push(doubt);
        Ok(())
    }

    fn around(&self) -> Option<Around> {
        match self.model {
            Model::WordPiece { around, .. } | Model::Unigram { around } => Some(around),
            _ => None,
        }
    }

    /// The token with the role `name`, if the file names one that exists.
    fn id(&self, keys: Keys, name: &str) -> Result<Option<TokenId>, String> {
        Ok(keys.id(name)?.and_then(|id| token_of(id, self.tokens)))
    }

    fn tokenizer(&self) -> Result<Tokenizer, String> {
        let mut inner = self.bare().map_err(|error| error.to_string())?;
        let of_kind = |kind: Kind, special: bool| {
            let tokens = (0..self.tokens.len()).filter(move |&id| self.kinds[id] == kind);
            tokens.map(move |id| AddedToken::from(self.text(id), special).normalized(false))
        };
        let added = of_kind(Kind::Control, true).chain(of_kind(Kind::UserDefined, false));
        inner.add_tokens(added).map_err(|error| error.to_string())?;

        let spelling = match self.model {
            Model::ByteLevel(_) => Spelling::ByteLevel,
            Model::SentencePiece { adds_space } => {
                Spelling::SentencePiece { strips_first_space: adds_space }
            }
            Model::MergedSentencePiece => Spelling::SentencePiece { strips_first_space: false },
            Model::WordPiece { .. } => Spelling::Words { prefix: GOES_ON },
            Model::Unigram { .. } => Spelling::SentencePiece { strips_first_space: true },
        };
        let pieces = self.kinds.iter().enumerate().map(|(id, kind)| match kind {
            Kind::Normal | Kind::Byte => (spelling.bytes(&self.text(id)), false),
            Kind::UserDefined => (self.text(id).into_owned().into_bytes(), false),
            Kind::Control | Kind::Unknown => (self.text(id).into_owned().into_bytes(), true),
            Kind::Unused => (Vec::new(), false),
        });
        let pieces = Pieces::new(pieces, spelling.strips_first_space());
        Ok(Tokenizer::new(inner, pieces).surrounded(self.before.clone(), self.after.clone()))
    }

    /// How Hugging Face's vocabularies write a token. In a GGUF file BERT's beginnings of words are marked, and not the
    /// pieces that go on.
    fn text(&self, id: usize) -> Cow<'_, str> {
        let token = &self.tokens[id];
        match (&self.model, token.strip_prefix('▁')) {
            (Model::WordPiece { .. }, Some(beginning)) => beginning.into(),
            (Model::WordPiece { .. }, None) if self.kinds[id] != Kind::Control => {
                format!("{GOES_ON}{token}").into()
            }
            _ => token.into(),
        }
    }

    /// Without the added tokens.
    fn bare(&self) -> tokenizers::Result<tokenizers::Tokenizer> {
        let ids: Vocab = self.tokens.iter().cloned().zip(0..).collect();
        let split = |pattern: &str| {
            let pattern = SplitPattern::Regex(pattern.to_owned());
            Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map(PreTokenizerWrapper::Split)
        };
        let space = || Replace::new(" ", "▁").map(NormalizerWrapper::Replace);
        match self.model {
            Model::ByteLevel(pre) => {
                let bpe = BPE::builder()
                    .vocab_and_merges(ids, self.written_merges()?)
                    .ignore_merges(pre.ignore_merges)
                    .build()?;
                let mut inner = tokenizers::Tokenizer::new(bpe);
                let mut steps = Vec::new();
                for pattern in pre.patterns {
                    steps.push(split(pattern)?);
                }
                steps.push(ByteLevel::new(false, true, false).into());
                inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
                inner.with_normalizer(pre.composes.then_some(NFC))?;
                Ok(inner)
            }
            Model::SentencePiece { adds_space } => {
                let merges = self.scored_merges(&ids)?;
                let mut inner = tokenizers::Tokenizer::new(self.with_bytes(ids, merges)?);
                let mut steps = Vec::new();
                if adds_space {
                    steps.push(NormalizerWrapper::Prepend(Prepend::new("▁".to_owned())));
                }
                steps.push(space()?);
                inner.with_normalizer(Some(Normalizers::new(steps)))?;
                Ok(inner)
            }
            Model::MergedSentencePiece => {
                let merges = self.written_merges()?;
                let mut inner = tokenizers::Tokenizer::new(self.with_bytes(ids, merges)?);
                inner.with_normalizer(Some(space()?))?;
                inner.with_pre_tokenizer(Some(split(r"[^\n]+|[\n]+")?));
                Ok(inner)
            }
            Model::WordPiece { lowercase, strips_accents, around } => {
                let named = |id: TokenId| (self.text(id as usize).into_owned(), id);
                let ids: Vocab = (0..self.tokens.len() as TokenId).map(named).collect();
                let words = WordPiece::builder()
                    .vocab(ids)
                    .unk_token(named(around.unknown).0)
                    .continuing_subword_prefix(GOES_ON.to_owned())
                    .build()?;
                let mut inner = tokenizers::Tokenizer::new(words);
                let normalizer = BertNormalizer::new(true, true, Some(strips_accents), lowercase);
                inner.with_normalizer(Some(normalizer))?;
                inner.with_pre_tokenizer(Some(BertPreTokenizer));
                let (last, first) = (named(around.last), named(around.first));
                inner.with_post_processor(Some(BertProcessing::new(last, first)));
                Ok(inner)
            }
            Model::Unigram { around } => {
                let named = |id: TokenId| (self.tokens[id as usize].clone(), id);
                let unknown = Some(around.unknown as usize);
                let pieces = Unigram::from(self.weighed()?, unknown, false)?;
                let mut inner = tokenizers::Tokenizer::new(pieces);
                if !self.charsmap.is_empty() {
                    charsmap::check(&self.charsmap)?;
                    inner.with_normalizer(Some(Precompiled::from(&self.charsmap)?))?;
                }
                let metaspace = Metaspace::new('▁', PrependScheme::Always, true);
                let steps = vec![WhitespaceSplit.into(), metaspace.into()];
                inner.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
                let (last, first) = (named(around.last), named(around.first));
                inner.with_post_processor(Some(RobertaProcessing::new(last, first)));
                Ok(inner)
            }
        }
    }

    /// Tokens with their scores. Converters give what fills a gap the lowest score by far, which would make everything
    /// unknown as unlikely. It is given a name with a space in it: texts are cut at spaces first, so that none is found.
    fn weighed(&self) -> Result<Vec<(String, f64)>, String> {
        if let Some(id) = self.scores.iter().position(|score| !score.is_finite()) {
            return Err(format!("the score of token {id} is {}", self.scores[id]));
        }
        let normal = self.scores.iter().zip(&self.kinds).filter(|(_, kind)| **kind == Kind::Normal);
        let least = normal.map(|(score, _)| *score).fold(0.0, f32::min);
        let tokens = self.tokens.iter().zip(&self.kinds).zip(self.scores);
        let weighed = tokens.map(|((token, kind), score)| match kind {
            Kind::Unused => (format!(" {token}"), f64::from(least)),
            _ => (token.clone(), f64::from(*score)),
        });
        Ok(weighed.collect())
    }

    /// Merging with bytes for the characters that the vocabulary lacks.
    fn with_bytes(&self, ids: Vocab, merges: Merges) -> tokenizers::Result<BPE> {
        let unknown = self.kinds.iter().position(|&kind| kind == Kind::Unknown);
        let mut builder = BPE::builder().byte_fallback(true).fuse_unk(true);
        if let Some(unknown) = unknown.map(|id| self.tokens[id].clone()).or_else(|| {
            let unknown = "<unk>".to_owned();
            ids.contains_key(&unknown).then_some(unknown)
        }) {
            builder = builder.unk_token(unknown);
        }
        builder.vocab_and_merges(ids, merges).build()
    }

    fn written_merges(&self) -> Result<Merges, String> {
        let pair = |merge: &String| {
            // The left half may itself begin with a space.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let (left, right) = merge[first..].split_once(' ')?;
            Some((merge[..first + left.len()].to_owned(), right.to_owned()))
        };
        let merges = self.merges.iter();
        merges
            .map(|merge| pair(merge).ok_or_else(|| format!("the merge `{merge}` is no pair")))
            .collect()
    }

    /// SentencePiece joins whichever two neighbours make the token of the highest score. So every way to cut a
    /// token into two tokens is a merge, ordered by the score of the whole.
    fn scored_merges(&self, ids: &Vocab) -> Result<Merges, String> {
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if !matches!(self.kinds[id], Kind::Normal | Kind::UserDefined | Kind::Unused) {
                continue;
            }
            check_length(id, token)?;
            let mut cuts = Vec::new();
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                    cuts.push(((l, r), (left.to_owned(), right.to_owned())));
                }
            }
            cuts.sort_by_key(|(ids, _)| *ids);
            merges.extend(cuts.into_iter().map(|(_, pair)| (self.scores[id], pair)));
        }
        merges.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        Ok(merges.into_iter().map(|(_, pair)| pair).collect())
    }
}

impl<'a> Keys<'a> {
    fn str(self, name: &str) -> Result<Option<&'a str>, String> {
        self.0.told_str(&format!("tokenizer.ggml.{name}"))
    }

    fn bool(self, name: &str) -> Result<Option<bool>, String> {
        self.0.told_bool(&format!("tokenizer.ggml.{name}"))
    }

    /// The token of a role, or what stands in its place.
    fn id(self, role: &str) -> Result<Option<i128>, String> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        self.0.told(&key, "a whole number", Value::integer)
    }

    fn list<T>(
        self,
        name: &str,
        of: &str,
        read: impl FnOnce(&'a Array) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let key = format!("tokenizer.ggml.{name}");
        self.0.told(&key, &format!("an array of {of}"), |value| read(value.array()?))
    }

    fn strings(self, name: &str) -> Result<Option<&'a [String]>, String> {
        self.list(name, "strings", Array::strings)
    }

    /// Whether a text's vector is that of its last token.
    fn pools_last(self) -> Result<bool, String> {
        let architecture = self.0.told_str("general.architecture")?.unwrap_or_default();
        Ok(self.0.told_u64(&format!("{architecture}.pooling_type"))? == Some(LAST))
    }
}

impl Around {
    /// By their roles, or as most models of the kind name them.
    fn read(keys: Keys, tokens: &[String], names: [&str; 3]) -> Result<Self, String> {
        // The third spelling is the one that files have.
        let roles = [&["cls", "bos"][..], &["sep", "separator", "seperator", "eos"], &["unknown"]];
        let find = |which: usize| {
            let name = names[which];
            let mut beyond = None;
            for role in roles[which] {
                let Some(id) = keys.id(role)? else { continue };
                if let Some(token) = token_of(id, tokens) {
                    return Ok(token);
                }
                beyond = beyond.or(Some((role, id)));
            }
            if let Some(id) = tokens.iter().position(|token| token == name) {
                return Ok(id as TokenId);
            }
            Err(match beyond {
                None => format!("it has no `{name}`, and names no token in its place"),
                Some((role, id)) => format!(
                    "`tokenizer.ggml.{role}_token_id` is {id}, expected a number below that of its \
                     tokens, {}, none of which is `{name}`",
                    tokens.len()
                ),
            })
        };
        Ok(Self { first: find(0)?, last: find(1)?, unknown: find(2)? })
    }
}

/// The token of this number, if there is one.
fn token_of(id: i128, tokens: &[String]) -> Option<TokenId> {
    usize::try_from(id).ok().filter(|&id| id < tokens.len()).map(|id| id as TokenId)
}

fn check_length(id: usize, token: &str) -> Result<(), String> {
    if token.len() > MAX_TOKEN_BYTES {
        let bytes = token.len();
        return Err(format!("token {id} has {bytes} bytes, expected at most {MAX_TOKEN_BYTES}"));
    }
    Ok(())
}

impl Kind {
    fn of(number: i64) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal,
        }
    }
}

/// What stands before pieces that go on with a word.
const GOES_ON: &str = "##";

/// SentencePiece's own limit is far below; without one, cutting takes quadratic time.
const MAX_TOKEN_BYTES: usize = 1024;

/// Of all tokens together, and of all merges. The largest vocabularies of today have 5 MB, and what looks tokens up takes
/// some hundred bytes for each of theirs.
const MAX_VOCABULARY_BYTES: usize = 64 << 20;

/// `pooling_type` of models whose vector is that of a text's last token.
const LAST: u64 = 3;
