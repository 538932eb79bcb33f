//! The memory of keys and values, in the order in which attention reads it.

use std::fmt;
use std::io;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::floats::Value;
use crate::memory::{LINE, Line, Piece, Shelf};

/// Positions in a block.
pub const KEY_BLOCK: usize = 32;

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    F32,
    /// What is beyond 65504 is kept as that.
    #[default]
    F16,
    /// 8-bit integers, and for each position and head the f32 that one of them stands for: 1/127 of the largest.
    Q8,
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8_0",
        })
    }
}

/// Where the blocks of one shape come from. Clones share what is free.
#[derive(Clone)]
pub struct KvBlocks {
    format: KvFormat,
    kv_heads: usize,
    head_dim: usize,
    shelf: Shelf,
}

/// [`KEY_BLOCK`] positions' keys and values of one layer.
pub struct KvBlock {
    of: KvBlocks,
    memory: Piece,
}

/// Numbers of a [`KvFormat`].
pub(super) trait KvValue: Value {
    const FORMAT: KvFormat;
    /// Whether each position and head has a scale.
    const SCALED: bool = false;
    /// Rounds to what can be kept, and says what one stands for.
    fn round(from: &[f32], to: &mut [Self]) -> f32;
}

impl KvValue for f32 {
    const FORMAT: KvFormat = KvFormat::F32;

    fn round(from: &[f32], to: &mut [f32]) -> f32 {
        to.copy_from_slice(from);
        1.0
    }
}

impl KvValue for f16 {
    const FORMAT: KvFormat = KvFormat::F16;

    fn round(from: &[f32], to: &mut [f16]) -> f32 {
        to.convert_from_f32_slice(from);
        for half in to {
            if half.is_infinite() {
                *half = f16::MAX.copysign(*half);
            }
        }
        1.0
    }
}

impl KvValue for i8 {
    const FORMAT: KvFormat = KvFormat::Q8;
    const SCALED: bool = true;

    fn round(from: &[f32], to: &mut [i8]) -> f32 {
        let largest = from.iter().fold(0.0_f32, |largest, x| largest.max(x.abs())).min(f32::MAX);
        let (scale, inverse) = (largest / 127.0, 127.0 / largest.max(f32::MIN_POSITIVE));
        for (to, from) in to.iter_mut().zip(from) {
            *to = (from * inverse).round_ties_even() as i8;
        }
        // No integer is not a number, but what comes of it shall be none.
        if from.iter().any(|x| x.is_nan()) { f32::NAN } else { scale }
    }
}

/// One head's part of a block.
#[derive(Clone, Copy)]
pub(super) struct Head<'a, T> {
    /// `[head_dim, KEY_BLOCK]`: neighbouring positions share a vector, whose lanes need never be summed.
    pub(super) keys: &'a [T],
    /// `[KEY_BLOCK, padded(head_dim)]`
    pub(super) values: &'a [T],
    /// Of each position's keys, then of its values, if there are any: `[2, KEY_BLOCK]`.
    pub(super) scales: &'a [f32],
}

/// A row of values in whole vectors, however many lanes they have.
pub(super) const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// Where in a head's bytes its parts lie.
struct Places {
    keys: Range<usize>,
    values: Range<usize>,
    scales: Range<usize>,
}

impl Places {
    fn new(format: KvFormat, head_dim: usize) -> Self {
        let (size, scales) = match format {
            KvFormat::F32 => (4, 0),
            KvFormat::F16 => (2, 0),
            KvFormat::Q8 => (1, 2 * KEY_BLOCK * size_of::<f32>()),
        };
        let keys = head_dim * KEY_BLOCK * size;
        let values = keys + padded(head_dim) * KEY_BLOCK * size;
        Self { keys: 0..keys, values: keys..values, scales: values..values + scales }
    }

    fn lines(&self) -> usize {
        self.scales.end.div_ceil(LINE)
    }
}

impl KvBlocks {
    pub fn new(format: KvFormat, kv_heads: usize, head_dim: usize) -> Self {
        let lines = kv_heads * Places::new(format, head_dim).lines();
        Self { format, kv_heads, head_dim, shelf: Shelf::new(lines) }
    }

    /// With nothing of meaning in it. Fails if the system has no memory left to promise.
    pub fn block(&self) -> io::Result<KvBlock> {
        Ok(KvBlock { of: self.clone(), memory: self.shelf.piece()? })
    }

    /// Of a block.
    pub fn bytes(&self) -> usize {
        self.kv_heads * self.places().lines() * LINE
    }

    /// `[kv_heads, head_dim]`
    pub fn shape(&self) -> [usize; 2] {
        [self.kv_heads, self.head_dim]
    }

    pub fn format(&self) -> KvFormat {
        self.format
    }

    fn places(&self) -> Places {
        Places::new(self.format, self.head_dim)
    }
}

impl KvBlock {
    pub fn of(&self) -> &KvBlocks {
        &self.of
    }

    /// Another with the same in it.
    pub fn copy(&self) -> io::Result<Self> {
        let mut copy = self.of.block()?;
        copy.memory.copy_from_slice(&self.memory);
        Ok(copy)
    }

    /// All of it, as [`KvBlock::fill`] takes it.
    pub fn bytes(&self) -> &[u8] {
        let lines: &[Line] = &self.memory;
        // SAFETY: a line is 64 bytes without padding.
        unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
    }

    /// Makes it what another block of the same shape and format was; panics if that had another size.
    pub fn fill(&mut self, bytes: &[u8]) {
        let lines: &mut [Line] = &mut self.memory;
        assert_eq!(bytes.len(), size_of_val(lines), "bytes of a block");
        // SAFETY: as above, and any bytes are a line.
        let to: &mut [u8] =
            unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), bytes.len()) };
        to.copy_from_slice(bytes);
    }

    /// Keeps positions from `place` on: `[positions, kv_heads, head_dim]` each.
    pub fn write(&mut self, place: usize, keys: &[f32], values: &[f32]) {
        let width = self.of.kv_heads * self.of.head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(width), "write");
        assert!(place + keys.len() / width <= KEY_BLOCK, "a block has {KEY_BLOCK} positions");
        match self.of.format {
            KvFormat::F32 => self.write_as::<f32>(place, keys, values),
            KvFormat::F16 => self.write_as::<f16>(place, keys, values),
            KvFormat::Q8 => self.write_as::<i8>(place, keys, values),
        }
    }

    fn write_as<T: KvValue>(&mut self, place: usize, keys: &[f32], values: &[f32]) {
        let KvBlocks { kv_heads, head_dim, .. } = self.of;
        let (places, row) = (self.of.places(), padded(head_dim));
        let mut rounded = vec![T::default(); head_dim];
        for (index, (key, value)) in
            keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)).enumerate()
        {
            let (place, head) = (place + index / kv_heads, index % kv_heads);
            let head = &mut self.memory[head * places.lines()..][..places.lines()];
            let key_scale = T::round(key, &mut rounded);
            // SAFETY: the format is this type's.
            let columns = unsafe { cast_mut::<T>(head, &places.keys) };
            for (column, key) in columns.chunks_exact_mut(KEY_BLOCK).zip(&rounded) {
                column[place] = *key;
            }
            // SAFETY: as above.
            let rows = unsafe { cast_mut::<T>(head, &places.values) };
            let value_scale = T::round(value, &mut rows[place * row..][..head_dim]);
            if T::SCALED {
                // SAFETY: any bytes are some f32.
                let scales = unsafe { cast_mut::<f32>(head, &places.scales) };
                (scales[place], scales[KEY_BLOCK + place]) = (key_scale, value_scale);
            }
        }
    }

    #[inline(always)]
    pub(super) fn head<T: KvValue>(&self, kv_head: usize) -> Head<'_, T> {
        assert!(T::FORMAT == self.of.format, "{:?} read as {:?}", self.of.format, T::FORMAT);
        let places = self.of.places();
        let head = &self.memory[kv_head * places.lines()..][..places.lines()];
        // SAFETY: the format is this type's, and any bytes are some f32.
        unsafe {
            Head {
                keys: cast(head, &places.keys),
                values: cast(head, &places.values),
                scales: cast(head, &places.scales),
            }
        }
    }
}

/// # Safety
/// Any bytes are a `T`, of which a line holds a whole number.
#[inline(always)]
unsafe fn cast<'a, T>(lines: &'a [Line], bytes: &Range<usize>) -> &'a [T] {
    assert!(bytes.end <= lines.len() * LINE && bytes.start.is_multiple_of(align_of::<T>()));
    // SAFETY: in bounds and aligned by the line above.
    unsafe {
        std::slice::from_raw_parts(
            lines.as_ptr().cast::<u8>().add(bytes.start).cast(),
            bytes.len() / size_of::<T>(),
        )
    }
}

/// # Safety
/// As for [`cast`].
unsafe fn cast_mut<'a, T>(lines: &'a mut [Line], bytes: &Range<usize>) -> &'a mut [T] {
    assert!(bytes.end <= lines.len() * LINE && bytes.start.is_multiple_of(align_of::<T>()));
    // SAFETY: in bounds and aligned by the line above, and nobody else has the lines.
    unsafe {
        std::slice::from_raw_parts_mut(
            lines.as_mut_ptr().cast::<u8>().add(bytes.start).cast(),
            bytes.len() / size_of::<T>(),
        )
    }
}
