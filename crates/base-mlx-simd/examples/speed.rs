//! How fast the products are on this machine: `cargo run --release -p base-mlx-simd --example speed [THREADS]`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use base_mlx_simd::{Affine, Floats, Isa, Matrix, Pool, linear};

fn main() {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let threads = std::env::args().nth(1).and_then(|threads| threads.parse().ok());
    let pool = Pool::new(threads.unwrap_or(cores));
    for isa in Isa::all() {
        println!("{}, {} threads", isa.name(), pool.threads());
        println!(
            "{:>6} {:>6} {:>4} {:>6} {:>10} {:>10} {:>8}",
            "out", "in", "bits", "rows", "us", "GFLOP/s", "GB/s"
        );
        for (outputs, inner, bits, group) in SHAPES {
            for rows in [1, 2, 8, 64, 512] {
                measure(&pool, isa, rows, outputs, inner, bits, group);
            }
        }
    }
}

fn measure(
    pool: &Pool,
    isa: Isa,
    rows: usize,
    outputs: usize,
    inner: usize,
    bits: u32,
    group: usize,
) {
    // As many copies of the weights as keep them out of the caches, as the layers of a model do.
    let bytes = outputs * inner / 8 * bits as usize + outputs * inner / group * 4;
    let copies = (FAR_BEYOND_CACHES / bytes).max(1);
    let packed: Vec<u8> =
        (0..outputs * inner / 8 * bits as usize * copies).map(|i| i as u8).collect();
    let scales = vec![0x11; outputs * inner / group * 2];
    let floats = Floats::F16(&scales);
    let matrices: Vec<Matrix> = packed
        .chunks(packed.len() / copies)
        .map(|packed| {
            let affine = Affine { packed, scales: floats, biases: floats, bits, group };
            Matrix::affine(affine, outputs, inner)
        })
        .collect();
    let x = vec![0.5; rows * inner];
    let mut out = vec![0.0; rows * outputs];
    let mut best = Duration::MAX;
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(100) {
        let batch = Instant::now();
        let mut count = 0;
        for matrix in matrices.iter().cycle() {
            linear(pool, isa, black_box(&x), matrix, None, &mut out);
            count += 1;
            if batch.elapsed() > Duration::from_millis(1) {
                break;
            }
        }
        best = best.min(batch.elapsed() / count);
    }
    let seconds = best.as_secs_f64();
    let flops = (2 * rows * outputs * inner) as f64 / seconds / 1e9;
    let us = seconds * 1e6;
    let gb = bytes as f64 / seconds / 1e9;
    println!("{outputs:>6} {inner:>6} {bits:>4} {rows:>6} {us:>10.1} {flops:>10.1} {gb:>8.1}");
}

/// (outputs, inner, bits, group): the layers of a 135M model, its head, a layer of a 4B model.
const SHAPES: [(usize, usize, u32, usize); 6] = [
    (192, 576, 4, 32),
    (576, 576, 4, 32),
    (1536, 576, 4, 32),
    (576, 1536, 4, 32),
    (49152, 576, 8, 32),
    (2560, 9728, 4, 64),
];

const FAR_BEYOND_CACHES: usize = 96 << 20;
