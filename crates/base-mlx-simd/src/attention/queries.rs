//! What some queries see of one block.

use std::ops::Range;

use super::AttentionShape;
use super::block::{Head, KEY_BLOCK, KvValue};
use super::softmax::Running;
use crate::isa::Lanes;
use crate::memory::LINE;

/// A block of keys and values of one head, and the queries of a tile.
pub(super) struct Block<'a, L, T> {
    pub(super) lanes: L,
    pub(super) shape: AttentionShape,
    pub(super) first_position: usize,
    pub(super) first_row: usize,
    pub(super) heads: Range<usize>,
    /// Of the whole batch.
    pub(super) q: &'a [f32],
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
            if T::SCALED {
                let of_values = self.now.scales[KEY_BLOCK..].chunks_exact(L::WIDTH);
                for (weights, scales) in scores[r].chunks_exact_mut(L::WIDTH).zip(of_values) {
                    let scaled = self.lanes.mul(self.lanes.load(weights), self.lanes.load(scales));
                    self.lanes.store(scaled, weights);
                }
            }
        }
        // Positions that all see, and for each query those before and after: no value beyond its view is touched, so
        // that not even an infinite one gets in.
        let start = visible.iter().map(|visible| visible.start).max().unwrap_or(0);
        let end = visible.iter().map(|visible| visible.end).min().unwrap_or(0).max(start);
        for r in 0..R {
            let before = visible[r].start..visible[r].end.min(start);
            self.weigh_one(&scores[r], before, first + r, running);
        }
        self.weigh::<R>(&scores, start..end, first, running);
        for r in 0..R {
            self.weigh_one(&scores[r], end..visible[r].end, first + r, running);
        }
    }

    /// What the query sees of this block.
    #[inline(always)]
    fn visible(&self, query: usize) -> Range<usize> {
        let visible = self.shape.visible(self.first_position + query / self.heads.len());
        let within = |position: usize| position.saturating_sub(self.start).min(KEY_BLOCK);
        within(visible.start)..within(visible.end)
    }

    #[inline(always)]
    fn query(&self, query: usize) -> &[f32] {
        let row = self.first_row + query / self.heads.len();
        let head = self.heads.start + query % self.heads.len();
        &self.q[(row * self.shape.heads + head) * self.shape.head_dim..][..self.shape.head_dim]
    }

    /// Two vectors of keys at a time, which keeps the accumulators of four queries in sixteen registers.
    #[inline(always)]
    fn scores<const R: usize>(&self, first: usize, to: &mut [[f32; KEY_BLOCK]; R]) {
        let lanes = self.lanes;
        let next = self.next.filter(|_| first == 0);
        let mut q = [&[][..]; R];
        for (r, q) in q.iter_mut().enumerate() {
            *q = self.query(first + r);
        }
        for place in (0..KEY_BLOCK).step_by(2 * L::WIDTH) {
            let mut sums = [[lanes.splat(0.0); 2]; R];
            for (dim, keys) in self.now.keys.chunks_exact(KEY_BLOCK).enumerate() {
                let keys = &keys[place..][..2 * L::WIDTH];
                let (a, b) = keys.split_at(L::WIDTH);
                let (a, b) = (T::load(lanes, a), T::load(lanes, b));
                if let Some(next) = next {
                    ask_ahead(lanes, &next.keys[dim * KEY_BLOCK + place..][..2 * L::WIDTH]);
                }
                for r in 0..R {
                    let q = lanes.splat(q[r][dim]);
                    sums[r][0] = lanes.mul_add(q, a, sums[r][0]);
                    sums[r][1] = lanes.mul_add(q, b, sums[r][1]);
                }
            }
            let mut scales = [lanes.splat(self.shape.scale); 2];
            if T::SCALED {
                let of_keys = self.now.scales[place..].chunks_exact(L::WIDTH);
                for (scale, of_keys) in scales.iter_mut().zip(of_keys) {
                    *scale = lanes.mul(*scale, lanes.load(of_keys));
                }
            }
            for r in 0..R {
                let (a, b) = to[r][place..][..2 * L::WIDTH].split_at_mut(L::WIDTH);
                lanes.store(lanes.mul(sums[r][0], scales[0]), a);
                lanes.store(lanes.mul(sums[r][1], scales[1]), b);
            }
        }
    }

    #[inline(always)]
    fn weigh_one(
        &self,
        weights: &[f32; KEY_BLOCK],
        positions: Range<usize>,
        query: usize,
        running: &mut Running,
    ) {
        if !positions.is_empty() {
            self.weigh::<1>(std::array::from_ref(weights), positions, query, running);
        }
    }

    #[inline(always)]
    fn weigh<const R: usize>(
        &self,
        weights: &[[f32; KEY_BLOCK]; R],
        positions: Range<usize>,
        first: usize,
        running: &mut Running,
    ) {
        let (width, mut dim) = (running.results.width, 0);
        while L::WIDTH == 16 && dim + 4 * L::WIDTH <= width {
            self.weigh_vectors::<R, 4>(weights, positions.clone(), first, dim, running);
            dim += 4 * L::WIDTH;
        }
        while dim + 2 * L::WIDTH <= width {
            self.weigh_vectors::<R, 2>(weights, positions.clone(), first, dim, running);
            dim += 2 * L::WIDTH;
        }
        while dim < width {
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
        let (lanes, width) = (self.lanes, running.results.width);
        let mut totals = [[lanes.splat(0.0); C]; R];
        for (r, totals) in totals.iter_mut().enumerate() {
            let from = &running.results.totals(first + r)[dim..][..C * L::WIDTH];
            for (total, from) in totals.iter_mut().zip(from.chunks_exact(L::WIDTH)) {
                *total = lanes.load(from);
            }
        }
        let next = self.next.filter(|_| first == 0);
        let values = &self.now.values[positions.start * width..positions.end * width];
        for (values, position) in values.chunks_exact(width).zip(positions) {
            let place = dim..dim + C * L::WIDTH;
            let values = &values[place.clone()];
            if let Some(next) = next {
                ask_ahead(lanes, &next.values[position * width..][place]);
            }
            let mut vectors = [lanes.splat(0.0); C];
            for c in 0..C {
                vectors[c] = T::load(lanes, &values[c * L::WIDTH..][..L::WIDTH]);
            }
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

/// Says that this will be wanted soon.
#[inline(always)]
fn ask_ahead<L: Lanes, T>(lanes: L, what: &[T]) {
    for part in what.chunks(LINE / size_of::<T>()) {
        lanes.prefetch(part, 0);
    }
}
