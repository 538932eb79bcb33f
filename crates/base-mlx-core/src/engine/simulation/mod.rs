//! Random worlds for the scheduler. The model is a hash chain: what a position holds is made from what the position
//! before it holds and from its token, and the next token is made from that. A wrong cache, a wrong position, a stale
//! draft or a lost token changes everything that follows, so whatever the schedule, each answer must be the one that its
//! sequence gives when it runs alone.

mod cache;
#[path = "../../../tests/support/dice.rs"]
mod dice;
mod seen;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use self::cache::Cache;
use self::dice::Dice;
use self::seen::Seen;
use super::event::FinishReason;
use super::prefix::{Evicted, Keep, KeptId};
use super::scheduler::{
    Dropped, Fork, Limits, Outcome, Plan, PlannedSpan, Refused, Scheduler, Source,
};
use super::sequence::{Sequence, SequenceId};
use crate::TokenId;

const VOCAB: u64 = 24;
/// What lies on disk comes in pieces of so many tokens.
const STORED_TOKENS: usize = 4;
/// Most steps that it is on its way.
const LONGEST_FETCH: usize = 9;
const END: TokenId = 0;

#[test]
fn any_schedule_gives_the_tokens_of_running_alone() {
    let first = std::env::var("BASE_MLX_SEED").ok().and_then(|seed| seed.parse().ok());
    let (first, worlds) = first.map_or((1, 1500), |seed: u64| (seed, 1));
    let mut seen = Seen::default();
    for seed in first..first + worlds {
        let world = std::panic::AssertUnwindSafe(|| World::new(seed).run());
        match std::panic::catch_unwind(world) {
            Ok(in_this) => seen.add(&in_this),
            Err(panic) => {
                eprintln!("world {seed} broke; BASE_MLX_SEED={seed} replays it alone");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // Dice that never show some face prove nothing about it.
    assert!(worlds == 1 || seen.all(), "something never happened: {seen:?}");
}

struct World {
    dice: Dice,
    limits: Limits,
    scheduler: Scheduler,
    /// What the runner holds for each sequence.
    caches: BTreeMap<SequenceId, Cache>,
    kept: BTreeMap<KeptId, Cache>,
    /// What lies on disk, by its tokens.
    disk: BTreeMap<Vec<TokenId>, Vec<u64>>,
    /// What is on its way from there: when it will be there, and how many positions were asked for.
    fetching: BTreeMap<SequenceId, (usize, usize)>,
    arrivals: Vec<Arrival>,
    live: BTreeMap<SequenceId, Expected>,
    seen: Seen,
}

/// A request: its choices arrive together.
struct Arrival {
    step: usize,
    sequences: Vec<(Sequence, Expected)>,
}

#[derive(Clone)]
struct Expected {
    tokens: Vec<TokenId>,
    got: Vec<TokenId>,
    reason: FinishReason,
    /// One for each prompt token but the first.
    scores: Vec<u64>,
    got_scores: Vec<u64>,
    cancel_at: Option<usize>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let step_tokens = dice.one_of(&[1, 2, 5, 16, 64]);
        let limits = Limits {
            running: dice.one_of(&[1, 2, 3, 8, 100]),
            step_tokens,
            kv_tokens: dice.one_of(&[20, 40, 90, 300, 5000]),
            context: dice.one_of(&[30, 64, 1000]),
            kept_tokens: dice.one_of(&[0, 10, 100, 10_000]),
            block: dice.one_of(&[None, Some(1), Some(4), Some(32)]),
        };
        let longest = limits.longest();
        let mut disk = BTreeMap::new();
        let mut arrivals: Vec<Arrival> = Vec::new();
        let (mut step, mut next_id) = (0, 0);
        for group in 0..dice.below(12) + 1 {
            step += dice.one_of(&[0, 0, 1, 3, 20]);
            let prompt_len = 1 + dice.below(dice_prompt(&mut Dice(seed ^ group as u64), longest));
            let mut prompt: Vec<_> =
                (0..prompt_len).map(|_| dice.below(VOCAB as usize) as TokenId).collect();
            if !arrivals.is_empty() && dice.below(2) == 0 {
                // It goes on with an earlier answer, or with a part of one.
                let (_, earlier) = &arrivals[dice.below(arrivals.len())].sequences[0];
                let len = earlier.tokens.len().min(longest);
                let part = if dice.below(2) == 0 { len } else { dice.below(len + 1) };
                prompt.splice(..0, earlier.tokens[..part].iter().copied());
            }
            if dice.below(3) == 0 {
                // An earlier process has left something.
                let len = dice.below(prompt.len() + 1) / STORED_TOKENS * STORED_TOKENS;
                let mut hash = None;
                let hashes =
                    prompt[..len].iter().map(|&token| *hash.insert(next_hash(hash, token)));
                disk.insert(prompt[..len].to_vec(), hashes.collect());
            }
            let choices = dice.one_of(&[1, 1, 1, 2, 3, 5]);
            let max_tokens = dice.one_of(&[0, 1, 2, 10, 40, 1000]);
            let background = dice.below(3) == 0;
            let score_prompt = max_tokens == 0 || dice.below(4) == 0;
            let cancel = dice.below(6) == 0;
            let sequences = (0..choices)
                .map(|choice| {
                    let id = SequenceId(next_id);
                    next_id += 1;
                    let mut sequence = Sequence::new(id, group as u64, prompt.clone(), max_tokens);
                    sequence.background = background;
                    sequence.score_prompt = score_prompt && choice == 0;
                    let mut expected = alone(&sequence, longest);
                    let cancels = cancel && dice.below(2) == 0;
                    expected.cancel_at = cancels.then(|| step + dice.below(60));
                    (sequence, expected)
                })
                .collect();
            arrivals.push(Arrival { step, sequences });
        }
        Self {
            dice,
            limits,
            scheduler: Scheduler::new(limits),
            caches: BTreeMap::new(),
            kept: BTreeMap::new(),
            disk,
            fetching: BTreeMap::new(),
            arrivals,
            live: BTreeMap::new(),
            seen: Seen::default(),
        }
    }

    fn run(mut self) -> Seen {
        // The oldest sequence moves in every step, so no step is without progress, even if all the others' were lost.
        let all = || self.arrivals.iter().flat_map(|arrival| &arrival.sequences);
        let work: usize = all().map(|(_, expected)| expected.tokens.len() + 2).sum();
        let last = self.arrivals.last().map_or(0, |arrival| arrival.step);
        // Each sequence is fetched once at most.
        let fetching = all().count() * LONGEST_FETCH;
        for step in 0.. {
            assert!(step <= last + work + fetching, "not done after {step} steps");
            self.arrive(step);
            self.cancel(step);
            self.fetched(step);
            self.scheduler.check_integrity();
            if self.scheduler.is_idle() && self.arrivals.is_empty() {
                break;
            }
            self.propose();
            // Any pace will do, and it may change with every step.
            let beside = self.dice.one_of(&[0, 0, 1, 5, 22]);
            self.scheduler.set_beside_answers(beside);
            let plan = self.scheduler.plan();
            self.scheduler.check_integrity();
            for dropped in &plan.dropped {
                let given_up = self.fetching.remove(&dropped.id).is_some();
                // It may not have come to have a cache.
                assert!(
                    !(given_up && self.caches.contains_key(&dropped.id)),
                    "fetched over a cache"
                );
            }
            for fetch in &plan.fetches {
                let due = step + 1 + self.dice.below(LONGEST_FETCH);
                let before = self.fetching.insert(fetch.sequence, (due, fetch.len));
                assert_eq!(before, None, "fetched twice at once");
            }
            let idle = self.scheduler.running() == self.fetching.len();
            assert_eq!(plan.spans.is_empty(), idle, "an idle step");
            self.seen.steps_without_spans +=
                usize::from(plan.spans.is_empty() && !self.fetching.is_empty());
            self.check_fairness(&plan, beside);
            let outcomes = self.compute(&plan);
            self.settle(plan, outcomes);
        }
        assert!(self.live.is_empty(), "unfinished: {:?}", self.live.keys());
        assert!(self.caches.is_empty(), "left behind: {:?}", self.caches.keys());
        self.drop_evicted();
        assert_eq!(self.kept.len(), self.scheduler.kept().count(), "kept caches");
        assert!(self.scheduler.kept().positions() <= self.limits.kept_tokens);
        self.seen
    }

    fn drop_evicted(&mut self) {
        for Evicted { id, .. } in self.scheduler.take_evicted() {
            self.kept.remove(&id).expect("only what is kept is evicted");
            self.seen.evicted += 1;
        }
    }

    /// Puts what has come from disk into caches: all of it, a part, or nothing.
    fn fetched(&mut self, step: usize) {
        let due =
            |&(&id, &(at, len)): &(&SequenceId, &(usize, usize))| (at <= step).then_some((id, len));
        let due: Vec<_> = self.fetching.iter().filter_map(|entry| due(&entry)).collect();
        for (id, len) in due {
            self.fetching.remove(&id);
            let got = self.dice.one_of(&[len, len, len / 2, 0]);
            self.seen.fetched += usize::from(got == len);
            self.seen.fetched_in_part += usize::from(0 < got && got < len);
            self.seen.fetched_for_nothing += usize::from(got == 0);
            let tokens = &self.scheduler.sequence(id).unwrap().tokens;
            let hashes = self.stored(tokens);
            let mut cache = Cache::new(self.limits.block);
            hashes[..got].iter().for_each(|&hash| cache.push(hash));
            self.caches.insert(id, cache);
            let known = self.scheduler.kept().find(tokens).map_or(0, |found| found.len);
            if !self.scheduler.fetched(id, got) {
                assert!(got < len && got < known, "a fetch for nothing");
                self.caches.remove(&id);
                self.seen.fetched_less_than_kept += 1;
            }
            assert!(!self.scheduler.fetched(id, got), "fetched twice");
        }
    }

    /// The longest beginning of some tokens that lies on disk.
    fn stored(&self, tokens: &[TokenId]) -> Vec<u64> {
        let beginnings = self.disk.iter().filter(|(stored, _)| tokens.starts_with(stored));
        beginnings.map(|(_, hashes)| hashes.clone()).max_by_key(Vec::len).unwrap_or_default()
    }

    /// A sequence is gone, and its cache with it, unless it is to be kept.
    fn retire(&mut self, id: SequenceId, keep: Option<Keep>) {
        self.fetching.remove(&id);
        let cache = self.caches.remove(&id);
        let Some(Keep { id, len, shares }) = keep else { return };
        let mut cache = cache.expect("what is kept was computed");
        cache.truncate(len);
        assert_eq!(cache.len(), len);
        if let Some((other, len)) = shares {
            let other = &self.kept[&other];
            assert!(other.positions().take(len).eq(cache.positions().take(len)));
            cache.share(other, len);
        }
        // It may be evicted already.
        if let Some(tokens) = self.scheduler.kept().tokens(id)
            && self.dice.below(2) == 0
        {
            let stored = len / STORED_TOKENS * STORED_TOKENS;
            let hashes = cache.positions().take(stored).collect();
            self.disk.insert(tokens[..stored].to_vec(), hashes);
        }
        self.kept.insert(id, cache);
        self.seen.kept += 1;
    }

    /// Commits a step; as the dice will, after the next was begun without knowing what this one chose.
    fn settle(&mut self, plan: Plan, outcomes: Vec<Outcome>) {
        let ahead = if self.dice.below(2) == 0 { self.scheduler.ahead(&plan) } else { None };
        let ahead = ahead.map(|mut ahead| {
            for (span, outcome) in ahead.spans.iter_mut().zip(&outcomes) {
                span.tokens.clone_from(&outcome.tokens);
            }
            let outcomes = self.compute(&ahead);
            (ahead, outcomes)
        });
        if !plan.spans.is_empty() && self.dice.below(8) == 0 {
            self.cancel_in_flight(&plan);
        }
        self.commit(&plan, &outcomes);
        if let Some((ahead, outcomes)) = ahead {
            self.seen.ahead += 1;
            let gone = |span: &PlannedSpan| self.scheduler.sequence(span.sequence).is_none();
            self.seen.ahead_for_nothing += ahead.spans.iter().filter(|span| gone(span)).count();
            self.settle(ahead, outcomes);
        }
    }

    fn arrive(&mut self, step: usize) {
        while self.arrivals.first().is_some_and(|arrival| arrival.step <= step) {
            for (mut sequence, expected) in self.arrivals.remove(0).sequences {
                sequence.stored = self.stored(&sequence.tokens).len();
                let (id, prompt) = (sequence.id, sequence.prompt_len);
                let longest = self.limits.longest();
                let fits = prompt + sequence.max_tokens.min(1) <= longest;
                match self.scheduler.submit(sequence) {
                    Ok(()) => {
                        assert!(fits);
                        self.live.insert(id, expected);
                    }
                    Err(error) => {
                        assert!(!fits);
                        assert_eq!(error, Refused::TooLong { prompt, longest });
                        self.seen.refused += 1;
                    }
                }
            }
        }
    }

    fn cancel(&mut self, step: usize) {
        let due = |expected: &Expected| expected.cancel_at.is_some_and(|at| at <= step);
        let ids: Vec<_> =
            self.live.iter().filter(|(_, expected)| due(expected)).map(|(&id, _)| id).collect();
        for id in ids {
            self.forget(id);
        }
    }

    /// The client goes away while the device computes.
    fn cancel_in_flight(&mut self, plan: &Plan) {
        let span = &plan.spans[self.dice.below(plan.spans.len())];
        if self.live.get(&span.sequence).is_some_and(|live| live.cancel_at.is_some()) {
            self.forget(span.sequence);
        }
    }

    fn forget(&mut self, id: SequenceId) {
        let keep = self.scheduler.cancel(id).unwrap();
        assert_eq!(self.scheduler.cancel(id), None);
        self.live.remove(&id);
        self.retire(id, keep);
        self.seen.cancelled += 1;
    }

    /// Drafts: the right ones, with some dice thrown in.
    fn propose(&mut self) {
        let ids: Vec<_> = self.live.keys().copied().collect();
        for id in ids {
            if self.dice.below(2) == 0 {
                continue;
            }
            let known = self.scheduler.sequence(id).unwrap().tokens.len();
            let longest = self.dice.below(6);
            let mut draft: Vec<_> =
                self.live[&id].tokens[known..].iter().copied().take(longest).collect();
            draft.resize_with(longest, || self.dice.below(VOCAB as usize) as TokenId);
            for token in &mut draft {
                if self.dice.below(4) == 0 {
                    *token = self.dice.below(VOCAB as usize) as TokenId;
                }
            }
            self.scheduler.draft(id, draft);
        }
    }

    /// Every answer that runs gets a token in every step, and the prompt that came first gets half of what is left.
    fn check_fairness(&mut self, plan: &Plan, beside: usize) {
        let computing = self.scheduler.running() - self.fetching.len();
        let waits =
            self.live.keys().filter_map(|&id| self.scheduler.sequence(id)).any(|sequence| {
                sequence.behind() == 1 && plan.spans.iter().any(|span| span.sequence == sequence.id)
            });
        let may_skip = beside == 0 && waits;
        assert!(plan.spans.len() <= computing);
        assert!(plan.spans.len() == computing || may_skip, "someone stands still");
        self.seen.steps_left_to_answers += usize::from(plan.spans.len() < computing);
        let place = |id: SequenceId| (self.scheduler.sequence(id).unwrap().background, id);
        let last = plan.spans.last().map(|span| place(span.sequence));
        // With a kept cache to begin with it may fit again at once.
        let newer = |dropped: &Dropped| Some(place(dropped.id)) >= last;
        assert!(plan.dropped.iter().all(newer), "not the newest was preempted");
        let chunks: Vec<_> = plan.spans.iter().filter(|span| span.tokens.len() > 1).collect();
        let answers = plan.spans.iter().filter(|span| span.wanted.end > span.choose_from).count();
        self.seen.steps_with_prompts_and_answers +=
            usize::from(answers > 0 && answers < chunks.len());
        for span in &plan.spans {
            let sequence = self.scheduler.sequence(span.sequence).unwrap();
            let chooses = span.wanted.end > span.choose_from;
            if chooses {
                let rows = sequence.tokens.len() - 1..span.range.end;
                assert_eq!(span.choose_from..span.wanted.end, rows, "a draft without its row");
            }
            assert_eq!(chooses, span.range.end >= sequence.tokens.len() && sequence.max_tokens > 0);
            assert!(
                chooses || sequence.behind() > 1 || sequence.max_tokens == 0,
                "an answer without a token"
            );
        }
    }

    /// The runner.
    fn compute(&mut self, plan: &Plan) -> Vec<Outcome> {
        for dropped in &plan.dropped {
            self.retire(dropped.id, dropped.keep);
            self.seen.preempted += 1;
            self.seen.preempted_and_kept += usize::from(dropped.keep.is_some());
        }
        for span in &plan.spans {
            if let Some(cache) = self.caches.get_mut(&span.sequence) {
                assert!(span.fork.is_none(), "a fork over a cache");
                assert!(cache.len() >= span.range.start, "the cache ends before the span starts");
                cache.truncate(span.range.start);
            }
        }
        for span in &plan.spans {
            let forked = span.fork.map(|Fork { from, len }| {
                let from = match from {
                    Source::Sequence(id) => &self.caches[&id],
                    Source::Kept(id) => {
                        self.seen.hits += 1;
                        self.seen.hits_in_the_middle += usize::from(len < self.kept[&id].len());
                        &self.kept[&id]
                    }
                };
                self.seen.forks += 1;
                let mut fork = from.clone();
                assert!(fork.len() >= len, "a fork of what is not there");
                fork.truncate(len);
                fork
            });
            let new = || forked.unwrap_or(Cache::new(self.limits.block));
            self.caches.entry(span.sequence).or_insert_with(new);
        }
        self.drop_evicted();
        let outcomes: Vec<_> = plan.spans.iter().map(|span| self.forward(span)).collect();
        let computed: usize = plan.spans.iter().map(|span| span.range.len()).sum();
        assert!(computed <= self.limits.step_tokens, "{computed} tokens in a step");
        let caches = self.caches.values().chain(self.kept.values());
        let mut seen = BTreeSet::new();
        let blocks = caches.flat_map(|cache| &cache.blocks);
        let held: usize =
            blocks.filter(|block| seen.insert(Rc::as_ptr(block))).map(|block| block.len()).sum();
        assert!(held <= self.limits.kv_tokens, "{held} positions held");
        outcomes
    }

    fn forward(&mut self, span: &PlannedSpan) -> Outcome {
        assert!(!span.range.is_empty(), "an empty span");
        assert_eq!(span.range.len(), span.tokens.len());
        let cache = self.caches.get_mut(&span.sequence).unwrap();
        assert_eq!(cache.len(), span.range.start, "the span starts where the cache ends");
        for &token in &span.tokens {
            let before = cache.positions().next_back();
            cache.push(next_hash(before, token));
        }
        let token_at = |position: usize| span.tokens[position - span.range.start];
        let expected = self.live.get_mut(&span.sequence).unwrap();
        let sequence = self.scheduler.sequence(span.sequence).unwrap();
        let rows = |positions: std::ops::Range<usize>| {
            positions.clone().zip(cache.positions().skip(positions.start).take(positions.len()))
        };
        for (position, row) in rows(span.wanted.start..span.choose_from) {
            expected.got_scores.push(score(row, sequence.tokens[position + 1]));
            self.seen.scored += 1;
        }
        let mut outcome = Outcome::default();
        for (position, row) in rows(span.choose_from..span.wanted.end) {
            let token = choose(row, sequence);
            outcome.tokens.push(token);
            outcome.ended = (token == END).then_some(FinishReason::Stop);
            if outcome.ended.is_some() || position + 1 == span.range.end {
                break;
            }
            if token_at(position + 1) != token {
                self.seen.drafts_rejected += 1;
                break;
            }
            self.seen.drafts_accepted += 1;
        }
        outcome
    }

    fn commit(&mut self, plan: &Plan, outcomes: &[Outcome]) {
        for (span, outcome) in plan.spans.iter().zip(outcomes) {
            if let Some(expected) = self.live.get_mut(&span.sequence) {
                expected.got.extend(&outcome.tokens);
            }
        }
        let finished = self.scheduler.commit(plan, outcomes);
        for (id, Expected { tokens, got, .. }) in &self.live {
            assert!(tokens.starts_with(got), "{id:?}: {got:?} is not {tokens:?}");
            if let Some(sequence) = self.scheduler.sequence(*id) {
                assert_eq!(sequence.tokens, *got);
                assert!(sequence.draft.is_empty(), "a draft outlived its step");
                assert!(self.caches.get(id).map_or(0, Cache::len) >= sequence.computed);
            }
        }
        for done in finished {
            let expected = self.live.remove(&done.id).expect("finished once");
            assert_eq!(expected.got, expected.tokens, "{:?} lost tokens", done.id);
            assert_eq!(done.reason, expected.reason);
            assert_eq!(expected.got_scores, expected.scores);
            assert!(self.scheduler.sequence(done.id).is_none());
            self.retire(done.id, done.keep);
            self.seen.finished += 1;
        }
    }
}

/// The judge: one sequence, one token at a time, no scheduler.
fn alone(sequence: &Sequence, longest: usize) -> Expected {
    let mut tokens = sequence.tokens.clone();
    let mut hash = None;
    let mut scores = Vec::new();
    for (position, &token) in tokens.iter().enumerate() {
        hash = Some(next_hash(hash, token));
        if let (true, Some(&next)) = (sequence.score_prompt, tokens.get(position + 1)) {
            scores.push(score(hash.unwrap(), next));
        }
    }
    let mut reason = FinishReason::Length;
    while tokens.len() < longest && tokens.len() - sequence.prompt_len < sequence.max_tokens {
        let token = choose(hash.unwrap(), sequence);
        tokens.push(token);
        hash = Some(next_hash(hash, token));
        if token == END {
            reason = FinishReason::Stop;
            break;
        }
    }
    Expected {
        tokens,
        got: sequence.tokens.clone(),
        reason,
        scores,
        got_scores: Vec::new(),
        cancel_at: None,
    }
}

fn next_hash(before: Option<u64>, token: TokenId) -> u64 {
    Dice(before.unwrap_or(7) ^ (u64::from(token) << 40)).next()
}

/// Siblings choose differently, as their seeds would make them.
fn choose(hash: u64, sequence: &Sequence) -> TokenId {
    (Dice(hash ^ sequence.id.0).next() % VOCAB) as TokenId
}

fn score(hash: u64, token: TokenId) -> u64 {
    hash ^ u64::from(token)
}

fn dice_prompt(dice: &mut Dice, longest: usize) -> usize {
    dice.one_of(&[1, 3, 12, 40, longest, longest + 3])
}
