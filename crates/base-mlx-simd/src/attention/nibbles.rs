//! Keys and values in 4 bits.
//!
//! Some dimensions of keys are far larger than the others, and change little from one position to the next (KIVI,
//! arXiv:2402.02750). So a key is kept as its distance from the first of its block, which itself is kept in f16. What large
//! dimensions are left share their size with the others by a Hadamard transform (QuaRot, arXiv:2404.00456), which changes no
//! product, since queries go through it too. Values have neither.

use half::f16;

use super::KEY_BLOCK;
use super::block::{HeadMut, KvFormat, KvValue};
use crate::isa::Lanes;

/// Two of [`NUMBERS`](Self::NUMBERS) neighbours: the lower four bits are of the first half of these. Each is an integer from
/// -8 to 7, with 8 added.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Nibbles(u8);

impl Nibbles {
    /// That lie together, in half as many bytes: of a dimension of the keys, or of a position's values.
    pub(super) const NUMBERS: usize = KEY_BLOCK;

    fn set(&mut self, shift: u32, nibble: u8) {
        self.0 = self.0 & !(15 << shift) | nibble << shift;
    }

    /// Where among its neighbours' bytes a number is, and in which bits.
    #[inline(always)]
    fn place(number: usize) -> (usize, u32) {
        let half = Self::NUMBERS / 2;
        (number % half, if number < half { 0 } else { 4 })
    }

    #[inline(always)]
    fn load<L: Lanes>(lanes: L, from: &[Self], number: usize) -> L::V {
        let (place, shift) = Self::place(number);
        let from = &from[place..][..L::WIDTH];
        // SAFETY: it is a byte.
        lanes
            .nibbles(unsafe { std::slice::from_raw_parts(from.as_ptr().cast(), from.len()) }, shift)
    }
}

impl KvValue for Nibbles {
    const FORMAT: KvFormat = KvFormat::Q4;
    const COLUMN: usize = KEY_BLOCK / 2;
    const GROUP: Option<usize> = Some(Self::NUMBERS);
    const SCALED: bool = true;
    type Scale = f16;
    const ROTATED: bool = true;

    fn write(head: &mut HeadMut<Self>, place: usize, key: &[f32], value: &[f32]) {
        if place == 0 {
            for (first, key) in head.first.iter_mut().zip(key) {
                // What is no number shall be none at this position only.
                *first = if key.is_nan() { f16::ZERO } else { f16::from_f32(within(*key)) };
            }
        }
        let first = head.first.iter().map(|first| first.to_f32());
        let mut from_first: Vec<f32> = key.iter().zip(first).map(|(k, f)| within(*k) - f).collect();
        rotate(&mut from_first);
        let mut nibbles = [0; Self::NUMBERS];
        let (byte, shift) = Self::place(place);
        let columns = head.keys.chunks_mut(Self::NUMBERS * Self::COLUMN);
        for (group, columns) in columns.enumerate() {
            let numbers = from_first[group * Self::NUMBERS..].iter().take(Self::NUMBERS);
            let at = group * KEY_BLOCK + place;
            (head.key_scales[at], head.key_zeros[at]) = round_between(numbers, &mut nibbles);
            for (column, nibble) in columns.chunks_exact_mut(Self::COLUMN).zip(nibbles) {
                column[byte].set(shift, nibble);
            }
        }
        let groups = value.len().div_ceil(Self::NUMBERS);
        let row = groups * Self::NUMBERS / 2;
        let row = &mut head.values[place * row..][..row];
        for (group, row) in row.chunks_exact_mut(Self::NUMBERS / 2).enumerate() {
            let numbers = value[group * Self::NUMBERS..].iter().take(Self::NUMBERS);
            head.value_scales[group * KEY_BLOCK + place] = round(numbers, &mut nibbles);
            let (low, high) = nibbles.split_at(Self::NUMBERS / 2);
            for ((byte, low), high) in row.iter_mut().zip(low).zip(high) {
                byte.0 = low | high << 4;
            }
        }
    }

    #[inline(always)]
    fn keys<L: Lanes>(lanes: L, column: &[Self], place: usize) -> [L::V; 2] {
        [Self::load(lanes, column, place), Self::load(lanes, column, place + L::WIDTH)]
    }

    #[inline(always)]
    fn values<L: Lanes, const C: usize>(lanes: L, row: &[Self], dim: usize) -> [L::V; C] {
        let group = &row[dim / Self::NUMBERS * Self::NUMBERS / 2..][..Self::NUMBERS / 2];
        // Said to the compiler, which need not look for the bits then.
        let first = if C * L::WIDTH == Self::NUMBERS { 0 } else { dim % Self::NUMBERS };
        let mut vectors = [lanes.splat(0.0); C];
        for (c, vector) in vectors.iter_mut().enumerate() {
            *vector = Self::load(lanes, group, first + c * L::WIDTH);
        }
        vectors
    }
}

/// What f16 can keep.
fn within(x: f32) -> f32 {
    x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())
}

/// Rounds to integers of a scale, which is returned: the largest number is -8 of it. If one is no number, it is none.
fn round<'a>(from: impl Iterator<Item = &'a f32> + Clone, to: &mut [u8; Nibbles::NUMBERS]) -> f16 {
    let largest =
        from.clone().fold(0.0_f32, |largest, x| if x.abs() > largest.abs() { *x } else { largest });
    let scale = f16::from_f32(within(largest / -8.0));
    round_to(from.clone(), scale, f16::ZERO, to);
    if from.clone().any(|x| x.is_nan()) { f16::NAN } else { scale }
}

/// The same with the smallest number as -8 and the largest as 7 of a scale, which is returned with what zero is then.
fn round_between<'a>(
    from: impl Iterator<Item = &'a f32> + Clone,
    to: &mut [u8; Nibbles::NUMBERS],
) -> (f16, f16) {
    let smallest = from.clone().fold(f32::INFINITY, |smallest, x| smallest.min(*x));
    let largest = from.clone().fold(f32::NEG_INFINITY, |largest, x| largest.max(*x));
    let scale = f16::from_f32(within((largest - smallest) / 15.0));
    let zero = f16::from_f32(within(smallest + 8.0 * scale.to_f32()));
    round_to(from.clone(), scale, zero, to);
    if from.clone().any(|x| x.is_nan()) { (f16::NAN, f16::ZERO) } else { (scale, zero) }
}

fn round_to<'a>(
    from: impl Iterator<Item = &'a f32>,
    scale: f16,
    zero: f16,
    to: &mut [u8; Nibbles::NUMBERS],
) {
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    let zero = zero.to_f32();
    for (to, from) in to.iter_mut().zip(from) {
        *to = ((from - zero) * inverse + 8.5).clamp(0.0, 15.0) as u8;
    }
}

/// Hadamard transforms of a vector's parts, each as large a power of two as is left. They are their own inverse, and
/// change no product of two vectors.
pub(super) fn rotate(x: &mut [f32]) {
    let mut rest = x;
    while !rest.is_empty() {
        let (part, others) = rest.split_at_mut(1 << rest.len().ilog2());
        rest = others;
        let mut half = 1;
        while half < part.len() {
            for pair in part.chunks_exact_mut(2 * half) {
                let (a, b) = pair.split_at_mut(half);
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        let norm = 1.0 / (part.len() as f32).sqrt();
        part.iter_mut().for_each(|x| *x *= norm);
    }
}
