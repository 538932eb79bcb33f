use std::time::Duration;

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

/// How often guesses of some kind were right, lately.
#[derive(Clone, Copy, Debug)]
pub(super) struct Luck {
    right: f64,
    tried: f64,
    /// What is assumed before anything was tried.
    prior: f64,
}

impl Luck {
    pub(super) fn new(prior: f64) -> Self {
        Self { right: 0.0, tried: 0.0, prior }
    }

    /// Of the tokens of a draft the first `accepted` were right, and the next, if there was one, was wrong.
    pub(super) fn tried(&mut self, drafts: usize, accepted: usize) {
        let tried = drafts.min(accepted + 1);
        self.forget(LUCK_FORGET.powi(tried as i32));
        self.right += accepted as f64;
        self.tried += tried as f64;
    }

    /// A draft was not worth trying. In the long run it is tried again, for texts change.
    pub(super) fn passed_over(&mut self) {
        self.forget(PASSED_OVER);
    }

    fn forget(&mut self, factor: f64) {
        self.right *= factor;
        self.tried *= factor;
    }

    /// How probable it is that the next token is guessed.
    fn chance(&self) -> f64 {
        (self.right + PRIOR_WEIGHT * self.prior) / (self.tried + PRIOR_WEIGHT)
    }

    /// How many tokens to draft: as many as are each worth their time. A token is used with the chance that it and all before
    /// it are right; that must be more than the step without it makes of the same time.
    pub(super) fn worth(
        &self,
        tokens_per_second: f64,
        seconds_per_draft: f64,
        most: usize,
    ) -> usize {
        let needed = tokens_per_second * seconds_per_draft;
        let mut chance = 1.0;
        (0..most)
            .take_while(|_| {
                chance *= self.chance();
                chance > needed
            })
            .count()
    }
}

/// How much a step counts when the next one was measured.
const FORGET: f64 = 0.97;
/// Steps that outweigh a guess.
const ENOUGH: f64 = 8.0;
/// What a row more costs of a step of one row, before it was measured.
const GUESS: f64 = 0.15;
const LUCK_FORGET: f64 = 0.9;
const PASSED_OVER: f64 = 0.985;
const PRIOR_WEIGHT: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn drafts_grow_with_luck_and_stop_without_it() {
        let mut luck = Luck::new(0.5);
        // A draft costs a seventh of a step of one token.
        let worth = |luck: &Luck| luck.worth(100.0, 0.01 / 7.0, 16);
        assert_eq!(worth(&luck), 2);
        for _ in 0..20 {
            luck.tried(4, 4);
        }
        assert!(worth(&luck) > 10, "{}", worth(&luck));
        for _ in 0..40 {
            luck.tried(2, 0);
        }
        assert_eq!(worth(&luck), 0);
        let passed = (0..1000).take_while(|_| {
            luck.passed_over();
            worth(&luck) == 0
        });
        assert!((10..400).contains(&passed.count()), "it is tried again, but not soon");
    }
}
