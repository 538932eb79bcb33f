//! How long the hot kernels take, on one thread, and whether that has changed since the last time:
//! `cargo bench -p base-mlx-simd [-- 'attention.*avx2']`. What they get out of the machine says `examples/speed.rs`.

use std::time::Duration;

use base_mlx_simd::{Isa, Pool};
use criterion::{Criterion, criterion_group, criterion_main};
use support::{HOT, Memory};

mod support;

fn kernels(criterion: &mut Criterion) {
    let pool = Pool::new(1);
    for work in HOT {
        // Not before one of them is chosen.
        let mut ready = None;
        for isa in Isa::all() {
            criterion.bench_function(&format!("{work} {}", isa.name()), |bencher| {
                let ready = ready.get_or_insert_with(|| work.ready(&pool, Memory::FarBeyondCaches));
                bencher.iter(|| (ready.call)(isa));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500));
    targets = kernels
}
criterion_main!(benches);
