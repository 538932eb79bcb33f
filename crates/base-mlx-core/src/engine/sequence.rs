use super::prefix::KeptId;
use crate::TokenId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(pub u64);

/// One answer in the making: its prompt, what was added to it, and how far its cache has caught up.
#[derive(Clone, Debug)]
pub struct Sequence {
    pub id: SequenceId,
    /// The prompt, then the tokens chosen so far.
    pub tokens: Vec<TokenId>,
    pub prompt_len: usize,
    /// Guesses at the tokens that follow. They live for one step: `commit` keeps those that were right as tokens and
    /// forgets the others.
    pub draft: Vec<TokenId>,
    /// The cursor: the cache of this sequence is right for `tokens[..computed]`. It may hold rows beyond, of drafts that
    /// were wrong; the next span starts at `computed`, and the runner truncates to a span's start before it computes.
    pub computed: usize,
    /// Most tokens to add to the prompt. 0 computes the prompt and ends.
    pub max_tokens: usize,
    /// Sequences of one group have the same prompt, and the later ones start from a fork of an earlier one's cache.
    pub group: u64,
    /// It comes behind all that are not.
    pub background: bool,
    /// Also ask for the rows of the prompt, to score its tokens. One member of a group is enough.
    pub score_prompt: bool,
    /// Prompt positions whose rows were delivered, so that a preempted sequence does not ask for them twice.
    pub(super) scored: usize,
    /// The kept cache that it began with, and how many positions of it.
    pub(super) kept: Option<(KeptId, usize)>,
    /// So many positions at its beginning lie on disk.
    pub stored: usize,
    /// So many of these are on their way into its cache, and nothing of it is computed until they have come.
    pub(super) fetching: Option<usize>,
    /// What its first step found done; `None` before it.
    pub(super) cached: Option<Cached>,
}

/// How much of a prompt need not be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cached {
    /// So many tokens at its beginning.
    pub tokens: usize,
    /// Of so many in all.
    pub prompt_tokens: usize,
    /// Why no more.
    pub why: Uncached,
}

/// Why the rest of a prompt, or all of it, must be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uncached {
    /// Nothing that is kept goes on from here.
    #[default]
    New,
    /// What is kept goes on with another token here.
    Differs,
    /// Its tokens are to be scored, so that all must be computed.
    Scored,
    /// Nothing is ever kept.
    Off,
}

impl Sequence {
    pub fn new(id: SequenceId, group: u64, prompt: Vec<TokenId>, max_tokens: usize) -> Self {
        Self {
            id,
            prompt_len: prompt.len(),
            tokens: prompt,
            draft: Vec::new(),
            computed: 0,
            max_tokens,
            group,
            background: false,
            score_prompt: false,
            scored: 0,
            kept: None,
            stored: 0,
            fetching: None,
            cached: None,
        }
    }

    pub fn prompt(&self) -> &[TokenId] {
        &self.tokens[..self.prompt_len]
    }

    /// The tokens chosen so far.
    pub fn answer(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    /// Tokens that are not in the cache. 1 while an answer is being made: the last token chosen.
    pub fn behind(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Takes note of what was found done before its first step, the first time.
    pub(super) fn found(&mut self, why: Uncached) {
        let tokens = self.computed.min(self.fork_len());
        let found = Cached { tokens, prompt_tokens: self.prompt_len, why };
        self.cached.get_or_insert(found);
    }

    /// Where a sibling's cache is forked: every sibling computes the last prompt token itself, whose row it needs.
    pub(super) fn fork_len(&self) -> usize {
        self.prompt_len - 1
    }
}
