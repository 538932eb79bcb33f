//! What the products and attention get out of this machine, over many shapes, beside what its memory gives:
//! `cargo run --release -p base-mlx-simd --example speed [THREADS]`. Whether a kernel has become faster says `cargo bench`.

use std::time::{Duration, Instant};

use base_mlx_simd::{Isa, KvFormat, Pool, cores, read_bandwidth};
use support::{Memory, Work};

#[path = "../benches/support/mod.rs"]
mod support;

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
                let work = Work::LinearPacked { outputs, inner, bits, group, rows };
                let measured = measure(&pool, isa, work);
                println!("{outputs:>6} {inner:>6} {bits:>4} {rows:>6} {measured}");
            }
        }
        for (outputs, inner) in F16_SHAPES {
            for rows in [1, 2, 8, 64, 512] {
                let measured = measure(&pool, isa, Work::LinearF16 { outputs, inner, rows });
                println!("{outputs:>6} {inner:>6} {:>4} {rows:>6} {measured}", "f16");
            }
        }
        println!(
            "{:>4} {:>6} {:>6} {:>10} {:>10} {:>8}",
            "kv", "rows", "keys", "us", "GFLOP/s", "GB/s"
        );
        for format in [KvFormat::F32, KvFormat::F16, KvFormat::Q8, KvFormat::Q4] {
            for rows in [1, 128] {
                for keys in [512, 2048, 8192] {
                    let measured = measure(&pool, isa, Work::Attention { format, rows, keys });
                    println!("{:>4} {rows:>6} {keys:>6} {measured}", format!("{format:?}"));
                }
            }
        }
    }
}

fn measure(pool: &Pool, isa: Isa, work: Work) -> String {
    let mut ready = work.ready(pool, Memory::FarBeyondCaches);
    let seconds = seconds(|| (ready.call)(isa));
    let flops = work.flops() as f64 / seconds / 1e9;
    let (us, gb) = (seconds * 1e6, ready.bytes as f64 / seconds / 1e9);
    format!("{us:>10.1} {flops:>10.1} {gb:>8.1}")
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

/// (outputs, inner)
const F16_SHAPES: [(usize, usize); 6] =
    [(192, 576), (576, 576), (1536, 576), (576, 1536), (49152, 576), (2560, 9728)];
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
