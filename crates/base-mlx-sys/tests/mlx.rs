//! Every operation against a result worked out by hand, on MLX's CPU device. One test, because one thread owns MLX.
#![cfg(any(feature = "mlx", target_os = "macos"))]
#![allow(clippy::unwrap_used)]

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use base_mlx_sys::*;

fn array(values: &[f32], shape: &[usize]) -> Array {
    Array::from_f32(values, shape).unwrap()
}

fn floats(a: &Array) -> Vec<f32> {
    let bytes = a.astype(Dtype::F32).unwrap().to_bytes().unwrap();
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn close(got: Result<Array>, expected: &[f32]) {
    let got = floats(&got.unwrap());
    assert_eq!(got.len(), expected.len(), "{got:?} for {expected:?}");
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{got} for {expected}");
    }
}

#[test]
fn mlx_does_what_it_is_asked_for() {
    nothing_works_before_mlx_is_loaded();
    load().unwrap();
    load().unwrap();
    set_default_device(Device::Cpu).unwrap();
    assert_eq!(version(), "0.32.4");
    arrays_come_back_as_they_went();
    shapes_change();
    numbers_are_right();
    quantised_products_are_right();
    attention_is_right();
    a_compiled_function_computes_the_same();
    mistakes_are_errors();
    a_lone_handle_is_written_in_place();
    another_thread_is_refused();
}

fn nothing_works_before_mlx_is_loaded() {
    assert_eq!(Array::scalar(1.0, Dtype::F32).err(), Some(Error::NotLoaded));
    assert_eq!(Kernel::metal("nothing", &[], &["y"], "", "").err(), Some(Error::NotLoaded));
    assert_eq!(set_cache_limit(0), Err(Error::NotLoaded));
    assert_eq!((version().as_str(), active_memory()), ("", 0));
    assert!(!Device::Cpu.is_available());
}

fn arrays_come_back_as_they_went() {
    let bytes = [0x80, 0x3f, 0x00, 0xc0]; // 1 and -2 as bfloats
    let a = Array::from_bytes(&bytes, &[2], Dtype::BF16).unwrap();
    assert_eq!((a.dtype().unwrap(), a.shape(), a.nbytes()), (Dtype::BF16, vec![2], 4));
    assert_eq!(a.to_bytes().unwrap(), bytes);
    close(Ok(a), &[1.0, -2.0]);
    close(Array::full(&[2, 1], 3.0, Dtype::F16), &[3.0, 3.0]);
    let counted = Array::arange(1.0, 4.0, 1.0, Dtype::U32).unwrap();
    close(Ok(counted), &[1.0, 2.0, 3.0]);

    let a = array(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    assert!(Array::full(&[0, 3], 1.0, Dtype::F32).unwrap().to_bytes().unwrap().is_empty());

    let sum = a.add(&a).unwrap();
    // SAFETY: refused.
    assert!(unsafe { sum.data_pointer() }.is_err(), "what is not evaluated has no address");
    assert_eq!(sum.is_available(), Ok(false));
    eval(&[&sum]).unwrap();
    assert_eq!(sum.is_available(), Ok(true));
    let last = sum.slice(&[1, 1], &[2, 2]).unwrap();
    eval(&[&last]).unwrap();
    // SAFETY: on the CPU it is the CPU's address of an array that lives.
    assert_eq!(unsafe { *(last.data_pointer().unwrap() as *const f32) }, 8.0);
}

fn shapes_change() {
    let a = array(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
    close(a.transpose(&[1, 0]), &[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    close(a.slice(&[0, 1], &[2, 3]), &[2.0, 3.0, 5.0, 6.0]);
    close(a.reshape(&[3, 2]).unwrap().slice(&[2, 0], &[3, 2]), &[5.0, 6.0]);
    close(Array::concatenate(&[&a, &a], 1).unwrap().slice(&[0, 2], &[1, 4]), &[3.0, 1.0]);
    let rows = Array::from_u32(&[1, 1], &[2]).unwrap();
    // SAFETY: there are two rows.
    close(unsafe { a.take(&rows, 0) }, &[4.0, 5.0, 6.0, 4.0, 5.0, 6.0]);
    let places = Array::from_u32(&[2, 0], &[2, 1]).unwrap();
    // SAFETY: there are three places in a row.
    close(unsafe { a.take_along_axis(&places, 1) }, &[3.0, 4.0]);
    close(
        a.clone().slice_update(&array(&[9.0], &[1, 1]), &[1, 1], &[2, 2]),
        &[1.0, 2.0, 3.0, 4.0, 9.0, 6.0],
    );
    close(Ok(a), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
}

fn numbers_are_right() {
    let (a, b) = (array(&[1.0, -2.0], &[2]), array(&[4.0, 8.0], &[2]));
    close(a.add(&b), &[5.0, 6.0]);
    close(a.subtract(&b), &[-3.0, -10.0]);
    close(a.multiply(&b), &[4.0, -16.0]);
    close(a.divide(&b), &[0.25, -0.25]);
    close(a.maximum(&b), &[4.0, 8.0]);
    close(a.minimum(&b), &[1.0, -2.0]);
    close(a.less(&b), &[1.0, 1.0]);
    close(b.less_equal(&a), &[0.0, 0.0]);
    close(a.equal(&a), &[1.0, 1.0]);
    let three = Array::scalar(3.0, Dtype::F32).unwrap();
    close(a.multiply(&three), &[3.0, -6.0]);
    let odd = array(&[1.0, 0.0], &[2]).equal(&array(&[1.0, 1.0], &[2])).unwrap();
    close(odd.logical_and(&odd), &[1.0, 0.0]);
    close(odd.logical_or(&a.less(&b).unwrap()), &[1.0, 1.0]);
    close(Array::select(&odd, &a, &b), &[1.0, 8.0]);
    close(a.exp(), &[std::f32::consts::E, 0.135_335_28]);
    close(a.erf(), &[0.842_700_8, -0.995_322_3]);
    close(a.sigmoid(), &[0.731_058_6, 0.119_202_92]);
    close(a.tanh(), &[0.761_594_2, -0.964_027_6]);
    close(a.negative(), &[-1.0, 2.0]);
    close(a.swiglu(&b), &[4.0 * 0.731_058_6, 8.0 * -2.0 * 0.119_202_92]);

    let rows = array(&[3.0, 1.0, 2.0, 0.0, 0.0, 0.0], &[2, 3]);
    close(rows.sum(1), &[6.0, 0.0]);
    close(rows.max(1), &[3.0, 0.0]);
    close(rows.cumsum(1), &[3.0, 4.0, 6.0, 0.0, 0.0, 0.0]);
    close(rows.argmax(1), &[0.0, 0.0]);
    let first = rows.slice(&[0, 0], &[1, 3]).unwrap();
    close(first.argsort(1), &[1.0, 2.0, 0.0]);
    let column = array(&[1.0, 10.0, 100.0], &[3, 1]);
    close(first.matmul(&column), &[213.0]);

    let x = array(&[3.0, 4.0], &[1, 2]);
    let norm = 12.5_f32.sqrt();
    close(x.rms_norm(&array(&[1.0, 2.0], &[2]), 0.0), &[3.0 / norm, 8.0 / norm]);
    let (w, bias) = (array(&[1.0, 2.0], &[2]), array(&[0.5, 0.0], &[2]));
    close(x.layer_norm(&w, &bias, 0.0), &[-0.5, 2.0]);
    // One pair, turned by two radians at offset 2 and frequency 1.
    let pair = array(&[1.0, 0.0], &[1, 1, 1, 2]);
    let offset = Array::from_u32(&[2], &[1]).unwrap().astype(Dtype::I32).unwrap();
    close(pair.rope(2, 1.0, &offset, &array(&[1.0], &[1])), &[2.0_f32.cos(), 2.0_f32.sin()]);
}

/// 32 values in one row: 0 and the largest by turns, value after value from the lowest bit on.
fn zero_and_largest(bits: i32) -> Quantized {
    let is_set = |bit: i32| u32::from(bit / bits % 2 == 1);
    let word = |word| (0..32).map(|bit| is_set(word * 32 + bit) << bit).sum();
    let words: Vec<u32> = (0..bits).map(word).collect();
    Quantized {
        packed: Array::from_u32(&words, &[1, bits as usize]).unwrap(),
        scales: array(&[1.0], &[1, 1]),
        biases: array(&[0.0], &[1, 1]),
        group_size: 32,
        bits,
    }
}

fn quantised_products_are_right() {
    for bits in [2, 3, 4, 5, 6, 8] {
        let largest = ((1_u32 << bits) - 1) as f32;
        let values: Vec<f32> = (0..32).map(|i| if i % 2 == 0 { 0.0 } else { largest }).collect();
        let w = zero_and_largest(bits);
        close(w.dequantize(), &values);
        let x = array(&[0.5; 32], &[1, 32]);
        close(x.quantized_matmul(&w), &[8.0 * largest]);
        let experts = Quantized {
            packed: Array::concatenate(&[&w.packed, &w.packed], 0)
                .unwrap()
                .reshape(&[2, 1, bits as usize])
                .unwrap(),
            scales: Array::concatenate(&[&w.scales, &w.scales.add(&w.scales).unwrap()], 0)
                .unwrap()
                .reshape(&[2, 1, 1])
                .unwrap(),
            biases: Array::concatenate(&[&w.biases, &w.biases.add(&w.biases).unwrap()], 0)
                .unwrap()
                .reshape(&[2, 1, 1])
                .unwrap(),
            ..w
        };
        let second = Array::from_u32(&[1], &[1]).unwrap();
        let rows = x.reshape(&[1, 1, 32]).unwrap();
        // SAFETY: there are two experts.
        close(unsafe { rows.gather_qmm(&experts, &second) }, &[16.0 * largest]);
    }
    for (bits, group_size) in [(0, 32), (7, 32), (4, 0), (4, -32)] {
        let w = Quantized { bits, group_size, ..zero_and_largest(4) };
        let x = array(&[0.5; 32], &[1, 32]);
        for refused in [w.dequantize(), x.quantized_matmul(&w)] {
            let error = refused.err().unwrap().to_string();
            assert!(error.contains(&format!("{bits} bits in groups of {group_size}")), "{error}");
        }
    }
    // Its elements, counted in 64 bits, would be none.
    assert!(Array::full(&[1 << 30, 1 << 30, 1 << 10], 0.0, Dtype::F32).is_err());
}

fn attention_is_right() {
    // Two equal keys share their values evenly; a causal first query sees the first alone.
    let q = array(&[1.0, 0.0, 1.0, 0.0], &[1, 1, 2, 2]);
    let k = array(&[1.0, 0.0, 1.0, 0.0], &[1, 1, 2, 2]);
    let v = array(&[2.0, 4.0, 6.0, 8.0], &[1, 1, 2, 2]);
    let attend = |mask| q.scaled_dot_product_attention(&k, &v, 1.0, mask);
    close(attend(Mask::All), &[4.0, 6.0, 4.0, 6.0]);
    close(attend(Mask::Causal), &[2.0, 4.0, 4.0, 6.0]);
    let second = array(&[f32::NEG_INFINITY, 0.0], &[1, 2]);
    close(attend(Mask::Array(&second)), &[6.0, 8.0, 6.0, 8.0]);
}

fn a_compiled_function_computes_the_same() {
    let traced = Rc::new(Cell::new(0));
    let seen = traced.clone();
    let function = Compiled::new(move |[a, b]: [&Array; 2]| {
        seen.set(seen.get() + 1);
        assert_ne!(a.shape(), [3], "three");
        let sum = a.add(b)?;
        Ok([sum.multiply(a)?, sum])
    })
    .unwrap();
    for (a, b) in [(1.0, 2.0), (3.0, 4.0)] {
        let [product, sum] = function.call([&array(&[a], &[1]), &array(&[b], &[1])]).unwrap();
        close(Ok(product), &[(a + b) * a]);
        close(Ok(sum), &[a + b]);
    }
    assert_eq!(traced.get(), 1, "traced once for one shape");
    let (two, three) = (array(&[1.0; 2], &[2]), array(&[1.0; 3], &[3]));
    let Err(Error::Mlx(said)) = function.call([&two, &three]) else { panic!("2 and 3 were added") };
    assert!(said.contains("broadcast"), "{said}");
    let panicked = catch_unwind(AssertUnwindSafe(|| function.call([&three, &three]).is_ok()));
    let said = panicked.unwrap_err().downcast::<String>().unwrap();
    assert!(said.contains("three"), "{said}");
    assert_eq!(function.call([&two, &two]).unwrap().len(), 2);
    drop(function);
    assert_eq!(Rc::strong_count(&traced), 1, "the closure is still held");
}

fn mistakes_are_errors() {
    let (a, b) = (array(&[1.0, 2.0], &[2]), array(&[1.0, 2.0, 3.0], &[3]));
    let Err(Error::Mlx(said)) = a.add(&b) else { panic!("shapes that do not fit were added") };
    assert!(said.contains("broadcast"), "{said}");
    assert!(a.reshape(&[3]).is_err());
    assert!(a.slice_update(&b, &[0], &[1]).is_err());
    // SAFETY: refused for its axis, before any index counts.
    assert!(unsafe { b.take(&b, 7) }.is_err());
    let vast = Array::full(&[1 << 30, 1 << 30], 0.0, Dtype::F32).and_then(|a| a.add(&a));
    assert!(vast.and_then(|a| eval(&[&a])).is_err(), "four exabytes were found");
    assert!(Array::full(&[1 << 40], 0.0, Dtype::Bool).is_err());
    assert!(Quantized { group_size: 7, ..zero_and_largest(4) }.dequantize().is_err());
    let kernel = Kernel::cuda("nothing", &["x"], &["y"], "y[0] = x[0];", "", 0);
    let one = array(&[1.0], &[1]);
    let launch = Launch {
        grid: [1; 3],
        threadgroup: [1; 3],
        constants: &[("N", Constant::Int(1)), ("T", Constant::Dtype(Dtype::F32))],
        outputs: [(&[1][..], Dtype::F32)],
    };
    // SAFETY: one element is read and one written.
    let called = kernel.and_then(|kernel| unsafe { kernel.call(&[&one], launch) });
    assert!(called.is_err(), "no CUDA on a CPU");
    assert!(!Device::Metal.is_available() || cfg!(target_os = "macos"));
    // What failed left nothing behind.
    close(one.add(&one), &[2.0]);
}

fn a_lone_handle_is_written_in_place() {
    const ROWS: usize = 4096;
    let row = array(&[1.0; 256], &[1, 256]);
    let mut cache = array(&vec![0.0; ROWS * 256], &[ROWS, 256]);
    eval(&[&cache, &row]).unwrap();
    let write = |cache: Array, at: usize| {
        let cache = cache.slice_update(&row, &[at, 0], &[at + 1, 256]).unwrap();
        eval(&[&cache]).unwrap();
        cache
    };
    cache = write(cache, 0);
    let whole = cache.nbytes();
    reset_peak_memory();
    let before = active_memory();
    for at in 1..50 {
        cache = write(cache, at);
    }
    assert!(peak_memory() < before + whole / 2, "a write copied the whole array");
    let fork = cache.clone();
    cache = write(cache, 50);
    assert!(active_memory() >= before + whole, "the fork was written over");
    close(fork.slice(&[50, 0], &[51, 1]), &[0.0]);
    close(cache.slice(&[50, 0], &[51, 1]), &[1.0]);
    drop((fork, cache));
    assert!(active_memory() < before, "what was dropped is still held");
    clear_cache().unwrap();
    assert_eq!(cache_memory(), 0);
    assert!(has_cuda() || set_cuda_cache_limit(0).is_err(), "a limit of nothing was set");
}

fn another_thread_is_refused() {
    let a = array(&[1.0], &[1]);
    let sum = a.add(&a).unwrap(); // dropped over there, never computed
    let elsewhere = std::thread::spawn(move || {
        let copy = sum.clone();
        let refused = [copy.add(&sum).err(), copy.to_bytes().err()];
        (copy.shape(), copy.nbytes(), refused, [eval(&[&copy]), clear_cache()])
    });
    let refused = Some(Error::Thread);
    let expected =
        (vec![1], 4, [refused.clone(), refused], [Err(Error::Thread), Err(Error::Thread)]);
    assert_eq!(elsewhere.join().unwrap(), expected);
    close(Ok(a), &[1.0]);
}
