//! Every operation on every backend: one table of rows, each compared with the plain reference; then the promise that
//! a row has the same bits alone and in company, and a prompt the same bits whole and in chunks.

#![allow(clippy::unwrap_used)]

mod support;

use base_mlx_core::backend::{CpuBackend, KvCache, KvFormat};
use base_mlx_core::tensor::Dtype::F32;
use base_mlx_simd::Isa;

use support::ops::{
    AFFINE_3, AFFINE_4, AFFINE_8, Act, AttendShape, Attention, Case, DENSE_BF16, Kind,
    far_from_reference, table,
};

#[test]
fn every_backend_agrees_with_the_reference_on_every_row_of_the_table() {
    for (seed, case) in table().into_iter().enumerate() {
        for (name, backend) in cpus() {
            let far = far_from_reference(&backend, &case, seed as u64, F32);
            assert!(far < tolerance(&case), "{case:?} on {name}: {far:e} away from the reference");
        }
    }
}

#[test]
fn rounded_keys_and_values_are_hardly_farther_from_the_reference() {
    let formats = [(KvFormat::F16, 1.0 / 256.0), (KvFormat::Q8, 1.0 / 16.0), (KvFormat::Q4, 1.0)];
    for (format, tolerance) in formats {
        let attend = |case: &Case| matches!(case, Case::Attend { .. });
        for (seed, case) in table().into_iter().enumerate().filter(|(_, case)| attend(case)) {
            for (name, backend) in cpus() {
                let far = far_from_reference(&backend.with_kv(format), &case, seed as u64, F32);
                assert!(far < tolerance, "{case:?}, {format} on {name}: {far:e} away");
            }
        }
    }
}

/// The CPU multiplies by quantised weights in integers: activations are rounded to 8 bits, a step of which is 1/127 of their
/// group's largest, and scales to 11 bits. Where a sum's terms cancel out, what remains is off by more than that; how far a
/// product may be off for its length, the kernels' own tests say. All else is f32.
fn tolerance(case: &Case) -> f64 {
    match case {
        Case::Linear { weight: Kind::Affine { .. }, .. } => 1.0 / 64.0,
        Case::Embed { table: Kind::Affine { .. }, .. } => 1.0 / 2048.0,
        _ => 1e-5,
    }
}

#[test]
fn a_row_of_a_product_has_the_same_bits_alone_and_in_company() {
    for (inner, weight) in [(96, AFFINE_4), (160, AFFINE_8), (192, AFFINE_3), (77, DENSE_BF16)] {
        let case = |rows| Case::Linear { rows, outputs: 101, inner, weight, bias: true };
        rows_have_the_same_bits(case, 101);
    }
}

#[test]
fn a_row_of_a_norm_has_the_same_bits_alone_and_in_company() {
    rows_have_the_same_bits(|rows| Case::RmsNorm { shape: &[], rows, width: 579 }, 579);
}

#[test]
fn a_prompt_has_the_same_bits_whole_and_in_chunks() {
    for (name, backend) in cpus() {
        for (window, format) in [
            (None, KvFormat::F16),
            (Some(37), KvFormat::Q8),
            (Some(190), KvFormat::F32),
            (None, KvFormat::Q4),
        ] {
            let backend = backend.with_kv(format);
            let shape = AttendShape { heads: 9, kv_heads: 3, head_dim: 40, window };
            let whole = Attention::new(&backend, shape, 5, F32).prompt(&backend, 405, 405);
            for chunk in [1, 7, 64] {
                let chunks = Attention::new(&backend, shape, 5, F32).prompt(&backend, 405, chunk);
                assert!(bits(&whole) == bits(&chunks), "{name}, {window:?}, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_company() {
    use Act::{Fork, Step};
    for (name, backend) in cpus() {
        let shape = AttendShape { heads: 6, kv_heads: 2, head_dim: 64, window: None };
        let width = 6 * 64;
        let mut alone = Attention::new(&backend, shape, 9, F32);
        let alone = [alone.step(&backend, &[(0, 70)]), alone.step(&backend, &[(0, 1)])];

        let mut company = Attention::new(&backend, shape, 9, F32);
        company.act(&backend, Step(&[(1, 33), (2, 5)]));
        let first = company.step(&backend, &[(1, 2), (0, 70), (2, 64)]);
        company.act(&backend, Fork(0));
        let second = company.step(&backend, &[(2, 1), (1, 9), (0, 1), (3, 4)]);
        assert!(bits(&alone[0]) == bits(&first[2 * width..72 * width]), "{name}: the prompt");
        assert!(bits(&alone[1]) == bits(&second[10 * width..11 * width]), "{name}: the next");
    }
}

#[test]
fn a_fork_costs_no_copy_until_one_of_the_two_writes() {
    let backend = CpuBackend::new(1);
    let shape = AttendShape { heads: 2, kv_heads: 1, head_dim: 8, window: None };
    let mut attention = Attention::new(&backend, shape, 1, F32);
    attention.step(&backend, &[(0, 40)]);
    let fork = attention.sequences[0].kv.fork();
    assert_eq!(fork.len(), 40);
    assert_eq!(fork.bytes(), attention.sequences[0].kv.bytes());

    let mut twin = Attention::new(&backend, shape, 1, F32);
    twin.step(&backend, &[(0, 40)]);
    // The fork forgets, and writes over what it shared; the first must not notice.
    attention.sequences[1].kv = fork;
    assert_eq!(attention.sequences[1].kv.truncate(3), 3);
    attention.step(&backend, &[(1, 50)]);
    let (found, expected) = (attention.step(&backend, &[(0, 1)]), twin.step(&backend, &[(0, 1)]));
    assert!(bits(&found) == bits(&expected));
}

#[test]
fn a_truncated_cache_holds_no_more_bytes_than_it_needs() {
    let backend = CpuBackend::new(1);
    let shape = AttendShape { heads: 2, kv_heads: 1, head_dim: 8, window: None };
    let mut attention = Attention::new(&backend, shape, 1, F32);
    assert!(attention.sequences[0].kv.is_empty());
    attention.step(&backend, &[(0, 10)]);
    let few = attention.sequences[0].kv.bytes();
    attention.step(&backend, &[(0, 90)]);
    assert!(attention.sequences[0].kv.bytes() > few);
    let kv = &mut attention.sequences[0].kv;
    assert_eq!((kv.truncate(200), kv.truncate(10), kv.bytes()), (100, 10, few));
    assert_eq!((kv.truncate(0), kv.bytes()), (0, 0));
}

/// All ways to compute on this machine's CPU.
fn cpus() -> Vec<(String, CpuBackend)> {
    let all = Isa::all().into_iter().flat_map(|isa| [(1, isa), (2, isa)]);
    let backends = all.map(|(threads, isa)| CpuBackend::with_isa(threads, isa));
    let backends = backends.map(|backend| (backend.describe(), backend.with_kv(KvFormat::F32)));
    backends.collect()
}

fn rows_have_the_same_bits(case: impl Fn(usize) -> Case, width: usize) {
    for (name, backend) in cpus() {
        let all = case(64).run(&backend, 3, F32);
        for rows in [1, 3, 8] {
            let few = case(rows).run(&backend, 3, F32);
            assert!(bits(&few) == bits(&all[..rows * width]), "{:?} on {name}", case(rows));
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
