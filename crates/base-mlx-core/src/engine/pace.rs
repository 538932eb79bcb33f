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

    /// Takes note of a step of `tokens`, of which `prompt_tokens` are parts of prompts. Steps of answers alone and small
    /// ones say nothing: reading the weights is most of their time.
    pub(super) fn measured(&mut self, tokens: usize, prompt_tokens: usize, took: Duration) {
        if prompt_tokens < LEAST_TOKENS {
            return;
        }
        let now = took.as_secs_f64() / tokens as f64;
        self.seconds_per_token = match self.seconds_per_token {
            0.0 => now,
            before => before + (now - before) * WEIGHT,
        };
    }

    /// Prompt tokens that running answers can wait for.
    pub(super) fn beside_answers(&self) -> usize {
        if self.seconds_per_token == 0.0 {
            return FIRST_TOKENS;
        }
        let fit = WAIT.as_secs_f64() / self.seconds_per_token;
        (fit as usize).max(LEAST_TOKENS)
    }
}

/// How long an answer may wait for the prompts beside it, in each step: a pause that a reader does not notice.
const WAIT: Duration = Duration::from_millis(100);
/// The first guess.
const FIRST_TOKENS: usize = 32;
/// With fewer the weights are read for almost nothing, and prompts would never end.
const LEAST_TOKENS: usize = 8;
/// How much the newest step counts.
const WEIGHT: f64 = 0.3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_takes_about_as_long_as_answers_may_wait() {
        let mut pace = Pace::new();
        assert_eq!(pace.beside_answers(), FIRST_TOKENS);
        pace.measured(100, 100, Duration::from_millis(200));
        assert_eq!(pace.beside_answers(), 50);
        for _ in 0..20 {
            pace.measured(50, 49, Duration::from_millis(400));
        }
        assert!((12..=13).contains(&pace.beside_answers()), "{}", pace.beside_answers());
    }

    #[test]
    fn prompts_always_move_and_single_tokens_are_no_measure() {
        let mut pace = Pace::new();
        pace.measured(1, 1, Duration::from_secs(1));
        pace.measured(64, 0, Duration::from_secs(1));
        assert_eq!(pace.beside_answers(), FIRST_TOKENS);
        pace.measured(64, 60, Duration::from_secs(60));
        assert_eq!(pace.beside_answers(), LEAST_TOKENS);
    }
}
