//! What the scheduler is told, and what it says.

use std::ops::Range;

use crate::TokenId;
use crate::engine::FinishReason;
use crate::engine::prefix::{Keep, KeptId};
use crate::engine::sequence::{Sequence, SequenceId};

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most sequences in one step.
    pub running: usize,
    /// Most positions computed in one step.
    pub step_tokens: usize,
    /// Most positions in all caches together.
    pub kv_tokens: usize,
    /// Most of these in caches that no running sequence has made; 0 keeps none.
    pub kept_tokens: usize,
    /// Caches share memory in blocks of so many positions; `None` if a fork copies all of them.
    pub block: Option<usize>,
    /// Most tokens of a sequence, prompt and answer together.
    pub context: usize,
}

/// What one step computes. The runner carries it out in this order:
/// 1. it drops the caches of `dropped`, gives up what it fetches for them, and begins to fetch `fetches`,
/// 2. it truncates the cache of every span to `range.start`, which is where rejected drafts disappear,
/// 3. it makes the forks,
/// 4. it drops the kept caches that `take_evicted` names,
/// 5. it computes the spans.
///
/// Caches of finished and cancelled sequences are kept or dropped when that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Oldest sequence first, none of them empty.
    pub spans: Vec<PlannedSpan>,
    /// Sequences that were preempted.
    pub dropped: Vec<Dropped>,
    /// Sequences that begin with what lies on disk: to be told to `fetched` when it is there.
    pub fetches: Vec<Fetch>,
}

/// A sequence whose cache begins with `len` positions from disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub sequence: SequenceId,
    pub len: usize,
}

/// A sequence that waits again, without its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    pub id: SequenceId,
    /// What becomes of the cache; dropped if `None`.
    pub keep: Option<Keep>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedSpan {
    pub sequence: SequenceId,
    /// The positions computed in this step, drafts included.
    pub range: Range<usize>,
    /// The tokens at these positions; none in a plan made ahead, where nobody knows them yet.
    pub tokens: Vec<TokenId>,
    /// The positions whose rows of logits are wanted. The row of a position is about the token that follows it: of
    /// those before `choose_from` that token is known, and the row scores it.
    pub wanted: Range<usize>,
    /// The rows of `wanted` from here on choose tokens: the row of the sequence's last token, then those of its drafts.
    /// A row counts only if the token chosen before it was the draft that the row was computed with.
    pub choose_from: usize,
    /// The sequence has no cache yet: it starts with the first `len` positions of another's.
    pub fork: Option<Fork>,
}

impl PlannedSpan {
    /// It computes nothing but the last token of its sequence and drafts.
    pub fn is_answer(&self) -> bool {
        self.choose_from == self.range.start
    }

    /// It has rows to choose tokens from.
    pub fn chooses(&self) -> bool {
        self.choose_from < self.wanted.end
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    pub from: Source,
    pub len: usize,
}

/// Whose cache it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A sequence that runs.
    Sequence(SequenceId),
    Kept(KeptId),
}

/// What came out of one span.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The tokens chosen, in order: all but the last are equal to the drafts. Empty if the span has no row to choose
    /// from, else at least one.
    pub tokens: Vec<TokenId>,
    /// The last of them ends the answer.
    pub ended: Option<FinishReason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    pub id: SequenceId,
    pub reason: FinishReason,
    /// What becomes of its cache; dropped if `None`.
    pub keep: Option<Keep>,
}

/// Why a sequence can never run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the prompt is empty")]
    Empty,
    #[error("the prompt has {prompt} tokens, a sequence may have {longest}")]
    TooLong { prompt: usize, longest: usize },
}

impl Limits {
    /// Most tokens of a sequence that can be finished when it is alone.
    pub fn longest(&self) -> usize {
        self.context.min(self.kv_tokens)
    }
}

pub(super) fn span(sequence: &Sequence, end: usize, fork: Option<Fork>) -> PlannedSpan {
    let range = sequence.computed..end;
    let known = sequence.tokens.len();
    let mut tokens = sequence.tokens[range.start..end.min(known)].to_vec();
    tokens.extend(&sequence.draft[..end.saturating_sub(known)]);

    let chooses = end >= known && sequence.max_tokens > 0;
    // The last prompt token's row is about the answer.
    let scores_end = if sequence.score_prompt { end.min(sequence.fork_len()) } else { 0 };
    let scores = range.start.max(sequence.scored)..scores_end;
    let wanted = match (scores.is_empty(), chooses) {
        (true, true) => known - 1..end,
        (true, false) => end..end,
        (false, true) => scores.start..end,
        (false, false) => scores,
    };
    let choose_from = if chooses { known - 1 } else { wanted.end };
    PlannedSpan { sequence: sequence.id, range, tokens, wanted, choose_from, fork }
}

/// Moves a sequence over what a step computed; says why if that finished it.
pub(super) fn advance(
    sequence: &mut Sequence,
    span: &PlannedSpan,
    outcome: &Outcome,
    longest: usize,
) -> Option<FinishReason> {
    let known = sequence.tokens.len();
    let rows = span.wanted.end - span.choose_from;
    assert!(outcome.tokens.len() <= rows, "more tokens than rows");
    assert_eq!(outcome.tokens.is_empty(), rows == 0, "a row to choose from gives a token");
    let drafts = std::mem::take(&mut sequence.draft);
    let Some((_, accepted)) = outcome.tokens.split_last() else {
        sequence.computed = span.range.end;
        sequence.scored = sequence.scored.max(sequence.computed.min(sequence.fork_len()));
        // Only a sequence that may add nothing comes to its end without a row.
        return (sequence.computed == known).then_some(FinishReason::Length);
    };
    assert!(drafts.starts_with(accepted), "a row beyond a rejected draft was used");
    sequence.tokens.extend(&outcome.tokens);
    // The last token was chosen just now; the cache ends before it, whatever drafts were computed there.
    sequence.computed = sequence.tokens.len() - 1;
    sequence.scored = sequence.scored.max(sequence.fork_len());
    let full = sequence.answer().len() >= sequence.max_tokens || sequence.tokens.len() >= longest;
    outcome.ended.or(full.then_some(FinishReason::Length))
}
