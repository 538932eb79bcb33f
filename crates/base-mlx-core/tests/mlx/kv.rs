use std::time::{Duration, Instant};

use base_mlx_core::backend::{
    Attend, Backend, Batch, KvCache, LayerSpec, MlxBackend, MlxKv, Qkv, Span,
};
use base_mlx_core::tensor::Dtype;

use crate::device::on_mlx;
use crate::support::ops::{AttendShape, Attention, floats};

const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const LAYER: LayerSpec = LayerSpec { kv_heads: KV_HEADS, head_dim: HEAD_DIM };
/// In F32 the keys lie in arrays everywhere; in F16, where own kernels run, in blocks.
const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::F16];
/// Of a token's keys and values in F32.
const TOKEN_BYTES: usize = 2 * KV_HEADS * HEAD_DIM * 4;

fn in_all_dtypes(test: fn(&MlxBackend)) {
    on_mlx(move |backend| {
        DTYPES.iter().for_each(|&dtype| test(&backend.for_model(dtype, None).unwrap()))
    });
}

/// Appends so many tokens with one step.
fn append(backend: &MlxBackend, kv: &mut MlxKv, tokens: usize, window: Option<usize>) {
    let values = vec![0.5; tokens * KV_HEADS * HEAD_DIM];
    let shape = [tokens, KV_HEADS, HEAD_DIM];
    let tensor = || floats(backend, backend.dtype(), &shape, &values);
    let (q, k, v) = (tensor(), tensor(), tensor());
    let mut batch = Batch::new(backend, vec![Span { kv, rows: 0..tokens }]).unwrap();
    let qkv = Qkv { q: &q, k: &k, v: &v };
    let out = backend.attend(0, qkv, &mut batch, Attend { scale: 0.125, window });
    backend.download(&out).unwrap();
}

/// So many tokens, none of which has looked far back, which would take its time.
fn filled(backend: &MlxBackend, context: usize) -> MlxKv {
    let mut kv = backend.new_kv(&[LAYER]).unwrap();
    for _ in 0..context / 256 {
        append(backend, &mut kv, 256, Some(1));
    }
    kv
}

/// Bytes that a decode step takes at most beyond what is there.
fn decode_step(backend: &MlxBackend, context: usize) -> usize {
    let mut kv = filled(backend, context);
    // Beyond the growth that the first token brings.
    append(backend, &mut kv, 1, None);
    base_mlx_sys::reset_peak_memory();
    let before = base_mlx_sys::active_memory();
    for _ in 0..9 {
        append(backend, &mut kv, 1, None);
    }
    base_mlx_sys::peak_memory().saturating_sub(before)
}

#[test]
fn a_decode_step_allocates_nothing_that_grows_with_the_context() {
    in_all_dtypes(|backend| {
        let (few, many) = (decode_step(backend, 1024), decode_step(backend, 16 * 1024));
        println!("beyond what is there: {few} bytes at 1k, {many} bytes at 16k");
        // A copy would take 16,384 tokens' bytes. MLX's CPU attention keeps scores, 4 bytes for each key and head.
        let scores = 15 * 1024 * KV_HEADS * 4 * 4;
        assert!(many < few + scores + 15 * 1024, "{few} bytes at 1k, {many} bytes at 16k");
        assert!(many < 16 * 1024 * TOKEN_BYTES / 8, "{many} bytes at 16k");
    });
}

/// The median of some decode steps that see one key.
fn decode_time(backend: &MlxBackend, context: usize) -> Duration {
    let mut kv = filled(backend, context);
    let mut times = [Duration::ZERO; 51];
    for time in &mut times {
        let begun = Instant::now();
        append(backend, &mut kv, 1, Some(1));
        *time = begun.elapsed();
    }
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_decode_step_takes_no_time_that_grows_with_the_context() {
    in_all_dtypes(|backend| {
        let (few, many) = (decode_time(backend, 1024), decode_time(backend, 16 * 1024));
        println!("{few:?} at 1k, {many:?} at 16k");
        // A step that copies its cache takes 0.2 and
        // 2.9 ms on two cores of a Xeon; on a GPU a copy is too fast to be seen, and its memory is.
        assert!(many < 6 * few, "{few:?} at 1k, {many:?} at 16k");
    });
}

#[test]
fn a_fork_copies_only_when_one_of_the_two_writes() {
    in_all_dtypes(|backend| {
        let shape = AttendShape { heads: 4, kv_heads: 2, head_dim: 32, window: None };
        let new = || Attention::new(backend, shape, 1, backend.dtype());
        let mut attention = new();
        attention.step(backend, &[(0, 1000)]);
        base_mlx_sys::synchronize().unwrap();
        let before = base_mlx_sys::active_memory();
        let fork = attention.sequences[0].kv.fork();
        assert_eq!(fork.len(), 1000);
        assert_eq!(fork.bytes(), attention.sequences[0].kv.bytes());
        assert_eq!(base_mlx_sys::active_memory(), before, "a fork took memory");

        let mut twin = new();
        twin.step(backend, &[(0, 1000)]);
        // The fork forgets, and writes over what it shared; the first must not notice.
        attention.sequences[1].kv = fork;
        assert_eq!(attention.sequences[1].kv.truncate(3), 3);
        attention.step(backend, &[(1, 50)]);
        let found = attention.step(backend, &[(0, 1)]);
        assert_eq!(found, twin.step(backend, &[(0, 1)]));
    });
}

#[test]
fn a_truncated_cache_goes_on_where_it_was_cut() {
    in_all_dtypes(|backend| {
        let shape = AttendShape { heads: 4, kv_heads: 2, head_dim: 32, window: None };
        let mut attention = Attention::new(backend, shape, 1, backend.dtype());
        assert!(attention.sequences[0].kv.is_empty());
        attention.step(backend, &[(0, 100)]);
        let kv = &mut attention.sequences[0].kv;
        assert_eq!((kv.truncate(200), kv.truncate(33), kv.len()), (100, 33, 33));
        attention.step(backend, &[(0, 7)]);
        let kv = &mut attention.sequences[0].kv;
        assert_eq!((kv.len(), kv.truncate(0), kv.bytes()), (40, 0, 0));
    });
}
