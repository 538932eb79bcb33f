//! Functions that networks put between their layers, value by value.

use crate::isa::{Isa, Kernel, Lanes};
use crate::pool::{Pool, VALUES_IN_PIECE};
use crate::shared::SharedMut;

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * Φ(x)` with the distribution function of the normal distribution. (Hendrycks and Gimpel 2016, arXiv:1606.08415)
    Gelu,
    /// The same by way of a tanh, from the same paper.
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `x / (1 + exp(-x))`
    Silu,
    Tanh,
}

/// `out = activation(x)`
pub fn activate(pool: &Pool, isa: Isa, activation: Activation, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "activate");
    let out = SharedMut::new(out);
    pool.run(x.len().div_ceil(VALUES_IN_PIECE), |piece, _| {
        let values = piece * VALUES_IN_PIECE..x.len().min((piece + 1) * VALUES_IN_PIECE);
        // SAFETY: each piece has its own values.
        let out = unsafe { out.part(values.clone()) };
        isa.run(Activate { activation, x: &x[values], out });
    });
}

struct Activate<'a> {
    activation: Activation,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        // The choice is made once and not for each vector.
        match self.activation {
            Activation::Gelu => self.each::<L, Gelu>(lanes),
            Activation::GeluTanh => self.each::<L, GeluTanh>(lanes),
            Activation::Relu => self.each::<L, Relu>(lanes),
            Activation::Silu => self.each::<L, Silu>(lanes),
            Activation::Tanh => self.each::<L, Tanh>(lanes),
        }
    }
}

impl Activate<'_> {
    #[inline(always)]
    fn each<L: Lanes, F: Function>(self, lanes: L) {
        for (x, out) in self.x.chunks(L::WIDTH).zip(self.out.chunks_mut(L::WIDTH)) {
            lanes.store_some(F::of(lanes, lanes.load_some(x)), out);
        }
    }
}

/// What a closure would be, but always inlined.
trait Function {
    fn of<L: Lanes>(lanes: L, x: L::V) -> L::V;
}

struct Gelu;

impl Function for Gelu {
    #[inline(always)]
    fn of<L: Lanes>(lanes: L, x: L::V) -> L::V {
        // What Φ of the size is short of one is taken off a positive number, and is what is left of a negative one.
        let size = lanes.max(lanes.sub(lanes.splat(0.0), x), x);
        let short = erfc(lanes, lanes.mul(size, lanes.splat(std::f32::consts::FRAC_1_SQRT_2)));
        let positive = Relu::of(lanes, x);
        lanes.mul_add(lanes.mul(size, lanes.splat(-0.5)), short, positive)
    }
}

struct GeluTanh;

impl Function for GeluTanh {
    #[inline(always)]
    fn of<L: Lanes>(lanes: L, x: L::V) -> L::V {
        let cube = lanes.mul(lanes.mul(x, x), x);
        let inner = lanes.mul_add(cube, lanes.splat(0.044_715), x);
        // x (1 + tanh(y)) / 2 is x times the sigmoid of 2y.
        let twice = lanes.mul(inner, lanes.splat(2.0 * 0.797_884_6));
        lanes.mul(x, sigmoid(lanes, twice))
    }
}

struct Relu;

impl Function for Relu {
    #[inline(always)]
    fn of<L: Lanes>(lanes: L, x: L::V) -> L::V {
        // In this order what is not a number stays none.
        lanes.max(lanes.splat(0.0), x)
    }
}

struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn of<L: Lanes>(lanes: L, x: L::V) -> L::V {
        lanes.mul(x, sigmoid(lanes, x))
    }
}

struct Tanh;

impl Function for Tanh {
    #[inline(always)]
    fn of<L: Lanes>(lanes: L, x: L::V) -> L::V {
        let twice = lanes.splat(2.0);
        lanes.sub(lanes.mul(twice, sigmoid(lanes, lanes.mul(twice, x))), lanes.splat(1.0))
    }
}

#[inline(always)]
fn sigmoid<L: Lanes>(lanes: L, x: L::V) -> L::V {
    let one = lanes.splat(1.0);
    let inverse = lanes.exp(lanes.sub(lanes.splat(0.0), x));
    lanes.div(one, lanes.add(one, inverse))
}

/// One minus the error function of what is not negative, to 1.5e-7. (Abramowitz and Stegun 1964, 7.1.26)
#[inline(always)]
fn erfc<L: Lanes>(lanes: L, x: L::V) -> L::V {
    let one = lanes.splat(1.0);
    let t = lanes.div(one, lanes.mul_add(x, lanes.splat(0.327_591_1), one));
    let mut p = lanes.splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_8, -0.284_496_74, 0.254_829_6] {
        p = lanes.mul_add(p, t, lanes.splat(c));
    }
    let bell = lanes.exp(lanes.mul(lanes.sub(lanes.splat(0.0), x), x));
    lanes.mul(lanes.mul(p, t), bell)
}
