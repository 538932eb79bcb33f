//! Order among tokens, and finding the best of them without sorting a whole vocabulary.

use std::cmp::Ordering;

use crate::TokenId;

/// A token's place in the order that every filter follows: the larger logit first, of equal ones the lower id. A filter
/// keeps what is not after a certain place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rank {
    pub(super) logit: f32,
    pub(super) token: TokenId,
}

impl Rank {
    /// Best first.
    pub(super) fn order(&self, other: &Rank) -> Ordering {
        let by_logit = other.logit.partial_cmp(&self.logit).expect("clean logits are not NaN");
        by_logit.then(self.token.cmp(&other.token))
    }
}

/// The best `count` tokens in no order, or all that are not banned if they are fewer.
pub(super) fn best(logits: &[f32], count: usize) -> Vec<Rank> {
    if count == 0 {
        return Vec::new();
    }
    // Those that beat the worst of the best so far are gathered; now and then the gathering is reduced to the best.
    let room = (2 * count).max(64);
    let mut gathered = Vec::with_capacity(room.min(logits.len()));
    let mut beat = f32::NEG_INFINITY;
    for (token, &logit) in logits.iter().enumerate() {
        // An equal one has a higher id, and is not better.
        if logit > beat {
            gathered.push(Rank { logit, token: token as TokenId });
            if gathered.len() == room {
                gathered.select_nth_unstable_by(count - 1, Rank::order);
                gathered.truncate(count);
                beat = gathered[count - 1].logit;
            }
        }
    }
    if gathered.len() > count {
        gathered.select_nth_unstable_by(count - 1, Rank::order);
        gathered.truncate(count);
    }
    gathered
}

/// The last token of the smallest set of best tokens whose weights reach `target`. Of a half that cannot contain it only
/// the sum is taken, so this is linear.
pub(super) fn reaching(candidates: &mut [(Rank, f32)], target: f64) -> Option<Rank> {
    const FEW: usize = 16;
    let order = |a: &(Rank, f32), b: &(Rank, f32)| a.0.order(&b.0);
    let (mut start, mut end, mut sum) = (0, candidates.len(), 0.0);
    while end - start > FEW {
        let middle = usize::midpoint(start, end);
        candidates[start..end].select_nth_unstable_by(middle - start, order);
        let upper: f64 =
            candidates[start..=middle].iter().map(|&(_, weight)| f64::from(weight)).sum();
        if sum + upper >= target {
            end = middle + 1;
        } else {
            sum += upper;
            start = middle + 1;
        }
    }
    candidates[start..end].sort_unstable_by(order);
    for (rank, weight) in &candidates[start..end] {
        sum += f64::from(*weight);
        if sum >= target {
            return Some(*rank);
        }
    }
    candidates[..end].last().map(|(rank, _)| *rank)
}
