//! The memory of keys and values, in the order in which attention reads it.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::isa::Lanes;

/// Positions in a block.
pub const KEY_BLOCK: usize = 32;

/// What keys and values are kept as.
pub trait KvValue: Copy + Default + Send + Sync {
    /// As many as there are lanes.
    fn load<L: Lanes>(lanes: L, from: &[Self]) -> L::V;
    /// Rounds to what can be kept; what is beyond it becomes the largest that can.
    fn round(from: &[f32], to: &mut [Self]);
}

impl KvValue for f32 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[f32]) -> L::V {
        lanes.load(from)
    }

    fn round(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl KvValue for f16 {
    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[f16]) -> L::V {
        // SAFETY: a half is two bytes, without padding.
        lanes.f16(unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), 2 * from.len()) })
    }

    fn round(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
        for half in to {
            if half.is_infinite() {
                *half = f16::MAX.copysign(*half);
            }
        }
    }
}

/// [`KEY_BLOCK`] positions' keys and values of one layer, zeros at first.
#[derive(Clone)]
pub struct KvBlock<T> {
    kv_heads: usize,
    head_dim: usize,
    /// `[kv_heads, head_dim, KEY_BLOCK]`: neighbouring positions share a vector, whose lanes need never be summed.
    keys: Vec<T>,
    /// `[kv_heads, KEY_BLOCK, padded(head_dim)]`
    values: Vec<T>,
}

/// One head's part of a block.
#[derive(Clone, Copy)]
pub(super) struct Head<'a, T> {
    /// `[head_dim, KEY_BLOCK]`
    pub(super) keys: &'a [T],
    /// `[KEY_BLOCK, padded(head_dim)]`
    pub(super) values: &'a [T],
}

/// A row of values in whole vectors, however many lanes they have.
pub(super) const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

impl<T: KvValue> KvBlock<T> {
    pub fn new(kv_heads: usize, head_dim: usize) -> Self {
        let keys = vec![T::default(); kv_heads * head_dim * KEY_BLOCK];
        let values = vec![T::default(); kv_heads * padded(head_dim) * KEY_BLOCK];
        Self { kv_heads, head_dim, keys, values }
    }

    /// `[kv_heads, head_dim]`
    pub fn shape(&self) -> [usize; 2] {
        [self.kv_heads, self.head_dim]
    }

    /// Of a block of this shape.
    pub fn bytes(kv_heads: usize, head_dim: usize) -> usize {
        kv_heads * KEY_BLOCK * (head_dim + padded(head_dim)) * size_of::<T>()
    }

    /// Keeps positions from `place` on: `[positions, kv_heads, head_dim]` each.
    pub fn write(&mut self, place: usize, keys: &[f32], values: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(width), "write");
        assert!(place + keys.len() / width <= KEY_BLOCK, "a block has {KEY_BLOCK} positions");
        let mut rounded = vec![T::default(); self.head_dim];
        for (index, (key, value)) in
            keys.chunks_exact(self.head_dim).zip(values.chunks_exact(self.head_dim)).enumerate()
        {
            let (place, head) = (place + index / self.kv_heads, index % self.kv_heads);
            T::round(key, &mut rounded);
            let columns = &mut self.keys[head * self.head_dim * KEY_BLOCK..];
            for (column, key) in columns.chunks_exact_mut(KEY_BLOCK).zip(&rounded) {
                column[place] = *key;
            }
            let row = (head * KEY_BLOCK + place) * padded(self.head_dim);
            T::round(value, &mut self.values[row..][..self.head_dim]);
        }
    }

    #[inline(always)]
    pub(super) fn head(&self, kv_head: usize) -> Head<'_, T> {
        let (keys, values) = (self.head_dim * KEY_BLOCK, padded(self.head_dim) * KEY_BLOCK);
        Head {
            keys: &self.keys[kv_head * keys..][..keys],
            values: &self.values[kv_head * values..][..values],
        }
    }
}
