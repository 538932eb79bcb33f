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

const LUCK_FORGET: f64 = 0.9;
const PASSED_OVER: f64 = 0.985;
const PRIOR_WEIGHT: f64 = 2.0;

#[cfg(test)]
mod tests {
    use super::*;

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
