use std::ops::Range;

use bytes::Bytes;

use super::Dtype;

/// An array in the host's memory: row-major, little-endian, `shape.product() * dtype.size()` bytes.
///
/// `data` may be a piece of a mapped file, so it need not be aligned to its dtype.
#[derive(Clone, Debug)]
pub struct HostArray {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Bytes,
}

impl HostArray {
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "from_f32");
        let data = Bytes::copy_from_slice(bytemuck::cast_slice(values));
        Self { dtype: Dtype::F32, shape: shape.to_vec(), data }
    }

    pub fn from_u32(shape: &[usize], values: &[u32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "from_u32");
        let data = Bytes::copy_from_slice(bytemuck::cast_slice(values));
        Self { dtype: Dtype::U32, shape: shape.to_vec(), data }
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The values as f32, whatever float type they are stored in. Panics on an integer array.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            Dtype::F32 => self.chunks().map(f32::from_le_bytes).collect(),
            Dtype::F16 => self.chunks().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => self.chunks().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
            Dtype::U32 | Dtype::U8 => panic!("an array of {} read as floats", self.dtype),
        }
    }

    /// The values of a U32 array. Panics on any other.
    pub fn to_u32(&self) -> Vec<u32> {
        assert_eq!(self.dtype, Dtype::U32, "to_u32");
        self.chunks().map(u32::from_le_bytes).collect()
    }

    /// Some of the entries of the first dimension.
    fn rows(&self, rows: Range<usize>) -> Self {
        let row_bytes = self.data.len() / self.shape[0];
        let data = self.data.slice(rows.start * row_bytes..rows.end * row_bytes);
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Self { dtype: self.dtype, shape, data }
    }

    fn chunks<const N: usize>(&self) -> impl Iterator<Item = [u8; N]> + '_ {
        self.data.as_chunks::<N>().0.iter().copied()
    }
}

/// A matrix of parameters as the checkpoint has it, before a backend lays it out.
#[derive(Clone, Debug)]
pub enum HostWeight {
    /// F32, F16 or BF16, `[out, in]`.
    Dense(HostArray),
    /// Affine groups: `w = scale * q + bias`, one scale and bias for each `group_size` values of a row.
    Affine {
        /// `bits`-wide unsigned values; a row is one little-endian stream of bits, which is MLX's layout for
        /// every width (3-, 5- and 6-bit values straddle bytes). U32, `[out, in * bits / 32]`.
        packed: HostArray,
        /// F32, F16 or BF16, `[out, in / group_size]`.
        scales: HostArray,
        /// Same type and shape as `scales`.
        biases: HostArray,
        bits: u32,
        group_size: usize,
    },
}

impl HostWeight {
    /// The values themselves as F32, for devices that do not know the groups.
    pub fn dequantize(&self) -> HostArray {
        let (packed, scales, biases, bits, group_size) = match self {
            Self::Dense(array) => return HostArray::from_f32(&array.shape, &array.to_f32()),
            Self::Affine { packed, scales, biases, bits, group_size } => {
                (packed, scales.to_f32(), biases.to_f32(), *bits as usize, *group_size)
            }
        };
        let [out, inner] = self.shape();
        let row_bytes = inner * bits / 8;
        let mut values = Vec::with_capacity(out * inner);
        for row in 0..out {
            let row_packed = &packed.data[row * row_bytes..][..row_bytes];
            for column in 0..inner {
                let (byte, shift) = (column * bits / 8, column * bits % 8);
                let low = u32::from(row_packed[byte]);
                let high = row_packed.get(byte + 1).map_or(0, |high| u32::from(*high));
                let q = ((high << 8 | low) >> shift) & ((1 << bits) - 1);
                let group = (row * inner + column) / group_size;
                values.push(scales[group] * q as f32 + biases[group]);
            }
        }
        HostArray::from_f32(&[out, inner], &values)
    }

    /// Some of the rows of `[out, in]`.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Dense(array) => Self::Dense(array.rows(rows)),
            Self::Affine { packed, scales, biases, bits, group_size } => Self::Affine {
                packed: packed.rows(rows.clone()),
                scales: scales.rows(rows.clone()),
                biases: biases.rows(rows),
                bits: *bits,
                group_size: *group_size,
            },
        }
    }

    /// `[out, in]`
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Dense(array) => [array.shape[0], array.shape[1]],
            Self::Affine { scales, group_size, .. } => {
                [scales.shape[0], scales.shape[1] * group_size]
            }
        }
    }
}
