//! Every GGUF block format against the values that Python's `gguf` package reads from the same bytes
//! (`tests/golden/blocks/make.py`).

#![allow(clippy::unwrap_used)] // Tests and their helpers fail by panicking.

use std::fs;
use std::path::Path;

use base_mlx_core::backend::{Backend, CpuBackend, Pool, Role};
use base_mlx_core::tensor::{Dtype, HostWeight};
use base_mlx_core::weights::gguf::{self, Blocks, FORMATS, Format};

#[test]
fn each_format_gives_the_reference_values_bit_for_bit() {
    for format in FORMATS {
        let (blocks, expected) = golden(format);
        let rows = blocks.len() / format.bytes;
        let weight = repack(format, &blocks, [rows, format.values], |row| row);
        assert_same(&values(&weight), &expected, format.name);
        assert_same(&gguf::dequantize(format, &blocks), &expected, format.name);
        // The last block's scale, times 8 or more, is too large for a 16-bit bias; Q4_1 and Q5_1 store their bias.
        let narrow = matches!(format.name, "Q4_1" | "Q5_1");
        let expected = if narrow { Dtype::F16 } else { Dtype::F32 };
        assert_eq!(scales_dtype(&weight), expected, "{format:?}");
    }
}

#[test]
fn scales_stay_16_bits_wide_where_that_is_exact() {
    for format in FORMATS.iter().filter(|format| !format.wide_scales) {
        let (blocks, expected) = golden(format);
        for (row, (block, expected)) in
            blocks.chunks(format.bytes).zip(expected.chunks(format.values)).enumerate().take(5)
        {
            let weight = repack(format, block, [1, format.values], |row| row);
            assert_eq!(scales_dtype(&weight), Dtype::F16, "{format:?}, block {row}");
            assert_same(&values(&weight), expected, format.name);
        }
    }
}

#[test]
fn rows_come_from_where_the_caller_says() {
    for format in FORMATS {
        let (blocks, expected) = golden(format);
        let rows = blocks.len() / format.bytes;
        let weight = repack(format, &blocks, [rows, format.values], |row| rows - 1 - row);
        let backwards: Vec<f32> = expected.chunks(format.values).rev().flatten().copied().collect();
        assert_same(&values(&weight), &backwards, format.name);
    }
}

/// A matrix large enough for threads is the same as its rows one by one.
#[test]
fn threads_do_not_change_the_result() {
    for format in FORMATS {
        let (blocks, expected) = golden(format);
        let times = (1 << 20) / blocks.len();
        let rows = blocks.len() / format.bytes * times;
        let (blocks, expected) = (blocks.repeat(times), expected.repeat(times));
        for threads in [1, 2] {
            let pool = Pool::new(threads);
            let blocks = Blocks { format, data: &blocks };
            let weight = gguf::repack(&pool, blocks, [rows, format.values], |row| row);
            assert_same(&values(&weight), &expected, format.name);
        }
    }
}

/// What docs/performance.md says of memory: bits of a value as the CPU keeps it, its part of scales and biases included.
#[test]
fn the_cpu_keeps_each_format_in_so_many_bits() {
    let backend = CpuBackend::new(1);
    let found = FORMATS.iter().map(|format| {
        let bytes = 16 * 256 / format.values * format.bytes;
        let blocks: Vec<u8> = golden(format).0.into_iter().cycle().take(bytes).collect();
        let weight = backend
            .upload_weight(repack(format, &blocks, [16, 256], |row| row), Role::Factor)
            .unwrap();
        (format.name, backend.weight_bytes(&weight) as f64 * 8.0 / (16.0 * 256.0))
    });
    let expected = [
        ("Q4_0", 4.5),
        ("Q4_1", 5.0),
        ("Q5_0", 5.5),
        ("Q5_1", 6.0),
        ("Q8_0", 8.5),
        ("Q2_K", 4.0),
        ("Q3_K", 4.0),
        ("Q4_K", 5.0),
        ("Q5_K", 6.0),
        ("Q6_K", 7.0),
        ("IQ4_NL", 8.5),
    ];
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn weights_are_laid_out_by_the_threads_that_compute() {
    assert_eq!(CpuBackend::new(1).host_pool().threads(), 1);
}

fn repack(
    format: &Format,
    data: &[u8],
    shape: [usize; 2],
    source: impl Fn(usize) -> usize + Sync,
) -> HostWeight {
    gguf::repack(&Pool::new(1), Blocks { format, data }, shape, source)
}

fn golden(format: &Format) -> (Vec<u8>, Vec<f32>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/blocks");
    let read = |kind: &str| fs::read(folder.join(format!("{}.{kind}", format.name))).unwrap();
    let values = read("values");
    let values = values.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    (read("blocks"), values.collect())
}

/// Reads the packed form as its definition says: one little-endian stream of bits a row.
fn values(weight: &HostWeight) -> Vec<f32> {
    let HostWeight::Affine { packed, scales, biases, bits, group_size } = weight else {
        panic!("not affine: {weight:?}");
    };
    let [rows, columns] = weight.shape();
    let row_bytes = packed.data.len() / rows;
    assert_eq!(row_bytes, columns * *bits as usize / 8);
    let (scales, biases) = (scales.to_f32(), biases.to_f32());
    let mut values = Vec::new();
    for row in 0..rows {
        let stream = &packed.data[row * row_bytes..][..row_bytes];
        for column in 0..columns {
            let q: u32 = (0..*bits as usize)
                .map(|bit| (bit, column * *bits as usize + bit))
                .map(|(bit, at)| u32::from(stream[at / 8] >> (at % 8) & 1) << bit)
                .sum();
            let group = (row * columns + column) / group_size;
            values.push(scales[group] * q as f32 + biases[group]);
        }
    }
    values
}

fn scales_dtype(weight: &HostWeight) -> Dtype {
    match weight {
        HostWeight::Affine { scales, biases, .. } => {
            assert_eq!(scales.dtype, biases.dtype);
            scales.dtype
        }
        HostWeight::Dense(_) => panic!("not affine"),
    }
}

/// Equal bits, but that a zero may have lost its sign.
fn assert_same(found: &[f32], expected: &[f32], name: &str) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(found == expected, "{name}: value {i} is {found}, expected {expected}");
    }
}
