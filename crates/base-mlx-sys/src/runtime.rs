//! Running graphs, choosing a device, and what MLX says of its memory.

use std::sync::OnceLock;
use std::thread::ThreadId;

use crate::array::{Array, handles};
use crate::bridge::ffi;
use crate::{Error, Result};

/// A process has one MLX, so this is the process's: the thread that called it first.
static OWNER: OnceLock<ThreadId> = OnceLock::new();

/// Every operation that touches MLX's streams asks first.
pub(crate) fn owned() -> Result<()> {
    let here = std::thread::current().id();
    if *OWNER.get_or_init(|| here) == here { Ok(()) } else { Err(Error::Thread) }
}

/// Computes the arrays and waits for them.
pub fn eval(arrays: &[&Array]) -> Result<()> {
    owned()?;
    Ok(ffi::eval(&handles(arrays))?)
}

/// Starts computing the arrays without waiting for them.
pub fn async_eval(arrays: &[&Array]) -> Result<()> {
    owned()?;
    Ok(ffi::async_eval(&handles(arrays))?)
}

/// Waits for everything that was started.
pub fn synchronize() -> Result<()> {
    owned()?;
    Ok(ffi::synchronize()?)
}

/// Where operations run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// MLX's own CPU device, for checking.
    Cpu,
    Metal,
    Cuda,
}

impl Device {
    /// Whether this build and this machine have it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Metal => ffi::gpu_is_available() && ffi::metal_is_available(),
            Self::Cuda => ffi::gpu_is_available() && ffi::cuda_is_available(),
        }
    }
}

/// The device of all operations that follow.
pub fn set_default_device(device: Device) -> Result<()> {
    owned()?;
    Ok(ffi::set_default_device(device != Device::Cpu)?)
}

/// What the device says of itself, as `device_name`, `architecture` or `memory_size`; empty if it says nothing.
pub fn device_info(device: Device, key: &str) -> Result<String> {
    Ok(ffi::device_info(device != Device::Cpu, key)?)
}

/// MLX's version.
pub fn version() -> String {
    ffi::version()
}

/// Bytes that arrays hold.
pub fn active_memory() -> usize {
    ffi::active_memory()
}

/// The most bytes that arrays have held since the start or [`reset_peak_memory`].
pub fn peak_memory() -> usize {
    ffi::peak_memory()
}

/// Bytes that are free but kept for reuse.
pub fn cache_memory() -> usize {
    ffi::cache_memory()
}

pub fn reset_peak_memory() {
    ffi::reset_peak_memory();
}

/// Gives the bytes that are kept for reuse back to the system.
pub fn clear_cache() {
    ffi::clear_cache();
}

/// How many bytes are kept for reuse at most. Returns the limit before.
pub fn set_cache_limit(bytes: usize) -> Result<usize> {
    Ok(ffi::set_cache_limit(bytes)?)
}

/// From how many bytes on MLX waits for running work before it takes more. Returns the limit before.
pub fn set_memory_limit(bytes: usize) -> Result<usize> {
    Ok(ffi::set_memory_limit(bytes)?)
}

/// How many bytes Metal keeps wired at most. Returns the limit before.
pub fn set_wired_limit(bytes: usize) -> Result<usize> {
    Ok(ffi::set_wired_limit(bytes)?)
}
