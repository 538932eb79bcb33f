use std::time::Duration;

/// How many prompt tokens fit into a step that running answers wait for, from how long the last steps took. Only speed
/// depends on it: an answer is the same however its prompt was cut.
pub(super) struct Pace {
    /// Seconds for one more token in a step, smoothed; 0 until a step was measured.
    seconds_per_token: f64,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self { seconds_per_token: 0.0 }
    }

    /// Seconds for one more token of a prompt in a step; 0 until one was measured.
    pub(super) fn seconds_per_token(&self) -> f64 {
        self.seconds_per_token
    }

    /// Takes note of a step with so many tokens of prompts, which would have taken `quiet` seconds without them.
    pub(super) fn measured(&mut self, prompt_tokens: usize, took: Duration, quiet: f64) {
        if prompt_tokens == 0 {
            return;
        }
        let now = (took.as_secs_f64() - quiet).max(0.0) / prompt_tokens as f64;
        self.seconds_per_token = match self.seconds_per_token {
            0.0 => now,
            before => before + (now - before) * WEIGHT,
        };
    }

    /// Prompt tokens that running answers can wait for, beyond the one that each prompt has in any case; without them a step
    /// takes `quiet` seconds. Far into a long prompt a step reads all that is before, however few its tokens are.
    pub(super) fn beside_answers(&self, quiet: f64) -> usize {
        if self.seconds_per_token == 0.0 || quiet == 0.0 {
            return FIRST_TOKENS;
        }
        let fit = WAIT * quiet / self.seconds_per_token;
        fit as usize
    }
}

/// How long an answer may wait for the prompts beside it in each step, in times of a step without them. Some steps take
/// longer than was thought; three quiet steps for one is what no more than one in twenty should come to.
const WAIT: f64 = 1.25;
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
        assert_eq!(pace.beside_answers(0.08), 50);
        for _ in 0..20 {
            pace.measured(50, Duration::from_millis(420), 0.02);
        }
        assert!((12..=13).contains(&pace.beside_answers(0.08)), "{}", pace.beside_answers(0.08));
    }

    #[test]
    fn slow_prompts_wait_for_answers() {
        let mut pace = Pace::new();
        pace.measured(0, Duration::from_secs(1), 0.0);
        assert_eq!(pace.beside_answers(0.02), FIRST_TOKENS);
        pace.measured(60, Duration::from_secs(60), 0.0);
        assert_eq!(pace.beside_answers(0.02), 0);
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
