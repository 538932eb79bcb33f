//! What some queries see of one block.

use std::ops::Range;

use half::f16;

use super::block::{Head, KEY_BLOCK, KvValue};
use super::softmax::Running;
use super::{AttentionShape, AttentionSpan, Queries};
use crate::floats::Value;
use crate::isa::Lanes;

/// A block of keys and values of one head, and the queries of a tile.
pub(super) struct Block<'a, L, T: KvValue> {
    pub(super) lanes: L,
    pub(super) shape: AttentionShape,
    pub(super) span: &'a AttentionSpan<'a>,
    pub(super) first_row: usize,
    pub(super) kv_head: usize,
    pub(super) q: Queries<'a>,
    /// The position of the first key.
    pub(super) start: usize,
    pub(super) now: Head<'a, T>,
    /// What will be wanted after this.
    pub(super) next: Option<Head<'a, T>>,
}

impl<L: Lanes, T: KvValue> Block<'_, L, T> {
    /// `R` queries from `first` on: scores, weights, then the values.
    #[inline(always)]
    pub(super) fn attend<const R: usize>(&self, first: usize, running: &mut Running) {
        let mut visible = [const { 0..0 }; R];
        for (r, visible) in visible.iter_mut().enumerate() {
            *visible = self.visible(first + r);
        }
        if visible.iter().all(Range::is_empty) {
            return;
        }
        let mut scores = [[0.0; KEY_BLOCK]; R];
        self.scores::<R>(first, &mut scores);
        for r in 0..R {
            if !visible[r].is_empty() {
                running.softmax(self.lanes, first + r, &mut scores[r], &visible[r]);
            }
        }
        let width = running.results.width;
        let group = T::GROUP.unwrap_or(width);
        for (number, dim) in (0..width).step_by(group).enumerate() {
            let dims = dim..dim + group;
            if T::SCALED {
                let scales = &self.now.value_scales[number * KEY_BLOCK..][..KEY_BLOCK];
                let mut weights = scores;
                for weights in &mut weights {
                    self.scale(weights, scales);
                }
                self.weigh_visible::<R>(&weights, &visible, dims, first, running);
            } else {
                self.weigh_visible::<R>(&scores, &visible, dims, first, running);
            }
        }
    }

    #[inline(always)]
    fn scale(&self, weights: &mut [f32; KEY_BLOCK], scales: &[T::Scale]) {
        let lanes = self.lanes;
        let scales = scales.chunks_exact(L::WIDTH);
        for (weights, scales) in weights.chunks_exact_mut(L::WIDTH).zip(scales) {
            let scaled = lanes.mul(lanes.load(weights), T::Scale::load(lanes, scales));
            lanes.store(scaled, weights);
        }
    }

    /// Positions that all see, and for each query those before and after: no value beyond its view is touched, so that not
    /// even an infinite one gets in.
    #[inline(always)]
    fn weigh_visible<const R: usize>(
        &self,
        weights: &[[f32; KEY_BLOCK]; R],
        visible: &[Range<usize>; R],
        dims: Range<usize>,
        first: usize,
        running: &mut Running,
    ) {
        let start = visible.iter().map(|visible| visible.start).max().unwrap_or(0);
        let end = visible.iter().map(|visible| visible.end).min().unwrap_or(0).max(start);
        for r in 0..R {
            let before = visible[r].start..visible[r].end.min(start);
            self.weigh_one(&weights[r], before, dims.clone(), first + r, running);
        }
        self.weigh::<R>(weights, start..end, dims.clone(), first, running);
        for r in 0..R {
            let after = end..visible[r].end;
            self.weigh_one(&weights[r], after, dims.clone(), first + r, running);
        }
    }

    /// What the query sees of this block.
    #[inline(always)]
    fn visible(&self, query: usize) -> Range<usize> {
        let position = self.span.position(self.first_row + query / self.shape.group());
        let visible = self.shape.visible(self.span, position);
        let within = |position: usize| position.saturating_sub(self.start).min(KEY_BLOCK);
        within(visible.start)..within(visible.end)
    }

    /// Which of all it is.
    #[inline(always)]
    fn query(&self, query: usize) -> usize {
        let group = self.shape.group();
        let row = self.first_row + query / group;
        row * self.shape.heads + self.kv_head * group + query % group
    }

    /// Two vectors of keys at a time, which keeps the accumulators of four queries in sixteen registers.
    #[inline(always)]
    fn scores<const R: usize>(&self, first: usize, to: &mut [[f32; KEY_BLOCK]; R]) {
        let lanes = self.lanes;
        let next = self.next.as_ref().filter(|_| first == 0);
        let mut q = [&[][..]; R];
        let (mut sums_of_q, mut of_first) = ([&[][..]; R], [lanes.splat(0.0); R]);
        for r in 0..R {
            let query = self.query(first + r);
            let floats = query * self.shape.head_dim..(query + 1) * self.shape.head_dim;
            q[r] = &self.q.for_keys[floats.clone()];
            if T::ROTATED {
                of_first[r] = lanes.splat(self.product_with_first(&self.q.plain[floats]));
                sums_of_q[r] = self.q.sums_of::<T>(query, self.shape.head_dim);
            }
        }
        let group = T::GROUP.unwrap_or(self.shape.head_dim);
        for place in (0..KEY_BLOCK).step_by(2 * L::WIDTH) {
            let mut scores = of_first.map(|of_first| [of_first; 2]);
            let next = next.filter(|_| place == 0);
            for (number, columns) in self.now.keys.chunks(group * T::COLUMN).enumerate() {
                let dims = columns.len() / T::COLUMN;
                let q = q.map(|q| &q[number * group..][..dims]);
                let mut sums = [[lanes.splat(0.0); 2]; R];
                for (dim, column) in columns.chunks_exact(T::COLUMN).enumerate() {
                    let keys = T::keys(lanes, column, place);
                    if let Some(next) = next {
                        next.ask_with_column(lanes, number * group + dim);
                    }
                    for r in 0..R {
                        let q = lanes.splat(q[r][dim]);
                        for half in 0..2 {
                            sums[r][half] = lanes.mul_add(q, keys[half], sums[r][half]);
                        }
                    }
                }
                if !T::SCALED {
                    scores = sums;
                    break;
                }
                for half in 0..2 {
                    let at = number * KEY_BLOCK + place + half * L::WIDTH;
                    let scale = T::Scale::load(lanes, &self.now.key_scales[at..][..L::WIDTH]);
                    for r in 0..R {
                        scores[r][half] = lanes.mul_add(sums[r][half], scale, scores[r][half]);
                    }
                    if T::ROTATED {
                        let zero = T::Scale::load(lanes, &self.now.key_zeros[at..][..L::WIDTH]);
                        for r in 0..R {
                            let sum_of_q = lanes.splat(sums_of_q[r][number]);
                            scores[r][half] = lanes.mul_add(sum_of_q, zero, scores[r][half]);
                        }
                    }
                }
            }
            let scale = lanes.splat(self.shape.scale);
            for r in 0..R {
                let (a, b) = to[r][place..][..2 * L::WIDTH].split_at_mut(L::WIDTH);
                lanes.store(lanes.mul(scores[r][0], scale), a);
                lanes.store(lanes.mul(scores[r][1], scale), b);
            }
        }
    }

    #[inline(always)]
    fn product_with_first(&self, q: &[f32]) -> f32 {
        let lanes = self.lanes;
        let mut sums = lanes.splat(0.0);
        let first = self.now.first.chunks_exact(L::WIDTH);
        let (q, q_rest) = q.split_at(q.len() / L::WIDTH * L::WIDTH);
        let mut rest = 0.0;
        for (q, first) in q_rest.iter().zip(first.remainder()) {
            rest += q * first.to_f32();
        }
        for (q, first) in q.chunks_exact(L::WIDTH).zip(first) {
            sums = lanes.mul_add(lanes.load(q), f16::load(lanes, first), sums);
        }
        lanes.sum(sums) + rest
    }

    #[inline(always)]
    fn weigh_one(
        &self,
        weights: &[f32; KEY_BLOCK],
        positions: Range<usize>,
        dims: Range<usize>,
        query: usize,
        running: &mut Running,
    ) {
        if !positions.is_empty() {
            self.weigh::<1>(std::array::from_ref(weights), positions, dims, query, running);
        }
    }

    #[inline(always)]
    fn weigh<const R: usize>(
        &self,
        weights: &[[f32; KEY_BLOCK]; R],
        positions: Range<usize>,
        dims: Range<usize>,
        first: usize,
        running: &mut Running,
    ) {
        let mut dim = dims.start;
        while T::GROUP.is_none() && L::WIDTH == 16 && dim + 4 * L::WIDTH <= dims.end {
            self.weigh_vectors::<R, 4>(weights, positions.clone(), first, dim, running);
            dim += 4 * L::WIDTH;
        }
        while dim + 2 * L::WIDTH <= dims.end {
            self.weigh_vectors::<R, 2>(weights, positions.clone(), first, dim, running);
            dim += 2 * L::WIDTH;
        }
        // Groups are of whole pairs.
        while T::GROUP.is_none() && dim < dims.end {
            self.weigh_vectors::<R, 1>(weights, positions.clone(), first, dim, running);
            dim += L::WIDTH;
        }
    }

    /// Adds `C` vectors of the values from `dim` on.
    #[inline(always)]
    fn weigh_vectors<const R: usize, const C: usize>(
        &self,
        weights: &[[f32; KEY_BLOCK]; R],
        positions: Range<usize>,
        first: usize,
        dim: usize,
        running: &mut Running,
    ) {
        let lanes = self.lanes;
        let mut totals = [[lanes.splat(0.0); C]; R];
        for (r, totals) in totals.iter_mut().enumerate() {
            let from = &running.results.totals(first + r)[dim..][..C * L::WIDTH];
            for (total, from) in totals.iter_mut().zip(from.chunks_exact(L::WIDTH)) {
                *total = lanes.load(from);
            }
        }
        let next = self.next.as_ref().filter(|_| first == 0);
        let row = self.now.values.len() / KEY_BLOCK;
        let values = &self.now.values[positions.start * row..positions.end * row];
        for (values, position) in values.chunks_exact(row).zip(positions) {
            if let Some(next) = next {
                next.ask_with_row(lanes, position, dim..dim + C * L::WIDTH);
            }
            let vectors = T::values::<L, C>(lanes, values, dim);
            for r in 0..R {
                let weight = lanes.splat(weights[r][position]);
                for c in 0..C {
                    totals[r][c] = lanes.mul_add(weight, vectors[c], totals[r][c]);
                }
            }
        }
        for (r, totals) in totals.iter().enumerate() {
            let to = &mut running.results.totals(first + r)[dim..][..C * L::WIDTH];
            for (total, to) in totals.iter().zip(to.chunks_exact_mut(L::WIDTH)) {
                lanes.store(*total, to);
            }
        }
    }
}
