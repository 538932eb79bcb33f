use std::time::Duration;

/// How many prompt tokens fit into a step that running answers wait for, from how long the last steps took. Only speed
/// depends on it: an answer is the same however its prompt was cut.
///
/// As long as some tokens fit, prompts have them in every step. Far into a long prompt hardly one may: a step that has one reads
/// all that is before, and takes hardly longer with dozens. Where steps are short prompts have bursts then, so rare that nineteen
/// of twenty tokens of an answer never wait for one, and of what they would have taken in every step. Both are better off.
pub(super) struct Pace {
    /// Seconds for one more token where prompts have some in every step, smoothed; 0 until a step was measured.
    in_every_step: f64,
    /// The same in bursts.
    in_bursts: f64,
    /// Where a prompt has many, whatever is beside it.
    of_many: f64,
    bursts: bool,
    /// The oldest prompt, by a number of its own.
    oldest: Option<u64>,
    /// Steps that answers had to themselves since the last burst.
    alone: usize,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            in_every_step: 0.0,
            in_bursts: 0.0,
            of_many: 0.0,
            bursts: false,
            oldest: None,
            alone: 0,
        }
    }

    /// Seconds for a token of a prompt that has many to compute; `None` until such a step was measured.
    pub(super) fn of_many(&self) -> Option<f64> {
        (self.of_many > 0.0).then_some(self.of_many)
    }

    /// Takes note of a step with so many tokens of prompts, which would have taken `quiet` seconds without them.
    pub(super) fn measured(&mut self, prompt_tokens: usize, took: Duration, quiet: f64) {
        // Between bursts a prompt that has just come may have its first token, which is no burst.
        if prompt_tokens == 0 || (self.bursts && self.alone < RARE) {
            self.alone += 1;
            return;
        }
        self.alone = 0;
        let now = (took.as_secs_f64() - quiet).max(0.0) / prompt_tokens as f64;
        let smooth = |seconds: &mut f64| {
            *seconds = if *seconds == 0.0 { now } else { *seconds + (now - *seconds) * WEIGHT };
        };
        smooth(if self.bursts { &mut self.in_bursts } else { &mut self.in_every_step });
        if prompt_tokens >= MANY {
            smooth(&mut self.of_many);
        }
        let too_slow = FEW * self.in_every_step > WAIT * quiet;
        if !self.bursts && too_slow && quiet > 0.0 && burst_seconds(quiet) <= LONGEST_PAUSE {
            (self.bursts, self.in_bursts) = (true, 0.0);
        }
    }

    /// The prompt that came first, of those that are being computed. Bursts end with the one that they were for.
    pub(super) fn oldest_prompt(&mut self, number: Option<u64>) {
        if self.oldest != number {
            (self.oldest, self.bursts) = (number, false);
        }
    }

    /// Prompt tokens that running answers can wait for; without them a step takes `quiet` seconds.
    pub(super) fn beside_answers(&self, quiet: f64) -> usize {
        if self.bursts && self.alone < RARE {
            return 0;
        }
        let seconds = if self.bursts { self.in_bursts } else { self.in_every_step };
        if seconds == 0.0 || quiet == 0.0 {
            return FIRST_TOKENS;
        }
        let wait = if self.bursts { burst_seconds(quiet) } else { WAIT * quiet };
        1 + (wait / seconds) as usize
    }
}

/// What a burst may take: as much as prompts would have had in every step since the last one.
fn burst_seconds(quiet: f64) -> f64 {
    RARE as f64 * WAIT * quiet
}

/// How long an answer may wait for the prompts beside it in each step, in times of a step without them. Some steps take
/// longer than was thought; three quiet steps for one is what no more than one in twenty should come to.
const WAIT: f64 = 1.25;
/// Prompts that get fewer tokens than this in a step are better off with bursts.
const FEW: f64 = 8.0;
/// So many tokens tell what a prompt costs.
const MANY: usize = 48;
/// Steps without prompts after a burst: one step in twenty may be long.
const RARE: usize = 22;
/// Seconds that an answer may pause for a burst: what somebody who reads along hardly sees.
const LONGEST_PAUSE: f64 = 0.25;
/// The first guess.
const FIRST_TOKENS: usize = 32;
/// How much the newest step counts.
const WEIGHT: f64 = 0.3;

/// How long a step takes by its rows: a straight line through what was measured lately. Reading the weights is where it
/// starts, and what a row more costs is how it rises.
#[derive(Debug, Default)]
pub(super) struct StepTime {
    /// Sums over the steps measured, each counting less the older it is.
    weight: f64,
    rows: f64,
    seconds: f64,
    rows_rows: f64,
    rows_seconds: f64,
}

impl StepTime {
    pub(super) fn measured(&mut self, rows: usize, took: Duration) {
        let (rows, mut seconds) = (rows as f64, took.as_secs_f64());
        if self.weight > ENOUGH {
            // A step that the system has interrupted says nothing.
            seconds = seconds.min(1.5 * self.seconds_of(rows));
        }
        let sums = [
            &mut self.weight,
            &mut self.rows,
            &mut self.seconds,
            &mut self.rows_rows,
            &mut self.rows_seconds,
        ];
        for (sum, new) in sums.into_iter().zip([1.0, rows, seconds, rows * rows, rows * seconds]) {
            *sum = *sum * FORGET + new;
        }
    }

    /// `None` before anything was measured.
    pub(super) fn of(&self, rows: usize) -> Option<f64> {
        (self.weight > 0.0).then(|| self.seconds_of(rows as f64))
    }

    /// What one more row costs.
    pub(super) fn of_one_more(&self) -> f64 {
        if self.weight == 0.0 { 0.0 } else { self.slope() }
    }

    fn seconds_of(&self, rows: f64) -> f64 {
        let (mean_rows, mean) = (self.rows / self.weight, self.seconds / self.weight);
        (mean + self.slope() * (rows - mean_rows)).max(mean / 10.0)
    }

    /// Drawn to a guess as long as all steps had about as many rows.
    fn slope(&self) -> f64 {
        let (mean_rows, mean) = (self.rows / self.weight, self.seconds / self.weight);
        let variance = self.rows_rows - self.rows * mean_rows;
        let covariance = self.rows_seconds - self.rows * mean;
        let guess = GUESS * mean / mean_rows;
        ((covariance + guess * ENOUGH) / (variance + ENOUGH)).max(mean / mean_rows / 50.0)
    }
}

/// How much a step counts when the next one was measured.
const FORGET: f64 = 0.97;
/// Steps that outweigh a guess.
const ENOUGH: f64 = 8.0;
/// What a row more costs of a step of one row, before it was measured.
const GUESS: f64 = 0.15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_take_a_step_as_long_as_answers_may_wait() {
        let mut pace = Pace::new();
        assert_eq!(pace.beside_answers(0.02), FIRST_TOKENS);
        pace.measured(100, Duration::from_millis(220), 0.02);
        assert_eq!(pace.beside_answers(0.08), 51);
        for _ in 0..20 {
            pace.measured(50, Duration::from_millis(420), 0.02);
        }
        assert!((13..=14).contains(&pace.beside_answers(0.08)), "{}", pace.beside_answers(0.08));
    }

    #[test]
    fn slow_prompts_wait_for_answers() {
        let mut pace = Pace::new();
        pace.measured(0, Duration::from_secs(1), 0.0);
        assert_eq!(pace.beside_answers(0.02), FIRST_TOKENS);
        pace.measured(60, Duration::from_secs(60), 0.0);
        assert_eq!(pace.beside_answers(0.02), 1);
    }

    #[test]
    fn where_few_tokens_fit_prompts_have_bursts_as_long_as_they_last() {
        let mut pace = Pace::new();
        let quiet = 0.005;
        // A token more costs 0.1 ms, but the first one reads everything before.
        let took = |tokens: usize| Duration::from_secs_f64(quiet + 0.012 + 0.0001 * tokens as f64);
        pace.oldest_prompt(Some(1));
        pace.measured(1, took(1), quiet);
        let mut steps = Vec::new();
        for _ in 0..200 {
            let tokens = pace.beside_answers(quiet);
            let took = if tokens == 0 { Duration::from_secs_f64(quiet) } else { took(tokens) };
            pace.measured(tokens, took, quiet);
            steps.push(tokens);
        }
        let bursts: Vec<usize> = steps.iter().copied().filter(|&tokens| tokens > 0).collect();
        assert!(bursts.len() <= 200 / 20 && bursts.len() >= 200 / 25, "{steps:?}");
        assert!(*bursts.last().unwrap() > 500, "{bursts:?}");
        pace.oldest_prompt(Some(2));
        assert_eq!(pace.beside_answers(quiet), 1, "the next prompt begins as this one did");
    }

    #[test]
    fn prompts_that_come_between_bursts_do_not_put_them_off() {
        let mut pace = Pace::new();
        let step = Duration::from_millis(17);
        pace.measured(1, step, 0.005);
        for _ in 0..RARE {
            assert_eq!(pace.beside_answers(0.005), 0);
            pace.measured(1, step, 0.005);
        }
        assert_eq!(pace.beside_answers(0.005), FIRST_TOKENS);
    }

    #[test]
    fn where_a_burst_would_be_a_long_pause_there_is_none() {
        let mut pace = Pace::new();
        pace.measured(1, Duration::from_millis(500), 0.1);
        assert_eq!(pace.beside_answers(0.1), 1);
    }

    #[test]
    fn a_line_is_found_through_noise_and_interruptions() {
        let mut time = StepTime::default();
        assert_eq!(time.of(1), None);
        for step in 0..200usize {
            let rows = 1 + step * 7 % 9;
            let noise = (step * 31 % 11) as f64 / 10.0;
            let ms = if step % 40 == 39 { 200.0 } else { 10.0 + 2.0 * rows as f64 + noise };
            time.measured(rows, Duration::from_secs_f64(ms / 1000.0));
        }
        let [one, nine] = [1, 9].map(|rows| time.of(rows).unwrap() * 1000.0);
        assert!((11.0..14.5).contains(&one), "{one}");
        assert!((27.0..31.5).contains(&nine), "{nine}");
        assert!((0.0015..0.0025).contains(&time.of_one_more()));
    }

    #[test]
    fn steps_of_one_row_do_not_tell_what_a_row_costs() {
        let mut time = StepTime::default();
        for _ in 0..100 {
            time.measured(1, Duration::from_millis(10));
        }
        let guessed = time.of_one_more();
        assert!((0.0014..0.0016).contains(&guessed), "{guessed}");
    }
}
