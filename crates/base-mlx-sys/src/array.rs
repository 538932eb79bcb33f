//! Arrays and the operations on them.

use cxx::UniquePtr;

use crate::Result;
use crate::bridge::ffi::{self, Along, Binary, Unary};
use crate::runtime::owned;

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
pub struct Array(UniquePtr<ffi::Array>);

// SAFETY: a handle is one pointer to shared, atomically counted state. What may be called from any thread only
// copies or drops it, or reads its type and shape, which never change; everything else asks for the owning thread.
unsafe impl Send for Array {}
// SAFETY: as above.
unsafe impl Sync for Array {}

/// What each query of [`Array::scaled_dot_product_attention`] sees.
#[derive(Clone, Copy)]
pub enum Mask<'a> {
    All,
    /// The last query sees all keys, each one before it one key less.
    Causal,
    /// Bool (true: seen) or added to the scores; broadcast to `[batch, heads, queries, keys]`.
    Array(&'a Array),
}

/// A matrix in affine groups: `w = scale * q + bias`.
#[derive(Clone)]
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

pub(crate) fn dims(shape: &[usize]) -> Vec<i32> {
    // What does not fit is beyond any memory; MLX refuses the negative size.
    shape.iter().map(|dim| i32::try_from(*dim).unwrap_or(-1)).collect()
}

pub(crate) fn handles(arrays: &[&Array]) -> Vec<UniquePtr<ffi::Array>> {
    arrays.iter().map(|array| ffi::copy_handle(&array.0)).collect()
}

impl Array {
    pub(crate) fn new(handle: UniquePtr<ffi::Array>) -> Self {
        Self(handle)
    }

    /// Copies little-endian elements, row by row. Panics if their number is not the shape's.
    pub fn from_bytes(bytes: &[u8], shape: &[usize], dtype: Dtype) -> Result<Self> {
        owned()?;
        let elements: usize = shape.iter().product();
        assert_eq!(bytes.len(), elements * dtype.size(), "bytes of {shape:?} {dtype:?}");
        Ok(Self(ffi::from_bytes(bytes, &dims(shape), dtype as u8)?))
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
        owned()?;
        Ok(Self(ffi::full(&dims(shape), value, dtype as u8)?))
    }

    /// `start, start + step, …` below `stop`.
    pub fn arange(start: f32, stop: f32, step: f32, dtype: Dtype) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::arange(start, stop, step, dtype as u8)?))
    }

    /// Computes the array and copies its elements, little-endian, row by row.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        owned()?;
        Ok(ffi::to_bytes(&self.0)?)
    }

    /// The elements of any float type as f32.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let bytes = self.astype(Dtype::F32)?.to_bytes()?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// The elements of any integer type as u32.
    pub fn to_u32(&self) -> Result<Vec<u32>> {
        let bytes = self.astype(Dtype::U32)?.to_bytes()?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// Fails for a type that is not in [`Dtype`].
    pub fn dtype(&self) -> Result<Dtype> {
        Ok(Dtype::ALL[usize::from(ffi::dtype_of(&self.0)?)])
    }

    pub fn shape(&self) -> Vec<usize> {
        ffi::shape_of(&self.0).into_iter().map(|dim| dim as usize).collect()
    }

    pub fn nbytes(&self) -> usize {
        ffi::nbytes_of(&self.0)
    }

    pub fn astype(&self, dtype: Dtype) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::astype(&self.0, dtype as u8)?))
    }

    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::reshape(&self.0, &dims(shape))?))
    }

    pub fn transpose(&self, axes: &[i32]) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::transpose(&self.0, axes)?))
    }

    /// The same elements, laid out row by row without gaps.
    pub fn contiguous(&self) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::contiguous(&self.0)?))
    }

    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::broadcast_to(&self.0, &dims(shape))?))
    }

    /// The elements from `start` up to `stop` in each dimension.
    pub fn slice(&self, start: &[usize], stop: &[usize]) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::slice(&self.0, &dims(start), &dims(stop))?))
    }

    /// Writes `update` from `start` up to `stop`. Where this was the only handle, MLX writes in place; otherwise it
    /// copies first, and the others keep what they had.
    pub fn slice_update(self, update: &Self, start: &[usize], stop: &[usize]) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::slice_update(self.0, &update.0, &dims(start), &dims(stop))?))
    }

    pub fn concatenate(arrays: &[&Self], axis: i32) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::concatenate(&handles(arrays), axis)?))
    }

    /// The entries of `axis` whose numbers are given.
    ///
    /// # Safety
    /// MLX checks no index: each must be below the size of `axis` when the array is computed.
    pub unsafe fn take(&self, indices: &Self, axis: i32) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::take(&self.0, &indices.0, axis)?))
    }

    /// # Safety
    /// As for [`Array::take`].
    pub unsafe fn take_along_axis(&self, indices: &Self, axis: i32) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::take_along_axis(&self.0, &indices.0, axis)?))
    }

    fn unary(&self, operation: Unary) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::unary(&self.0, operation.repr)?))
    }

    fn binary(&self, other: &Self, operation: Binary) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::binary(&self.0, &other.0, operation.repr)?))
    }

    fn along(&self, axis: i32, keepdims: bool, operation: Along) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::along(&self.0, axis, keepdims, operation.repr)?))
    }

    /// `a` where the condition holds, `b` elsewhere.
    pub fn select(condition: &Self, a: &Self, b: &Self) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::where_(&condition.0, &a.0, &b.0)?))
    }

    /// The largest element's place along `axis`: U32, without that axis.
    pub fn argmax(&self, axis: i32) -> Result<Self> {
        self.along(axis, false, Along::Argmax)
    }

    /// Places along `axis`, those of the `kth` smallest elements first.
    pub fn argpartition(&self, kth: i32, axis: i32) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::argpartition(&self.0, kth, axis)?))
    }

    /// `[…, rows, inner] @ […, inner, columns]`
    pub fn matmul(&self, other: &Self) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::matmul(&self.0, &other.0)?))
    }

    /// `self @ w.T`: `[…, in]` → `[…, out]`.
    pub fn quantized_matmul(&self, w: &Quantized) -> Result<Self> {
        owned()?;
        let Quantized { packed, scales, biases, group_size, bits } = w;
        let (packed, scales, biases) = (&packed.0, &scales.0, &biases.0);
        Ok(Self(ffi::quantized_matmul(&self.0, packed, scales, biases, *group_size, *bits)?))
    }

    /// As [`Array::quantized_matmul`], each row with the matrix of `w` `[experts, out, in]` that `indices` names.
    ///
    /// # Safety
    /// MLX checks no index: each must be below the number of experts when the product is computed.
    pub unsafe fn gather_qmm(&self, w: &Quantized, indices: &Self) -> Result<Self> {
        owned()?;
        let Quantized { packed, scales, biases, group_size, bits } = w;
        let (packed, scales, biases) = (&packed.0, &scales.0, &biases.0);
        let product =
            ffi::gather_qmm(&self.0, packed, scales, biases, &indices.0, *group_size, *bits);
        Ok(Self(product?))
    }

    /// In groups along the last axis.
    pub fn quantize(&self, group_size: i32, bits: i32) -> Result<Quantized> {
        owned()?;
        let mut parts = [UniquePtr::null(), UniquePtr::null(), UniquePtr::null()];
        let [packed, scales, biases] = &mut parts;
        ffi::quantize(&self.0, group_size, bits, packed, scales, biases)?;
        let [packed, scales, biases] = parts.map(Self);
        Ok(Quantized { packed, scales, biases, group_size, bits })
    }

    /// `x / sqrt(mean(x²) + eps) * w` over the last axis.
    pub fn rms_norm(&self, w: &Self, eps: f32) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::rms_norm(&self.0, &w.0, eps)?))
    }

    pub fn layer_norm(&self, w: &Self, b: &Self, eps: f32) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::layer_norm(&self.0, &w.0, &b.0, eps)?))
    }

    /// Rotates pairs (i, i + dims / 2) of `[batch, heads, tokens, head_dim]`: token t of a batch entry by the angle
    /// `scale * (offset + t) / freqs[i]`. `offset` is one I32 for each batch entry, `freqs` F32 `[dims / 2]`.
    pub fn rope(&self, dims: i32, scale: f32, offset: &Self, freqs: &Self) -> Result<Self> {
        owned()?;
        Ok(Self(ffi::rope(&self.0, dims, scale, &offset.0, &freqs.0)?))
    }

    /// Queries `[batch, heads, queries, head_dim]` over keys and values `[batch, kv_heads, keys, head_dim]`.
    pub fn scaled_dot_product_attention(
        &self,
        keys: &Self,
        values: &Self,
        scale: f32,
        mask: Mask,
    ) -> Result<Self> {
        owned()?;
        let (mode, mask) = match mask {
            Mask::All => ("", UniquePtr::null()),
            Mask::Causal => ("causal", UniquePtr::null()),
            Mask::Array(mask) => ("array", ffi::copy_handle(&mask.0)),
        };
        let (q, k, v) = (&self.0, &keys.0, &values.0);
        Ok(Self(ffi::scaled_dot_product_attention(q, k, v, scale, mode, &mask)?))
    }
}

/// Operations of one array and of two of shapes that broadcast.
macro_rules! elementwise {
    ($($name:ident => $operation:ident),*; $($name2:ident => $operation2:ident),*) => {
        impl Array {
            $(pub fn $name(&self) -> Result<Self> { self.unary(Unary::$operation) })*
            $(pub fn $name2(&self, other: &Self) -> Result<Self> {
                self.binary(other, Binary::$operation2)
            })*
        }
    };
}

elementwise! {
    exp => Exp, log => Log, negative => Negative, sigmoid => Sigmoid, tanh => Tanh, erf => Erf, abs => Abs,
    logical_not => LogicalNot;
    add => Add, subtract => Subtract, multiply => Multiply, divide => Divide, maximum => Maximum,
    minimum => Minimum, less => Less, less_equal => LessEqual, equal => Equal, logical_and => LogicalAnd,
    logical_or => LogicalOr
}

/// Operations along one axis: those that keep it, and those that may leave it with one element.
macro_rules! along {
    ($($name:ident => $operation:ident),*; $($name2:ident => $operation2:ident),*) => {
        impl Array {
            $(pub fn $name(&self, axis: i32) -> Result<Self> {
                self.along(axis, true, Along::$operation)
            })*
            $(
                /// The axis stays, with one element.
                pub fn $name2(&self, axis: i32) -> Result<Self> {
                    self.along(axis, true, Along::$operation2)
                }
            )*
        }
    };
}

along! {
    softmax => Softmax, cumsum => Cumsum, sort => Sort, argsort => Argsort;
    sum => Sum, max => Max, logsumexp => Logsumexp
}

impl Clone for Array {
    fn clone(&self) -> Self {
        Self(ffi::copy_handle(&self.0))
    }
}

impl std::fmt::Debug for Array {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Array({:?} {:?})", self.dtype(), self.shape())
    }
}

impl Quantized {
    /// `[…, out, in]` in the type of the scales.
    pub fn dequantize(&self) -> Result<Array> {
        owned()?;
        let Self { packed, scales, biases, group_size, bits } = self;
        Ok(Array(ffi::dequantize(&packed.0, &scales.0, &biases.0, *group_size, *bits)?))
    }
}
