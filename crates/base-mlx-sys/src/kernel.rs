//! Own kernels, compiled at run time by the device's own compiler.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crate::Result;
use crate::array::{Array, Dtype};
use crate::library::{loaded, table};
use crate::runtime::owned;
use crate::table::{KernelText, RawConstant, RawKernel, RawLaunch, RawOutput, Table, Text};

/// The body of a kernel and the names of its arguments.
pub struct Kernel(NonNull<RawKernel>);

// SAFETY: strings and vectors that are empty between calls; nothing of it belongs to a thread.
unsafe impl Send for Kernel {}

/// A constant that the source is compiled with.
#[derive(Clone, Copy, Debug)]
pub enum Constant {
    Int(i32),
    /// A type name.
    Dtype(Dtype),
}

/// One call of a kernel with that many outputs.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a, const OUTPUTS: usize> {
    /// Threads in all.
    pub grid: [i32; 3],
    /// Threads of a block.
    pub threadgroup: [i32; 3],
    /// Sixteen at most.
    pub constants: &'a [(&'a str, Constant)],
    pub outputs: [(&'a [usize], Dtype); OUTPUTS],
}

const MOST_CONSTANTS: usize = 16;

impl Kernel {
    /// A kernel in Metal's language. Compiled when it is first run.
    pub fn metal(
        name: &str,
        inputs: &[&str],
        outputs: &[&str],
        source: &str,
        header: &str,
    ) -> Result<Self> {
        Self::new(name, inputs, outputs, source, header, |mlx, text| (mlx.metal_kernel)(text))
    }

    /// A kernel in CUDA C++, with `shared_memory` bytes beside its static ones. Compiled when it is first run.
    pub fn cuda(
        name: &str,
        inputs: &[&str],
        outputs: &[&str],
        source: &str,
        header: &str,
        shared_memory: i32,
    ) -> Result<Self> {
        Self::new(name, inputs, outputs, source, header, |mlx, text| {
            (mlx.cuda_kernel)(text, shared_memory)
        })
    }

    fn new(
        name: &str,
        inputs: &[&str],
        outputs: &[&str],
        source: &str,
        header: &str,
        make: impl FnOnce(&Table, &KernelText) -> Option<NonNull<RawKernel>>,
    ) -> Result<Self> {
        let mlx = table()?;
        let inputs: Vec<Text> = inputs.iter().map(|name| (*name).into()).collect();
        let outputs: Vec<Text> = outputs.iter().map(|name| (*name).into()).collect();
        let text = KernelText {
            name: name.into(),
            inputs: inputs.as_slice().into(),
            outputs: outputs.as_slice().into(),
            source: source.into(),
            header: header.into(),
        };
        make(mlx, &text).map(Self).ok_or_else(|| mlx.error())
    }

    /// The outputs, in the order of their names.
    ///
    /// # Safety
    /// The source must stay within the inputs and outputs that it is given, and may write into an input only where
    /// no other handle relies on what it held.
    pub unsafe fn call<const OUTPUTS: usize>(
        &self,
        inputs: &[&Array],
        launch: Launch<OUTPUTS>,
    ) -> Result<[Array; OUTPUTS]> {
        let mlx = owned()?;
        // Some 250 calls a token: nothing here asks for memory.
        let none = RawConstant { name: "".into(), value: 0, is_dtype: false };
        let mut constants = [none; MOST_CONSTANTS];
        for (raw, (name, constant)) in constants.iter_mut().zip(launch.constants) {
            let (value, is_dtype) = match constant {
                Constant::Int(value) => (*value, false),
                Constant::Dtype(dtype) => (*dtype as i32, true),
            };
            *raw = RawConstant { name: (*name).into(), value, is_dtype };
        }
        let constants = &constants[..launch.constants.len()];
        let outputs = launch.outputs.map(|(shape, dtype)| RawOutput { shape: shape.into(), dtype });
        let raw = RawLaunch {
            grid: launch.grid,
            threadgroup: launch.threadgroup,
            constants: constants.into(),
            outputs: outputs.as_slice().into(),
        };
        let mut arrays = MaybeUninit::<[Array; OUTPUTS]>::uninit();
        // SAFETY: there is room for one array an output; the rest is the caller's.
        let called =
            unsafe { (mlx.call_kernel)(self.0, inputs.into(), &raw, arrays.as_mut_ptr().cast()) };
        mlx.check(called)?;
        // SAFETY: it has succeeded, so all of them are there.
        Ok(unsafe { arrays.assume_init() })
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: this handle is the one that owns it.
        unsafe { (loaded().drop_kernel)(self.0) };
    }
}
