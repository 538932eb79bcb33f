//! Own kernels, compiled at run time by the device's own compiler.

use cxx::UniquePtr;

use crate::array::{Array, Dtype, dims, handles};
use crate::bridge::ffi;
use crate::{Error, Result, runtime::owned};

/// The body of a kernel and the names of its arguments.
pub struct Kernel(UniquePtr<ffi::Kernel>);

// SAFETY: a std::function that captures strings; nothing of it belongs to a thread.
unsafe impl Send for Kernel {}

/// A constant that the source is compiled with.
#[derive(Clone, Copy, Debug)]
pub enum Constant {
    Int(i32),
    /// A type name.
    Dtype(Dtype),
}

/// One call of a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Threads in all.
    pub grid: [i32; 3],
    /// Threads of a block.
    pub threadgroup: [i32; 3],
    pub constants: &'a [(&'a str, Constant)],
    pub outputs: &'a [(&'a [usize], Dtype)],
}

impl Kernel {
    /// A kernel in Metal's language. Compiled when it is first run.
    pub fn metal(
        name: &str,
        inputs: &[&str],
        outputs: &[&str],
        source: &str,
        header: &str,
    ) -> Result<Self> {
        Ok(Self(ffi::metal_kernel(name, inputs, outputs, source, header)?))
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
        Ok(Self(ffi::cuda_kernel(name, inputs, outputs, source, header, shared_memory)?))
    }

    /// The outputs, in the order of their names.
    ///
    /// # Safety
    /// The source must stay within the inputs and outputs that it is given, and may write into an input only where
    /// no other handle relies on what it held.
    pub unsafe fn call(&self, inputs: &[&Array], launch: Launch) -> Result<Vec<Array>> {
        owned()?;
        let shapes: Vec<i32> = launch.outputs.iter().flat_map(|(shape, _)| dims(shape)).collect();
        let ranks: Vec<i32> = launch.outputs.iter().map(|(shape, _)| shape.len() as i32).collect();
        let dtypes: Vec<u8> = launch.outputs.iter().map(|(_, dtype)| *dtype as u8).collect();
        let constants: Vec<ffi::Template> = launch
            .constants
            .iter()
            .map(|(name, constant)| match constant {
                Constant::Int(value) => ffi::Template { name, value: *value, is_dtype: false },
                Constant::Dtype(dtype) => {
                    ffi::Template { name, value: *dtype as i32, is_dtype: true }
                }
            })
            .collect();
        let outputs = ffi::call_kernel(
            &self.0,
            &handles(inputs),
            &shapes,
            &ranks,
            &dtypes,
            &launch.grid,
            &launch.threadgroup,
            &constants,
        )?;
        let outputs: &cxx::CxxVector<ffi::Array> = &outputs;
        (0..ffi::count(outputs))
            .map(|index| ffi::at(outputs, index).map(Array::new).map_err(Error::from))
            .collect()
    }
}
