use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use half::f16;

use super::Format;
use super::blocks::Block;
use crate::backend::Pool;
use crate::tensor::{Dtype, HostArray, HostWeight};

/// Values as the file has them.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    pub format: &'a Format,
    pub data: &'a [u8],
}

/// A matrix of blocks in affine form. The data hold `rows * columns` values in rows of whole blocks; row `r` of the
/// result is row `source(r)` of the data. Big matrices are cut among the pool's threads.
///
/// Scales stay 16 bits wide where that is exact.
pub fn repack(
    pool: &Pool,
    Blocks { format, data }: Blocks,
    [rows, columns]: [usize; 2],
    source: impl Fn(usize) -> usize + Sync,
) -> HostWeight {
    assert!(rows > 0 && columns > 0 && columns % format.values == 0, "[{rows}, {columns}]");
    assert_eq!(data.len(), rows * (columns / format.values * format.bytes), "bytes of the matrix");
    let matrix = Matrix { pool, format, data, rows, columns, source: &source };
    let narrow = if format.wide_scales { None } else { matrix.affine(Dtype::F16) };
    narrow.or_else(|| matrix.affine(Dtype::F32)).expect("a 32-bit scale is always exact")
}

/// The values of whole blocks, for what is needed as plain floats.
pub fn dequantize(format: &Format, data: &[u8]) -> Vec<f32> {
    let mut block = Block::EMPTY;
    let mut values = Vec::with_capacity(data.len() / format.bytes * format.values);
    for bytes in data.chunks_exact(format.bytes) {
        (format.unpack)(bytes, &mut block);
        for (group, q) in block.q[..format.values].chunks_exact(format.group).enumerate() {
            let (scale, bias) = (block.scales[group], block.biases[group]);
            values.extend(q.iter().map(|&q| scale * f32::from(q) + bias));
        }
    }
    values
}

struct Matrix<'a, S> {
    pool: &'a Pool,
    format: &'a Format,
    data: &'a [u8],
    rows: usize,
    columns: usize,
    source: &'a S,
}

/// Some rows of the result.
struct Rows<'a> {
    first: usize,
    packed: &'a mut [u8],
    scales: &'a mut [u8],
    biases: &'a mut [u8],
}

impl<S: Fn(usize) -> usize + Sync> Matrix<'_, S> {
    /// `None` if a scale or a bias does not fit `width` exactly.
    fn affine(&self, width: Dtype) -> Option<HostWeight> {
        let groups = self.columns / self.format.group;
        let packed_row = self.columns * self.format.bits as usize / 8;
        let scales_row = groups * width.size();
        let mut packed = vec![0; self.rows * packed_row];
        let mut scales = vec![0; self.rows * scales_row];
        let mut biases = vec![0; self.rows * scales_row];

        let piece = self.rows_in_piece();
        let parts = packed
            .chunks_mut(piece * packed_row)
            .zip(scales.chunks_mut(piece * scales_row))
            .zip(biases.chunks_mut(piece * scales_row));
        // Each is locked once, by whoever has its piece.
        let parts: Vec<_> = parts
            .enumerate()
            .map(|(index, ((packed, scales), biases))| {
                Mutex::new(Rows { first: index * piece, packed, scales, biases })
            })
            .collect();
        let exact = AtomicBool::new(true);
        self.pool.run(parts.len(), |index, _| {
            let mut rows = parts[index].lock().unwrap_or_else(PoisonError::into_inner);
            exact.fetch_and(self.fill(width, &mut rows), Ordering::Relaxed);
        });
        drop(parts);

        let array = |dtype, columns, data: Vec<u8>| HostArray {
            dtype,
            shape: vec![self.rows, columns],
            data: Bytes::from(data),
        };
        exact.into_inner().then(|| HostWeight::Affine {
            packed: array(Dtype::U32, packed_row / 4, packed),
            scales: array(width, groups, scales),
            biases: array(width, groups, biases),
            bits: self.format.bits,
            group_size: self.format.group,
        })
    }

    fn rows_in_piece(&self) -> usize {
        if self.data.len() < MIN_PARALLEL_BYTES {
            self.rows
        } else {
            self.pool.fair_piece(self.rows)
        }
    }

    /// False if a scale or a bias did not fit.
    fn fill(&self, width: Dtype, rows: &mut Rows) -> bool {
        match self.format.bits {
            2 => self.fill_packed::<2>(width, rows),
            3 => self.fill_packed::<3>(width, rows),
            4 => self.fill_packed::<4>(width, rows),
            5 => self.fill_packed::<5>(width, rows),
            6 => self.fill_packed::<6>(width, rows),
            8 => self.fill_packed::<8>(width, rows),
            bits => unreachable!("no format has {bits} bits"),
        }
    }

    fn fill_packed<const BITS: usize>(&self, width: Dtype, rows: &mut Rows) -> bool {
        let format = self.format;
        let blocks = self.columns / format.values;
        let groups = format.values / format.group;
        let mut packed = rows.packed.chunks_exact_mut(format.values * BITS / 8);
        let mut scales = rows.scales.chunks_exact_mut(groups * width.size());
        let mut biases = rows.biases.chunks_exact_mut(groups * width.size());
        let mut block = Block::EMPTY;
        let mut exact = true;
        for row in 0..packed.len() / blocks {
            let row_bytes = blocks * format.bytes;
            let start = (self.source)(rows.first + row) * row_bytes;
            for bytes in self.data[start..start + row_bytes].chunks_exact(format.bytes) {
                (format.unpack)(bytes, &mut block);
                let (Some(packed), Some(scales), Some(biases)) =
                    (packed.next(), scales.next(), biases.next())
                else {
                    unreachable!("all three have one piece for each block");
                };
                pack::<BITS>(&block.q[..format.values], packed);
                exact &= store(width, &block.scales[..groups], scales);
                exact &= store(width, &block.biases[..groups], biases);
            }
        }
        exact
    }
}

/// Eight values of `BITS` bits make `BITS` bytes of the stream.
fn pack<const BITS: usize>(values: &[u8], packed: &mut [u8]) {
    for (values, bytes) in values.as_chunks::<8>().0.iter().zip(packed.as_chunks_mut::<BITS>().0) {
        let mut word = 0_u64;
        for (i, &value) in values.iter().enumerate() {
            word |= u64::from(value) << (i * BITS);
        }
        bytes.copy_from_slice(&word.to_le_bytes()[..BITS]);
    }
}

fn store(width: Dtype, values: &[f32], bytes: &mut [u8]) -> bool {
    let mut exact = true;
    if width == Dtype::F16 {
        for (value, bytes) in values.iter().zip(bytes.as_chunks_mut::<2>().0) {
            let narrow = f16::from_f32(*value);
            exact &= narrow.to_f32() == *value || value.is_nan();
            *bytes = narrow.to_le_bytes();
        }
    } else {
        for (value, bytes) in values.iter().zip(bytes.as_chunks_mut::<4>().0) {
            *bytes = value.to_le_bytes();
        }
    }
    exact
}

/// Below this a thread costs more than it saves.
const MIN_PARALLEL_BYTES: usize = 1 << 18;
