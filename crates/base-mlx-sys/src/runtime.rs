//! Running graphs, choosing a device, and what MLX says of its memory.

use std::sync::OnceLock;
use std::thread::ThreadId;

use crate::array::Array;
use crate::library::table;
use crate::table::{Limit, Memory, Table, Text};
use crate::{Error, Result};

/// A process has one MLX, so this is the process's: the thread that called it first.
static OWNER: OnceLock<ThreadId> = OnceLock::new();

/// Every operation that touches MLX's streams calls through this.
pub(crate) fn owned() -> Result<&'static Table> {
    let mlx = table()?;
    let here = std::thread::current().id();
    if *OWNER.get_or_init(|| here) == here { Ok(mlx) } else { Err(Error::Thread) }
}

/// Computes the arrays and waits for them.
pub fn eval(arrays: &[&Array]) -> Result<()> {
    let mlx = owned()?;
    mlx.check((mlx.eval)(arrays.into()))
}

/// Starts computing the arrays without waiting for them.
pub fn async_eval(arrays: &[&Array]) -> Result<()> {
    let mlx = owned()?;
    mlx.check((mlx.async_eval)(arrays.into()))
}

/// Waits for everything that was started.
pub fn synchronize() -> Result<()> {
    let mlx = owned()?;
    mlx.check((mlx.synchronize)())
}

/// Where operations run. The bridge has them in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Device {
    /// MLX's own CPU device, for checking.
    Cpu,
    Metal,
    Cuda,
}

impl Device {
    /// Whether this build and this machine have it.
    pub fn is_available(self) -> bool {
        table().is_ok_and(|mlx| (mlx.backend_is_available)(self))
    }
}

/// Whether MLX was built for CUDA, be there a GPU or not.
pub fn has_cuda() -> bool {
    table().is_ok_and(|mlx| mlx.has_cuda)
}

/// The device of all operations that follow.
pub fn set_default_device(device: Device) -> Result<()> {
    let mlx = owned()?;
    mlx.check((mlx.set_default_device)(device != Device::Cpu))
}

/// What the device says of itself, as `device_name`, `architecture` or `memory_size`; empty if it says nothing.
pub fn device_info(device: Device, key: &str) -> Result<String> {
    let mlx = table()?;
    let mut value: Text = "".into();
    mlx.check((mlx.device_info)(device != Device::Cpu, key.into(), &mut value))?;
    Ok(value.to_text())
}

/// MLX's version; empty before it is loaded.
pub fn version() -> String {
    table().map(|mlx| (mlx.mlx_version)().to_text()).unwrap_or_default()
}

fn memory(which: Memory) -> usize {
    table().map(|mlx| (mlx.memory)(which)).unwrap_or_default()
}

/// Bytes that arrays hold.
pub fn active_memory() -> usize {
    memory(Memory::Active)
}

/// The most bytes that arrays have held since the start or [`reset_peak_memory`].
pub fn peak_memory() -> usize {
    memory(Memory::Peak)
}

/// Bytes that are free but kept for reuse.
pub fn cache_memory() -> usize {
    memory(Memory::Cache)
}

pub fn reset_peak_memory() {
    if let Ok(mlx) = table() {
        (mlx.reset_peak_memory)();
    }
}

/// Gives the bytes that are kept for reuse back to the system. Waits for the device.
pub fn clear_cache() -> Result<()> {
    let mlx = owned()?;
    mlx.check((mlx.clear_cache)())
}

fn set_limit(which: Limit, bytes: usize) -> Result<usize> {
    let mlx = table()?;
    let mut before = 0;
    mlx.check((mlx.set_limit)(which, bytes, &mut before))?;
    Ok(before)
}

/// How many bytes MLX keeps for reuse at most. Returns the limit before.
pub fn set_cache_limit(bytes: usize) -> Result<usize> {
    set_limit(Limit::Cache, bytes)
}

/// The same of what own CUDA kernels write to, which has a cache of its own.
pub fn set_cuda_cache_limit(bytes: usize) -> Result<usize> {
    set_limit(Limit::CudaCache, bytes)
}

/// How many bytes Metal keeps wired at most. Returns the limit before.
pub fn set_wired_limit(bytes: usize) -> Result<usize> {
    set_limit(Limit::Wired, bytes)
}
