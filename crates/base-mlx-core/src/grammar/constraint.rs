use std::fmt;
use std::sync::Arc;

use llguidance::toktrie::TokEnv;
use llguidance::{Matcher, TokenParser};

use crate::TokenId;
use crate::sample::Mask;

/// One answer's place in a grammar. It moves only by tokens that the mask allowed.
pub struct Constraint {
    matcher: Matcher,
    vocabulary: TokEnv,
    /// Tokens that ended the answer after nothing else could follow.
    ends: usize,
    warnings: Arc<[String]>,
    bytes: usize,
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
    /// One that shares nothing that changes, so that both may move on different threads.
    fn clone(&self) -> Self {
        Self {
            matcher: self.matcher.deep_clone(),
            vocabulary: Arc::clone(&self.vocabulary),
            ends: self.ends,
            warnings: Arc::clone(&self.warnings),
            bytes: self.bytes,
        }
    }
}

impl Constraint {
    pub(super) fn new(parser: TokenParser, warnings: Vec<String>) -> Self {
        let vocabulary = Arc::clone(&parser.token_env);
        let lexer = parser.parser.lexer_stats();
        let bytes = lexer.num_bytes + BYTES_OF_LEXEME * lexer.num_regexps;
        let matcher = Matcher::new(Ok(parser));
        Self { matcher, vocabulary, ends: 0, warnings: warnings.into(), bytes }
    }

    /// What was left out of the grammar, for people.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// About what it takes before it moved.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The tokens that may come next; at least one.
    pub fn allowed(&mut self) -> Result<Mask, Broken> {
        let mask = self.matcher.compute_mask_or_eos().map_err(broken)?;
        let mask = Mask::of_words(mask.as_slice());
        if mask.is_empty() { Err(Broken("no token is allowed".to_owned())) } else { Ok(mask) }
    }

    /// Goes on by a token that is allowed.
    pub fn accept(&mut self, token: TokenId) -> Result<(), Broken> {
        if !self.is_over() {
            return self.matcher.consume_token(token).map_err(broken);
        }
        if !self.is_end(token) {
            return Err(Broken(format!("token {token} comes after the end")));
        }
        self.ends += 1;
        Ok(())
    }

    /// Goes back by so many tokens.
    pub fn rollback(&mut self, tokens: usize) -> Result<(), Broken> {
        let ends = tokens.min(self.ends);
        self.ends -= ends;
        self.matcher.rollback(tokens - ends).map_err(broken)
    }

    /// The tokens that come next because nothing else may; none at a place where the model has a choice.
    pub fn forced(&mut self) -> Vec<TokenId> {
        if self.is_over() { Vec::new() } else { self.matcher.compute_ff_tokens() }
    }

    /// How many of these may follow one after another, at most: a quick look, which lets a text through in any spelling,
    /// where a mask asks for the tokenizer's.
    pub fn follows(&mut self, tokens: &[TokenId]) -> usize {
        let most = self.matcher.validate_tokens(tokens).unwrap_or(0);
        // It does not count the end.
        most + usize::from(tokens.get(most).is_some_and(|token| self.is_end(*token)))
    }

    fn is_end(&self, token: TokenId) -> bool {
        self.vocabulary.tok_trie().eos_tokens().contains(&token)
    }

    /// Whether the text may end here.
    pub fn may_stop(&mut self) -> bool {
        self.is_over() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether nothing can follow.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }
}

fn broken(error: impl fmt::Display) -> Broken {
    let error = error.to_string();
    Broken(error.lines().next().unwrap_or_default().to_owned())
}

/// What the compiler keeps of a lexeme beside its regex, about.
const BYTES_OF_LEXEME: usize = 1024;
