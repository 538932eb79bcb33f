//! Products by quantised matrices in integers. Weights are laid out once, for sixteen outputs side by side; a row of x is
//! rounded to 8 bits, each group of it with a scale of its own (as llama.cpp's Q8 does), and multiplied exactly.
//!
//! Sixteen outputs are a panel. For each group of its rows a panel has a head, sixteen f16 scales and, unless they follow from
//! the scales, sixteen f16 biases. Its values lie in blocks of 32 places of the rows, each in two halves of 16: a half is four
//! vectors, and a vector has four neighbouring values, a quad, of each output. Values of 8 bits are bytes. Others are cut into
//! fields of 4, 2 and 1 bits, and a byte holds such fields of as many vectors as it has room for: of the first vector the
//! lowest.

use half::f16;

use crate::isa::Isa;
use crate::matrix::Affine;
use crate::pool::Pool;
use crate::quads::{QuadKernel, Quads};
use crate::shared::SharedMut;

/// A matrix `[outputs, inner]` of affine groups, in an order of its own.
pub struct Packed {
    outputs: usize,
    inner: usize,
    bits: usize,
    group: usize,
    biased: bool,
    /// What the scales and biases in the heads were multiplied by, a power of two, to be well within the range of f16.
    factor: f32,
    heads: Vec<Line>,
    blocks: Vec<Line>,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

const LINE: usize = 64;
const PANEL: usize = 16;
const BLOCK: usize = 32;
const HALF: usize = 16;

impl Packed {
    /// Lays `affine` out, `[outputs, inner]`. Scales and biases are rounded to f16, 11 bits.
    pub fn new(pool: &Pool, affine: &Affine, outputs: usize, inner: usize) -> Self {
        let Affine { bits, group, .. } = *affine;
        let bits = bits as usize;
        let groups = inner / group;
        let (scales, biases) = (affine.scales.to_vec(), affine.biases.to_vec());
        let zero = -((1 << (bits - 1)) as f32);
        let biased = scales.iter().zip(&biases).any(|(scale, bias)| zero * scale != *bias);
        let largest = scales.iter().chain(biases.iter().filter(|_| biased));
        let largest = largest.fold(0.0, |largest: f32, x| largest.max(x.abs()));
        let factor = to_range(largest);

        let mut packed = Self {
            outputs,
            inner,
            bits,
            group,
            biased,
            factor,
            heads: Vec::new(),
            blocks: Vec::new(),
        };
        let panels = outputs.div_ceil(PANEL);
        let (head_lines, block_lines) = (packed.head_lines(), packed.block_lines());
        packed.heads = vec![Line([0; LINE]); panels * head_lines];
        packed.blocks = vec![Line([0; LINE]); panels * block_lines];
        let heads_of_all = SharedMut::new(&mut packed.heads);
        let blocks_of_all = SharedMut::new(&mut packed.blocks);
        pool.run(panels, |panel, _| {
            // SAFETY: each piece has its own panel.
            let heads = unsafe { heads_of_all.part(panel * head_lines..(panel + 1) * head_lines) };
            // SAFETY: as above.
            let blocks =
                unsafe { blocks_of_all.part(panel * block_lines..(panel + 1) * block_lines) };
            for lane in 0..PANEL.min(outputs - panel * PANEL) {
                let output = panel * PANEL + lane;
                for group in 0..groups {
                    let of_row = output * groups + group;
                    let head = group * head_bytes(biased) + 2 * lane;
                    put(heads, head, f16::from_f32(scales[of_row] * factor).to_le_bytes());
                    if biased {
                        let bias = f16::from_f32(biases[of_row] * factor).to_le_bytes();
                        put(heads, head + 2 * PANEL, bias);
                    }
                }
                let row_bytes = inner / 8 * bits;
                let row = &affine.packed[output * row_bytes..][..row_bytes];
                for place in (0..inner).step_by(4) {
                    let mut quad = [0; 4];
                    for (i, value) in quad.iter_mut().enumerate() {
                        *value = value_at(row, place + i, bits);
                    }
                    put_quad(
                        &mut blocks[place / BLOCK * bits..][..bits],
                        bits,
                        place % BLOCK / 4,
                        lane,
                        quad,
                    );
                }
            }
        });
        packed
    }

    /// `[outputs, inner]`
    pub fn shape(&self) -> [usize; 2] {
        [self.outputs, self.inner]
    }

    /// Of memory.
    pub fn bytes(&self) -> usize {
        (self.heads.len() + self.blocks.len()) * LINE
    }

    fn head_lines(&self) -> usize {
        (self.inner / self.group * head_bytes(self.biased)).div_ceil(LINE)
    }

    fn block_lines(&self) -> usize {
        self.inner.div_ceil(BLOCK) * self.bits
    }

    /// What a group's value of zero stands for, in scales, where heads have no biases.
    fn zero(&self) -> i32 {
        if self.biased { 0 } else { -(1 << (self.bits - 1)) }
    }
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

/// A value of a row's stream of bits.
fn value_at(row: &[u8], place: usize, bits: usize) -> u8 {
    let (byte, shift) = (place * bits / 8, place * bits % 8);
    let high = row.get(byte + 1).map_or(0, |high| u16::from(*high));
    let word = high << 8 | u16::from(row[byte]);
    (word >> shift & ((1 << bits) - 1)) as u8
}

/// Puts the quad of one output, in vector 0 to 7 of a block, to where it belongs.
fn put_quad(block: &mut [Line], bits: usize, vector: usize, lane: usize, quad: [u8; 4]) {
    let (half, vector) = (vector / 4, vector % 4);
    let mut or = |line: usize, shift: usize, field: [u8; 4]| {
        for (to, field) in block[line].0[4 * lane..][..4].iter_mut().zip(field) {
            *to |= field << shift;
        }
    };
    let Fields { nibbles, pairs, ones } = Fields::of(bits);
    if bits == 8 {
        or(half * 4 + vector, 0, quad);
        return;
    }
    let mut done = 0;
    if nibbles {
        or(half * 2 + vector / 2, vector % 2 * 4, quad.map(|q| q & 15));
        done = 4;
    }
    if pairs {
        or(4 * usize::from(nibbles) + half, vector * 2, quad.map(|q| q >> done & 3));
        done += 2;
    }
    if ones {
        or(bits - 1, half * 4 + vector, quad.map(|q| q >> done & 1));
    }
}

/// Which fields a value is cut into, from its lowest bits on.
struct Fields {
    nibbles: bool,
    pairs: bool,
    ones: bool,
}

impl Fields {
    #[inline(always)]
    const fn of(bits: usize) -> Self {
        Self { nibbles: bits & 4 != 0, pairs: bits & 2 != 0, ones: bits & 1 != 0 }
    }
}

/// Rows rounded to 8 bits.
pub(crate) struct Rounded {
    /// Of a row, filled up to whole blocks.
    width: usize,
    groups: usize,
    values: Vec<i8>,
    /// `[rows, groups]`
    scales: Vec<f32>,
    /// Of the rounded values: `[rows, groups]`
    sums: Vec<i32>,
}

impl Rounded {
    pub(crate) fn new(pool: &Pool, isa: Isa, x: &[f32], inner: usize, group: usize) -> Self {
        let (rows, width, groups) = (x.len() / inner, inner.next_multiple_of(BLOCK), inner / group);
        let mut rounded = Self {
            width,
            groups,
            values: vec![0; rows * width],
            scales: vec![0.0; rows * groups],
            sums: vec![0; rows * groups],
        };
        let values = SharedMut::new(&mut rounded.values);
        let scales = SharedMut::new(&mut rounded.scales);
        let sums = SharedMut::new(&mut rounded.sums);
        let rows_in_piece = (VALUES_IN_PIECE / width).max(1);
        pool.run(rows.div_ceil(rows_in_piece), |piece, _| {
            for row in piece * rows_in_piece..rows.min((piece + 1) * rows_in_piece) {
                // SAFETY: each piece has its own rows.
                let (values, scales, sums) = unsafe {
                    (
                        values.part(row * width..(row + 1) * width),
                        scales.part(row * groups..(row + 1) * groups),
                        sums.part(row * groups..(row + 1) * groups),
                    )
                };
                let x = &x[row * inner..][..inner];
                isa.run_quads(Round { x, group, values, scales, sums });
            }
        });
        rounded
    }
}

struct Round<'a> {
    x: &'a [f32],
    group: usize,
    values: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl QuadKernel for Round<'_> {
    type Output = ();

    /// Plain Rust, which the compiler turns into the instruction set's.
    #[inline(always)]
    fn run<Q: Quads>(self, _: Q) {
        let groups = self.x.chunks_exact(self.group).zip(self.values.chunks_mut(self.group));
        let facts = self.scales.iter_mut().zip(self.sums);
        for ((x, values), (scale, sum)) in groups.zip(facts) {
            // As bits, so that what is not a number is the largest, and the whole group becomes none.
            let mut largest = 0;
            for x in x {
                largest = largest.max(x.to_bits() & 0x7fff_ffff);
            }
            let largest = f32::from_bits(largest);
            *scale = largest / 127.0;
            let inverse = if *scale >= f32::MIN_POSITIVE { 1.0 / *scale } else { 0.0 };
            let mut total = 0;
            for (value, x) in values.iter_mut().zip(x) {
                let rounded = (x * inverse).round_ties_even() as i32;
                let rounded = rounded.clamp(-127, 127);
                *value = rounded as i8;
                total += rounded;
            }
            *sum = total;
            if !largest.is_finite() {
                *scale = f32::NAN;
            }
        }
    }
}

/// `out[row, output] = x[row] · w[output] + bias[output]`: `[rows, inner]` → `[rows, outputs]`. A row's result has the same bits
/// in any company.
pub fn linear_packed(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    weight: &Packed,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let [outputs, inner] = weight.shape();
    let rows = x.len() / inner;
    assert_eq!((x.len(), out.len()), (rows * inner, rows * outputs), "linear");
    assert!(bias.is_none_or(|bias| bias.len() == outputs), "one bias for each output");
    let x = Rounded::new(pool, isa, x, inner, weight.group);
    let panels = outputs.div_ceil(PANEL);
    let in_piece = panels_in_piece(pool.threads(), rows, panels, weight.block_lines() * LINE);
    let out = SharedMut::new(out);
    pool.run(panels.div_ceil(in_piece), |piece, _| {
        let panels = piece * in_piece..panels.min((piece + 1) * in_piece);
        isa.run_quads(Piece { x: &x, rows, weight, bias, panels, out: &out });
    });
}

/// Pieces of equal work, several for each thread, none so small that handing it out costs more than it.
fn panels_in_piece(threads: usize, rows: usize, panels: usize, bytes: usize) -> usize {
    let worth_it = WORK_IN_PIECE.div_ceil(rows.max(1) * bytes);
    panels.div_ceil(threads * PIECES_FOR_A_THREAD).max(worth_it).max(1)
}

struct Piece<'a> {
    x: &'a Rounded,
    rows: usize,
    weight: &'a Packed,
    bias: Option<&'a [f32]>,
    panels: std::ops::Range<usize>,
    out: &'a SharedMut<'a, f32>,
}

impl QuadKernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<Q: Quads>(self, quads: Q) {
        match (self.weight.bits, self.weight.biased) {
            (2, false) => self.panels::<Q, 2, false>(quads),
            (2, true) => self.panels::<Q, 2, true>(quads),
            (3, false) => self.panels::<Q, 3, false>(quads),
            (3, true) => self.panels::<Q, 3, true>(quads),
            (4, false) => self.panels::<Q, 4, false>(quads),
            (4, true) => self.panels::<Q, 4, true>(quads),
            (5, false) => self.panels::<Q, 5, false>(quads),
            (5, true) => self.panels::<Q, 5, true>(quads),
            (6, false) => self.panels::<Q, 6, false>(quads),
            (6, true) => self.panels::<Q, 6, true>(quads),
            (_, false) => self.panels::<Q, 8, false>(quads),
            (_, true) => self.panels::<Q, 8, true>(quads),
        }
    }
}

impl Piece<'_> {
    #[inline(always)]
    fn panels<Q: Quads, const BITS: usize, const BIASED: bool>(self, quads: Q) {
        for panel in self.panels.clone() {
            let mut row = 0;
            while Q::ROWS >= 8 && row + 8 <= self.rows {
                self.rows::<Q, BITS, BIASED, 8>(quads, panel, row);
                row += 8;
            }
            while row + 4 <= self.rows {
                self.rows::<Q, BITS, BIASED, 4>(quads, panel, row);
                row += 4;
            }
            while row < self.rows {
                self.rows::<Q, BITS, BIASED, 1>(quads, panel, row);
                row += 1;
            }
        }
    }

    /// `R` rows from `row` on.
    #[inline(always)]
    fn rows<Q: Quads, const BITS: usize, const BIASED: bool, const R: usize>(
        &self,
        quads: Q,
        panel: usize,
        row: usize,
    ) {
        let weight = self.weight;
        let (head_lines, block_lines) = (weight.head_lines(), weight.block_lines());
        let heads = bytes_of(&weight.heads[panel * head_lines..][..head_lines]);
        let blocks = &weight.blocks[panel * block_lines..][..block_lines];
        let groups = self.x.groups;
        let mut x = [&[][..]; R];
        let mut scales = [&[][..]; R];
        let mut sums = [&[][..]; R];
        for r in 0..R {
            let values = &self.x.values[(row + r) * self.x.width..][..self.x.width];
            x[r] = values.as_chunks::<4>().0.as_chunks::<4>().0;
            scales[r] = &self.x.scales[(row + r) * groups..][..groups];
            sums[r] = &self.x.sums[(row + r) * groups..][..groups];
        }
        let zero = weight.zero() + if Q::SIGNED_BYTES && BITS == 8 { 128 } else { 0 };
        let halves = weight.group / HALF;
        for part in 0..PANEL / Q::OUTPUTS {
            let mut totals = [quads.floats(0.0); R];
            let mut half = 0;
            for group in 0..groups {
                let head = group * head_bytes(BIASED) + part * Q::OUTPUTS * 2;
                let mut products = [quads.ints(0); R];
                if zero != 0 {
                    for r in 0..R {
                        products[r] = quads.ints(zero * sums[r][group]);
                    }
                }
                for _ in 0..halves {
                    let block = &blocks[half / 2 * BITS..][..BITS];
                    quads.prefetch(&block[0].0, AHEAD);
                    let weights = unpack::<Q, BITS>(quads, block, half % 2, part);
                    for r in 0..R {
                        products[r] = quads.dot::<BITS>(products[r], weights, &x[r][half]);
                    }
                    half += 1;
                }
                let scale = quads.halves(&heads[head..]);
                for r in 0..R {
                    let mut product = quads.mul(quads.convert(products[r]), scale);
                    if BIASED {
                        let bias = quads.halves(&heads[head + 2 * PANEL..]);
                        product = quads.mul_add(bias, quads.floats(sums[r][group] as f32), product);
                    }
                    totals[r] = quads.mul_add(product, quads.floats(scales[r][group]), totals[r]);
                }
            }
            let first = panel * PANEL + part * Q::OUTPUTS;
            let count = Q::OUTPUTS.min(weight.outputs.saturating_sub(first));
            for (r, total) in totals.into_iter().enumerate() {
                let mut sixteen = [0.0; PANEL];
                quads.store(quads.mul(total, quads.floats(1.0 / weight.factor)), &mut sixteen);
                if let Some(bias) = self.bias {
                    let bias = &bias[first.min(weight.outputs)..][..count];
                    sixteen.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
                }
                let start = (row + r) * weight.outputs + first.min(weight.outputs);
                // SAFETY: each piece has its own outputs, and this thread holds no other part of them.
                let out = unsafe { self.out.part(start..start + count) };
                out.copy_from_slice(&sixteen[..count]);
            }
        }
    }
}

/// The four vectors of a half, of the outputs of `part`. (Functions rather than closures, which are not always inlined, and
/// then miss the instruction set.)
#[inline(always)]
fn unpack<Q: Quads, const BITS: usize>(
    quads: Q,
    block: &[Line],
    half: usize,
    part: usize,
) -> [Q::Bytes; 4] {
    if BITS == 8 {
        return [
            line(quads, block, half * 4, part),
            line(quads, block, half * 4 + 1, part),
            line(quads, block, half * 4 + 2, part),
            line(quads, block, half * 4 + 3, part),
        ];
    }
    let Fields { nibbles, pairs, ones } = Fields::of(BITS);
    if !nibbles {
        let values = unpack_pairs(quads, line(quads, block, half, part));
        if !ones {
            return values;
        }
        let ones = unpack_ones(quads, line(quads, block, BITS - 1, part), half);
        return join::<Q, 2>(quads, values, ones);
    }
    let a = line(quads, block, half * 2, part);
    let b = line(quads, block, half * 2 + 1, part);
    let values = [
        quads.field::<0>(a, 15),
        quads.field::<4>(a, 15),
        quads.field::<0>(b, 15),
        quads.field::<4>(b, 15),
    ];
    if pairs {
        let pairs = unpack_pairs(quads, line(quads, block, 4 + half, part));
        return join::<Q, 4>(quads, values, pairs);
    }
    if ones {
        let ones = unpack_ones(quads, line(quads, block, BITS - 1, part), half);
        return join::<Q, 4>(quads, values, ones);
    }
    values
}

#[inline(always)]
fn line<Q: Quads>(quads: Q, block: &[Line], line: usize, part: usize) -> Q::Bytes {
    quads.load(&block[line].0[part * Q::OUTPUTS * 4..])
}

#[inline(always)]
fn unpack_pairs<Q: Quads>(quads: Q, bytes: Q::Bytes) -> [Q::Bytes; 4] {
    [
        quads.field::<0>(bytes, 3),
        quads.field::<2>(bytes, 3),
        quads.field::<4>(bytes, 3),
        quads.field::<6>(bytes, 3),
    ]
}

#[inline(always)]
fn unpack_ones<Q: Quads>(quads: Q, bytes: Q::Bytes, half: usize) -> [Q::Bytes; 4] {
    if half == 0 {
        return [
            quads.field::<0>(bytes, 1),
            quads.field::<1>(bytes, 1),
            quads.field::<2>(bytes, 1),
            quads.field::<3>(bytes, 1),
        ];
    }
    [
        quads.field::<4>(bytes, 1),
        quads.field::<5>(bytes, 1),
        quads.field::<6>(bytes, 1),
        quads.field::<7>(bytes, 1),
    ]
}

#[inline(always)]
fn join<Q: Quads, const SHIFT: i32>(
    quads: Q,
    low: [Q::Bytes; 4],
    high: [Q::Bytes; 4],
) -> [Q::Bytes; 4] {
    [
        quads.join::<SHIFT>(low[0], high[0]),
        quads.join::<SHIFT>(low[1], high[1]),
        quads.join::<SHIFT>(low[2], high[2]),
        quads.join::<SHIFT>(low[3], high[3]),
    ]
}

fn bytes_of(lines: &[Line]) -> &[u8] {
    // SAFETY: a line is its bytes, without padding.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LINE) }
}

/// Bytes of weights times rows: some microseconds.
const WORK_IN_PIECE: usize = 32 * 1024;
const PIECES_FOR_A_THREAD: usize = 6;
const VALUES_IN_PIECE: usize = 16 * 1024;
/// Bytes between what is being used and what is asked for.
const AHEAD: usize = 2048;
