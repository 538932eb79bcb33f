//! The bridge's table as `bridge.h` declares it, field by field. The functions are safe to call with what their types
//! ask for; MLX's own conditions (bounds, the owning thread) are kept by the callers.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::array::{Array, Dtype, Quantized};
use crate::{Error, Result};

/// Of what both sides of the table are written in. The build script gives the bridge the same number.
pub(crate) const VERSION: u64 = crate::version::version(&[
    include_bytes!("bridge.h"),
    include_bytes!("bridge.cc"),
    include_bytes!("cuda.h"),
    include_bytes!("cuda.cc"),
    include_bytes!("table.rs"),
]);

/// `const T*` and a length.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Slice<'a, T> {
    data: *const T,
    length: usize,
    lent: PhantomData<&'a [T]>,
}

impl<'a, T> From<&'a [T]> for Slice<'a, T> {
    fn from(slice: &'a [T]) -> Self {
        Self { data: slice.as_ptr(), length: slice.len(), lent: PhantomData }
    }
}

impl<'a> From<&'a str> for Slice<'a, u8> {
    fn from(text: &'a str) -> Self {
        text.as_bytes().into()
    }
}

impl<'a, T> Slice<'a, T> {
    pub(crate) fn get(self) -> &'a [T] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: made from a slice above, or by the bridge from memory that lives as long as its function says.
        unsafe { std::slice::from_raw_parts(self.data, self.length) }
    }
}

impl Slice<'_, u8> {
    pub(crate) fn to_text(self) -> String {
        String::from_utf8_lossy(self.get()).into_owned()
    }
}

pub(crate) type Text<'a> = Slice<'a, u8>;
pub(crate) type Arrays<'a> = Slice<'a, &'a Array>;

/// What the bridge knows of a kernel.
#[repr(C)]
pub(crate) struct RawKernel([u8; 0]);

#[repr(u8)]
pub(crate) enum Unary {
    Erf,
    Exp,
    Negative,
    Sigmoid,
    Tanh,
}

#[repr(u8)]
pub(crate) enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Maximum,
    Minimum,
    Less,
    LessEqual,
    Equal,
    LogicalAnd,
    LogicalOr,
}

#[repr(u8)]
pub(crate) enum Along {
    Sum,
    Max,
    Argmax,
    Cumsum,
    Argsort,
}

#[repr(u8)]
pub(crate) enum Memory {
    Active,
    Peak,
    Cache,
}

#[repr(u8)]
pub(crate) enum Limit {
    Cache,
    CudaCache,
    Wired,
}

#[repr(C)]
pub(crate) struct KernelText<'a> {
    pub(crate) name: Text<'a>,
    pub(crate) inputs: Slice<'a, Text<'a>>,
    pub(crate) outputs: Slice<'a, Text<'a>>,
    pub(crate) source: Text<'a>,
    pub(crate) header: Text<'a>,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawConstant<'a> {
    pub(crate) name: Text<'a>,
    pub(crate) value: i32,
    pub(crate) is_dtype: bool,
}

#[repr(C)]
pub(crate) struct RawOutput<'a> {
    pub(crate) shape: Slice<'a, usize>,
    pub(crate) dtype: Dtype,
}

#[repr(C)]
pub(crate) struct RawLaunch<'a> {
    pub(crate) grid: [i32; 3],
    pub(crate) threadgroup: [i32; 3],
    pub(crate) constants: Slice<'a, RawConstant<'a>>,
    pub(crate) outputs: Slice<'a, RawOutput<'a>>,
}

/// What the bridge knows of a compiled function.
#[repr(C)]
pub(crate) struct RawCompiled([u8; 0]);

#[repr(C)]
pub(crate) struct RawFunction {
    pub(crate) state: *const c_void,
    pub(crate) call: unsafe extern "C" fn(*const c_void, Arrays, *mut Array) -> bool,
    pub(crate) drop: unsafe extern "C" fn(*const c_void),
    pub(crate) count: usize,
}

/// A kernel that the driver compiled.
#[repr(C)]
pub(crate) struct RawCudaFunction([u8; 0]);

#[repr(C)]
pub(crate) struct RawCudaLaunch<'a> {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) cluster: u32,
    pub(crate) shared_memory: u32,
    pub(crate) addresses: Slice<'a, u64>,
    pub(crate) numbers: Slice<'a, u32>,
    pub(crate) outputs: Slice<'a, RawOutput<'a>>,
}

/// A pointer to a new array, null if there is none.
type New = Option<Array>;
type Dims<'a> = Slice<'a, usize>;
type Axes<'a> = Slice<'a, i32>;

#[repr(C)]
pub(crate) struct Table {
    pub(crate) version: u64,
    last_error: extern "C" fn() -> Text<'static>,

    pub(crate) clone: extern "C" fn(&Array) -> New,
    pub(crate) drop: unsafe extern "C" fn(NonNull<RawArray>),
    pub(crate) dtype: extern "C" fn(&Array) -> i32,
    pub(crate) shape: for<'a> extern "C" fn(&'a Array) -> Slice<'a, i32>,
    pub(crate) nbytes: extern "C" fn(&Array) -> usize,
    pub(crate) is_available: extern "C" fn(&Array) -> i32,

    pub(crate) from_bytes: extern "C" fn(Slice<u8>, Dims, Dtype) -> New,
    pub(crate) full: extern "C" fn(Dims, f32, Dtype) -> New,
    pub(crate) arange: extern "C" fn(f32, f32, f32, Dtype) -> New,
    pub(crate) copy_to: unsafe extern "C" fn(&Array, *mut u8, usize) -> bool,
    pub(crate) data_pointer: extern "C" fn(&Array, &mut u64) -> bool,

    pub(crate) astype: extern "C" fn(&Array, Dtype) -> New,
    pub(crate) reshape: extern "C" fn(&Array, Dims) -> New,
    pub(crate) transpose: extern "C" fn(&Array, Axes) -> New,
    pub(crate) slice: extern "C" fn(&Array, Dims, Dims) -> New,
    pub(crate) slice_update: extern "C" fn(Array, &Array, Dims, Dims) -> New,
    pub(crate) concatenate: extern "C" fn(Arrays, i32) -> New,
    pub(crate) take: unsafe extern "C" fn(&Array, &Array, i32) -> New,
    pub(crate) take_along_axis: unsafe extern "C" fn(&Array, &Array, i32) -> New,

    pub(crate) unary: extern "C" fn(&Array, Unary) -> New,
    pub(crate) binary: extern "C" fn(&Array, &Array, Binary) -> New,
    pub(crate) select: extern "C" fn(&Array, &Array, &Array) -> New,
    pub(crate) along: extern "C" fn(&Array, i32, bool, Along) -> New,
    pub(crate) matmul: extern "C" fn(&Array, &Array) -> New,

    pub(crate) quantized_matmul: extern "C" fn(&Array, &Quantized) -> New,
    pub(crate) gather_qmm: unsafe extern "C" fn(&Array, &Quantized, &Array) -> New,
    pub(crate) dequantize: extern "C" fn(&Quantized) -> New,

    pub(crate) rms_norm: extern "C" fn(&Array, &Array, f32) -> New,
    pub(crate) layer_norm: extern "C" fn(&Array, &Array, &Array, f32) -> New,
    pub(crate) rope: extern "C" fn(&Array, i32, f32, &Array, &Array) -> New,
    pub(crate) attention: extern "C" fn(&Array, &Array, &Array, f32, bool, Option<&Array>) -> New,

    pub(crate) swiglu: extern "C" fn(&Array, &Array) -> New,

    pub(crate) metal_kernel: extern "C" fn(&KernelText) -> Option<NonNull<RawKernel>>,
    pub(crate) cuda_kernel: extern "C" fn(&KernelText, i32) -> Option<NonNull<RawKernel>>,
    pub(crate) call_kernel:
        unsafe extern "C" fn(NonNull<RawKernel>, Arrays, &RawLaunch, *mut Array) -> bool,
    pub(crate) drop_kernel: unsafe extern "C" fn(NonNull<RawKernel>),

    pub(crate) compile: unsafe extern "C" fn(&RawFunction) -> Option<NonNull<RawCompiled>>,
    pub(crate) call_compiled:
        unsafe extern "C" fn(NonNull<RawCompiled>, Arrays, *mut Array) -> bool,
    pub(crate) drop_compiled: unsafe extern "C" fn(NonNull<RawCompiled>),

    pub(crate) cuda_compile: extern "C" fn(Text, Text, Slice<Text>, &mut Text, &mut Text) -> bool,
    pub(crate) cuda_function:
        unsafe extern "C" fn(Text, Text, u32) -> Option<NonNull<RawCudaFunction>>,
    pub(crate) cuda_launch:
        unsafe extern "C" fn(NonNull<RawCudaFunction>, Arrays, &RawCudaLaunch, *mut Array) -> bool,
    pub(crate) cuda_empty: extern "C" fn(Dims, Dtype) -> New,
    pub(crate) cuda_pinned: extern "C" fn(Slice<u8>, Dims, Dtype) -> New,

    pub(crate) eval: extern "C" fn(Arrays) -> bool,
    pub(crate) async_eval: extern "C" fn(Arrays) -> bool,
    pub(crate) synchronize: extern "C" fn() -> bool,

    pub(crate) has_cuda: bool,
    pub(crate) backend_is_available: extern "C" fn(crate::Device) -> bool,
    pub(crate) set_default_device: extern "C" fn(bool) -> bool,
    pub(crate) device_info: extern "C" fn(bool, Text, &mut Text) -> bool,
    pub(crate) mlx_version: extern "C" fn() -> Text<'static>,

    pub(crate) memory: extern "C" fn(Memory) -> usize,
    pub(crate) reset_peak_memory: extern "C" fn(),
    pub(crate) clear_cache: extern "C" fn() -> bool,
    pub(crate) set_limit: extern "C" fn(Limit, usize, &mut usize) -> bool,
}

/// What the bridge knows of an array.
#[repr(C)]
pub(crate) struct RawArray([u8; 0]);

impl Table {
    /// What the call that just failed on this thread said.
    pub(crate) fn error(&self) -> Error {
        Error::Mlx((self.last_error)().to_text())
    }

    pub(crate) fn check(&self, done: bool) -> Result<()> {
        if done { Ok(()) } else { Err(self.error()) }
    }
}
