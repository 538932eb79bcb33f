//! Quantised matrices, laid out once for products in integers.
//!
//! Sixteen outputs side by side are a panel. For each group of its rows a panel has a head, sixteen f16 scales and, unless they
//! follow from the scales, sixteen f16 biases. Behind the heads lie its values, in blocks of 32 places of the rows, each in two
//! halves of 16: a half is four vectors, and a vector has four neighbouring values, a quad, of each output. Values of 8 bits
//! are bytes. Others are cut into fields of 4, 2 and 1 bits, and a byte holds such fields of as many vectors as it has room
//! for: of the first vector the lowest.

mod product;

use std::io;

use half::f16;

use crate::floats::Floats;
use crate::memory::{Arena, LINE, Line, Lines};
use crate::pool::{Pool, VALUES_IN_PIECE};
use crate::shared::SharedMut;

pub use product::linear_packed;

/// Affine groups of values as files have them: `w = scale * q + bias`, one scale and bias for each `group` values of a row.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// Each row is one little-endian stream of `bits`-wide values.
    pub packed: &'a [u8],
    /// `[outputs, inner / group]`
    pub scales: Floats<'a>,
    /// `[outputs, inner / group]`
    pub biases: Floats<'a>,
    /// 2, 3, 4, 5, 6 or 8.
    pub bits: u32,
    /// A multiple of 16.
    pub group: usize,
}

/// A matrix `[outputs, inner]` of affine groups, in an order of its own.
pub struct Packed {
    form: Form,
    /// Panel after panel.
    lines: Lines,
}

/// What there is to know of a packed matrix but its numbers.
#[derive(Clone, Copy)]
struct Form {
    outputs: usize,
    inner: usize,
    bits: usize,
    group: usize,
    biased: bool,
    /// What the scales and biases in the heads were multiplied by, a power of two, to be well within the range of f16.
    factor: f32,
}

const PANEL: usize = 16;
const BLOCK: usize = 32;
const HALF: usize = 16;

impl Packed {
    /// Lays `affine` out, `[outputs, inner]`, in memory of `arena`. Scales and biases are rounded to f16, 11 bits.
    pub fn new(
        pool: &Pool,
        arena: &Arena,
        affine: &Affine,
        outputs: usize,
        inner: usize,
    ) -> io::Result<Self> {
        affine.check(outputs, inner);
        let Survey { biased, scale, bias } = affine.survey(pool);
        let factor = to_range(if biased { scale.max(bias) } else { scale });
        let (bits, group) = (affine.bits as usize, affine.group);
        let form = Form { outputs, inner, bits, group, biased, factor };
        let (panels, panel_lines) = (outputs.div_ceil(PANEL), form.panel_lines());
        let mut lines = arena.lines(panels * panel_lines)?;
        let all = SharedMut::new(&mut lines);
        pool.run(panels, |panel, _| {
            // SAFETY: each piece has its own panel.
            let lines = unsafe { all.part(panel * panel_lines..(panel + 1) * panel_lines) };
            let (heads, blocks) = lines.split_at_mut(form.head_lines());
            form.fill_heads(affine, panel, heads);
            match bits {
                2 => form.fill_blocks::<2>(affine, panel, blocks),
                3 => form.fill_blocks::<3>(affine, panel, blocks),
                4 => form.fill_blocks::<4>(affine, panel, blocks),
                5 => form.fill_blocks::<5>(affine, panel, blocks),
                6 => form.fill_blocks::<6>(affine, panel, blocks),
                _ => form.fill_blocks::<8>(affine, panel, blocks),
            }
        });
        Ok(Self { form, lines })
    }

    /// Writes the rows whose numbers are given, in that order, as f32: `[rows.len(), inner]`.
    pub fn unpack_rows(&self, pool: &Pool, rows: &[u32], to: &mut [f32]) {
        let outputs = self.form.outputs;
        assert_eq!(to.len(), rows.len() * self.form.inner, "unpack_rows");
        assert!(rows.iter().all(|row| (*row as usize) < outputs), "a row of {outputs}: {rows:?}");
        let to = SharedMut::new(to);
        let rows_in_piece = (VALUES_IN_PIECE / self.form.inner).max(1);
        pool.run(rows.len().div_ceil(rows_in_piece), |piece, _| {
            let first = piece * rows_in_piece;
            let rows = &rows[first..rows.len().min(first + rows_in_piece)];
            let inner = self.form.inner;
            // SAFETY: each piece has its own rows.
            let to = unsafe { to.part(first * inner..(first + rows.len()) * inner) };
            for (&row, to) in rows.iter().zip(to.chunks_exact_mut(inner)) {
                self.unpack_row(row as usize, to);
            }
        });
    }

    fn unpack_row(&self, output: usize, to: &mut [f32]) {
        let Form { bits, group, biased, factor, .. } = self.form;
        let (heads, blocks) = self.panel(output / PANEL);
        let lane = output % PANEL;
        for (number, to) in to.chunks_exact_mut(group).enumerate() {
            let head = &heads[number * head_bytes(biased) + 2 * lane..];
            let float = |at: usize| f16::from_le_bytes([head[at], head[at + 1]]).to_f32();
            let scale = float(0) / factor;
            let bias = match biased {
                true => float(2 * PANEL) / factor,
                false => self.form.zero() as f32 * scale,
            };
            for (index, to) in to.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                let place = number * group + 4 * index;
                let block = &blocks[place / BLOCK * bits..][..bits];
                let quad = quad_at(block, place % BLOCK / 4, lane).to_le_bytes();
                for (to, q) in to.iter_mut().zip(quad) {
                    *to = scale * f32::from(q) + bias;
                }
            }
        }
    }

    /// `[outputs, inner]`
    pub fn shape(&self) -> [usize; 2] {
        [self.form.outputs, self.form.inner]
    }

    /// Of memory.
    pub fn bytes(&self) -> usize {
        self.lines.len() * LINE
    }

    /// Its heads and its blocks.
    #[inline(always)]
    fn panel(&self, panel: usize) -> (&[u8], &[Line]) {
        let panel_lines = self.form.panel_lines();
        let lines = &self.lines[panel * panel_lines..][..panel_lines];
        let (heads, blocks) = lines.split_at(self.form.head_lines());
        (bytes_of(heads), blocks)
    }
}

impl Form {
    fn fill_heads(&self, affine: &Affine, panel: usize, heads: &mut [Line]) {
        let groups = self.inner / self.group;
        for (lane, output) in self.outputs_of(panel).enumerate() {
            for group in 0..groups {
                let half = |floats: Floats| {
                    f16::from_f32(floats.at(output * groups + group) * self.factor).to_le_bytes()
                };
                let head = group * head_bytes(self.biased) + 2 * lane;
                put(heads, head, half(affine.scales));
                if self.biased {
                    put(heads, head + 2 * PANEL, half(affine.biases));
                }
            }
        }
    }

    fn fill_blocks<const BITS: usize>(&self, affine: &Affine, panel: usize, blocks: &mut [Line]) {
        let row_bytes = self.inner / 8 * BITS;
        let mut values = vec![0; self.inner.next_multiple_of(BLOCK)];
        for (lane, output) in self.outputs_of(panel).enumerate() {
            let row = &affine.packed[output * row_bytes..][..row_bytes];
            unpack_stream::<BITS>(row, &mut values);
            let values = values.as_chunks::<BLOCK>().0;
            for (values, block) in values.iter().zip(blocks.as_chunks_mut::<BITS>().0) {
                for (vector, quad) in values.as_chunks::<4>().0.iter().enumerate() {
                    put_quad(block, vector, lane, u32::from_le_bytes(*quad));
                }
            }
        }
    }

    fn outputs_of(&self, panel: usize) -> std::ops::Range<usize> {
        panel * PANEL..self.outputs.min((panel + 1) * PANEL)
    }

    fn panel_lines(&self) -> usize {
        self.head_lines() + self.inner.div_ceil(BLOCK) * self.bits
    }

    fn head_lines(&self) -> usize {
        (self.inner / self.group * head_bytes(self.biased)).div_ceil(LINE)
    }

    /// What a group's value of zero stands for, in scales, where heads have no biases.
    fn zero(&self) -> i32 {
        if self.biased { 0 } else { -(1 << (self.bits - 1)) }
    }
}

impl Affine<'_> {
    fn check(&self, outputs: usize, inner: usize) {
        let Self { packed, scales, biases, bits, group } = *self;
        assert!(matches!(bits, 2..=6 | 8), "weights of {bits} bits");
        assert!(inner > 0, "an empty matrix");
        assert!(
            group > 0 && group.is_multiple_of(HALF) && inner.is_multiple_of(group),
            "{inner} in groups of {group}"
        );
        assert_eq!(
            packed.len(),
            outputs * inner / 8 * bits as usize,
            "packed [{outputs}, {inner}]"
        );
        assert_eq!(scales.len(), outputs * inner / group, "scales of [{outputs}, {inner}]");
        assert_eq!(biases.len(), scales.len(), "biases of [{outputs}, {inner}]");
    }

    fn survey(&self, pool: &Pool) -> Survey {
        let zero = -((1 << (self.bits - 1)) as f32);
        let pieces = self.scales.len().div_ceil(VALUES_IN_PIECE);
        let mut surveys = vec![Survey::default(); pieces];
        let all = SharedMut::new(&mut surveys);
        pool.run(pieces, |piece, _| {
            let mut survey = Survey::default();
            let first = piece * VALUES_IN_PIECE;
            for group in first..self.scales.len().min(first + VALUES_IN_PIECE) {
                let (scale, bias) = (self.scales.at(group), self.biases.at(group));
                survey.biased |= zero * scale != bias;
                survey.scale = survey.scale.max(scale.abs());
                survey.bias = survey.bias.max(bias.abs());
            }
            // SAFETY: each piece has its own survey.
            let to = unsafe { all.part(piece..piece + 1) };
            to[0] = survey;
        });
        surveys.into_iter().fold(Survey::default(), |a, b| Survey {
            biased: a.biased || b.biased,
            scale: a.scale.max(b.scale),
            bias: a.bias.max(b.bias),
        })
    }
}

/// What the scales and biases are like.
#[derive(Clone, Copy, Default)]
struct Survey {
    /// Not every bias is what makes its group symmetric.
    biased: bool,
    /// The largest scale, by its size, and the largest bias.
    scale: f32,
    bias: f32,
}

/// Of one group.
const fn head_bytes(biased: bool) -> usize {
    if biased { 4 * PANEL } else { 2 * PANEL }
}

/// The power of two that brings `largest` to 2^14 or a little less.
fn to_range(largest: f32) -> f32 {
    if largest == 0.0 || !largest.is_finite() {
        return 1.0;
    }
    let exponent = 13 - (largest.log2().floor() as i32);
    2.0_f32.powi(exponent.clamp(-100, 100))
}

fn put<const N: usize>(lines: &mut [Line], at: usize, bytes: [u8; N]) {
    lines[at / LINE].0[at % LINE..][..N].copy_from_slice(&bytes);
}

/// Eight values of `BITS` bits are `BITS` bytes of the stream.
fn unpack_stream<const BITS: usize>(stream: &[u8], values: &mut [u8]) {
    for (bytes, values) in stream.as_chunks::<BITS>().0.iter().zip(values.as_chunks_mut::<8>().0) {
        let mut word = [0; 8];
        word[..BITS].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        for (i, value) in values.iter_mut().enumerate() {
            *value = (word >> (i * BITS)) as u8 & (0xff >> (8 - BITS));
        }
    }
}

/// Puts the quad of one output, in vector 0 to 7 of a block that is still zero there, to where it belongs.
#[inline(always)]
fn put_quad<const BITS: usize>(block: &mut [Line; BITS], vector: usize, lane: usize, quad: u32) {
    let (count, fields) = fields(BITS, vector);
    for Field { line, shift, from, mask } in &fields[..count] {
        let word = &mut block[*line].0[4 * lane..][..4];
        let field = (quad >> from & mask) << shift;
        word.iter_mut().zip(field.to_le_bytes()).for_each(|(word, field)| *word |= field);
    }
}

/// What [`put_quad`] has put there.
fn quad_at(block: &[Line], vector: usize, lane: usize) -> u32 {
    let (count, fields) = fields(block.len(), vector);
    fields[..count].iter().fold(0, |quad, Field { line, shift, from, mask }| {
        let word = block[*line].0[4 * lane..].first_chunk().expect("a line has sixteen words");
        quad | (u32::from_le_bytes(*word) >> shift & mask) << from
    })
}

/// Where some neighbouring bits of each of a quad's values lie.
#[derive(Clone, Copy)]
struct Field {
    /// Of the block.
    line: usize,
    /// How far up they are in their bytes there, and in their values.
    shift: usize,
    from: usize,
    /// Of their width, in each byte.
    mask: u32,
}

/// How many fields the values of `bits` have, and where those of a vector of a block are.
#[inline(always)]
const fn fields(bits: usize, vector: usize) -> (usize, [Field; 2]) {
    let (half, v) = (vector / 4, vector % 4);
    let Cut { nibbles, pairs, ones } = Cut::of(bits);
    let two = 4 * nibbles as usize;
    let nibble = Field {
        line: half * 2 + v / 2,
        shift: v % 2 * 4,
        from: 0,
        mask: u32::from_le_bytes([15; 4]),
    };
    let pair =
        Field { line: two + half, shift: v * 2, from: two, mask: u32::from_le_bytes([3; 4]) };
    let one = Field {
        line: bits - 1,
        shift: half * 4 + v,
        from: two + 2 * pairs as usize,
        mask: u32::from_le_bytes([1; 4]),
    };
    match (nibbles, pairs, ones) {
        (true, true, _) => (2, [nibble, pair]),
        (true, _, true) => (2, [nibble, one]),
        (_, true, true) => (2, [pair, one]),
        (true, ..) => (1, [nibble, nibble]),
        (_, true, _) => (1, [pair, pair]),
        // Eight bits are whole bytes.
        _ => {
            let byte = Field { line: vector, shift: 0, from: 0, mask: u32::MAX };
            (1, [byte, byte])
        }
    }
}

/// Which fields a value is cut into, from its lowest bits on; at most two.
struct Cut {
    nibbles: bool,
    pairs: bool,
    ones: bool,
}

impl Cut {
    #[inline(always)]
    const fn of(bits: usize) -> Self {
        Self { nibbles: bits & 4 != 0, pairs: bits & 2 != 0, ones: bits & 1 != 0 }
    }
}

fn bytes_of(lines: &[Line]) -> &[u8] {
    // SAFETY: a line is its bytes, without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LINE) }
}
