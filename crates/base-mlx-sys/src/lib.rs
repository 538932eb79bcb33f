//! MLX as a small Rust API: arrays, the operations that base-mlx uses, own kernels, devices and memory. The only
//! C++ of the project. Names are MLX's; where nothing is said, an operation is the one of that name in MLX.
//!
//! Arrays are lazy: an operation builds a node of a graph, [`eval`] or [`async_eval`] runs it. MLX's exceptions come
//! back as [`Error::Mlx`] with MLX's own sentence.
//!
//! MLX keeps its streams by thread, so one thread owns it: the first that calls an operation. Any other gets
//! [`Error::Thread`]. Handles may be cloned, sent, asked for their shape, and dropped anywhere.
//!
//! What reads where its data says (indices, own kernels) is `unsafe`: MLX looks at no bound there.
//!
//! Without the feature `mlx` this crate is empty.
#![cfg(feature = "mlx")]

mod array;
mod bridge;
mod kernel;
mod runtime;

pub use array::{Array, Dtype, Mask, Quantized};
pub use kernel::{Constant, Kernel, Launch};
pub use runtime::{
    Device, active_memory, async_eval, cache_memory, clear_cache, device_info, eval, peak_memory,
    reset_peak_memory, set_cache_limit, set_default_device, set_memory_limit, set_wired_limit,
    synchronize, version,
};

/// Why an operation was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// An exception of MLX, in its words.
    Mlx(String),
    /// Another thread owns MLX.
    Thread,
}

pub type Result<T> = std::result::Result<T, Error>;

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Mlx(said) => f.write_str(said),
            Self::Thread => f.write_str("MLX belongs to another thread of this process"),
        }
    }
}

impl std::error::Error for Error {}

impl From<cxx::Exception> for Error {
    fn from(exception: cxx::Exception) -> Self {
        Self::Mlx(exception.what().to_owned())
    }
}
