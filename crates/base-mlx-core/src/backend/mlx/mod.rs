//! Computing with Apple's MLX: Metal on Macs, CUDA on NVIDIA, and MLX's CPU device for checking the others. Lazy: an
//! operation builds a node of MLX's graph, and downloading or starting an array runs it.
//!
//! On CUDA own kernels compute what MLX is slow at (`kernels.rs`, `cuda/`); they see several operations of a family at
//! once because arrays stay recipes until their values are wanted (`array.rs`).
//!
//! MLX belongs to one thread, the one that opened the backend. Only uploads may come from others.

mod array;
mod attention;
mod device;
mod elementwise;
mod kernels;
mod kv;
mod linear;
mod norm;
mod paged;
mod rope;
mod sample;

pub use array::MlxArray;
pub use device::{MlxDevice, MlxOptions};
pub use kv::MlxKv;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use base_mlx_sys::{self as mlx, Array};

use self::array::{Recipe, mlx_dtype};
use self::device::{Device, failed};
use self::kv::{Growing, Store};
use self::paged::{BLOCK, Paged, Pages};
use super::{
    Activation, Attend, Backend, Batch, DeviceError, Draw, KvFormat, LayerNorm, LayerSpec, Qkv,
    Role, Rope, Span,
};
use crate::tensor::{Dtype, HostArray, HostWeight, Shape, Tensor, Weight};

/// MLX as a device, computing in the type of one model's checkpoint.
#[derive(Clone)]
pub struct MlxBackend {
    device: Arc<Device>,
    /// Of activations, keys and values.
    dtype: Dtype,
}

impl MlxBackend {
    /// Loads MLX and takes its device. The calling thread owns MLX from then on; activations are F32 until
    /// [`Backend::for_model`] says otherwise.
    pub fn open(options: MlxOptions) -> Result<Self, DeviceError> {
        Ok(Self { device: Arc::new(Device::open(options)?), dtype: Dtype::F32 })
    }

    /// Whether this program has MLX and MLX has that device. An error if it was built to have them, and something is
    /// missing.
    pub fn is_there(device: MlxDevice) -> Result<bool, DeviceError> {
        match mlx::load() {
            Ok(()) if device.is_available() => Ok(true),
            Ok(()) if device.is_expected() => Err(device.is_missing()),
            Ok(()) => Ok(false),
            Err(mlx::Error::NotFound { .. }) if !mlx::BUILT => Ok(false),
            Err(error) => Err(DeviceError::Unavailable(error.to_string())),
        }
    }

    /// What it computes with, for people: "cuda, NVIDIA H100 80GB HBM3, mlx 0.32.4".
    pub fn describe(&self) -> String {
        self.device.describe()
    }

    /// What it computes in, and keeps keys and values as.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn device(&self) -> &Device {
        &self.device
    }

    /// Written where the host can write, from any thread.
    fn parameter(&self, data: HostArray) -> Result<MlxArray, DeviceError> {
        let array = Array::from_bytes(&data.data, &data.shape, mlx_dtype(data.dtype));
        let written = Mutex::new(Some(array.map_err(failed)?));
        Ok(MlxArray::later(Recipe::Parameter(written)))
    }

    /// In the type that this device computes the model in, so that nothing is kept twice.
    fn floats(&self, data: HostArray) -> Result<HostArray, DeviceError> {
        if data.dtype == self.dtype { Ok(data) } else { converted(&data, self.dtype) }
    }
}

impl Backend for MlxBackend {
    type Array = MlxArray;
    type Kv = MlxKv;
    type Layout = Option<Pages>;
    const CHOOSES: bool = true;

    fn for_model(&self, dtype: Dtype, kv: Option<KvFormat>) -> Result<Self, DeviceError> {
        let dtype = match dtype {
            Dtype::BF16 if self.device.avoids_bfloat => Dtype::F16,
            dtype => dtype,
        };
        let of_model = Self { device: self.device.clone(), dtype };
        if let Some(other) = kv.filter(|&kv| Some(kv) != of_model.kv_format()) {
            return Err(DeviceError::Unavailable(format!(
                "keys and values as {other} are kept on the CPU only: {} keeps those of this model as {dtype}",
                self.describe(),
            )));
        }
        Ok(of_model)
    }

    fn upload(&self, data: HostArray) -> Result<MlxArray, DeviceError> {
        // A parameter will be converted when activations meet it.
        if (data.dtype, self.dtype) == (Dtype::F32, Dtype::F16) {
            within_float16(&data.to_f32())?;
        }
        Ok(MlxArray::later(Recipe::Host(data)))
    }

    fn upload_weight(&self, data: HostWeight, _: Role) -> Result<Weight<Self>, DeviceError> {
        let shape = Shape::new(&data.shape());
        Ok(match data {
            HostWeight::Affine { packed, scales, biases, bits, group_size }
                if GROUP_SIZES.contains(&group_size) =>
            {
                Weight::Affine {
                    packed: self.parameter(packed)?,
                    scales: self.parameter(self.floats(scales)?)?,
                    biases: self.parameter(self.floats(biases)?)?,
                    bits,
                    group_size,
                    shape,
                }
            }
            HostWeight::Affine { .. } => {
                let dense = self.floats(data.dequantize())?;
                Weight::Dense { array: self.parameter(dense)?, shape }
            }
            HostWeight::Dense(array) => {
                Weight::Dense { array: self.parameter(self.floats(array)?)?, shape }
            }
        })
    }

    fn weight_bytes(&self, weight: &Weight<Self>) -> usize {
        let elements = weight.shape().elements();
        match weight {
            Weight::Dense { .. } => elements * self.dtype.size(),
            Weight::Affine { bits, group_size, .. } => {
                elements / 8 * *bits as usize + elements / group_size * 2 * self.dtype.size()
            }
        }
    }

    fn download(&self, x: &MlxArray) -> Result<HostArray, DeviceError> {
        let value = x.value(&self.device);
        let dtype = match value.dtype().map_err(failed)? {
            mlx::Dtype::F32 => Dtype::F32,
            mlx::Dtype::F16 => Dtype::F16,
            mlx::Dtype::BF16 => Dtype::BF16,
            mlx::Dtype::U32 => Dtype::U32,
            other => panic!("a result of {other:?}"),
        };
        let data = value.to_bytes().map_err(failed)?;
        Ok(HostArray { dtype, shape: value.shape(), data: data.into() })
    }

    fn start(&self, arrays: &[&MlxArray]) -> Result<(), DeviceError> {
        let values: Vec<&Array> = arrays.iter().map(|array| array.value(&self.device)).collect();
        mlx::async_eval(&values).map_err(failed)
    }

    fn finish(&self) {
        if let Err(error) = mlx::synchronize() {
            tracing::debug!("waiting for MLX: {error}");
        }
    }

    fn new_kv(&self, layers: &[LayerSpec]) -> Result<MlxKv, DeviceError> {
        Ok(MlxKv(match self.kv_block(layers) {
            Some(_) => Store::Paged(Paged::new(layers, mlx_dtype(self.dtype))),
            None => Store::Growing(Growing::new(layers, mlx_dtype(self.dtype))),
        }))
    }

    fn kv_block(&self, layers: &[LayerSpec]) -> Option<usize> {
        let kernels = self.device.kernels.as_ref().filter(|kernels| kernels.can_attend(layers));
        (self.dtype != Dtype::F32).then_some(kernels?).map(|_| BLOCK)
    }

    fn kv_format(&self) -> Option<KvFormat> {
        match self.dtype {
            Dtype::F16 => Some(KvFormat::F16),
            Dtype::F32 => Some(KvFormat::F32),
            _ => None,
        }
    }

    fn kv_identity(&self) -> String {
        let kernels = if self.device.kernels.is_some() { "own" } else { "stock" };
        format!("{} {} with {kernels} kernels", self.describe(), self.dtype)
    }

    fn kv_bytes(&self, LayerSpec { kv_heads, head_dim }: LayerSpec) -> usize {
        2 * kv_heads * head_dim * self.dtype.size()
    }

    fn active_bytes(&self) -> Option<usize> {
        Some(mlx::active_memory())
    }

    fn cached_bytes(&self) -> usize {
        mlx::cache_memory()
    }

    fn clear_cache(&self) {
        if let Err(error) = mlx::clear_cache() {
            tracing::debug!("giving memory back: {error}");
        }
    }

    fn free_bytes(&self) -> Option<usize> {
        self.device.free_bytes()
    }

    fn step_tokens(&self) -> usize {
        match self.device.kind {
            MlxDevice::Metal | MlxDevice::Cuda => 2048,
            MlxDevice::Cpu => 128,
        }
    }

    fn warm_ups(&self) -> &[usize] {
        match (&self.device.kernels, self.device.kind) {
            // Each number of rows that products are compiled for, then what a prompt of more is computed with. 63, because
            // a sequence's 64 rows would attend as a prompt does.
            (Some(_), _) => &[256, 63, 32, 16, 8, 4, 2, 1],
            (None, MlxDevice::Cpu) => &[],
            (None, _) => &[1],
        }
    }

    fn embed(&self, table: &Weight<Self>, tokens: &Tensor<Self>) -> MlxArray {
        linear::embed(self, table, tokens)
    }

    fn linear(&self, x: &Tensor<Self>, w: &Weight<Self>, bias: Option<&Tensor<Self>>) -> MlxArray {
        linear::linear(self, x, w, bias)
    }

    fn rms_norm(&self, x: &Tensor<Self>, w: &Tensor<Self>, eps: f32) -> MlxArray {
        norm::rms_norm(self, x, w, eps)
    }

    fn layer_norm(&self, x: &Tensor<Self>, norm: LayerNorm<Self>) -> MlxArray {
        norm::layer_norm(self, x, norm)
    }

    fn activate(&self, x: &Tensor<Self>, activation: Activation) -> MlxArray {
        elementwise::activate(self, x, activation)
    }

    fn rope(&self, x: &Tensor<Self>, positions: &Tensor<Self>, rope: &Rope) -> MlxArray {
        rope::rope(self, x, positions, rope)
    }

    fn swiglu(&self, gate: &Tensor<Self>, up: &Tensor<Self>) -> MlxArray {
        elementwise::swiglu(self, gate, up)
    }

    fn add(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> MlxArray {
        elementwise::add(self, a, b)
    }

    fn take_rows(&self, x: &Tensor<Self>, rows: &[u32]) -> MlxArray {
        elementwise::take_rows(self, x, rows)
    }

    fn layout(&self, spans: &mut [Span<Self>]) -> Result<Option<Pages>, DeviceError> {
        Pages::of(&self.device, spans)
    }

    fn attend(
        &self,
        layer: usize,
        qkv: Qkv<Self>,
        batch: &mut Batch<Self>,
        how: Attend,
    ) -> MlxArray {
        attention::attend(self, layer, qkv, batch, how)
    }

    fn attend_within(&self, qkv: Qkv<Self>, texts: &[Range<usize>], scale: f32) -> MlxArray {
        attention::attend_within(self, qkv, texts, scale)
    }

    fn choose(&self, logits: &Tensor<Self>, vocab_size: usize, rows: &[Draw]) -> MlxArray {
        sample::choose(self, logits, vocab_size, rows)
    }
}

/// Fails if a value is beyond the type.
fn converted(data: &HostArray, dtype: Dtype) -> Result<HostArray, DeviceError> {
    let values = data.to_f32();
    let bytes: Vec<u8> = match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::F16 => {
            within_float16(&values)?;
            values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect()
        }
        other => panic!("a model computed in {other}"),
    };
    Ok(HostArray { dtype, shape: data.shape.clone(), data: bytes.into() })
}

/// It ends at 65,504.
fn within_float16(values: &[f32]) -> Result<(), DeviceError> {
    match values.iter().find(|x| x.abs() > half::f16::MAX.to_f32()) {
        Some(&value) => Err(DeviceError::Beyond { value, dtype: Dtype::F16 }),
        None => Ok(()),
    }
}

/// The groups that MLX's products know. GGUF's smaller ones are expanded.
const GROUP_SIZES: [usize; 3] = [32, 64, 128];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_beyond_float16_is_an_error_that_says_so() {
        let within = HostArray::from_f32(&[2], &[1.5, -65_504.0]);
        assert_eq!(converted(&within, Dtype::F16).unwrap().to_f32(), [1.5, -65_504.0]);
        let beyond = converted(&HostArray::from_f32(&[1], &[1e5]), Dtype::F16).unwrap_err();
        assert!(
            matches!(beyond, DeviceError::Beyond { value: 1e5, dtype: Dtype::F16 }),
            "{beyond}"
        );
        assert!(converted(&HostArray::from_f32(&[1], &[1e5]), Dtype::BF16).is_ok());
    }
}
