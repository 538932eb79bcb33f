//! Computing on the CPU: eager, f32, threaded, with the kernels of `base-mlx-simd`. One file for each family of
//! operations checks shapes and hands slices to the kernels. Weights are laid out anew for these.

mod array;
mod attention;
mod buffer;
mod elementwise;
mod kv;
mod linear;
mod norm;
mod rope;

pub use array::CpuArray;
pub use kv::CpuKv;

use std::ops::Range;
use std::sync::Arc;

use base_mlx_simd::{Affine, Arena, Dense, Floats, Isa, KEY_BLOCK, KvFormat, Packed, Pool};

use self::buffer::Spare;
use self::kv::KvMemory;
use self::rope::RopeTables;
use super::{
    Activation, Attend, Backend, Batch, DeviceError, LayerNorm, LayerSpec, Qkv, Role, Rope, Span,
};
use crate::tensor::{Dtype, HostArray, HostWeight, Shape, Tensor, Weight};

/// The CPU as a device: its threads, and the instructions it was found to have.
#[derive(Clone)]
pub struct CpuBackend {
    device: Arc<Device>,
    /// Where the model's weights go.
    arena: Arena,
    /// Where its keys and values go.
    kv: Arc<KvMemory>,
    /// Where the keys and values go that it forgets at once, in f32.
    exact_kv: Arc<KvMemory>,
    /// Where its activations come from and go to.
    spare: Spare,
    /// Whether factors in F32 are rounded to 16 bits, and what they are multiplied with.
    rounds: bool,
}

struct Device {
    pool: Arc<Pool>,
    isa: Isa,
    rope_tables: RopeTables,
}

impl CpuBackend {
    /// Computes on `threads` threads, at least one and at most one for each of [`base_mlx_simd::cores`].
    pub fn new(threads: usize) -> Self {
        Self::with_isa(threads, Isa::best())
    }

    /// The same with instructions of the caller's choice, for comparing one with another.
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        let pool = Arc::new(Pool::new(threads));
        let device = Device { pool, isa, rope_tables: RopeTables::default() };
        Self::of_device(Arc::new(device), KvFormat::default())
    }

    /// The same device for another model, whose keys and values are kept like this.
    pub fn with_kv(&self, format: KvFormat) -> Self {
        Self { rounds: self.rounds, ..Self::of_device(Arc::clone(&self.device), format) }
    }

    /// The same device for another model, whose products by weights in F32 round to 16 bits where that makes them faster
    /// ([`Isa::rounds_to_gain`]).
    pub fn rounding_to_gain(&self) -> Self {
        if self.isa().rounds_to_gain() { self.rounding() } else { self.clone() }
    }

    /// The same device for another model, whose products by weights in F32 round to 16 bits ([`Dense::rounded`]).
    pub fn rounding(&self) -> Self {
        Self { rounds: true, ..Self::of_device(Arc::clone(&self.device), self.kv.format) }
    }

    /// With memory of its own, which goes back as a whole when the model does.
    fn of_device(device: Arc<Device>, format: KvFormat) -> Self {
        let kv = Arc::new(KvMemory::new(format));
        let exact_kv = Arc::new(KvMemory::new(KvFormat::F32));
        let (arena, spare) = (Arena::default(), Spare::default());
        Self { device, arena, kv, exact_kv, spare, rounds: false }
    }

    /// What it computes with, for people: "cpu, 2 threads, avx2".
    pub fn describe(&self) -> String {
        let threads = self.device.pool.threads();
        let plural = if threads == 1 { "" } else { "s" };
        let tiles = if self.isa().has_tiles() { " and amx" } else { "" };
        format!("cpu, {threads} thread{plural}, {}{tiles}", self.isa().name())
    }

    /// Bytes a second that its threads read together from so many bytes of memory.
    pub fn read_bandwidth(&self, bytes: usize) -> std::io::Result<f64> {
        base_mlx_simd::read_bandwidth(self.pool(), bytes)
    }

    fn pool(&self) -> &Pool {
        &self.device.pool
    }

    fn isa(&self) -> Isa {
        self.device.isa
    }
}

impl Backend for CpuBackend {
    type Array = CpuArray;
    type Kv = CpuKv;
    type Layout = ();

    fn for_model(&self, _dtype: Dtype, kv: Option<KvFormat>) -> Result<Self, DeviceError> {
        Ok(self.with_kv(kv.unwrap_or(self.kv.format)))
    }

    fn upload(&self, data: HostArray) -> Result<CpuArray, DeviceError> {
        Ok(CpuArray::from_host(data))
    }

    fn upload_weight(&self, data: HostWeight, role: Role) -> Result<Weight<Self>, DeviceError> {
        let shape = Shape::new(&data.shape());
        let [outputs, inner] = [shape.dim(0), shape.dim(1)];
        let bytes = match &data {
            HostWeight::Dense(values) | HostWeight::Affine { packed: values, .. } => {
                values.data.len()
            }
        };
        let refused = |_| DeviceError::OutOfMemory { device: self.describe(), bytes };
        Ok(match data {
            HostWeight::Dense(array) => {
                let (pool, arena, floats) = (self.pool(), &self.arena, floats(&array));
                // Halves would be no smaller, and are few bits already.
                let rounds = self.rounds && role == Role::Factor && array.dtype == Dtype::F32;
                let dense = match rounds {
                    true => Dense::rounded(pool, self.isa(), arena, floats, outputs, inner),
                    false => Dense::new(pool, arena, floats, outputs, inner),
                };
                Weight::Dense { array: CpuArray::dense(dense.map_err(refused)?), shape }
            }
            // Scales and biases lie among the values: all three are the one array.
            HostWeight::Affine { packed, scales, biases, bits, group_size } => {
                let affine = Affine {
                    packed: &packed.data,
                    scales: floats(&scales),
                    biases: floats(&biases),
                    bits,
                    group: group_size,
                };
                let packed = Packed::new(self.pool(), &self.arena, &affine, outputs, inner);
                let array = CpuArray::packed(packed.map_err(refused)?);
                let (scales, biases) = (array.clone(), array.clone());
                Weight::Affine { packed: array, scales, biases, bits, group_size, shape }
            }
        })
    }

    fn weight_bytes(&self, weight: &Weight<Self>) -> usize {
        match weight {
            Weight::Dense { array, .. } | Weight::Affine { packed: array, .. } => array.bytes(),
        }
    }

    fn download(&self, x: &CpuArray) -> Result<HostArray, DeviceError> {
        Ok(x.to_host())
    }

    fn new_kv(&self, layers: &[LayerSpec]) -> Result<CpuKv, DeviceError> {
        Ok(self.kv.cache(layers))
    }

    fn kv_format(&self) -> Option<KvFormat> {
        Some(self.kv.format)
    }

    fn kv_identity(&self) -> String {
        // The number of threads changes nothing.
        let isa = self.device.isa.name();
        format!("cpu, {isa}, {} in blocks of {KEY_BLOCK}", self.kv.format)
    }

    fn kv_bytes(&self, layer: LayerSpec) -> usize {
        self.kv.blocks(layer).bytes().div_ceil(KEY_BLOCK)
    }

    fn kv_block(&self, _: &[LayerSpec]) -> Option<usize> {
        Some(KEY_BLOCK)
    }

    fn cached_bytes(&self) -> usize {
        self.spare.bytes()
    }

    fn host_pool(&self) -> Arc<Pool> {
        Arc::clone(&self.device.pool)
    }

    fn clear_cache(&self) {
        self.spare.clear();
    }

    fn embed(&self, table: &Weight<Self>, tokens: &Tensor<Self>) -> CpuArray {
        linear::embed(self, table, tokens)
    }

    fn linear(&self, x: &Tensor<Self>, w: &Weight<Self>, bias: Option<&Tensor<Self>>) -> CpuArray {
        let [product] = linear::linears(self, x, [(w, bias)]);
        product
    }

    fn linears<const N: usize>(
        &self,
        x: &Tensor<Self>,
        layers: [(&Weight<Self>, Option<&Tensor<Self>>); N],
    ) -> [CpuArray; N] {
        linear::linears(self, x, layers)
    }

    fn rms_norm(&self, x: &Tensor<Self>, w: &Tensor<Self>, eps: f32) -> CpuArray {
        norm::rms_norm(self, x, w, eps)
    }

    fn layer_norm(&self, x: &Tensor<Self>, norm: LayerNorm<Self>) -> CpuArray {
        norm::layer_norm(self, x, norm)
    }

    fn activate(&self, x: &Tensor<Self>, activation: Activation) -> CpuArray {
        elementwise::activate(self, x, activation)
    }

    fn rope(&self, x: &Tensor<Self>, positions: &Tensor<Self>, rope: &Rope) -> CpuArray {
        rope::rope(self, x, positions, rope)
    }

    fn swiglu(&self, gate: &Tensor<Self>, up: &Tensor<Self>) -> CpuArray {
        elementwise::swiglu(self, gate, up)
    }

    fn add(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> CpuArray {
        elementwise::add(self, a, b)
    }

    fn take_rows(&self, x: &Tensor<Self>, rows: &[u32]) -> CpuArray {
        elementwise::take_rows(x, rows)
    }

    fn layout(&self, _: &mut [Span<Self>]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn attend(
        &self,
        layer: usize,
        qkv: Qkv<Self>,
        batch: &mut Batch<Self>,
        how: Attend,
    ) -> CpuArray {
        attention::attend(self, layer, qkv, &mut batch.spans, how)
    }

    fn attend_within(&self, qkv: Qkv<Self>, texts: &[Range<usize>], scale: f32) -> CpuArray {
        attention::attend_within(self, qkv, texts, scale)
    }
}

fn floats(array: &HostArray) -> Floats<'_> {
    match array.dtype {
        Dtype::F32 => Floats::F32(&array.data),
        Dtype::F16 => Floats::F16(&array.data),
        Dtype::BF16 => Floats::BF16(&array.data),
        other => panic!("weights of {other}"),
    }
}
