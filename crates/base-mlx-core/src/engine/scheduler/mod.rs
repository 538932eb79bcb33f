//! Who computes which positions in the next step. Pure arithmetic.

mod plan;
mod room;

pub use plan::{Dropped, Finished, Fork, Limits, Outcome, Plan, PlannedSpan, Refused, Source};

use std::collections::BTreeMap;

use self::plan::{advance, span};
use self::room::Admission;
use super::prefix::{Evicted, Keep, PrefixIndex};
use super::sequence::{Sequence, SequenceId, Uncached};
use crate::TokenId;

/// Decides, step by step, which sequence computes which of its positions. Pure arithmetic: it holds no tensor, clock or
/// thread, and the same calls give the same plans.
///
/// The rules:
/// - There is no prefill and no decoding, only sequences whose cursor is behind their tokens by many or by one.
/// - An answer that runs gets a token in every step, however long the prompts beside it are. So do prompts, unless the step
///   is left to answers (`set_beside_answers`). There are never more running sequences than `step_tokens`.
/// - What is left of `step_tokens` goes to drafts and to sequences that are further behind, prompts for short. While
///   there are such, drafts get at most half. Of the rest, half goes to the prompt that came first, so that a long one
///   always moves; the other half to the prompts that need least, so that a short one need not wait for a long one.
/// - Beside answers that wait for their next token, prompts get no more than `set_beside_answers` allows, which may be
///   nothing.
/// - Sequences are admitted in the order they came, as long as `running` and `kv_tokens` allow. The first one waiting is
///   never overtaken, but by others while it waits for a sibling's prompt; its place is kept free then.
/// - A sequence that is gone leaves its cache behind, and a later one starts from the kept cache that begins most like it,
///   at whatever token they part. Kept caches have the room that running sequences leave, `kept_tokens` at most; the one
///   that was not used for longest goes first, one that a running sequence began with last.
/// - The tokens of all running sequences and all kept ones fit into `kv_tokens`. When they have grown out of it without
///   kept ones, the newest is preempted: it loses its cache and waits again, in its old place. The oldest is never
///   preempted, so something always moves.
/// - Sequences of the background come behind all others: they are admitted last, get what others leave of a step, and are
///   preempted when another needs their place or their room.
/// - A sequence of which much more lies on disk than is kept begins with that. It has its place and its room while it is fetched,
///   and computes nothing.
/// - Siblings start from a fork of the first of them that has computed the prompt but for its last token. It waits there
///   for one step if siblings can be admitted, so that they choose their first tokens together.
pub struct Scheduler {
    limits: Limits,
    /// Both by arrival, those of the background behind all others; a preempted sequence keeps its number.
    running: BTreeMap<u64, Sequence>,
    waiting: BTreeMap<u64, Sequence>,
    arrivals: u64,
    beside_answers: usize,
    kept: PrefixIndex,
    /// Taken out of `kept` since somebody asked.
    evicted: Vec<Evicted>,
}

impl Scheduler {
    /// At least one sequence of at least one token must be possible. `running` is lowered to `step_tokens` if it is more.
    pub fn new(limits: Limits) -> Self {
        assert!(
            limits.running > 0 && limits.step_tokens > 0 && limits.longest() > 0,
            "nothing could run: {limits:?}"
        );
        let limits = Limits { running: limits.running.min(limits.step_tokens), ..limits };
        Self {
            limits,
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            arrivals: 0,
            beside_answers: limits.step_tokens,
            kept: PrefixIndex::new(limits.block),
            evicted: Vec::new(),
        }
    }

    /// From now on prompts compute at most this many positions in a step that an answer waits for, but one each if any. The
    /// caller knows how long a step takes, and so how long answers would wait.
    pub fn set_beside_answers(&mut self, tokens: usize) {
        self.beside_answers = tokens;
    }

    /// From now on all caches together have at most so many positions, but never fewer than the longest sequence. Kept caches
    /// go for it at once, running sequences are preempted by the next plan.
    pub fn set_kv_tokens(&mut self, positions: usize) {
        self.limits.kv_tokens = positions.max(self.limits.longest());
        self.evict_down_to(self.limits.kv_tokens.saturating_sub(self.reserved()));
    }

    /// Takes a sequence that nothing was computed of. Members of a group must have the same prompt; they share it best
    /// when they are submitted together.
    pub fn submit(&mut self, sequence: Sequence) -> Result<(), Refused> {
        assert!(
            sequence.computed == 0 && sequence.draft.is_empty(),
            "a new sequence has no cache and no draft"
        );
        assert!(sequence.prompt_len == sequence.tokens.len(), "a new sequence has no answer");
        assert!(self.sequence(sequence.id).is_none(), "{:?} is already there", sequence.id);
        let longest = self.limits.longest();
        if sequence.prompt_len == 0 {
            return Err(Refused::Empty);
        }
        // The last token of an answer is never computed, but it counts as part of the context.
        if sequence.prompt_len + sequence.max_tokens.min(1) > longest {
            return Err(Refused::TooLong { prompt: sequence.prompt_len, longest });
        }
        if let Some(sibling) = self.sequences().find(|other| other.group == sequence.group) {
            assert!(sibling.prompt() == sequence.prompt(), "a group has one prompt");
        }
        let lane = if sequence.background { BACKGROUND } else { 0 };
        self.waiting.insert(lane + self.arrivals, sequence);
        self.arrivals += 1;
        Ok(())
    }

    /// Forgets a sequence; `None` if it was not there (any more), else what becomes of its cache, if it has one.
    pub fn cancel(&mut self, id: SequenceId) -> Option<Option<Keep>> {
        let of = |all: &BTreeMap<u64, Sequence>| {
            all.iter().find(|(_, sequence)| sequence.id == id).map(|(&arrival, _)| arrival)
        };
        if let Some(sequence) = of(&self.running).and_then(|arrival| self.running.remove(&arrival))
        {
            return Some(self.keep(&sequence));
        }
        of(&self.waiting).and_then(|arrival| self.waiting.remove(&arrival)).map(|_| None)
    }

    /// Guesses at what a running sequence says next, for the next step only; false if the sequence does not run. The
    /// plan takes as many of them as limits allow.
    pub fn draft(&mut self, id: SequenceId, draft: Vec<TokenId>) -> bool {
        let Some(sequence) = self.running.values_mut().find(|sequence| sequence.id == id) else {
            return false;
        };
        sequence.draft = draft;
        true
    }

    /// Decides the next step. Without a span in it nothing is left to do, or nothing until something is fetched.
    pub fn plan(&mut self) -> Plan {
        let mut dropped = self.make_room();
        let Admission { forks, held, fetches } = self.admit(&mut dropped);
        let shares = self.share(&held, &forks);
        let spans = self.running.iter_mut().filter_map(|(arrival, sequence)| {
            let end = sequence.computed + shares.get(arrival)?;
            Some(span(sequence, end, forks.get(arrival).copied()))
        });
        let spans = spans.collect();
        Plan { spans, dropped, fetches }
    }

    /// The first `len` positions of a running sequence are in its cache now, perhaps fewer than it was waiting for. False if it
    /// waits for none, or waits again because more than that is kept.
    pub fn fetched(&mut self, id: SequenceId, len: usize) -> bool {
        let mut running = self.running.iter_mut();
        let Some((&arrival, sequence)) = running.find(|(_, sequence)| sequence.id == id) else {
            return false;
        };
        let Some(expected) = sequence.fetching.take() else { return false };
        assert!(len <= expected, "more was fetched than was asked for");
        let kept = self.kept.find(&sequence.tokens).map_or(0, |found| found.len);
        if len < expected && len < kept {
            let sequence = self.running.remove(&arrival).expect("it was found there");
            self.wait_again(arrival, sequence, None);
            return false;
        }
        (sequence.computed, sequence.stored) = (len, len);
        sequence.found(Uncached::New);
        true
    }

    /// The plan after `plan`, before it is known what `plan` chooses: every sequence gets one token and goes on. `None`
    /// where that is not all that can happen, so that a caller who waits for the outcome loses nothing but time. Its
    /// spans are those of `plan` in their order, and their tokens are left out.
    ///
    /// It stands whatever `plan` chooses: `commit` it with the outcomes after those of `plan`; a sequence that has ended
    /// meanwhile is skipped.
    pub fn ahead(&self, plan: &Plan) -> Option<Plan> {
        let longest = self.limits.longest();
        // Who waits should not wait a step longer than needed.
        let full = self.running.len() == self.limits.running;
        let grown = self.held() + plan.spans.len();
        if !(self.waiting.is_empty() || full)
            || self.running.len() != plan.spans.len()
            || grown > self.limits.kv_tokens
        {
            return None;
        }
        let spans = plan.spans.iter().zip(self.running.values()).map(|(span, sequence)| {
            let chooses_one = span.wanted.len() == 1 && span.choose_from == span.wanted.start;
            let after = sequence.tokens.len() + 1;
            let goes_on = sequence.answer().len() + 1 < sequence.max_tokens && after < longest;
            (span.sequence == sequence.id && chooses_one && goes_on).then(|| {
                let position = span.range.end;
                PlannedSpan {
                    sequence: sequence.id,
                    range: position..position + 1,
                    tokens: Vec::new(),
                    wanted: position..position + 1,
                    choose_from: position,
                    fork: None,
                }
            })
        });
        Some(Plan { spans: spans.collect::<Option<_>>()?, ..Plan::default() })
    }

    /// Takes what came out of a plan, one outcome for each span. A sequence that was cancelled since is skipped.
    pub fn commit(&mut self, plan: &Plan, outcomes: &[Outcome]) -> Vec<Finished> {
        assert_eq!(plan.spans.len(), outcomes.len(), "one outcome for each span");
        let longest = self.limits.longest();
        let mut finished = Vec::new();
        for (span, outcome) in plan.spans.iter().zip(outcomes) {
            let Some(sequence) =
                self.running.values_mut().find(|sequence| sequence.id == span.sequence)
            else {
                continue;
            };
            if let Some(reason) = advance(sequence, span, outcome, longest) {
                finished.push((span.sequence, reason));
            }
        }
        let finish = |(id, reason)| {
            let keep = self.cancel(id).expect("it was running");
            Finished { id, reason, keep }
        };
        finished.into_iter().map(finish).collect()
    }

    /// The kept caches that no plan to come begins with. To be dropped after the forks of the last plan.
    pub fn take_evicted(&mut self) -> Vec<Evicted> {
        std::mem::take(&mut self.evicted)
    }

    /// Forgets all kept caches, which are the runner's to drop.
    pub fn forget_kept(&mut self) {
        self.kept = PrefixIndex::new(self.limits.block);
        self.evicted.clear();
        self.running.values_mut().for_each(|sequence| sequence.kept = None);
    }

    pub fn kept(&self) -> &PrefixIndex {
        &self.kept
    }

    /// The running sequences that are to choose their next token in the next step, the oldest first.
    pub fn answering(&self) -> impl Iterator<Item = &Sequence> {
        self.running.values().filter(|sequence| sequence.behind() == 1 && sequence.max_tokens > 0)
    }

    /// Most positions of all caches together.
    pub fn kv_tokens(&self) -> usize {
        self.limits.kv_tokens
    }

    /// Most positions of kept ones beside those that run.
    pub fn kept_tokens(&self) -> usize {
        self.limits.kept_tokens.min(self.limits.kv_tokens.saturating_sub(self.reserved()))
    }

    /// The first of the running sequences that have more to compute than their next token.
    pub fn oldest_prompt(&self) -> Option<SequenceId> {
        let mut running = self.running.values();
        running.find(|sequence| sequence.behind() > 1).map(|sequence| sequence.id)
    }

    /// How many more sequences could run.
    pub fn free_places(&self) -> usize {
        self.limits.running - self.running.len()
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences().find(|sequence| sequence.id == id)
    }

    /// Panics if the books are wrong. For tests: it walks over everything.
    pub fn check_integrity(&self) {
        let longest = self.limits.longest();
        assert!(self.running.len() <= self.limits.running, "too many running");
        assert!(
            self.running.keys().all(|arrival| !self.waiting.contains_key(arrival)),
            "running and waiting"
        );
        for sequence in self.sequences() {
            let Sequence { id, tokens, prompt_len, computed, scored, .. } = sequence;
            assert!((1..=tokens.len()).contains(prompt_len), "{id:?} lost its prompt");
            assert!(tokens.len() <= longest, "{id:?} has {} tokens of {longest}", tokens.len());
            assert!(*computed < tokens.len(), "{id:?} has nothing to compute");
            assert!(*scored < *prompt_len, "{id:?} scored beyond its prompt");
            let room = sequence.max_tokens.max(1) - 1;
            assert!(sequence.answer().len() <= room, "{id:?} should have ended");
        }
        self.kept.check_integrity();
        for sequence in self.waiting.values() {
            assert!(
                sequence.computed == 0 && sequence.kept.is_none() && sequence.draft.is_empty(),
                "{:?} waits with a cache",
                sequence.id
            );
        }
    }

    fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.running.values().chain(self.waiting.values())
    }

    /// How many positions each running sequence computes, of those that compute any: at least one, `step_tokens` in all at
    /// most. Cuts the drafts to what was granted.
    fn share(&mut self, held: &[u64], forks: &BTreeMap<u64, Fork>) -> BTreeMap<u64, usize> {
        let mut kv_left = self.limits.kv_tokens.saturating_sub(self.held());
        let longest = self.limits.longest();
        let foreground = |arrival: &u64| *arrival < BACKGROUND;
        let mut prompts = self.running.iter().filter(|(_, sequence)| sequence.behind() > 1);
        let prompts_first = prompts.any(|(arrival, _)| foreground(arrival));
        let answers = self.running.iter().any(|(arrival, sequence)| {
            sequence.behind() == 1 && (foreground(arrival) || !prompts_first)
        });
        let for_prompts = if answers { self.beside_answers } else { usize::MAX };
        let computing = || {
            let all = self.running.iter().filter(|(_, sequence)| sequence.fetching.is_none());
            all.filter(|(arrival, sequence)| {
                // A fork is made with its sequence's first span.
                sequence.behind() == 1 || for_prompts > 0 || forks.contains_key(arrival)
            })
        };
        let mut shares: BTreeMap<u64, usize> =
            computing().map(|(&arrival, _)| (arrival, 1)).collect();
        let one_each = computing().filter(|(_, sequence)| sequence.behind() > 1).count();
        let mut left = self.limits.step_tokens - shares.len();

        let mut prompts: Vec<(u64, usize)> = Vec::new();
        for (&arrival, sequence) in computing() {
            // No member of a held group has come as far as where it is forked.
            let waits = held.contains(&sequence.group);
            let end = if waits { sequence.fork_len() } else { sequence.tokens.len() };
            if end - sequence.computed > 1 {
                prompts.push((arrival, end - sequence.computed - 1));
            }
        }

        let mut for_drafts = if prompts.is_empty() { left } else { left / 2 };
        for (arrival, sequence) in &mut self.running {
            // The token after the last draft is chosen too, so one draft less than tokens that may still come.
            let may_come = sequence
                .max_tokens
                .saturating_sub(sequence.answer().len())
                .min(longest - sequence.tokens.len());
            let granted = match sequence.behind() {
                1 => may_come.saturating_sub(1).min(for_drafts).min(kv_left),
                _ => 0,
            };
            sequence.draft.truncate(granted);
            let drafts = sequence.draft.len();
            let Some(share) = shares.get_mut(arrival) else { continue };
            *share += drafts;
            for_drafts -= drafts;
            kv_left -= drafts;
            left -= drafts;
        }

        left = left.min(for_prompts.saturating_sub(one_each));
        let half = left.div_ceil(2);
        let mut grant = |(arrival, need): &mut (u64, usize), most: usize| {
            let tokens = (*need).min(most).min(left);
            *shares.get_mut(arrival).expect("every prompt has a share") += tokens;
            *need -= tokens;
            left -= tokens;
        };
        if let Some(first) = prompts.first_mut() {
            grant(first, half);
        }
        prompts.sort_by_key(|&(arrival, need)| (arrival >= BACKGROUND, need, arrival));
        for prompt in &mut prompts {
            grant(prompt, usize::MAX);
        }
        shares
    }
}

/// Arrivals from here on are those of the background.
const BACKGROUND: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Cached, Uncached};

    const LIMITS: Limits = Limits {
        running: 8,
        step_tokens: 32,
        kv_tokens: 10_000,
        kept_tokens: 0,
        block: None,
        context: 5_000,
    };

    fn submit(scheduler: &mut Scheduler, id: u64, group: u64, prompt_len: usize) {
        let sequence = Sequence::new(SequenceId(id), group, vec![1; prompt_len], 50);
        scheduler.submit(sequence).unwrap();
    }

    /// Plans and commits a step in which every row chooses token 7; what each sequence computed, and who chose.
    fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize, bool)> {
        let plan = scheduler.plan();
        let outcome = |span: &PlannedSpan| {
            let chooses = !span.wanted.is_empty();
            Outcome { tokens: if chooses { vec![7] } else { vec![] }, ended: None }
        };
        let outcomes: Vec<_> = plan.spans.iter().map(outcome).collect();
        scheduler.commit(&plan, &outcomes);
        let seen =
            |span: &PlannedSpan| (span.sequence.0, span.range.len(), !span.wanted.is_empty());
        plan.spans.iter().map(seen).collect()
    }

    #[test]
    fn a_long_prompt_does_not_stall_a_running_answer() {
        let mut scheduler = Scheduler::new(LIMITS);
        submit(&mut scheduler, 0, 0, 3);
        step(&mut scheduler);
        submit(&mut scheduler, 1, 1, 100);
        for _ in 0..3 {
            assert_eq!(step(&mut scheduler), [(0, 1, true), (1, 31, false)]);
        }
        assert_eq!(step(&mut scheduler), [(0, 1, true), (1, 7, true)]);
    }

    #[test]
    fn beside_answers_a_prompt_gets_what_they_can_wait_for() {
        let mut scheduler = Scheduler::new(LIMITS);
        submit(&mut scheduler, 0, 0, 3);
        step(&mut scheduler);
        submit(&mut scheduler, 1, 1, 100);
        scheduler.set_beside_answers(5);
        assert_eq!(step(&mut scheduler), [(0, 1, true), (1, 5, false)]);
        scheduler.set_beside_answers(0);
        assert_eq!(step(&mut scheduler), [(0, 1, true)]);
        scheduler.cancel(SequenceId(0));
        assert_eq!(step(&mut scheduler), [(1, 32, false)], "nobody waits any more");
    }

    #[test]
    fn a_short_prompt_passes_a_long_one_that_still_moves() {
        let mut scheduler = Scheduler::new(LIMITS);
        submit(&mut scheduler, 0, 0, 1000);
        submit(&mut scheduler, 1, 1, 500);
        submit(&mut scheduler, 2, 2, 12);
        // One each, 15 of the other 29 to the first, 11 to the least, 3 to the next.
        assert_eq!(step(&mut scheduler), [(0, 16, false), (1, 4, false), (2, 12, true)]);
    }

    #[test]
    fn siblings_share_one_prompt_and_start_together() {
        let mut scheduler = Scheduler::new(LIMITS);
        for choice in 0..4 {
            submit(&mut scheduler, choice, 5, 41);
        }
        assert_eq!(step(&mut scheduler), [(0, 32, false)]);
        assert_eq!(step(&mut scheduler), [(0, 8, false)]);
        let plan = scheduler.plan();
        assert!(plan.spans.iter().all(|span| span.range == (40..41) && span.wanted == (40..41)));
        let forks: Vec<_> = plan.spans.iter().map(|span| span.fork).collect();
        let fork = Some(Fork { from: Source::Sequence(SequenceId(0)), len: 40 });
        assert_eq!(forks, [None, fork, fork, fork]);
    }

    #[test]
    fn a_sibling_keeps_its_place_while_it_waits() {
        let mut scheduler = Scheduler::new(Limits { running: 2, ..LIMITS });
        submit(&mut scheduler, 0, 0, 41);
        submit(&mut scheduler, 1, 0, 41);
        submit(&mut scheduler, 2, 1, 5);
        assert_eq!(step(&mut scheduler), [(0, 32, false)]);
        assert_eq!(step(&mut scheduler), [(0, 8, false)]);
        assert_eq!(step(&mut scheduler), [(0, 1, true), (1, 1, true)]);
    }

    #[test]
    fn followers_of_a_cancelled_leader_go_on_without_it() {
        let mut scheduler = Scheduler::new(LIMITS);
        submit(&mut scheduler, 0, 0, 41);
        submit(&mut scheduler, 1, 0, 41);
        step(&mut scheduler);
        assert!(scheduler.cancel(SequenceId(0)).is_some());
        assert_eq!(step(&mut scheduler), [(1, 32, false)]);
        assert_eq!(step(&mut scheduler), [(1, 9, true)]);
    }

    /// Runs one sequence to its end; the cached tokens that it began with.
    fn answer(scheduler: &mut Scheduler, id: u64, prompt: &[TokenId], max_tokens: usize) -> Cached {
        let sequence = Sequence::new(SequenceId(id), id, prompt.to_vec(), max_tokens);
        scheduler.submit(sequence).unwrap();
        let mut cached = None;
        while !scheduler.is_idle() {
            step(scheduler);
            let sequence = scheduler.sequence(SequenceId(id));
            cached = cached.or(sequence.and_then(|sequence| sequence.cached));
            scheduler.check_integrity();
        }
        cached.unwrap()
    }

    #[test]
    fn a_second_turn_begins_where_the_first_answer_ended() {
        let mut scheduler = Scheduler::new(Limits { kept_tokens: 1000, block: Some(4), ..LIMITS });
        let first: Vec<TokenId> = (10..30).collect();
        let mut found = |id, prompt: &[TokenId]| {
            let cached = answer(&mut scheduler, id, prompt, 5);
            assert_eq!(cached.prompt_tokens, prompt.len());
            (cached.tokens, cached.why)
        };
        assert_eq!(found(0, &first), (0, Uncached::New));
        // The last token of the answer was never computed.
        let second: Vec<TokenId> = first.iter().copied().chain([7; 5]).chain(40..50).collect();
        assert_eq!(found(1, &second), (24, Uncached::New));
        assert_eq!(found(2, &second), (34, Uncached::New));
        let other = [&second[..12], &[99; 20]].concat();
        assert_eq!(found(3, &other), (12, Uncached::Differs));
    }

    #[test]
    fn kept_caches_go_before_a_running_sequence_is_preempted() {
        let limits = Limits { kept_tokens: 60, kv_tokens: 60, block: Some(4), ..LIMITS };
        let mut scheduler = Scheduler::new(limits);
        answer(&mut scheduler, 0, &[1; 20], 5);
        answer(&mut scheduler, 1, &[2; 20], 5);
        assert_eq!(scheduler.kept().positions(), 48);
        // 40 tokens in all: both must go for them, one after the other.
        scheduler.submit(Sequence::new(SequenceId(2), 2, vec![3; 25], 15)).unwrap();
        let mut evicted = Vec::new();
        while !scheduler.is_idle() {
            let plan = scheduler.plan();
            assert!(plan.dropped.is_empty());
            evicted.push(scheduler.take_evicted().len());
            scheduler.check_integrity();
            let tokens = if plan.spans[0].wanted.is_empty() { vec![] } else { vec![7] };
            scheduler.commit(&plan, &[Outcome { tokens, ended: None }]);
        }
        assert_eq!((evicted[0], evicted.iter().sum::<usize>()), (1, 2));
    }

    #[test]
    fn the_background_gives_its_place_to_others_and_goes_on_where_it_was() {
        let limits = Limits { running: 1, kept_tokens: 1000, block: Some(4), ..LIMITS };
        let mut scheduler = Scheduler::new(limits);
        let mut slow = Sequence::new(SequenceId(0), 0, vec![1; 20], 9);
        slow.background = true;
        scheduler.submit(slow).unwrap();
        step(&mut scheduler);
        step(&mut scheduler);
        submit(&mut scheduler, 1, 1, 3);
        let plan = scheduler.plan();
        assert_eq!((plan.dropped[0].id, plan.spans[0].sequence), (SequenceId(0), SequenceId(1)));
        assert_eq!(plan.dropped[0].keep.map(|keep| keep.len), Some(21));
        scheduler.cancel(SequenceId(1));
        assert_eq!(step(&mut scheduler), [(0, 1, true)], "nothing is computed twice");
    }

    #[test]
    fn the_newest_is_preempted_and_comes_back_in_its_place() {
        let mut scheduler = Scheduler::new(Limits { kv_tokens: 40, ..LIMITS });
        submit(&mut scheduler, 0, 0, 10);
        submit(&mut scheduler, 1, 1, 10);
        submit(&mut scheduler, 2, 2, 10);
        let mut dropped = Vec::new();
        while dropped.is_empty() {
            dropped = scheduler.plan().dropped;
            if dropped.is_empty() {
                step(&mut scheduler);
            }
        }
        assert_eq!(dropped, [Dropped { id: SequenceId(1), keep: None }]);
        let preempted = scheduler.sequence(SequenceId(1)).unwrap();
        assert_eq!((preempted.computed, preempted.answer().len()), (0, 11));
        scheduler.cancel(SequenceId(0));
        assert_eq!(step(&mut scheduler)[0], (1, 21, true));
    }
}
