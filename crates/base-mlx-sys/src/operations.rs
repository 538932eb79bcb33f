//! The operations on arrays.

use crate::Result;
use crate::array::{Array, Dtype, Quantized, build};
use crate::table::{Along, Binary, Unary};

/// What each query of [`Array::scaled_dot_product_attention`] sees.
#[derive(Clone, Copy)]
pub enum Mask<'a> {
    All,
    /// The last query sees all keys, each one before it one key less.
    Causal,
    /// Bool (true: seen) or added to the scores; broadcast to `[batch, heads, queries, keys]`.
    Array(&'a Array),
}

impl Array {
    pub fn astype(&self, dtype: Dtype) -> Result<Self> {
        build(|mlx| (mlx.astype)(self, dtype))
    }

    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        build(|mlx| (mlx.reshape)(self, shape.into()))
    }

    pub fn transpose(&self, axes: &[i32]) -> Result<Self> {
        build(|mlx| (mlx.transpose)(self, axes.into()))
    }

    /// The elements from `start` up to `stop` in each dimension.
    pub fn slice(&self, start: &[usize], stop: &[usize]) -> Result<Self> {
        build(|mlx| (mlx.slice)(self, start.into(), stop.into()))
    }

    /// Writes `update` from `start` up to `stop`. Where this was the only handle, MLX writes in place; otherwise it
    /// copies first, and the others keep what they had.
    pub fn slice_update(self, update: &Self, start: &[usize], stop: &[usize]) -> Result<Self> {
        build(|mlx| (mlx.slice_update)(self, update, start.into(), stop.into()))
    }

    pub fn concatenate(arrays: &[&Self], axis: i32) -> Result<Self> {
        build(|mlx| (mlx.concatenate)(arrays.into(), axis))
    }

    /// The entries of `axis` whose numbers are given.
    ///
    /// # Safety
    /// MLX checks no index: each must be below the size of `axis` when the array is computed.
    pub unsafe fn take(&self, indices: &Self, axis: i32) -> Result<Self> {
        // SAFETY: the caller's.
        build(|mlx| unsafe { (mlx.take)(self, indices, axis) })
    }

    /// # Safety
    /// As for [`Array::take`].
    pub unsafe fn take_along_axis(&self, indices: &Self, axis: i32) -> Result<Self> {
        // SAFETY: the caller's.
        build(|mlx| unsafe { (mlx.take_along_axis)(self, indices, axis) })
    }

    /// `a` where the condition holds, `b` elsewhere.
    pub fn select(condition: &Self, a: &Self, b: &Self) -> Result<Self> {
        build(|mlx| (mlx.select)(condition, a, b))
    }

    fn along(&self, axis: i32, keepdims: bool, operation: Along) -> Result<Self> {
        build(|mlx| (mlx.along)(self, axis, keepdims, operation))
    }

    /// The largest element's place along `axis`: U32, without that axis.
    pub fn argmax(&self, axis: i32) -> Result<Self> {
        self.along(axis, false, Along::Argmax)
    }

    /// `[…, rows, inner] @ […, inner, columns]`
    pub fn matmul(&self, other: &Self) -> Result<Self> {
        build(|mlx| (mlx.matmul)(self, other))
    }

    /// `self @ w.T`: `[…, in]` → `[…, out]`.
    pub fn quantized_matmul(&self, w: &Quantized) -> Result<Self> {
        build(|mlx| (mlx.quantized_matmul)(self, w))
    }

    /// As [`Array::quantized_matmul`], each row with the matrix of `w` `[experts, out, in]` that `indices` names.
    ///
    /// # Safety
    /// MLX checks no index: each must be below the number of experts when the product is computed.
    pub unsafe fn gather_qmm(&self, w: &Quantized, indices: &Self) -> Result<Self> {
        // SAFETY: the caller's.
        build(|mlx| unsafe { (mlx.gather_qmm)(self, w, indices) })
    }

    /// `silu(self) * up`, elementwise, in one kernel where the device compiles them.
    pub fn swiglu(&self, up: &Self) -> Result<Self> {
        build(|mlx| (mlx.swiglu)(self, up))
    }

    /// `x / sqrt(mean(x²) + eps) * w` over the last axis.
    pub fn rms_norm(&self, w: &Self, eps: f32) -> Result<Self> {
        build(|mlx| (mlx.rms_norm)(self, w, eps))
    }

    /// `(x - mean(x)) / sqrt(variance(x) + eps) * w + bias` over the last axis.
    pub fn layer_norm(&self, w: &Self, bias: &Self, eps: f32) -> Result<Self> {
        build(|mlx| (mlx.layer_norm)(self, w, bias, eps))
    }

    /// Rotates pairs (i, i + dims / 2) of `[batch, heads, tokens, head_dim]`: token t of a batch entry by the angle
    /// `scale * (offset + t) / freqs[i]`. `offset` is one I32 for each batch entry, `freqs` F32 `[dims / 2]`.
    pub fn rope(&self, dims: i32, scale: f32, offset: &Self, freqs: &Self) -> Result<Self> {
        build(|mlx| (mlx.rope)(self, dims, scale, offset, freqs))
    }

    /// Queries `[batch, heads, queries, head_dim]` over keys and values `[batch, kv_heads, keys, head_dim]`.
    pub fn scaled_dot_product_attention(
        &self,
        keys: &Self,
        values: &Self,
        scale: f32,
        mask: Mask,
    ) -> Result<Self> {
        let (causal, mask) = match mask {
            Mask::All => (false, None),
            Mask::Causal => (true, None),
            Mask::Array(mask) => (false, Some(mask)),
        };
        build(|mlx| (mlx.attention)(self, keys, values, scale, causal, mask))
    }
}

/// Operations of one array and of two of shapes that broadcast.
macro_rules! elementwise {
    ($($name:ident => $operation:ident),*; $($name2:ident => $operation2:ident),*) => {
        impl Array {
            $(pub fn $name(&self) -> Result<Self> {
                build(|mlx| (mlx.unary)(self, Unary::$operation))
            })*
            $(pub fn $name2(&self, other: &Self) -> Result<Self> {
                build(|mlx| (mlx.binary)(self, other, Binary::$operation2))
            })*
        }
    };
}

elementwise! {
    erf => Erf, exp => Exp, negative => Negative, sigmoid => Sigmoid, tanh => Tanh;
    add => Add, subtract => Subtract, multiply => Multiply, divide => Divide, maximum => Maximum,
    minimum => Minimum, less => Less, less_equal => LessEqual, equal => Equal, logical_and => LogicalAnd, logical_or => LogicalOr
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
    cumsum => Cumsum, argsort => Argsort; sum => Sum, max => Max
}

impl Quantized {
    /// `[…, out, in]` in the type of the scales.
    pub fn dequantize(&self) -> Result<Array> {
        build(|mlx| (mlx.dequantize)(self))
    }
}
