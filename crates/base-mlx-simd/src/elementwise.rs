//! Sums, norms and gates, row by row or value by value.

use crate::isa::{Isa, Kernel, Lanes};
use crate::pool::{Pool, VALUES_IN_PIECE};
use crate::shared::SharedMut;

/// `out = a + b`
pub fn add(pool: &Pool, isa: Isa, a: &[f32], b: &[f32], out: &mut [f32]) {
    pieces(pool, isa, a, b, out, Add);
}

/// `out = gate / (1 + exp(-gate)) * up`
pub fn swiglu(pool: &Pool, isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    pieces(pool, isa, gate, up, out, Swiglu);
}

#[derive(Clone, Copy)]
struct Add;

impl Operation for Add {
    #[inline(always)]
    fn apply<L: Lanes>(self, lanes: L, a: L::V, b: L::V) -> L::V {
        lanes.add(a, b)
    }
}

#[derive(Clone, Copy)]
struct Swiglu;

impl Operation for Swiglu {
    #[inline(always)]
    fn apply<L: Lanes>(self, lanes: L, gate: L::V, up: L::V) -> L::V {
        let inverse = lanes.exp(lanes.sub(lanes.splat(0.0), gate));
        lanes.mul(lanes.div(gate, lanes.add(lanes.splat(1.0), inverse)), up)
    }
}

/// `out = x / sqrt(mean(x²) + eps) * w` for each row of `w.len()` values.
pub fn rms_norm(pool: &Pool, isa: Isa, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let width = w.len().max(1);
    assert!(x.len().is_multiple_of(width) && x.len() == out.len(), "rms_norm");
    let rows = x.len() / width;
    let rows_in_piece = (VALUES_IN_PIECE / width).max(1);
    let out = SharedMut::new(out);
    pool.run(rows.div_ceil(rows_in_piece), |piece, _| {
        let values = piece * rows_in_piece * width..rows.min((piece + 1) * rows_in_piece) * width;
        // SAFETY: each piece has its own rows.
        let out = unsafe { out.part(values.clone()) };
        isa.run(RmsNorm { x: &x[values], w, eps, out });
    });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let width = self.w.len().max(1);
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let squares = squares(lanes, x);
            let factor = 1.0 / (squares / width as f32 + self.eps).sqrt();
            Zip { a: x, b: self.w, out, operation: Scale(factor) }.run(lanes);
        }
    }
}

/// `out = (x - mean(x)) / sqrt(mean((x - mean(x))²) + eps) * w + bias` for each row of `w.len()` values.
pub fn layer_norm(
    pool: &Pool,
    isa: Isa,
    x: &[f32],
    LayerNorm { w, bias, eps }: LayerNorm,
    out: &mut [f32],
) {
    let width = w.len().max(1);
    assert!(x.len().is_multiple_of(width) && x.len() == out.len(), "layer_norm");
    assert_eq!(w.len(), bias.len(), "layer_norm");
    let rows = x.len() / width;
    let rows_in_piece = (VALUES_IN_PIECE / width).max(1);
    let out = SharedMut::new(out);
    pool.run(rows.div_ceil(rows_in_piece), |piece, _| {
        let values = piece * rows_in_piece * width..rows.min((piece + 1) * rows_in_piece) * width;
        // SAFETY: each piece has its own rows.
        let out = unsafe { out.part(values.clone()) };
        isa.run(LayerNormRows { x: &x[values], norm: LayerNorm { w, bias, eps }, out });
    });
}

/// What [`layer_norm`] does to a row.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    pub w: &'a [f32],
    pub bias: &'a [f32],
    pub eps: f32,
}

struct LayerNormRows<'a> {
    x: &'a [f32],
    norm: LayerNorm<'a>,
    out: &'a mut [f32],
}

impl Kernel for LayerNormRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let LayerNorm { w, bias, eps } = self.norm;
        let width = w.len().max(1);
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let mean = sum(lanes, x) / width as f32;
            let minus_mean = lanes.splat(-mean);
            for (x, out) in x.chunks(L::WIDTH).zip(out.chunks_mut(L::WIDTH)) {
                lanes.store_some(lanes.add(lanes.load_some(x), minus_mean), out);
            }
            let factor = 1.0 / (squares(lanes, out) / width as f32 + eps).sqrt();
            let factor = lanes.splat(factor);
            let parameters = w.chunks(L::WIDTH).zip(bias.chunks(L::WIDTH));
            for (out, (w, bias)) in out.chunks_mut(L::WIDTH).zip(parameters) {
                let normed = lanes.mul(lanes.load_some(out), factor);
                let (w, bias) = (lanes.load_some(w), lanes.load_some(bias));
                lanes.store_some(lanes.mul_add(normed, w, bias), out);
            }
        }
    }
}

#[inline(always)]
fn sum<L: Lanes>(lanes: L, x: &[f32]) -> f32 {
    let mut sum = lanes.splat(0.0);
    for x in x.chunks(L::WIDTH) {
        sum = lanes.add(sum, lanes.load_some(x));
    }
    lanes.sum(sum)
}

#[inline(always)]
fn squares<L: Lanes>(lanes: L, x: &[f32]) -> f32 {
    let mut sum = lanes.splat(0.0);
    let vectors = x.chunks_exact(L::WIDTH);
    let rest = lanes.load_some(vectors.remainder());
    for x in vectors {
        let x = lanes.load(x);
        sum = lanes.mul_add(x, x, sum);
    }
    sum = lanes.mul_add(rest, rest, sum);
    lanes.sum(sum)
}

/// `x * factor * w`
#[derive(Clone, Copy)]
struct Scale(f32);

impl Operation for Scale {
    #[inline(always)]
    fn apply<L: Lanes>(self, lanes: L, x: L::V, w: L::V) -> L::V {
        lanes.mul(lanes.mul(x, lanes.splat(self.0)), w)
    }
}

/// What a closure would be, but always inlined: a closure that is not misses the instruction set.
trait Operation: Copy + Send + Sync {
    fn apply<L: Lanes>(self, lanes: L, a: L::V, b: L::V) -> L::V;
}

/// `out = operation(a, b)`, a vector at a time; a tail goes through the same arithmetic.
struct Zip<'a, O> {
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
    operation: O,
}

impl<O: Operation> Kernel for Zip<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let inputs = self.a.chunks(L::WIDTH).zip(self.b.chunks(L::WIDTH));
        for ((a, b), out) in inputs.zip(self.out.chunks_mut(L::WIDTH)) {
            let (a, b) = (lanes.load_some(a), lanes.load_some(b));
            lanes.store_some(self.operation.apply(lanes, a, b), out);
        }
    }
}

/// Cuts three slices of one length alike.
fn pieces(pool: &Pool, isa: Isa, a: &[f32], b: &[f32], out: &mut [f32], operation: impl Operation) {
    assert!(a.len() == b.len() && a.len() == out.len(), "three slices of one length");
    let out = SharedMut::new(out);
    pool.run(a.len().div_ceil(VALUES_IN_PIECE), |piece, _| {
        let values = piece * VALUES_IN_PIECE..a.len().min((piece + 1) * VALUES_IN_PIECE);
        // SAFETY: each piece has its own values.
        let out = unsafe { out.part(values.clone()) };
        isa.run(Zip { a: &a[values.clone()], b: &b[values], out, operation });
    });
}
