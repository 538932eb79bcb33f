//! Sums, norms and gates, row by row or value by value.

use crate::isa::{Isa, Kernel, Lanes};
use crate::pool::Pool;
use crate::shared::SharedMut;

/// `out = a + b`
pub fn add(pool: &Pool, isa: Isa, a: &[f32], b: &[f32], out: &mut [f32]) {
    struct Add<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
    impl Kernel for Add<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            zip(lanes, self.0, self.1, self.2, |a, b| lanes.add(a, b));
        }
    }
    pieces(pool, a, b, out, |a, b, out| isa.run(Add(a, b, out)));
}

/// `out = gate / (1 + exp(-gate)) * up`
pub fn swiglu(pool: &Pool, isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    struct Swiglu<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
    impl Kernel for Swiglu<'_> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) {
            let (zero, one) = (lanes.splat(0.0), lanes.splat(1.0));
            zip(lanes, self.0, self.1, self.2, |gate, up| {
                let below = lanes.add(one, lanes.exp(lanes.sub(zero, gate)));
                lanes.mul(lanes.div(gate, below), up)
            });
        }
    }
    pieces(pool, gate, up, out, |gate, up, out| isa.run(Swiglu(gate, up, out)));
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
            let [[squares]] = crate::linear::dot_tile(lanes, [x], [x]);
            let factor = lanes.splat(1.0 / (squares / width as f32 + self.eps).sqrt());
            zip(lanes, x, self.w, out, |x, w| lanes.mul(lanes.mul(x, factor), w));
        }
    }
}

/// `out = f(a, b)`, eight at a time; a tail goes through the same arithmetic.
#[inline(always)]
fn zip<L: Lanes>(lanes: L, a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(L::V, L::V) -> L::V) {
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let (out, out_tail) = out.as_chunks_mut::<8>();
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        lanes.store(f(lanes.load(a), lanes.load(b)), out);
    }
    if !out_tail.is_empty() {
        lanes.store_some(f(lanes.load_some(a_tail), lanes.load_some(b_tail)), out_tail);
    }
}

/// Cuts three slices of one length alike.
fn pieces(
    pool: &Pool,
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
    f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync,
) {
    assert!(a.len() == b.len() && a.len() == out.len(), "three slices of one length");
    let out = SharedMut::new(out);
    pool.run(a.len().div_ceil(VALUES_IN_PIECE), |piece, _| {
        let values = piece * VALUES_IN_PIECE..a.len().min((piece + 1) * VALUES_IN_PIECE);
        // SAFETY: each piece has its own values.
        let out = unsafe { out.part(values.clone()) };
        f(&a[values.clone()], &b[values], out);
    });
}

/// Work for some microseconds; a multiple of eight, so that only the last piece has a tail.
const VALUES_IN_PIECE: usize = 16 * 1024;
