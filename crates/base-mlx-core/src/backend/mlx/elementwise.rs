use base_mlx_sys::{Array, Dtype};

use super::MlxBackend;
use super::array::{MlxArray, Recipe};
use super::device::{Device, built};
use super::linear;
use crate::backend::Activation;
use crate::tensor::Tensor;

pub(super) fn swiglu(
    backend: &MlxBackend,
    gate: &Tensor<MlxBackend>,
    up: &Tensor<MlxBackend>,
) -> MlxArray {
    assert_eq!(gate.shape(), up.shape(), "swiglu");
    let device = backend.device();
    if let (Some(Recipe::Linear(gate)), Some(Recipe::Linear(up))) =
        (gate.array().recipe(), up.array().recipe())
        && let Some(gated) = linear::gated_in_one(device, gate, up)
    {
        return MlxArray::known(gated);
    }
    let (gate, up) = (gate.array().value(device), up.array().value(device));
    MlxArray::known(built(gate.swiglu(up)))
}

pub(super) fn add(
    backend: &MlxBackend,
    a: &Tensor<MlxBackend>,
    b: &Tensor<MlxBackend>,
) -> MlxArray {
    assert_eq!(a.shape(), b.shape(), "add");
    let device = backend.device();
    if let Some(Recipe::Linear(product)) = b.array().recipe()
        && let Some(sum) = linear::added_in_one(device, product, a.array())
    {
        return MlxArray::known(sum);
    }
    let shape = a.shape();
    let a = built(a.array().value(device).reshape(shape.dims()));
    let b = built(b.array().value(device).reshape(shape.dims()));
    MlxArray::known(built(a.add(&b)))
}

pub(super) fn activate(
    backend: &MlxBackend,
    x: &Tensor<MlxBackend>,
    activation: Activation,
) -> MlxArray {
    let given = x.array().value(backend.device());
    // Rounded once, as large terms cancel out.
    let x = &built(given.astype(Dtype::F32));
    let dtype = Dtype::F32;
    let number = |value| built(Array::scalar(value, dtype));
    let times = |x: &Array, value| built(x.multiply(&number(value)));
    let activated = match activation {
        Activation::Gelu => {
            let erf = built(times(x, std::f32::consts::FRAC_1_SQRT_2).erf());
            built(times(x, 0.5).multiply(&built(erf.add(&number(1.0)))))
        }
        Activation::GeluTanh => {
            let cube = built(built(x.multiply(x)).multiply(x));
            let inner = built(x.add(&times(&cube, 0.044_715)));
            // x (1 + tanh(y)) / 2 is x times the sigmoid of 2y.
            built(x.multiply(&built(times(&inner, 2.0 * 0.797_884_6).sigmoid())))
        }
        Activation::Relu => built(x.maximum(&number(0.0))),
        Activation::Silu => built(x.multiply(&built(x.sigmoid()))),
        Activation::Tanh => built(x.tanh()),
    };
    MlxArray::known(built(activated.astype(built(given.dtype()))))
}

pub(super) fn take_rows(backend: &MlxBackend, x: &Tensor<MlxBackend>, rows: &[u32]) -> MlxArray {
    // Decoding wants every row, in order.
    if rows.len() == x.rows() && rows.iter().enumerate().all(|(place, row)| place == *row as usize)
    {
        return x.array().clone();
    }
    let width = x.shape().elements() / x.rows().max(1);
    assert!(rows.iter().all(|row| (*row as usize) < x.rows()), "take_rows of {:?}", x.shape());
    let device = backend.device();
    if rows.is_empty() {
        let dtype = built(x.array().value(device).dtype());
        return MlxArray::known(built(Array::full(&[0, width], 0.0, dtype)));
    }
    let x = built(x.array().value(device).reshape(&[x.rows(), width]));
    MlxArray::known(device.rows_of(&x, &built(Array::from_u32(rows, &[rows.len()]))))
}

impl Device {
    /// The rows of `x` `[rows, width]` that `indices` names. The caller has seen that there are such rows.
    pub(super) fn rows_of(&self, x: &Array, indices: &Array) -> Array {
        debug_assert_eq!(built(indices.dtype()), Dtype::U32, "indices");
        #[allow(unsafe_code)]
        // SAFETY: both callers compared the indices with the rows, or have cut them off.
        built(unsafe { x.take(indices, 0) })
    }
}
