//! The chain from a row of logits to a token.

use std::borrow::Cow;

use super::logprob::{Logprob, score, score_clean};
use super::random::uniform;
use super::rank::{Rank, best, reaching};
use super::softmax::{BLOCK, block_mass, mass, maximum, weight};
use super::{History, Mask, SamplingParams};
use crate::TokenId;

#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    pub token: TokenId,
    /// Present if `SamplingParams::logprobs` is.
    pub logprob: Option<Logprob>,
}

/// Bans, the mask, or a model that says NaN left no token that could be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no token is left to choose from")]
pub struct NoTokenLeft;

/// Chooses the token at `position` of a sequence from the row of logits before it.
///
/// In this order: the repetition penalty, which scales the model's own logits; bias, presence and frequency penalty, which
/// add to them; the mask. Then temperature 0 takes the best, the lowest id among equals; any other divides, `top_k`,
/// `top_p` and `min_p` remove tokens, each judging by the probabilities that the one before left, and a number made of
/// seed and position chooses among the rest, in the order of their ids.
///
/// NaN counts as −∞, a token that cannot be chosen.
pub fn choose(
    logits: &[f32],
    params: &SamplingParams,
    history: &History,
    position: usize,
    allowed: Option<&Mask>,
) -> Result<Chosen, NoTokenLeft> {
    if let Some(token) = allowed.and_then(Mask::only) {
        return only(logits, token, params);
    }
    let raw = clean(logits);
    let adjusted = adjust(&raw, params, history, allowed);
    let maximum = maximum(&adjusted);
    if maximum == f32::NEG_INFINITY {
        return Err(NoTokenLeft);
    }
    let greedy = params.temperature <= 0.0;
    let filtered = params.top_k > 0 || params.top_p < 1.0 || params.min_p > 0.0;
    let token = if greedy {
        adjusted.iter().position(|&logit| logit == maximum).ok_or(NoTokenLeft)? as TokenId
    } else if filtered {
        draw_from(&filter(&adjusted, params, maximum), uniform(params.seed, position))
    } else {
        draw(&adjusted, maximum, params.temperature, uniform(params.seed, position))
    };
    Ok(Chosen { token, logprob: params.logprobs.map(|top| score_clean(&raw, token, top)) })
}

/// A token that comes whatever the model and the parameters say.
pub fn must(logits: &[f32], token: TokenId, params: &SamplingParams) -> Chosen {
    Chosen { token, logprob: params.logprobs.map(|top| score(logits, token, top)) }
}

/// The one token that is allowed, unless something else bans it.
fn only(logits: &[f32], token: TokenId, params: &SamplingParams) -> Result<Chosen, NoTokenLeft> {
    let is_banned = params.logit_bias.iter().any(|&(other, bias)| other == token && bias <= BAN);
    match logits.get(token as usize) {
        Some(&logit) if !is_banned && logit > f32::NEG_INFINITY => Ok(must(logits, token, params)),
        _ => Err(NoTokenLeft),
    }
}

/// Logits that are finite or −∞.
pub(super) fn clean(logits: &[f32]) -> Cow<'_, [f32]> {
    // False for +∞ and for NaN.
    let is_clean = logits.iter().fold(true, |clean, &x| clean & (x <= f32::MAX));
    if is_clean { Cow::Borrowed(logits) } else { logits.iter().map(|&x| clean_one(x)).collect() }
}

fn clean_one(x: f32) -> f32 {
    if x.is_nan() { f32::NEG_INFINITY } else { x.min(f32::MAX) }
}

fn adjust<'a>(
    raw: &'a [f32],
    params: &SamplingParams,
    history: &History,
    allowed: Option<&Mask>,
) -> Cow<'a, [f32]> {
    let mut logits = Cow::Borrowed(raw);
    let repetition = params.repetition_penalty;
    let (presence, frequency) = (params.presence_penalty, params.frequency_penalty);
    if repetition != 1.0 || presence != 0.0 || frequency != 0.0 {
        let logits = logits.to_mut();
        for (token, in_answer) in history.tokens() {
            // The tokenizer may know tokens that the model has no row for.
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            let scaled = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            let once = if in_answer > 0 { presence } else { 0.0 };
            *logit = clean_one(scaled - once - frequency * in_answer as f32);
        }
    }
    if !params.logit_bias.is_empty() {
        let logits = logits.to_mut();
        for &(token, bias) in &params.logit_bias {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            *logit = if bias <= BAN { f32::NEG_INFINITY } else { clean_one(*logit + bias) };
        }
    }
    if let Some(mask) = allowed {
        mask.apply(logits.to_mut());
    }
    logits
}

/// The tokens that the filters keep, by id, with their weights; at least one.
pub(super) fn filter(logits: &[f32], params: &SamplingParams, maximum: f32) -> Vec<(TokenId, f32)> {
    let temperature = params.temperature;
    let limits_count = params.top_k > 0 && params.top_k < logits.len();
    let limits_mass = params.top_p < 1.0;

    // Each filter keeps what is at or before one place, so what all of them keep is what is before the first of these.
    let mut last = Rank { logit: f32::NEG_INFINITY, token: TokenId::MAX };
    if limits_count {
        let best = best(logits, params.top_k);
        last = best.into_iter().max_by(Rank::order).unwrap_or(last);
    }
    if limits_mass {
        let of_all = if limits_count { None } else { Some(mass(logits, maximum, temperature)) };
        // All tokens below this together are less than what may be missing from `top_p`.
        let useless = |all: f64| (1.0 - f64::from(params.top_p)) * all / logits.len() as f64;
        let floor = of_all.map_or(f32::MIN, |all| logit_of(useless(all), maximum, temperature));
        let candidates: Vec<(Rank, f32)> = kept(logits, last, floor)
            .map(|rank| (rank, weight(rank.logit, maximum, temperature)))
            .collect();
        let all =
            of_all.unwrap_or_else(|| candidates.iter().map(|&(_, weight)| f64::from(weight)).sum());
        last = reaching(&candidates, f64::from(params.top_p) * all).unwrap_or(last);
    }
    let floor = logit_of(f64::from(params.min_p), maximum, temperature);
    kept(logits, last, floor)
        .map(|rank| (rank.token, weight(rank.logit, maximum, temperature)))
        .filter(|&(_, weight)| weight >= params.min_p && weight > 0.0)
        .collect()
}

/// A logit whose weight is less than `weight`, by no more than a few thousandths.
fn logit_of(weight: f64, maximum: f32, temperature: f32) -> f32 {
    let logit = f64::from(maximum) + f64::from(temperature) * (weight.ln() - 0.002);
    (logit as f32).max(f32::MIN)
}

/// What is not after `last` and not below `floor`, which is finite, by id.
fn kept(logits: &[f32], last: Rank, floor: f32) -> impl Iterator<Item = Rank> {
    let floor = last.logit.max(floor);
    let ranks = logits.iter().enumerate().filter(move |&(_, &logit)| logit >= floor);
    ranks
        .map(|(token, &logit)| Rank { logit, token: token as TokenId })
        .filter(move |rank| rank.logit > last.logit || rank.token <= last.token)
}

fn draw_from(kept: &[(TokenId, f32)], uniform: f64) -> TokenId {
    let all: f64 = kept.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let mut left = uniform * all;
    for &(token, weight) in kept {
        left -= f64::from(weight);
        if left < 0.0 {
            return token;
        }
    }
    kept.last().expect("a filter keeps the best token").0
}

/// As `draw_from` of all tokens, but adds them up in blocks.
fn draw(logits: &[f32], maximum: f32, temperature: f32, uniform: f64) -> TokenId {
    let masses: Vec<f64> =
        logits.chunks(BLOCK).map(|block| block_mass(block, maximum, temperature)).collect();
    let mut left = uniform * masses.iter().sum::<f64>();
    let mut chosen = 0;
    for (block, &mass) in masses.iter().enumerate().filter(|&(_, &mass)| mass > 0.0) {
        chosen = block;
        if left < mass {
            break;
        }
        left -= mass;
    }
    let first = chosen * BLOCK;
    let block = &logits[first..logits.len().min(first + BLOCK)];
    let weighed: Vec<(TokenId, f32)> = (first as TokenId..)
        .zip(block.iter().map(|&logit| weight(logit, maximum, temperature)))
        .filter(|&(_, weight)| weight > 0.0)
        .collect();
    for &(token, weight) in &weighed {
        left -= f64::from(weight);
        if left < 0.0 {
            return token;
        }
    }
    // Rounding let the number fall beyond the block's last token.
    weighed.last().expect("a block with mass has a token with weight").0
}

/// OpenAI's range for a bias ends here, and means never.
const BAN: f32 = -100.0;
