//! The running softmax: what some keys come to for each query, and how two such results become one.

use std::ops::Range;

use super::KEY_BLOCK;
use crate::isa::Lanes;

/// What segments have come to, for each query.
pub(super) struct Results<'a> {
    /// Floats for one query in `totals`: a head's size, in whole vectors.
    pub(super) width: usize,
    /// Values times weights.
    pub(super) totals: &'a mut [f32],
    /// Of the weights.
    pub(super) sums: &'a mut [f32],
    /// The largest score; a weight is e^(score - largest).
    largest: &'a mut [f32],
}

impl<'a> Results<'a> {
    #[inline(always)]
    pub(super) fn new(floats: &'a mut [f32], width: usize) -> Self {
        let queries = floats.len() / (width + 2);
        let (totals, floats) = floats.split_at_mut(queries * width);
        let (sums, largest) = floats.split_at_mut(queries);
        Self { width, totals, sums, largest }
    }

    #[inline(always)]
    pub(super) fn totals(&mut self, query: usize) -> &mut [f32] {
        &mut self.totals[query * self.width..][..self.width]
    }
}

/// Adds what a later segment has come to.
#[inline(always)]
pub(super) fn merge<L: Lanes>(lanes: L, all: &mut [f32], later: &mut [f32], width: usize) {
    let (mut all, mut later) = (Results::new(all, width), Results::new(later, width));
    for query in 0..all.sums.len() {
        // Ignores what is no number, as whose totals and sum are none already.
        let largest = all.largest[query].max(later.largest[query]);
        // Where nothing is visible, nothing is added; the smallest power of e is not zero.
        if later.largest[query] == f32::NEG_INFINITY {
            continue;
        }
        if all.largest[query] == f32::NEG_INFINITY {
            all.totals(query).copy_from_slice(later.totals(query));
            (all.sums[query], all.largest[query]) = (later.sums[query], largest);
            continue;
        }
        let of_all = lanes.exp(lanes.splat(all.largest[query] - largest));
        let of_later = lanes.exp(lanes.splat(later.largest[query] - largest));
        let totals = all.totals(query).chunks_exact_mut(L::WIDTH);
        for (all, later) in totals.zip(later.totals(query).chunks_exact(L::WIDTH)) {
            let scaled = lanes.mul(lanes.load(all), of_all);
            lanes.store(lanes.mul_add(lanes.load(later), of_later, scaled), all);
        }
        let sum = lanes.mul(lanes.splat(all.sums[query]), of_all);
        let sum = lanes.mul_add(lanes.splat(later.sums[query]), of_later, sum);
        (all.sums[query], all.largest[query]) = (lanes.largest(sum), largest);
    }
}

/// What the blocks of a segment so far have come to, for each query.
pub(super) struct Running<'a> {
    pub(super) results: Results<'a>,
    /// The sums of weights, each lane for itself.
    lanes: &'a mut [f32],
}

impl<'a> Running<'a> {
    #[inline(always)]
    pub(super) fn new<L: Lanes>(results: Results<'a>, lanes: &'a mut [f32]) -> Self {
        results.totals.fill(0.0);
        results.largest.fill(f32::NEG_INFINITY);
        lanes[..results.sums.len() * L::WIDTH].fill(0.0);
        Self { results, lanes }
    }

    /// Turns a block's scores into weights, zero where nothing is visible, and counts them in.
    #[inline(always)]
    pub(super) fn softmax<L: Lanes>(
        &mut self,
        lanes: L,
        query: usize,
        scores: &mut [f32; KEY_BLOCK],
        visible: &Range<usize>,
    ) {
        let edge = visible.len() < KEY_BLOCK;
        if edge {
            scores[..visible.start].fill(f32::NEG_INFINITY);
            scores[visible.end..].fill(f32::NEG_INFINITY);
        }
        let before = self.results.largest[query];
        let mut largest = lanes.splat(before);
        for scores in scores.chunks_exact(L::WIDTH) {
            largest = lanes.max(largest, lanes.load(scores));
        }
        let largest = lanes.largest(largest);
        if largest == f32::NEG_INFINITY && weigh_nothing(scores) {
            return;
        }
        let sums = &mut self.lanes[query * L::WIDTH..][..L::WIDTH];
        let mut sum = lanes.load(sums);
        // Where the largest stays, the factor would be exactly one.
        if largest > before {
            let factor = lanes.exp(lanes.splat(before - largest));
            sum = lanes.mul(sum, factor);
            for totals in self.results.totals(query).chunks_exact_mut(L::WIDTH) {
                lanes.store(lanes.mul(lanes.load(totals), factor), totals);
            }
            self.results.largest[query] = largest;
        }
        let largest = lanes.splat(largest);
        for scores in scores.chunks_exact_mut(L::WIDTH) {
            lanes.store(lanes.exp(lanes.sub(lanes.load(scores), largest)), scores);
        }
        if edge {
            // The smallest power of e is not zero.
            scores[..visible.start].fill(0.0);
            scores[visible.end..].fill(0.0);
        }
        for weights in scores.chunks_exact(L::WIDTH) {
            sum = lanes.add(sum, lanes.load(weights));
        }
        lanes.store(sum, sums);
    }

    #[inline(always)]
    pub(super) fn finish<L: Lanes>(self, lanes: L) {
        for (sum, of_lanes) in self.results.sums.iter_mut().zip(self.lanes.chunks_exact(L::WIDTH)) {
            *sum = lanes.sum(lanes.load(of_lanes));
        }
        // The largest score does not always tell of one that was no number, but the sum does.
        for (largest, sum) in self.results.largest.iter_mut().zip(self.results.sums.iter()) {
            if sum.is_nan() {
                *largest = f32::NAN;
            }
        }
    }
}

/// Where all scores so far are minus infinity, their differences from the largest would be none. False if that only seems
/// so because one is not a number.
#[cold]
fn weigh_nothing(scores: &mut [f32; KEY_BLOCK]) -> bool {
    let numbers = scores.iter().all(|score| !score.is_nan());
    if numbers {
        scores.fill(0.0);
    }
    numbers
}
