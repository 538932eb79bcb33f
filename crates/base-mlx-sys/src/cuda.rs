//! Own CUDA kernels, compiled by the driver's compiler and launched without MLX's detours; see `cuda.cc`.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crate::Result;
use crate::array::{Array, Dtype, build};
use crate::runtime::owned;
use crate::table::{RawCudaFunction, RawCudaLaunch, RawOutput, Text};

/// A kernel on the device, ready to be launched. It stays there for the process's life.
#[derive(Clone, Copy)]
pub struct CudaFunction(NonNull<RawCudaFunction>);

// SAFETY: the driver's handle, which any thread of the process may use.
unsafe impl Send for CudaFunction {}
// SAFETY: as above.
unsafe impl Sync for CudaFunction {}

/// One launch of a kernel with that many outputs.
#[derive(Clone, Copy, Debug)]
pub struct CudaLaunch<'a, const OUTPUTS: usize> {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks along x that run together; 1: no clusters. More need a device of capability 9.
    pub cluster: u32,
    /// Dynamic, in bytes; no more than the function was made for.
    pub shared_memory: u32,
    /// Of what the device reads beside its inputs, and nothing writes meanwhile: parameters.
    pub addresses: &'a [u64],
    /// Arguments by value, after the addresses.
    pub numbers: &'a [u32],
    pub outputs: [(&'a [usize], Dtype); OUTPUTS],
}

impl CudaFunction {
    /// Compiles CUDA C++ for the current device: machine code, and the name of the kernel in it. `expression` names a
    /// `__global__` function of the source, with its template arguments.
    pub fn compile(source: &str, expression: &str, options: &[&str]) -> Result<(Vec<u8>, String)> {
        let mlx = owned()?;
        let options: Vec<Text> = options.iter().map(|option| (*option).into()).collect();
        let (mut code, mut name): (Text, Text) = ("".into(), "".into());
        let options = options.as_slice().into();
        let compiled =
            (mlx.cuda_compile)(source.into(), expression.into(), options, &mut code, &mut name);
        mlx.check(compiled)?;
        Ok((code.get().to_vec(), name.to_text()))
    }

    /// # Safety
    /// `code` is what [`CudaFunction::compile`] made on a machine with this device.
    pub unsafe fn load(code: &[u8], name: &str, shared_memory: u32) -> Result<Self> {
        let mlx = owned()?;
        // SAFETY: the caller's.
        let function = unsafe { (mlx.cuda_function)(code.into(), name.into(), shared_memory) };
        function.map(Self).ok_or_else(|| mlx.error())
    }

    /// The outputs, lying in device memory when the kernel has run.
    ///
    /// # Safety
    /// The kernel takes so many addresses of inputs, of parameters and of outputs, then so many numbers of 32 bits, and
    /// stays within what it is told of. What lies at an address lives until the kernel has run. The kernel may write into
    /// what it is told of only where MLX's order of work keeps others from reading it meanwhile.
    pub unsafe fn launch<const OUTPUTS: usize>(
        self,
        inputs: &[&Array],
        launch: CudaLaunch<OUTPUTS>,
    ) -> Result<[Array; OUTPUTS]> {
        let mlx = owned()?;
        let outputs = launch.outputs.map(|(shape, dtype)| RawOutput { shape: shape.into(), dtype });
        let raw = RawCudaLaunch {
            grid: launch.grid,
            block: launch.block,
            cluster: launch.cluster,
            shared_memory: launch.shared_memory,
            addresses: launch.addresses.into(),
            numbers: launch.numbers.into(),
            outputs: outputs.as_slice().into(),
        };
        let mut arrays = MaybeUninit::<[Array; OUTPUTS]>::uninit();
        // SAFETY: there is room for one array an output; the rest is the caller's.
        let launched =
            unsafe { (mlx.cuda_launch)(self.0, inputs.into(), &raw, arrays.as_mut_ptr().cast()) };
        mlx.check(launched)?;
        // SAFETY: it has succeeded, so all of them are there.
        Ok(unsafe { arrays.assume_init() })
    }
}

impl Array {
    /// Copies bytes to where CUDA's kernels read them over the bus: for what is read once.
    pub fn cuda_pinned(bytes: &[u8], shape: &[usize], dtype: Dtype) -> Result<Self> {
        build(|mlx| (mlx.cuda_pinned)(bytes.into(), shape.into(), dtype))
    }

    /// Allocated at once and never computed, in CUDA's own memory, where the host cannot write; holds what was left there.
    pub fn cuda_empty(shape: &[usize], dtype: Dtype) -> Result<Self> {
        build(|mlx| (mlx.cuda_empty)(shape.into(), dtype))
    }
}
