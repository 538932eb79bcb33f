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

/// The last token of the smallest set of best tokens whose weights reach `target`.
pub(super) fn reaching(candidates: &[(Rank, f32)], target: f64) -> Option<Rank> {
    // Sort by buckets of logits, of which only the one that contains the last token is looked into.
    const BUCKETS: usize = 1024;
    let logits = candidates.iter().map(|(rank, _)| rank.logit);
    let largest = logits.clone().fold(f32::NEG_INFINITY, f32::max);
    let scale = BUCKETS as f32 / (largest - logits.fold(f32::INFINITY, f32::min));
    // Equal logits give NaN, which is bucket 0.
    let bucket = |rank: &Rank| (((largest - rank.logit) * scale) as usize).min(BUCKETS - 1);
    let mut sums = [0.0; BUCKETS];
    for (rank, weight) in candidates {
        sums[bucket(rank)] += f64::from(*weight);
    }
    let mut before = 0.0;
    let mut last = None;
    for (index, &sum) in sums.iter().enumerate().filter(|&(_, &sum)| sum > 0.0) {
        last = Some((index, before));
        if before + sum >= target {
            break;
        }
        before += sum;
    }
    let (index, before) = last?;
    let mut inside: Vec<_> =
        candidates.iter().filter(|(rank, _)| bucket(rank) == index).copied().collect();
    reaching_inside(&mut inside, target - before)
}

/// The same by halving. Of the half that cannot contain the token only the sum is taken.
fn reaching_inside(candidates: &mut [(Rank, f32)], target: f64) -> Option<Rank> {
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
