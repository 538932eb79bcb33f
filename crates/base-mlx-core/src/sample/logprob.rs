use super::chain::clean;
use super::rank::{Rank, best};
use super::softmax::{mass, maximum};
use crate::TokenId;

/// A token's log probability under the model's own distribution: before penalties, bias, mask, temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    /// Natural logarithm; −∞ if the model excludes the token.
    pub logprob: f32,
    /// The most probable tokens, best first.
    pub top: Vec<(TokenId, f32)>,
}

/// The log probability of a token that is known, with the `top` most probable ones.
pub fn score(logits: &[f32], token: TokenId, top: usize) -> Logprob {
    score_clean(&clean(logits), token, top)
}

pub(super) fn score_clean(logits: &[f32], token: TokenId, top: usize) -> Logprob {
    let maximum = maximum(logits);
    let log_mass = mass(logits, maximum, 1.0).ln();
    let logprob = |logit: f32| {
        let relative = f64::from(logit) - f64::from(maximum);
        if logit == f32::NEG_INFINITY { logit } else { (relative - log_mass) as f32 }
    };
    let mut ranks = best(logits, top);
    ranks.sort_unstable_by(Rank::order);
    Logprob {
        logprob: logits.get(token as usize).map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        top: ranks.into_iter().map(|rank| (rank.token, logprob(rank.logit))).collect(),
    }
}
