//! Products by packed matrices: a row of x is rounded to 8 bits, each group of it with a scale of its own (as llama.cpp's Q8
//! does), and multiplied exactly.

use super::{BLOCK, Cut, HALF, PANEL, Packed, head_bytes};
use crate::Product;
use crate::isa::Isa;
use crate::memory::{LINE, Line};
use crate::pool::{Pool, VALUES_IN_PIECE};
use crate::quads::{QuadKernel, Quads};
use crate::shared::SharedMut;

/// Rows rounded to 8 bits.
struct Rounded {
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
    fn new(pool: &Pool, isa: Isa, x: &[f32], inner: usize, group: usize) -> Self {
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
                // Added to 1.5 * 2^23, a number up to 127 is rounded, and the lowest byte is the result.
                *value = (x * inverse + 12_582_912.0).to_bits() as i8;
                total += i32::from(*value);
            }
            *sum = total;
            if !largest.is_finite() {
                *scale = f32::NAN;
            }
        }
    }
}

/// The products of one x, `[rows, inner]`, by some weights. A row's results have the same bits in any company.
pub fn linear_packed(pool: &Pool, isa: Isa, x: &[f32], products: Vec<Product<Packed>>) {
    // Groups of one size share a rounded x.
    let mut rounded: Vec<(usize, Rounded)> = Vec::new();
    let mut bytes = 0;
    let inners = || products.iter().map(|product| product.weight.shape()[1]);
    assert!(inners().min() == inners().max(), "one x, by weights of different inner sizes");
    for Product { weight, bias, out } in &products {
        let [outputs, inner] = weight.shape();
        let rows = x.len() / inner;
        assert_eq!((x.len(), out.len()), (rows * inner, rows * outputs), "linear");
        assert!(bias.is_none_or(|bias| bias.len() == outputs), "one bias for each output");
        let group = weight.form.group;
        if rounded.iter().all(|(known, _)| *known != group) {
            rounded.push((group, Rounded::new(pool, isa, x, inner, group)));
        }
        bytes += weight.bytes();
    }
    let shared: Vec<_> = products
        .into_iter()
        .map(|Product { weight, bias, out }| (weight, bias, SharedMut::new(out)))
        .collect();
    let mut pieces = Vec::new();
    for (weight, bias, out) in &shared {
        let (weight, bias) = (*weight, *bias);
        let [outputs, inner] = weight.shape();
        let rows = x.len() / inner;
        let of_group = rounded.iter().find(|(group, _)| *group == weight.form.group);
        let (_, x) = of_group.expect("x was rounded for the groups of each weight");
        let worth_it = WORK_IN_PIECE.div_ceil(rows.max(1));
        let in_piece = pool.fair_piece(bytes).clamp(worth_it, BYTES_IN_PIECE);
        let in_piece = in_piece.div_ceil(weight.form.panel_lines() * LINE);
        let panels = outputs.div_ceil(PANEL);
        for first in (0..panels).step_by(in_piece) {
            let panels = first..panels.min(first + in_piece);
            pieces.push(Piece { x, rows, weight, bias, panels, out });
        }
    }
    pool.run(pieces.len(), |piece, _| isa.run_quads(&pieces[piece]));
}

struct Piece<'a> {
    x: &'a Rounded,
    rows: usize,
    weight: &'a Packed,
    bias: Option<&'a [f32]>,
    panels: std::ops::Range<usize>,
    /// The product's, of which each piece writes its own outputs.
    out: &'a SharedMut<'a, f32>,
}

impl QuadKernel for &Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<Q: Quads>(self, quads: Q) {
        match (self.weight.form.bits, self.weight.form.biased) {
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
    fn panels<Q: Quads, const BITS: usize, const BIASED: bool>(&self, quads: Q) {
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
        let (heads, blocks) = weight.panel(panel);
        // What the blocks ask for ends where the next panel's heads do; this is what comes behind that.
        for line in heads.chunks(LINE) {
            quads.prefetch(line, AHEAD);
        }
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
        let zero = weight.form.zero() + if Q::SIGNED_BYTES && BITS == 8 { 128 } else { 0 };
        let halves = weight.form.group / HALF;
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
                    // Each half asks for half of a block, as the second of the panel's lines come from the first's.
                    for line in &block[half % 2 * BITS / 2..(half % 2 + 1) * BITS / 2] {
                        quads.prefetch(&line.0, AHEAD);
                    }
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
            let count = Q::OUTPUTS.min(weight.form.outputs.saturating_sub(first));
            for (r, total) in totals.into_iter().enumerate() {
                let mut sixteen = [0.0; PANEL];
                quads.store(quads.mul(total, quads.floats(1.0 / weight.form.factor)), &mut sixteen);
                if let Some(bias) = self.bias {
                    let bias = &bias[first.min(weight.form.outputs)..][..count];
                    sixteen.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
                }
                let start = (row + r) * weight.form.outputs + first.min(weight.form.outputs);
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
    let Cut { nibbles, pairs, ones } = Cut::of(BITS);
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

/// Bytes of weights times rows: some microseconds.
const WORK_IN_PIECE: usize = 32 * 1024;
/// Of weights at most: whoever waits for a thread that was stopped within a piece waits for no more.
const BYTES_IN_PIECE: usize = 1 << 20;
/// Bytes between what is being used and what is asked for.
const AHEAD: usize = 2048;
