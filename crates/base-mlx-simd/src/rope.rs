//! Rotary position embedding of the pairs (i, i + rotary_dim / 2).

use crate::isa::{Isa, Kernel, Lanes};
use crate::pool::Pool;
use crate::shared::SharedMut;

/// Cosines and sines of a batch's angles, the same for all heads and layers.
#[derive(Debug)]
pub struct RopeTable {
    pairs: usize,
    /// For each token, `pairs` cosines, then `pairs` sines.
    values: Vec<f32>,
}

impl RopeTable {
    /// The angle of pair i is `position * inv_freq[i]`, in f32 as the reference implementations have it; `factor`
    /// multiplies all values.
    pub fn new(pool: &Pool, positions: &[u32], inv_freq: &[f32], factor: f32) -> Self {
        let pairs = inv_freq.len();
        let mut values = vec![0.0; positions.len() * pairs * 2];
        let to = SharedMut::new(&mut values);
        pool.run(positions.len().div_ceil(TOKENS_IN_PIECE), |piece, _| {
            let first = piece * TOKENS_IN_PIECE;
            for (token, &position) in positions.iter().enumerate().skip(first).take(TOKENS_IN_PIECE)
            {
                // SAFETY: each token belongs to one piece.
                let to = unsafe { to.part(token * pairs * 2..(token + 1) * pairs * 2) };
                let (cosines, sines) = to.split_at_mut(pairs);
                for ((cosine, sine), inv_freq) in cosines.iter_mut().zip(sines).zip(inv_freq) {
                    let (sin, cos) = (position as f32 * inv_freq).sin_cos();
                    (*cosine, *sine) = (cos * factor, sin * factor);
                }
            }
        });
        Self { pairs, values }
    }
}

/// Rotates each head of `[tokens, heads, head_dim]`; values beyond the rotated ones pass through.
pub fn rope(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    heads: usize,
    head_dim: usize,
    table: &RopeTable,
    out: &mut [f32],
) {
    let width = heads * head_dim;
    let tokens = table.values.len() / (table.pairs * 2).max(1);
    assert!(table.pairs * 2 <= head_dim, "more pairs than a head has");
    assert!(x.len() == out.len() && (table.pairs == 0 || x.len() == tokens * width), "rope");
    if table.pairs == 0 {
        return out.copy_from_slice(x);
    }
    let out = SharedMut::new(out);
    pool.run(tokens.div_ceil(TOKENS_IN_PIECE), |piece, _| {
        let (first, end) = (piece * TOKENS_IN_PIECE, tokens.min((piece + 1) * TOKENS_IN_PIECE));
        // SAFETY: each piece has its own tokens.
        let out = unsafe { out.part(first * width..end * width) };
        let x = &x[first * width..end * width];
        let angles = &table.values[first * table.pairs * 2..end * table.pairs * 2];
        isa.run(Rotate { x, width, head_dim, angles, pairs: table.pairs, out });
    });
}

struct Rotate<'a> {
    x: &'a [f32],
    width: usize,
    head_dim: usize,
    angles: &'a [f32],
    pairs: usize,
    out: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let tokens = self.x.chunks_exact(self.width).zip(self.out.chunks_exact_mut(self.width));
        for ((x, out), angles) in tokens.zip(self.angles.chunks_exact(self.pairs * 2)) {
            let (cosines, sines) = angles.split_at(self.pairs);
            let heads = x.chunks_exact(self.head_dim).zip(out.chunks_exact_mut(self.head_dim));
            for (x, out) in heads {
                let (rotated, rest) = out.split_at_mut(self.pairs * 2);
                rest.copy_from_slice(&x[self.pairs * 2..]);
                let (out_a, out_b) = rotated.split_at_mut(self.pairs);
                let (a, b) = x[..self.pairs * 2].split_at(self.pairs);
                let inputs = a.chunks(L::WIDTH).zip(b.chunks(L::WIDTH));
                let angles = cosines.chunks(L::WIDTH).zip(sines.chunks(L::WIDTH));
                let outputs = out_a.chunks_mut(L::WIDTH).zip(out_b.chunks_mut(L::WIDTH));
                for (((a, b), (cos, sin)), (out_a, out_b)) in inputs.zip(angles).zip(outputs) {
                    let (a, b) = (lanes.load_some(a), lanes.load_some(b));
                    let (cos, sin) = (lanes.load_some(cos), lanes.load_some(sin));
                    lanes.store_some(lanes.sub(lanes.mul(a, cos), lanes.mul(b, sin)), out_a);
                    lanes.store_some(lanes.mul_add(b, cos, lanes.mul(a, sin)), out_b);
                }
            }
        }
    }
}

const TOKENS_IN_PIECE: usize = 16;
