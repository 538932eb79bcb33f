//! Arrays: handles, types, and data in and out.

use std::ptr::NonNull;

use crate::Result;
use crate::library::{loaded, table};
use crate::runtime::owned;
use crate::table::{RawArray, Table};

/// The element types that base-mlx uses. The bridge has them in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Dtype {
    Bool,
    U8,
    I32,
    U32,
    F16,
    BF16,
    F32,
}

impl Dtype {
    const ALL: [Self; 7] =
        [Self::Bool, Self::U8, Self::I32, Self::U32, Self::F16, Self::BF16, Self::F32];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
        }
    }
}

/// A handle to an array, computed or still to be. Cloning it copies no data.
#[repr(transparent)]
pub struct Array(NonNull<RawArray>);

// SAFETY: a handle is one pointer to shared, atomically counted state. What may be called from any thread only
// copies or drops it, or reads its type and shape, which never change; everything else asks for the owning thread.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

/// A matrix in affine groups: `w = scale * q + bias`. The bridge reads it as it lies.
#[derive(Clone)]
#[repr(C)]
pub struct Quantized {
    /// U32 `[…, out, in * bits / 32]`
    pub packed: Array,
    /// `[…, out, in / group_size]`
    pub scales: Array,
    /// `[…, out, in / group_size]`
    pub biases: Array,
    pub group_size: i32,
    pub bits: i32,
}

/// Calls an operation that makes an array.
pub(crate) fn build(operation: impl FnOnce(&Table) -> Option<Array>) -> Result<Array> {
    let mlx = owned()?;
    operation(mlx).ok_or_else(|| mlx.error())
}

impl Array {
    /// Copies little-endian elements, row by row, from any thread. Panics if their number is not the shape's.
    pub fn from_bytes(bytes: &[u8], shape: &[usize], dtype: Dtype) -> Result<Self> {
        let elements: usize = shape.iter().product();
        assert_eq!(bytes.len(), elements * dtype.size(), "bytes of {shape:?} {dtype:?}");
        // Memory and a copy, no stream: MLX's allocator has its own lock.
        let mlx = table()?;
        (mlx.from_bytes)(bytes.into(), shape.into(), dtype).ok_or_else(|| mlx.error())
    }

    pub fn from_f32(values: &[f32], shape: &[usize]) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::from_bytes(&bytes, shape, Dtype::F32)
    }

    pub fn from_u32(values: &[u32], shape: &[usize]) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::from_bytes(&bytes, shape, Dtype::U32)
    }

    pub fn full(shape: &[usize], value: f32, dtype: Dtype) -> Result<Self> {
        build(|mlx| (mlx.full)(shape.into(), value, dtype))
    }

    /// Without dimensions; broadcasts to any shape.
    pub fn scalar(value: f32, dtype: Dtype) -> Result<Self> {
        Self::full(&[], value, dtype)
    }

    /// `start, start + step, …` below `stop`.
    pub fn arange(start: f32, stop: f32, step: f32, dtype: Dtype) -> Result<Self> {
        build(|mlx| (mlx.arange)(start, stop, step, dtype))
    }

    /// Computes the array and copies its elements, little-endian, row by row.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mlx = owned()?;
        let length = self.nbytes();
        let mut bytes = Vec::with_capacity(length);
        // SAFETY: there is room for so many, and they are there when the copy has succeeded.
        unsafe {
            mlx.check((mlx.copy_to)(self, bytes.as_mut_ptr(), length))?;
            bytes.set_len(length);
        }
        Ok(bytes)
    }

    /// Where the device finds the elements of an array that was evaluated, row by row only if they lie so. On CUDA
    /// the device's address, whether its work is done or not; elsewhere the CPU's.
    ///
    /// # Safety
    /// The address is good as long as the array is, and what is done with it must keep MLX's order of work.
    pub unsafe fn data_pointer(&self) -> Result<u64> {
        let mlx = owned()?;
        let mut address = 0;
        mlx.check((mlx.data_pointer)(self, &mut address))?;
        Ok(address)
    }

    /// Whether the array is computed, so that reading it waits for nothing.
    pub fn is_available(&self) -> Result<bool> {
        let mlx = owned()?;
        match (mlx.is_available)(self) {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(mlx.error()),
        }
    }

    /// Fails for a type that is not in [`Dtype`].
    pub fn dtype(&self) -> Result<Dtype> {
        let mlx = loaded();
        let number = usize::try_from((mlx.dtype)(self)).map_err(|_| mlx.error())?;
        Ok(Dtype::ALL[number])
    }

    pub fn shape(&self) -> Vec<usize> {
        (loaded().shape)(self).get().iter().map(|dim| *dim as usize).collect()
    }

    pub fn nbytes(&self) -> usize {
        (loaded().nbytes)(self)
    }
}

impl Clone for Array {
    fn clone(&self) -> Self {
        (loaded().clone)(self).expect("memory for one pointer")
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        // SAFETY: this handle is the one that owns it.
        unsafe { (loaded().drop)(self.0) };
    }
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Array({:?} {:?})", self.dtype(), self.shape())
    }
}
