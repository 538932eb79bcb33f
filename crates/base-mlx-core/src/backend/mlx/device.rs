use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use base_mlx_sys::{self as mlx, Array};

use super::array::{MlxArray, Recipe};
use super::kernels::{self, Kernels};
use super::rope::Frequencies;
use crate::backend::DeviceError;

/// What MLX can compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlxDevice {
    Metal,
    Cuda,
    /// MLX's own CPU device: for checking what runs on the others, not for users.
    Cpu,
}

/// How MLX is set up.
#[derive(Clone, Debug)]
pub struct MlxOptions {
    pub device: MlxDevice,
    /// Our kernels where we have them (CUDA), or MLX's stock operations alone.
    pub own_kernels: bool,
    /// Most bytes that MLX and own kernels keep for reuse; `None` is a quarter of the device's memory, at most 16 GiB.
    pub cache_bytes: Option<usize>,
    /// A folder where compiled kernels are kept between runs.
    pub kernel_cache: Option<PathBuf>,
}

/// The one device of the process, owned by one thread.
pub(super) struct Device {
    pub(super) kind: MlxDevice,
    name: String,
    memory_bytes: Option<usize>,
    pub(super) kernels: Option<Kernels>,
    pub(super) frequencies: Frequencies,
    /// The same as own kernels want them.
    pub(super) radians: Frequencies,
    /// GPUs before the M3 compute with bfloat16 by detours, and with float16 directly.
    pub(super) avoids_bfloat: bool,
}

impl Device {
    /// The thread that calls this owns MLX from then on.
    pub(super) fn open(options: MlxOptions) -> Result<Self, DeviceError> {
        mlx::load().map_err(|error| DeviceError::Unavailable(error.to_string()))?;
        let MlxOptions { device: kind, own_kernels, cache_bytes, .. } = options;
        let device = kind.mlx();
        if !kind.is_available() {
            return Err(kind.is_missing());
        }
        mlx::set_default_device(device).map_err(failed)?;
        let info = |key| mlx::device_info(device, key).unwrap_or_default();
        let memory_bytes = ["max_recommended_working_set_size", "total_memory", "memory_size"]
            .into_iter()
            .find_map(|key| info(key).parse::<usize>().ok())
            .filter(|_| kind != MlxDevice::Cpu);
        let share = memory_bytes.map_or(CACHE_BYTES, |bytes| bytes / 4);
        let cache_bytes = cache_bytes.unwrap_or(share.min(CACHE_BYTES));
        if let (MlxDevice::Metal, Some(bytes)) = (kind, memory_bytes) {
            // Else the system may page out weights that are in use.
            mlx::set_wired_limit(bytes).map_err(failed)?;
        }
        let kernels = match (kind, &*info("architecture")) {
            // They use what Hopper has and no one before it, and have run on nothing else.
            (MlxDevice::Cuda, "sm_90") if own_kernels => {
                Kernels::new(options.kernel_cache, kernels::machine(device))
            }
            (MlxDevice::Cuda, other) if own_kernels => {
                tracing::info!("no own kernels: they are for sm_90 (H100, H200), not {other}");
                None
            }
            _ => None,
        };
        // Own kernels write to memory that MLX cannot reuse, nor the other way round.
        let shares = if kernels.is_some() { 2 } else { 1 };
        mlx::set_cache_limit(cache_bytes / shares).map_err(failed)?;
        if kernels.is_some() {
            mlx::set_cuda_cache_limit(cache_bytes / shares).map_err(failed)?;
        }
        let name = match kind {
            MlxDevice::Cpu => "cpu".to_owned(),
            _ => info("device_name"),
        };
        let avoids_bfloat = kind == MlxDevice::Metal
            && ["Apple M1", "Apple M2"].iter().any(|old| name.starts_with(old));
        let (frequencies, radians) = Default::default();
        Ok(Self { kind, name, memory_bytes, kernels, frequencies, radians, avoids_bfloat })
    }

    /// For people: `cuda, NVIDIA H100 80GB HBM3, mlx 0.32.4`.
    pub(super) fn describe(&self) -> String {
        let kernels = match (self.kind, &self.kernels) {
            (MlxDevice::Cuda, None) => ", stock operations alone",
            _ => "",
        };
        format!("{}, {}, mlx {}{kernels}", self.kind.name(), self.name, mlx::version())
    }

    /// Bytes that could still be had, where MLX says so beside what other processes use.
    pub(super) fn free_bytes(&self) -> Option<usize> {
        let unused = self.memory_bytes?.saturating_sub(mlx::active_memory());
        let free = mlx::device_info(self.kind.mlx(), "free_memory").ok();
        let free = free.and_then(|bytes| bytes.parse::<usize>().ok());
        Some(free.map_or(unused, |free| unused.min(free + mlx::cache_memory())))
    }

    /// A recipe that waits for who wants it, where own kernels can make something of it; else its values.
    pub(super) fn offer(&self, recipe: Recipe) -> MlxArray {
        if self.kernels.is_some() {
            return MlxArray::later(recipe);
        }
        // Not kept: who holds the inputs keeps MLX from writing over them.
        MlxArray::known(match &recipe {
            Recipe::Norm(norm) => self.rms_norm(norm),
            Recipe::Linear(product) => self.product(product),
            Recipe::Rope(turned) => self.rope(turned),
            Recipe::Known | Recipe::Host(_) | Recipe::Parameter(_) => {
                unreachable!("made by operations only")
            }
        })
    }

    /// A parameter where the device reads it best. CUDA's host can only write to memory that moves between the two.
    pub(super) fn settled(&self, written: &Mutex<Option<Array>>) -> Array {
        let mut written = locked(written);
        let array = written.as_ref().expect("a parameter settles once").clone();
        if self.kind != MlxDevice::Cuda {
            *written = None;
            return array;
        }
        let copy = built(copied(&array));
        // If memory is short this fails, and what was written is still there.
        built(mlx::eval(&[&copy]));
        *written = None;
        copy
    }

    /// Prompts attend in multiples of so many rows and keys. On CUDA MLX has a plan made for every size, which takes longer
    /// than attending, so it is asked for few. The CPU device does the same, so that it is checked.
    pub(super) fn attention_unit(&self) -> usize {
        match self.kind {
            MlxDevice::Cuda => 256,
            MlxDevice::Cpu => 16,
            MlxDevice::Metal => 1,
        }
    }

    /// From so many rows on a product that is not ours is computed with its weight expanded first, once for all of them.
    pub(super) fn dequantize_from_rows(&self, bits: u32) -> usize {
        match (self.kind, &self.kernels) {
            // MLX's products of more than a few rows are compiled when first used, which takes ten seconds and more for each
            // width and number of rows, in the middle of an answer. Expanding is faster from 256 rows on anyway: an H100
            // takes 974 and 370 µs for 2,048 rows by a 9728×2560 weight.
            (MlxDevice::Cuda, Some(_)) if matches!(bits, 4 | 8) => 2,
            (MlxDevice::Cuda, Some(_)) => 8,
            (MlxDevice::Cuda, None) => 256,
            (MlxDevice::Metal | MlxDevice::Cpu, _) => usize::MAX,
        }
    }
}

impl MlxDevice {
    fn mlx(self) -> mlx::Device {
        match self {
            Self::Metal => mlx::Device::Metal,
            Self::Cuda => mlx::Device::Cuda,
            Self::Cpu => mlx::Device::Cpu,
        }
    }

    pub(super) fn is_available(self) -> bool {
        self.mlx().is_available()
    }

    /// Whether the MLX that is loaded was built to have it.
    pub(super) fn is_expected(self) -> bool {
        match self {
            Self::Metal => cfg!(target_os = "macos"),
            Self::Cuda => mlx::has_cuda(),
            Self::Cpu => true,
        }
    }

    pub(super) fn is_missing(self) -> DeviceError {
        let without_cuda = self == Self::Cuda && !mlx::has_cuda();
        let hint = match without_cuda && cfg!(target_os = "linux") {
            true => "\nhint: this build's MLX is for CPUs; build with --features cuda",
            false => "",
        };
        let what = format!("MLX {} finds no {} device here{hint}", mlx::version(), self.name());
        DeviceError::Unavailable(what)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Metal => "metal",
            Self::Cuda => "cuda",
            Self::Cpu => "mlx-cpu",
        }
    }
}

/// A copy that the device makes, so that it lies in the device's own memory.
pub(super) fn copied(array: &Array) -> mlx::Result<Array> {
    array.add(&Array::scalar(0.0, array.dtype()?)?)
}

/// What MLX built of arguments that we have checked.
#[track_caller]
pub(super) fn built<T>(result: mlx::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("MLX refuses an operation: {error}"))
}

pub(super) fn failed(error: mlx::Error) -> DeviceError {
    DeviceError::Failed(error.to_string())
}

/// No state here can be left half changed by a panic.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const CACHE_BYTES: usize = 16 << 30;
