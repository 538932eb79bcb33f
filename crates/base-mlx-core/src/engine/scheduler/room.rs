//! Room for positions: who is admitted into what is free, what kept caches go for it, and who is preempted.

use std::collections::BTreeMap;

use super::plan::{Dropped, Fetch, Fork, Source};
use super::{BACKGROUND, Scheduler};
use crate::engine::prefix::Keep;
use crate::engine::sequence::{Sequence, Uncached};

impl Scheduler {
    /// Positions that are or may soon be in running sequences' caches and in no kept one. A prompt counts in full from the
    /// moment it is admitted.
    pub(super) fn reserved(&self) -> usize {
        self.running.values().map(|sequence| self.own(sequence)).sum()
    }

    fn own(&self, sequence: &Sequence) -> usize {
        let shared = match (self.limits.block, sequence.kept) {
            (Some(block), Some((id, len))) if self.kept.contains(id) => len / block * block,
            _ => 0,
        };
        sequence.tokens.len() - shared
    }

    /// Positions of running sequences and kept ones together.
    pub fn held(&self) -> usize {
        self.reserved() + self.kept.positions()
    }

    /// Enters the tokens of a sequence that is gone, so far as its cache is right for them.
    pub(super) fn keep(&mut self, sequence: &Sequence) -> Option<Keep> {
        if let Some((id, _)) = sequence.kept {
            self.kept.end(id);
        }
        if self.limits.kept_tokens == 0 {
            return None;
        }
        let keep = self.kept.insert(&sequence.tokens[..sequence.computed]);
        let room = self.limits.kv_tokens.saturating_sub(self.reserved());
        self.evict_down_to(room.min(self.limits.kept_tokens));
        keep
    }

    /// Makes room for what running sequences have grown by, and for their drafts if kept caches are all that must go for them.
    pub(super) fn make_room(&mut self) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        let drafts: usize = self.running.values().map(|sequence| sequence.draft.len()).sum();
        self.evict_down_to(self.limits.kv_tokens.saturating_sub(self.reserved() + drafts));
        while self.held() > self.limits.kv_tokens {
            if self.running.len() <= 1 {
                // Nothing is left but what the last sequence began with.
                self.evicted.push(self.kept.evict_used().expect("one sequence always fits"));
                continue;
            }
            let (arrival, mut sequence) = self.running.pop_last().expect("it was counted");
            if let Some((id, _)) = sequence.kept.take() {
                self.kept.end(id);
            }
            dropped.push(self.wait_again(arrival, sequence, None));
            self.evict_down_to(self.limits.kv_tokens.saturating_sub(self.reserved()));
        }
        dropped
    }

    /// Preempts the newest running sequence of the background, if there is one. Its cache is kept as far as there is room.
    fn preempt_background(&mut self) -> Option<Dropped> {
        let (&arrival, _) = self.running.last_key_value()?;
        if arrival < BACKGROUND {
            return None;
        }
        let sequence = self.running.remove(&arrival)?;
        let keep = self.keep(&sequence);
        Some(self.wait_again(arrival, sequence, keep))
    }

    pub(super) fn wait_again(
        &mut self,
        arrival: u64,
        mut sequence: Sequence,
        keep: Option<Keep>,
    ) -> Dropped {
        let id = sequence.id;
        (sequence.computed, sequence.kept) = (0, None);
        // What was on disk may be gone, and may be kept by then.
        (sequence.stored, sequence.fetching) = (0, None);
        sequence.draft.clear();
        self.waiting.insert(arrival, sequence);
        Dropped { id, keep }
    }

    /// Takes out kept caches that no running sequence began with, until no more than these positions are left.
    pub(super) fn evict_down_to(&mut self, positions: usize) {
        while self.kept.positions() > positions {
            let Some(id) = self.kept.evict() else { break };
            self.evicted.push(id);
        }
    }

    pub(super) fn admit(&mut self, dropped: &mut Vec<Dropped>) -> Admission {
        let mut admission = Admission::default();
        // What is kept free for those that wait for a sibling.
        let (mut places, mut positions) = (0, 0);
        let arrivals: Vec<u64> = self.waiting.keys().copied().collect();
        let dropped_before = dropped.len();
        for arrival in arrivals {
            // Who was preempted just now is not overtaken.
            if arrival >= BACKGROUND && dropped.len() > dropped_before {
                break;
            }
            let begins = loop {
                let begins = self.begins(arrival, places, positions);
                if begins.is_some() || arrival >= BACKGROUND {
                    break begins;
                }
                match self.preempt_background() {
                    Some(preempted) => dropped.push(preempted),
                    None => break None,
                }
            };
            match begins {
                None => break,
                Some(Start::Later) => {
                    let sequence = &self.waiting[&arrival];
                    admission.held.push(sequence.group);
                    (places, positions) = (places + 1, positions + sequence.tokens.len());
                }
                Some(Start::Now(begins)) => self.begin(arrival, begins, &mut admission),
            }
        }
        admission
    }

    /// How a waiting sequence begins in this step, where so many places and positions beside those that run are taken; `None`
    /// if it cannot.
    fn begins(&mut self, arrival: u64, places: usize, positions: usize) -> Option<Start> {
        let members = self.running.len() + places;
        if members == self.limits.running {
            return None;
        }
        // A sequence admitted into the last free position would be preempted in the next step.
        let growth = if members == 0 { 0 } else { (members + 1) * GROWTH_TOKENS };
        let sequence = &self.waiting[&arrival];
        let tokens = sequence.tokens.len();
        let start = self.start(sequence);
        let room = self.limits.kv_tokens.checked_sub(self.reserved() + positions + growth)?;
        self.fit(start, tokens, room)
    }

    /// How a waiting sequence begins, given those that run, the ones just admitted included.
    fn start(&self, sequence: &Sequence) -> Start {
        let len = sequence.fork_len();
        let mut siblings =
            self.running.values().filter(|other| other.group == sequence.group).peekable();
        if len > 0 && siblings.peek().is_some() {
            return match siblings.find(|other| other.computed >= len) {
                Some(other) => {
                    let fork = Fork { from: Source::Sequence(other.id), len };
                    Start::Now(Begins { fork: Some(fork), why: Uncached::New, fetch: None })
                }
                None => Start::Later,
            };
        }
        let nothing = |why| Start::Now(Begins { fork: None, why, fetch: None });
        if self.limits.kept_tokens == 0 {
            return nothing(Uncached::Off);
        }
        if sequence.score_prompt && sequence.scored < len {
            return nothing(Uncached::Scored);
        }
        let found = self.kept.find(&sequence.tokens);
        // The last token's row is what the first token is chosen from.
        let stored = sequence.stored.min(sequence.tokens.len() - 1);
        // All of it is fetched, for what it has beyond what is kept.
        let beyond = stored.saturating_sub(found.map_or(0, |found| found.len));
        if beyond > stored / WORTH_FETCHING {
            let begins = Begins { fork: None, why: Uncached::New, fetch: Some(stored) };
            return Start::Now(begins);
        }
        let Some(found) = found else { return nothing(Uncached::New) };
        let why = if found.differs { Uncached::Differs } else { Uncached::New };
        let len = found.len.min(sequence.tokens.len() - 1);
        let fork = (len > 0).then_some(Fork { from: Source::Kept(found.id), len });
        Start::Now(Begins { fork, why, fetch: None })
    }

    /// Evicts kept caches until a sequence of so many tokens fits into `room` beside the others, perhaps without the one that
    /// it would have begun with. `None` if it does not fit all the same.
    fn fit(&mut self, start: Start, tokens: usize, room: usize) -> Option<Start> {
        if let Start::Now(Begins { fork: Some(Fork { from: Source::Kept(id), len }), .. }) = start {
            let shared = self.limits.block.map_or(0, |block| len / block * block);
            self.kept.begin(id);
            if let Some(room) = room.checked_sub(tokens - shared) {
                self.evict_down_to(room);
                if self.kept.positions() <= room {
                    return Some(start);
                }
            }
            self.kept.end(id);
        }
        let room = room.checked_sub(tokens)?;
        self.evict_down_to(room);
        if self.kept.positions() > room {
            return None;
        }
        Some(match start {
            Start::Now(Begins { fork: Some(Fork { from: Source::Kept(_), .. }), why, .. }) => {
                Start::Now(Begins { fork: None, why, fetch: None })
            }
            start => start,
        })
    }

    fn begin(&mut self, arrival: u64, begins: Begins, admission: &mut Admission) {
        let mut sequence = self.waiting.remove(&arrival).expect("it was found there");
        let Begins { fork, why, fetch } = begins;
        if let Some(fork) = fork {
            sequence.computed = fork.len;
            match fork.from {
                Source::Sequence(_) => sequence.scored = fork.len,
                Source::Kept(id) => sequence.kept = Some((id, fork.len)),
            }
            admission.forks.insert(arrival, fork);
        }
        match fetch {
            Some(len) => {
                sequence.fetching = Some(len);
                admission.fetches.push(Fetch { sequence: sequence.id, len });
            }
            None => sequence.found(why),
        }
        self.running.insert(arrival, sequence);
    }
}

/// A sequence is admitted beside others only if each of them could then grow by this much without a preemption.
const GROWTH_TOKENS: usize = 8;

/// One position computed takes as long as some of them fetched; one in so many must be new.
const WORTH_FETCHING: usize = 8;

#[derive(Default)]
pub(super) struct Admission {
    /// By arrival of the sequence that starts with it.
    pub(super) forks: BTreeMap<u64, Fork>,
    /// Groups with a member that waits for a running member's prompt.
    pub(super) held: Vec<u64>,
    pub(super) fetches: Vec<Fetch>,
}

#[derive(Clone, Copy)]
enum Start {
    Now(Begins),
    /// A sibling is still computing the prompt.
    Later,
}

#[derive(Clone, Copy)]
struct Begins {
    fork: Option<Fork>,
    why: Uncached,
    /// So many positions come from disk.
    fetch: Option<usize>,
}
