//! The memory of keys and values, in the order in which attention reads it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::nibbles::Nibbles;
use crate::floats::Value;
use crate::isa::Lanes;
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
    /// 4-bit integers, and for each position, head and 32 of its numbers the f16 that one of them stands for; of keys also
    /// what zero stands for, and they are relative to the first one of their block.
    Q4,
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8_0",
            Self::Q4 => "q4_0",
        })
    }
}

impl KvFormat {
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8, Self::Q4];

    /// The format of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.to_string() == name)
    }
}

/// Where the blocks of one shape come from. Clones share what is free.
#[derive(Clone)]
pub struct KvBlocks {
    format: KvFormat,
    kv_heads: usize,
    head_dim: usize,
    /// Of a head.
    places: Arc<Places>,
    shelf: Shelf,
}

/// [`KEY_BLOCK`] positions' keys and values of one layer.
pub struct KvBlock {
    of: KvBlocks,
    memory: Piece,
}

/// What a block of a [`KvFormat`] holds.
pub(super) trait KvValue: Copy + Default + Send + Sync {
    const FORMAT: KvFormat;
    /// How many hold one dimension of a block's keys.
    const COLUMN: usize = KEY_BLOCK;
    /// Numbers of a head that share a scale, unless it is all of them.
    const GROUP: Option<usize> = None;
    /// Whether there are scales at all.
    const SCALED: bool = false;
    type Scale: Value;
    /// Whether keys are rotated and relative to [`Head::first`] and to zeros.
    const ROTATED: bool = false;

    /// Keeps a position's key and value.
    fn write(head: &mut HeadMut<Self>, place: usize, key: &[f32], value: &[f32]);
    /// A dimension of the keys from `place` on.
    fn keys<L: Lanes>(lanes: L, column: &[Self], place: usize) -> [L::V; 2];
    /// `C` vectors of a position's values from `dim` on.
    fn values<L: Lanes, const C: usize>(lanes: L, row: &[Self], dim: usize) -> [L::V; C];
}

/// Values of which each is a number of its own.
trait Plain: Value {
    const FORMAT: KvFormat;
    const SCALED: bool = false;
    /// Rounds to what can be kept, and says what one stands for.
    fn round(from: &[f32], to: &mut [Self]) -> f32;
}

impl<T: Plain> KvValue for T {
    const FORMAT: KvFormat = T::FORMAT;
    const SCALED: bool = T::SCALED;
    type Scale = f32;

    fn write(head: &mut HeadMut<T>, place: usize, key: &[f32], value: &[f32]) {
        // The values' place serves for both.
        let row = &mut head.values[place * padded(key.len())..][..key.len()];
        let key_scale = T::round(key, row);
        for (column, key) in head.keys.chunks_exact_mut(KEY_BLOCK).zip(&*row) {
            column[place] = *key;
        }
        let value_scale = T::round(value, row);
        if T::SCALED {
            (head.key_scales[place], head.value_scales[place]) = (key_scale, value_scale);
        }
    }

    #[inline(always)]
    fn keys<L: Lanes>(lanes: L, column: &[T], place: usize) -> [L::V; 2] {
        let (a, b) = column[place..][..2 * L::WIDTH].split_at(L::WIDTH);
        [T::load(lanes, a), T::load(lanes, b)]
    }

    #[inline(always)]
    fn values<L: Lanes, const C: usize>(lanes: L, row: &[T], dim: usize) -> [L::V; C] {
        let row = &row[dim..][..C * L::WIDTH];
        let mut vectors = [lanes.splat(0.0); C];
        for c in 0..C {
            vectors[c] = T::load(lanes, &row[c * L::WIDTH..][..L::WIDTH]);
        }
        vectors
    }
}

impl Plain for f32 {
    const FORMAT: KvFormat = KvFormat::F32;

    fn round(from: &[f32], to: &mut [f32]) -> f32 {
        to.copy_from_slice(from);
        1.0
    }
}

impl Plain for f16 {
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

impl Plain for i8 {
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
pub(super) struct Head<'a, T: KvValue> {
    /// `[head_dim, KEY_BLOCK]`: neighbouring positions share a vector, whose lanes need never be summed.
    pub(super) keys: &'a [T],
    /// `[KEY_BLOCK, width]`, a row in whole vectors.
    pub(super) values: &'a [T],
    /// `[groups, KEY_BLOCK]`, if there are any.
    pub(super) key_scales: &'a [T::Scale],
    pub(super) value_scales: &'a [T::Scale],
    /// What zero stands for, if it is not zero: `[groups, KEY_BLOCK]`.
    pub(super) key_zeros: &'a [T::Scale],
    /// The block's first key, if others are relative to it.
    pub(super) first: &'a [f16],
    /// Of all of it, from the keys on.
    lines: usize,
}

impl<T: KvValue> Head<'_, T> {
    /// Lines of a column, or the one with its number: of what numbers are small, all come with the keys.
    const COLUMN_LINES: usize = (T::COLUMN * size_of::<T>()).div_ceil(LINE);

    /// Says that this will be wanted soon, a part with each column of the keys before it.
    #[inline(always)]
    pub(super) fn ask_with_column<L: Lanes>(&self, lanes: L, column: usize) {
        for line in column * Self::COLUMN_LINES..(column + 1) * Self::COLUMN_LINES {
            if T::COLUMN * size_of::<T>() >= LINE || line < self.lines {
                lanes.prefetch(self.keys, line * LINE);
            }
        }
    }

    /// The rest of it with each row of the values.
    #[inline(always)]
    pub(super) fn ask_with_row<L: Lanes>(&self, lanes: L, position: usize, dims: Range<usize>) {
        if T::COLUMN * size_of::<T>() < LINE {
            return;
        }
        let row = self.values.len() / KEY_BLOCK;
        for part in self.values[position * row..][dims].chunks(LINE / size_of::<T>()) {
            lanes.prefetch(part, 0);
        }
    }
}

/// The same, to be written.
pub(super) struct HeadMut<'a, T: KvValue> {
    pub(super) keys: &'a mut [T],
    pub(super) values: &'a mut [T],
    pub(super) key_scales: &'a mut [T::Scale],
    pub(super) value_scales: &'a mut [T::Scale],
    pub(super) key_zeros: &'a mut [T::Scale],
    pub(super) first: &'a mut [f16],
}

/// A row of values in whole vectors, however many lanes they have.
const fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// Where in a head's bytes its parts lie.
struct Places {
    keys: Range<usize>,
    values: Range<usize>,
    key_scales: Range<usize>,
    value_scales: Range<usize>,
    key_zeros: Range<usize>,
    first: Range<usize>,
}

impl Places {
    fn new(format: KvFormat, head_dim: usize) -> Self {
        // Bytes of all positions, the first key's own.
        let numbers = |size: usize| [head_dim, padded(head_dim)].map(|n| n * KEY_BLOCK * size);
        let ([keys, values], scales, zeros, first) = match format {
            KvFormat::F32 => (numbers(4), 0, 0, 0),
            KvFormat::F16 => (numbers(2), 0, 0, 0),
            KvFormat::Q8 => (numbers(1), KEY_BLOCK * size_of::<f32>(), 0, 0),
            KvFormat::Q4 => {
                let groups = head_dim.div_ceil(Nibbles::NUMBERS);
                let scales = groups * KEY_BLOCK * size_of::<f16>();
                let numbers = [head_dim, groups * Nibbles::NUMBERS].map(|n| n * KEY_BLOCK / 2);
                (numbers, scales, scales, head_dim * size_of::<f16>())
            }
        };
        let mut end = 0;
        let mut next = |bytes: usize| {
            end += bytes;
            end - bytes..end
        };
        Self {
            keys: next(keys),
            values: next(values),
            key_scales: next(scales),
            value_scales: next(scales),
            key_zeros: next(zeros),
            first: next(first),
        }
    }

    fn lines(&self) -> usize {
        self.first.end.div_ceil(LINE)
    }
}

/// Floats of what a head's values come to: whole vectors, and whole groups.
pub(super) fn width<T: KvValue>(head_dim: usize) -> usize {
    head_dim.next_multiple_of(T::GROUP.unwrap_or(16))
}

impl KvBlocks {
    pub fn new(format: KvFormat, kv_heads: usize, head_dim: usize) -> Self {
        let places = Places::new(format, head_dim);
        let shelf = Shelf::new(kv_heads * places.lines());
        Self { format, kv_heads, head_dim, places: Arc::new(places), shelf }
    }

    /// With nothing of meaning in it. Fails if the system has no memory left to promise.
    pub fn block(&self) -> io::Result<KvBlock> {
        Ok(KvBlock { of: self.clone(), memory: self.shelf.piece()? })
    }

    /// Of a block.
    pub fn bytes(&self) -> usize {
        self.kv_heads * self.places.lines() * LINE
    }

    /// `[kv_heads, head_dim]`
    pub fn shape(&self) -> [usize; 2] {
        [self.kv_heads, self.head_dim]
    }

    pub fn format(&self) -> KvFormat {
        self.format
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

    /// Appends all of it, as [`KvBlock::fill`] takes it.
    pub fn save(&self, to: &mut Vec<u8>) {
        for Line(bytes) in &*self.memory {
            to.extend_from_slice(bytes);
        }
    }

    /// Makes it what another block of the same shape and format was; panics if that had another size.
    pub fn fill(&mut self, bytes: &[u8]) {
        let (from, rest) = bytes.as_chunks::<LINE>();
        assert!(from.len() == self.memory.len() && rest.is_empty(), "bytes of a block");
        for (line, bytes) in self.memory.iter_mut().zip(from) {
            line.0 = *bytes;
        }
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
            KvFormat::Q4 => self.write_as::<Nibbles>(place, keys, values),
        }
    }

    fn write_as<T: KvValue>(&mut self, place: usize, keys: &[f32], values: &[f32]) {
        let KvBlocks { kv_heads, head_dim, .. } = self.of;
        let width = kv_heads * head_dim;
        for kv_head in 0..kv_heads {
            let mut head = self.head_mut(kv_head);
            let of_head = kv_head * head_dim..(kv_head + 1) * head_dim;
            let positions = keys.chunks_exact(width).zip(values.chunks_exact(width));
            for (position, (keys, values)) in positions.enumerate() {
                let (key, value) = (&keys[of_head.clone()], &values[of_head.clone()]);
                T::write(&mut head, place + position, key, value);
            }
        }
    }

    fn head_mut<T: KvValue>(&mut self, kv_head: usize) -> HeadMut<'_, T> {
        let Self { of, memory } = self;
        assert!(T::FORMAT == of.format, "{:?} written as {:?}", of.format, T::FORMAT);
        let places = &*of.places;
        let head = &mut memory[kv_head * places.lines()..][..places.lines()];
        assert!(places.first.end <= size_of_val(head), "the parts lie in these lines");
        let lines = head.as_mut_ptr();
        // SAFETY: the format is this type's, any bytes are some number of any, and the parts lie side by side in these lines.
        unsafe {
            HeadMut {
                keys: cast_mut(lines, &places.keys),
                values: cast_mut(lines, &places.values),
                key_scales: cast_mut(lines, &places.key_scales),
                value_scales: cast_mut(lines, &places.value_scales),
                key_zeros: cast_mut(lines, &places.key_zeros),
                first: cast_mut(lines, &places.first),
            }
        }
    }

    #[inline(always)]
    pub(super) fn head<T: KvValue>(&self, kv_head: usize) -> Head<'_, T> {
        assert!(T::FORMAT == self.of.format, "{:?} read as {:?}", self.of.format, T::FORMAT);
        let places = &*self.of.places;
        let head = &self.memory[kv_head * places.lines()..][..places.lines()];
        // SAFETY: the format is this type's, and any bytes are some number of any.
        unsafe {
            Head {
                keys: cast(head, &places.keys),
                values: cast(head, &places.values),
                key_scales: cast(head, &places.key_scales),
                value_scales: cast(head, &places.value_scales),
                key_zeros: cast(head, &places.key_zeros),
                first: cast(head, &places.first),
                lines: places.lines(),
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
/// As for [`cast`]; the lines are the caller's alone, and so are the bytes among what it has cast of them.
unsafe fn cast_mut<'a, T>(lines: *mut Line, bytes: &Range<usize>) -> &'a mut [T] {
    assert!(bytes.start.is_multiple_of(align_of::<T>()));
    // SAFETY: aligned by the line above, in bounds and nobody else's by the caller's word.
    unsafe {
        std::slice::from_raw_parts_mut(
            lines.cast::<u8>().add(bytes.start).cast(),
            bytes.len() / size_of::<T>(),
        )
    }
}
