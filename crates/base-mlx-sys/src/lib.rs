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
//! Without MLX ([`BUILT`] is false) nothing else is here. macOS always has it, Linux with the feature `mlx` or `cuda`.

#[cfg(has_mlx)]
mod array;
#[cfg(has_mlx)]
mod compile;
#[cfg(all(has_mlx, feature = "cuda", target_os = "linux"))]
mod cuda;
#[cfg(has_mlx)]
mod error;
#[cfg(has_mlx)]
mod kernel;
#[cfg(has_mlx)]
mod library;
#[cfg(has_mlx)]
mod operations;
#[cfg(has_mlx)]
mod runtime;
#[cfg(has_mlx)]
mod table;

#[cfg(has_mlx)]
pub use {
    array::{Array, Dtype, Quantized},
    compile::Compiled,
    error::{Error, Result},
    kernel::{Constant, Kernel, Launch},
    library::load,
    operations::Mask,
    runtime::{
        Device, active_memory, async_eval, cache_memory, clear_cache, device_info, eval,
        peak_memory, reset_peak_memory, set_cache_limit, set_default_device, set_memory_limit,
        set_wired_limit, synchronize, version,
    },
};

/// Whether this build can use MLX, if the machine it runs on lets it.
pub const BUILT: bool = cfg!(has_mlx);
