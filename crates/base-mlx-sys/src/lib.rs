//! MLX as a small Rust API: arrays, the operations that base-mlx uses, own kernels, devices and memory. The only
//! C++ of the project. Names are MLX's; where nothing is said, an operation is the one of that name in MLX.
//!
//! MLX is opened when the program runs: [`load`] comes first, and until it has succeeded all else fails with
//! [`Error::NotLoaded`], or says nothing.
//!
//! Arrays are lazy: an operation builds a node of a graph, [`eval`] or [`async_eval`] runs it. MLX's exceptions come
//! back as [`Error::Mlx`] with MLX's own sentence.
//!
//! MLX keeps its streams by thread, so one thread owns it: the first that calls an operation. Any other gets
//! [`Error::Thread`]. Handles may be cloned, sent, asked for their shape, and dropped anywhere.
//!
//! What reads where its data says (indices, own kernels) is `unsafe`: MLX looks at no bound there.
//!
//! The Rust side is always there and needs no C++. The build makes the other side on macOS, and on Linux with the feature
//! `mlx` or `cuda`; any build uses one that it finds beside its program.

mod array;
mod compile;
mod cuda;
#[cfg(target_os = "linux")]
mod cuda_libraries;
mod error;
mod kernel;
mod library;
mod operations;
mod runtime;
mod table;
mod version;

pub use {
    array::{Array, Dtype, Quantized},
    compile::Compiled,
    cuda::{CudaFunction, CudaLaunch},
    error::{Error, Result},
    kernel::{Constant, Kernel, Launch},
    library::load,
    operations::Mask,
    runtime::{
        Device, active_memory, async_eval, cache_memory, clear_cache, device_info, eval, has_cuda,
        peak_memory, reset_peak_memory, set_cache_limit, set_cuda_cache_limit, set_default_device,
        set_wired_limit, synchronize, version,
    },
};

/// Whether this build made a bridge for itself.
pub const BUILT: bool = option_env!("BASE_MLX_BRIDGE_DIR").is_some();
