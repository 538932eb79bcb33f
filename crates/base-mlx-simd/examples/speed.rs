//! How fast the products and attention are on this machine: `cargo run --release -p base-mlx-simd --example speed [THREADS]`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use base_mlx_simd::{
    Affine, Arena, AttentionShape, AttentionSpan, Floats, Isa, KEY_BLOCK, KvBlocks, KvFormat,
    Packed, PackedProduct, Pool, attention, cores, linear_packed, read_bandwidth,
};

fn main() {
    let threads = std::env::args().nth(1).and_then(|threads| threads.parse().ok());
    let pool = Pool::new(threads.unwrap_or_else(cores));
    let bandwidth = read_bandwidth(&pool, 1 << 30).expect("memory to read");
    println!("memory is read at {:.1} GB/s", bandwidth / 1e9);
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
        println!(
            "{:>4} {:>6} {:>6} {:>10} {:>10} {:>8}",
            "kv", "rows", "keys", "us", "GFLOP/s", "GB/s"
        );
        for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8] {
            for rows in [1, 128] {
                for keys in [512, 2048, 8192] {
                    measure_attention(&pool, isa, format, rows, keys);
                }
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
    let arena = Arena::default();
    let packed: Vec<Packed> = packed
        .chunks(packed.len() / copies)
        .map(|packed| {
            let affine = Affine { packed, scales: floats, biases: floats, bits, group };
            Packed::new(pool, &arena, &affine, outputs, inner).expect("memory")
        })
        .collect();
    let x = vec![0.5; rows * inner];
    let mut out = vec![0.0; rows * outputs];
    let bytes = packed[0].bytes();
    let mut matrix = packed.iter().cycle();
    let seconds = seconds(|| {
        let matrix = matrix.next().expect("a cycle has no end");
        let product = PackedProduct { weight: matrix, bias: None, out: &mut out };
        linear_packed(pool, isa, black_box(&x), vec![product]);
    });
    let flops = (2 * rows * outputs * inner) as f64 / seconds / 1e9;
    let us = seconds * 1e6;
    let gb = bytes as f64 / seconds / 1e9;
    println!("{outputs:>6} {inner:>6} {bits:>4} {rows:>6} {us:>10.1} {flops:>10.1} {gb:>8.1}");
}

/// The last rows of a sequence of `keys` positions, in the shape of a 135M model.
fn measure_attention(pool: &Pool, isa: Isa, format: KvFormat, rows: usize, keys: usize) {
    let (heads, kv_heads, head_dim) = (9, 3, 64);
    let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.125, window: None };
    let wave = |len: usize| (0..len).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
    let values = wave(KEY_BLOCK * kv_heads * head_dim);
    let from = KvBlocks::new(format, kv_heads, head_dim);
    let block = || {
        let mut block = from.block().expect("memory");
        block.write(0, &values, &values);
        block
    };
    // Each layer of a model has its own.
    let bytes = keys / KEY_BLOCK * from.bytes();
    let copies = FAR_BEYOND_CACHES / bytes;
    let memory: Vec<Vec<_>> =
        (0..copies).map(|_| (0..keys.div_ceil(KEY_BLOCK)).map(|_| block()).collect()).collect();
    let q = wave(rows * heads * head_dim);
    let mut out = vec![0.0; q.len()];
    let mut layer = memory.iter().cycle();
    let seconds = seconds(|| {
        let blocks = layer.next().expect("a cycle has no end").iter().collect();
        let span = AttentionSpan { rows: 0..rows, start: keys - rows, blocks };
        attention(pool, isa, shape, black_box(&q), &[span], &mut out);
    });
    let seen: usize = (keys - rows + 1..=keys).sum();
    let flops = (4 * seen * heads * head_dim) as f64 / seconds / 1e9;
    let us = seconds * 1e6;
    let (format, gb) = (format!("{format:?}"), bytes as f64 / seconds / 1e9);
    println!("{format:>4} {rows:>6} {keys:>6} {us:>10.1} {flops:>10.1} {gb:>8.1}");
}

/// The shortest time of one call.
fn seconds(mut call: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(100) {
        let batch = Instant::now();
        let mut count = 0;
        while count == 0 || batch.elapsed() < Duration::from_millis(1) {
            call();
            count += 1;
        }
        best = best.min(batch.elapsed() / count);
    }
    best.as_secs_f64()
}

/// (outputs, inner, bits, group): the layers of a 135M model, its head, a layer of a 4B model.
const SHAPES: [(usize, usize, u32, usize); 13] = [
    (192, 576, 4, 32),
    (576, 576, 4, 32),
    (1536, 576, 4, 32),
    (576, 1536, 4, 32),
    (49152, 576, 8, 32),
    (2560, 9728, 4, 64),
    (896, 896, 2, 32),
    (896, 896, 3, 32),
    (896, 896, 4, 32),
    (896, 896, 5, 32),
    (896, 896, 6, 16),
    (4864, 896, 5, 32),
    (896, 4864, 6, 16),
];

const FAR_BEYOND_CACHES: usize = 96 << 20;
