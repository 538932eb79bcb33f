use base_mlx_sys::{Array, Dtype, Quantized};

use super::MlxBackend;
use super::array::{MlxArray, Recipe, mlx_dtype};
use super::device::{Device, built};
use super::kernels::{Epilogue, Float, Project};
use crate::tensor::{Tensor, Weight};

/// `x @ weight.T + bias`, still to be computed.
#[derive(Clone)]
pub(super) struct Product {
    /// `[rows, in]`
    pub(super) x: MlxArray,
    pub(super) rows: usize,
    pub(super) weight: Weight<MlxBackend>,
    pub(super) bias: Option<MlxArray>,
}

pub(super) fn linear(
    backend: &MlxBackend,
    x: &Tensor<MlxBackend>,
    w: &Weight<MlxBackend>,
    bias: Option<&Tensor<MlxBackend>>,
) -> MlxArray {
    let [out, inner] = [w.shape().dim(0), w.shape().dim(1)];
    assert_eq!(x.width(), inner, "linear: x {:?}, w {:?}", x.shape(), w.shape());
    assert!(bias.is_none_or(|bias| bias.width() == out), "linear: a bias for w {:?}", w.shape());
    let product = Product {
        x: x.array().clone(),
        rows: x.shape().elements() / inner,
        weight: w.clone(),
        bias: bias.map(|bias| bias.array().clone()),
    };
    backend.device().offer(Recipe::Linear(product))
}

pub(super) fn embed(
    backend: &MlxBackend,
    table: &Weight<MlxBackend>,
    tokens: &Tensor<MlxBackend>,
) -> MlxArray {
    let device = backend.device();
    let tokens = device.known_tokens(tokens.array(), table.shape().dim(0));
    let tokens = &tokens;
    let rows = match table {
        Weight::Dense { array, .. } => device.rows_of(array.value(device), tokens),
        Weight::Affine { packed, scales, biases, bits, group_size, .. } => {
            let dtype = mlx_dtype(backend.dtype);
            let row = |array: &MlxArray| device.rows_of(&array.value_as(device, dtype), tokens);
            let rows = Quantized {
                packed: device.rows_of(packed.value(device), tokens),
                scales: row(scales),
                biases: row(biases),
                group_size: *group_size as i32,
                bits: *bits as i32,
            };
            built(rows.dequantize())
        }
    };
    // The stream of activations is in the model's type, whatever the table is in.
    MlxArray::known(built(rows.astype(mlx_dtype(backend.dtype))))
}

impl Device {
    /// Tokens that the device chose may be none: then any row will do, for nobody will look at what comes of it.
    fn known_tokens(&self, tokens: &MlxArray, vocab_size: usize) -> Array {
        let value = tokens.value(self);
        if let Some(largest) = tokens.largest_on_host() {
            assert!((largest as usize) < vocab_size, "token {largest} of {vocab_size}");
            return value.clone();
        }
        let last = built(Array::from_u32(&[vocab_size as u32 - 1], &[1]));
        built(value.minimum(&last))
    }

    /// `[rows, out]`
    pub(super) fn product(&self, product: &Product) -> Array {
        if let Some(out) = self.project(&[product], None) {
            return out;
        }
        let Product { x, rows, weight, bias } = product;
        let inner = weight.shape().dim(1);
        let x = built(x.value(self).reshape(&[*rows, inner]));
        let dtype = built(x.dtype());
        let out = match weight {
            Weight::Dense { array, .. } => {
                built(x.matmul(&built(array.value_as(self, dtype).transpose(&[1, 0]))))
            }
            Weight::Affine { bits, .. } => {
                let w = self.quantized(weight, dtype);
                if *rows >= self.dequantize_from_rows(*bits) {
                    built(x.matmul(&built(built(w.dequantize()).transpose(&[1, 0]))))
                } else {
                    built(x.quantized_matmul(&w))
                }
            }
        };
        match bias {
            Some(bias) => built(out.add(&bias.value_as(self, dtype))),
            None => out,
        }
    }

    /// With scales and biases of the activations' type, or MLX would convert them in every product.
    fn quantized(&self, weight: &Weight<MlxBackend>, dtype: Dtype) -> Quantized {
        let Weight::Affine { packed, scales, biases, bits, group_size, .. } = weight else {
            unreachable!("the caller saw affine groups")
        };
        Quantized {
            packed: packed.value(self).clone(),
            scales: scales.value_as(self, dtype),
            biases: biases.value_as(self, dtype),
            group_size: *group_size as i32,
            bits: *bits as i32,
        }
    }
}

/// `silu(gate) * up` of two products of the same rows, in one kernel; `None` if that is not to be had.
pub(super) fn gated_in_one(device: &Device, gate: &Product, up: &Product) -> Option<Array> {
    device.launch_project(&[gate, up], Epilogue::Swiglu, None)
}

/// A product added to `residual`, in one kernel; `None` if that is not to be had.
pub(super) fn added_in_one(
    device: &Device,
    product: &Product,
    residual: &MlxArray,
) -> Option<Array> {
    device.project(&[product], Some(residual))
}

impl Device {
    /// One to three products of the same rows side by side, `[rows, out + …]`, and a sum; `None` where stock operations
    /// do better or know more.
    pub(super) fn project(
        &self,
        products: &[&Product],
        residual: Option<&MlxArray>,
    ) -> Option<Array> {
        let epilogue = if residual.is_some() { Epilogue::Add } else { Epilogue::None };
        self.launch_project(products, epilogue, residual)
    }

    fn launch_project(
        &self,
        products: &[&Product],
        epilogue: Epilogue,
        residual: Option<&MlxArray>,
    ) -> Option<Array> {
        let kernels = self.kernels.as_ref()?;
        let (first, others) = products.split_first()?;
        let rows = first.rows;
        let (bits, group_size) = kind(&first.weight)?;
        let most = match bits {
            16 => MOST_DENSE_ROWS,
            _ => MOST_ROWS,
        };
        if rows == 0 || rows > most {
            return None;
        }
        let alike = |other: &&&Product| {
            other.x.is(&first.x)
                && kind(&other.weight) == Some((bits, group_size))
                && other.bias.is_some() == first.bias.is_some()
        };
        let inner = first.weight.shape().dim(1);
        if !others.iter().all(|other| alike(&other)) || !inner.is_multiple_of(8) {
            return None;
        }
        let norm = match first.x.recipe() {
            Some(Recipe::Norm(norm)) if norm.shape == [rows, inner] => Some(norm),
            _ => None,
        };
        let dtype = built(norm.map_or(&first.x, |norm| &norm.x).value(self).dtype());
        if dtype == Dtype::F32 {
            return None; // the tensor cores have 16-bit products
        }
        let mut outputs = [0; 3];
        for (out, product) in outputs.iter_mut().zip(products) {
            *out = product.weight.shape().dim(0);
        }
        let bias = first.bias.is_some();
        let mut project = Project {
            dtype: Float::of(dtype),
            // Few numbers of rows are compiled for.
            rows: rows.next_power_of_two(),
            inner,
            bits,
            group_size,
            outputs,
            norm_eps: norm.map(|norm| norm.eps.to_bits()),
            bias,
            epilogue,
        };
        let norm = norm.filter(|_| project.can_norm());
        project.norm_eps = norm.map(|norm| norm.eps.to_bits());

        let x = norm.map_or(&first.x, |norm| &norm.x).value(self);
        let residual = residual.map_or(x, |residual| residual.value(self));
        if built(residual.dtype()) != dtype {
            return None;
        }
        // What a kernel was not compiled for it does not read.
        let mut addresses = [0; 1 + 3 * 4];
        if let Some(norm) = norm {
            addresses[0] = norm.weight.address(self, dtype);
        }
        for (places, product) in addresses[1..].chunks_exact_mut(4).zip(products) {
            places.copy_from_slice(&self.matrix(product, dtype));
        }
        #[allow(unsafe_code)]
        // SAFETY: as `launch_project` wants them: shapes were compared when they were loaded and multiplied, and the
        // parameters live as long as their model.
        Some(unsafe { kernels.project(project, [x, residual], &addresses, rows) })
    }

    /// Where packed values, scales, biases and bias of a matrix lie; 0 for what it lacks.
    fn matrix(&self, product: &Product, dtype: Dtype) -> [u64; 4] {
        let bias = product.bias.as_ref().map_or(0, |bias| bias.address(self, dtype));
        match &product.weight {
            Weight::Dense { array, .. } => [array.address(self, dtype), 0, 0, bias],
            Weight::Affine { packed, scales, biases, .. } => [
                packed.address(self, Dtype::U32),
                scales.address(self, dtype),
                biases.address(self, dtype),
                bias,
            ],
        }
    }
}

/// Bits and group size as the kernel knows them; 16 bits are dense.
fn kind(weight: &Weight<MlxBackend>) -> Option<(u32, usize)> {
    match weight {
        Weight::Dense { .. } => Some((16, 64)),
        Weight::Affine { bits: bits @ (4 | 8), group_size, .. } => Some((*bits, *group_size)),
        Weight::Affine { .. } => None,
    }
}

/// Of a quantised weight: what a block of the kernel of many rows has room for. Measured on an H100, 9728×2560 twice, 4 bits,
/// in µs at 64 rows: ours 66, expanding the weights alone 118.
const MOST_ROWS: usize = 64;
/// Above it cuBLAS reads a dense weight as fast.
const MOST_DENSE_ROWS: usize = 8;
