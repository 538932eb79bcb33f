/// What the dice showed.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) finished: usize,
    pub(super) cancelled: usize,
    pub(super) refused: usize,
    pub(super) preempted: usize,
    pub(super) preempted_and_kept: usize,
    pub(super) forks: usize,
    pub(super) kept: usize,
    pub(super) hits: usize,
    pub(super) hits_in_the_middle: usize,
    pub(super) evicted: usize,
    pub(super) fetched: usize,
    pub(super) fetched_in_part: usize,
    pub(super) fetched_for_nothing: usize,
    pub(super) fetched_less_than_kept: usize,
    pub(super) steps_without_spans: usize,
    pub(super) steps_left_to_answers: usize,
    pub(super) drafts_accepted: usize,
    pub(super) drafts_rejected: usize,
    pub(super) scored: usize,
    pub(super) steps_with_prompts_and_answers: usize,
    pub(super) ahead: usize,
    pub(super) ahead_for_nothing: usize,
}

impl Seen {
    pub(super) fn add(&mut self, other: &Seen) {
        self.finished += other.finished;
        self.cancelled += other.cancelled;
        self.refused += other.refused;
        self.preempted += other.preempted;
        self.preempted_and_kept += other.preempted_and_kept;
        self.forks += other.forks;
        self.kept += other.kept;
        self.hits += other.hits;
        self.hits_in_the_middle += other.hits_in_the_middle;
        self.evicted += other.evicted;
        self.fetched += other.fetched;
        self.fetched_in_part += other.fetched_in_part;
        self.fetched_for_nothing += other.fetched_for_nothing;
        self.fetched_less_than_kept += other.fetched_less_than_kept;
        self.steps_without_spans += other.steps_without_spans;
        self.steps_left_to_answers += other.steps_left_to_answers;
        self.drafts_accepted += other.drafts_accepted;
        self.drafts_rejected += other.drafts_rejected;
        self.scored += other.scored;
        self.steps_with_prompts_and_answers += other.steps_with_prompts_and_answers;
        self.ahead += other.ahead;
        self.ahead_for_nothing += other.ahead_for_nothing;
    }

    pub(super) fn all(&self) -> bool {
        let rare =
            [self.finished, self.cancelled, self.refused, self.preempted, self.forks, self.scored];
        let common =
            [self.drafts_accepted, self.drafts_rejected, self.steps_with_prompts_and_answers];
        let ahead = [self.ahead, self.ahead_for_nothing];
        let kept = [self.kept, self.hits, self.hits_in_the_middle, self.evicted];
        let kept = kept.into_iter().chain([self.preempted_and_kept]);
        let disk = [self.fetched, self.fetched_in_part, self.fetched_for_nothing];
        let disk = disk.into_iter().chain([self.steps_without_spans, self.steps_left_to_answers]);
        rare.into_iter().chain(common).chain(ahead).chain(kept).chain(disk).all(|times| times > 100)
    }
}
