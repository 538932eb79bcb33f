use std::sync::{Arc, Mutex, OnceLock};

use base_mlx_sys::Array;

use super::device::{Device, built};
use super::linear::Product;
use crate::backend::Rope;
use crate::tensor::{Dtype, HostArray};

/// Values on MLX's device, or what they will be computed from.
///
/// MLX is lazy, and its operations are small. Where own kernels run, an array is lazier still: it stays a [`Recipe`]
/// until someone wants its values, and whoever wants them may compute several recipes in one kernel. Families notice
/// nothing of it.
#[derive(Clone)]
pub struct MlxArray(Arc<Node>);

struct Node {
    recipe: Recipe,
    value: OnceLock<Array>,
    /// The same values in another type, if they were wanted so: parameters follow their activations.
    converted: OnceLock<(Dtype, Array)>,
    /// Where they lie, in the type that was asked for first, and what holds them there.
    address: OnceLock<(base_mlx_sys::Dtype, u64, Array)>,
}

pub(super) enum Recipe {
    /// Nothing is left to do.
    Known,
    /// On the host, uploaded when first used.
    Host(HostArray),
    /// A parameter that was written where the host can, and is copied to the device's own memory when first used.
    Parameter(Mutex<Option<Array>>),
    Norm(Norm),
    Linear(Product),
    Rope(Turned),
}

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension.
#[derive(Clone)]
pub(super) struct Norm {
    pub(super) x: MlxArray,
    /// `[rows, width]` of `x`, heads counting as rows.
    pub(super) shape: [usize; 2],
    pub(super) weight: MlxArray,
    pub(super) eps: f32,
}

/// Heads rotated by their tokens' positions.
#[derive(Clone)]
pub(super) struct Turned {
    pub(super) x: MlxArray,
    /// `[tokens, heads, head_dim]`
    pub(super) shape: [usize; 3],
    pub(super) positions: MlxArray,
    pub(super) rope: Rope,
}

impl MlxArray {
    pub(super) fn known(value: Array) -> Self {
        let array = Self::later(Recipe::Known);
        array.0.value.set(value).expect("a new array has no value");
        array
    }

    pub(super) fn later(recipe: Recipe) -> Self {
        Self(Arc::new(Node {
            recipe,
            value: OnceLock::new(),
            converted: OnceLock::new(),
            address: OnceLock::new(),
        }))
    }

    /// The recipe, if nobody has followed it yet.
    pub(super) fn recipe(&self) -> Option<&Recipe> {
        self.0.value.get().is_none().then_some(&self.0.recipe)
    }

    /// The values, in whatever shape they were computed in.
    pub(super) fn value(&self, device: &Device) -> &Array {
        self.0.value.get_or_init(|| match &self.0.recipe {
            Recipe::Known => unreachable!("set when it was made"),
            Recipe::Host(data) => {
                built(Array::from_bytes(&data.data, &data.shape, mlx_dtype(data.dtype)))
            }
            Recipe::Parameter(written) => device.settled(written),
            Recipe::Norm(norm) => device.rms_norm(norm),
            Recipe::Linear(product) => device.product(product),
            Recipe::Rope(turned) => device.rope(turned),
        })
    }

    /// The values in another float type. A parameter is converted once.
    pub(super) fn value_as(&self, device: &Device, dtype: base_mlx_sys::Dtype) -> Array {
        let value = self.value(device);
        if built(value.dtype()) == dtype {
            return value.clone();
        }
        let dtype = float(dtype);
        let (known, converted) =
            self.0.converted.get_or_init(|| (dtype, built(value.astype(mlx_dtype(dtype)))));
        if *known == dtype { converted.clone() } else { built(value.astype(mlx_dtype(dtype))) }
    }

    /// Where the device finds a parameter's values in that type.
    pub(super) fn address(&self, device: &Device, dtype: base_mlx_sys::Dtype) -> u64 {
        // Hundreds of kernels ask for it for every token.
        let (known, address, _) = self.0.address.get_or_init(|| {
            let value = self.value_as(device, dtype);
            if !built(value.is_available()) {
                // Converted just now.
                built(base_mlx_sys::eval(&[&value]));
            }
            #[allow(unsafe_code)]
            // SAFETY: a parameter is written once, before this. It is held beside its address, and the caller's kernels run
            // while its model lives.
            let address = built(unsafe { value.data_pointer() });
            (dtype, address, value)
        });
        assert_eq!(*known, dtype, "a parameter of one model has one type of activations");
        *address
    }

    /// The largest of an array's whole numbers, if the host still knows them.
    pub(super) fn largest_on_host(&self) -> Option<u32> {
        match &self.0.recipe {
            Recipe::Host(data) => Some(data.to_u32().into_iter().max().unwrap_or(0)),
            _ => None,
        }
    }

    /// Whether the host knows that these are its whole numbers.
    pub(super) fn holds(&self, numbers: &[u32]) -> bool {
        matches!(&self.0.recipe, Recipe::Host(data)
            if data.dtype == Dtype::U32 && data.data[..] == *bytemuck::cast_slice::<u32, u8>(numbers))
    }

    /// Whether both are the same array, not only equal ones.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

pub(super) fn mlx_dtype(dtype: Dtype) -> base_mlx_sys::Dtype {
    match dtype {
        Dtype::F32 => base_mlx_sys::Dtype::F32,
        Dtype::F16 => base_mlx_sys::Dtype::F16,
        Dtype::BF16 => base_mlx_sys::Dtype::BF16,
        Dtype::U32 => base_mlx_sys::Dtype::U32,
        Dtype::U8 => base_mlx_sys::Dtype::U8,
    }
}

fn float(dtype: base_mlx_sys::Dtype) -> Dtype {
    match dtype {
        base_mlx_sys::Dtype::F32 => Dtype::F32,
        base_mlx_sys::Dtype::F16 => Dtype::F16,
        base_mlx_sys::Dtype::BF16 => Dtype::BF16,
        other => panic!("{other:?} is no float type"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_tells_positions_from_others() {
        let positions = HostArray::from_u32(&[3], &[7, 0, 1]);
        let array = MlxArray::later(Recipe::Host(positions));
        assert!(array.holds(&[7, 0, 1]));
        assert!(!array.holds(&[7, 0, 2]) && !array.holds(&[7, 0]) && !array.holds(&[7, 0, 1, 0]));
        let floats = MlxArray::later(Recipe::Host(HostArray::from_f32(&[1], &[0.0])));
        assert!(!floats.holds(&[0]), "not positions, whatever their bytes");
    }
}
