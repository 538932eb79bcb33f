//! Every kernel on every instruction set this CPU has, compared with the portable one on random sizes.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base_mlx_simd::{
    Activation, Affine, Arena, AttentionShape, AttentionSpan, Dense, Floats, Isa, KEY_BLOCK,
    Kernel, KvBlock, KvBlocks, KvFormat, Lanes, LayerNorm, Packed, Pool, Product, RopeTable, Sees,
    activate, add, attention, layer_norm, linear, linear_packed, rms_norm, rope, swiglu,
    write_blocks,
};
use half::f16;

#[test]
fn products_agree_with_the_exact_ones() {
    let pool = Pool::new(2);
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let plain = Plain::new(&mut dice);
        let Plain { outputs, inner, .. } = plain;
        let (dense, rows) = (plain.dense(&pool), dice.below([11, 70][seed as usize % 2]) + 1);
        let (x, bias) = (dice.floats(rows * inner), dice.floats(outputs));
        let bias = (seed % 3 != 0).then_some(&bias[..]);
        let expected = plain.products(&x, bias);
        close(&format!("linear, {rows} rows, {plain:?}"), &expected, &Isa::all(), |isa, out| {
            linear(&pool, isa, &x, vec![Product { weight: &dense, bias, out }]);
        });
    }
}

/// Products of rounded numbers: what is off is little beside the lengths of both over the root of their places, which is the
/// usual size of a product.
#[test]
fn rounded_products_are_near_the_exact_ones() {
    let pool = Pool::new(2);
    for seed in 0..150 {
        let mut dice = Dice(seed);
        let plain = Plain::new(&mut dice);
        let rows = dice.below([11, 70][seed as usize % 2]) + 1;
        let mut x = dice.floats(rows * plain.inner);
        // Some much larger than the rest, as models have them, and rows of very different sizes.
        for (row, x) in x.chunks_mut(plain.inner).enumerate() {
            x[dice.below(plain.inner)] *= 20.0;
            let size = 10.0_f32.powi(row as i32 % 60 - 30);
            x.iter_mut().for_each(|x| *x *= size);
        }
        let bias = dice.floats(plain.outputs).iter().map(|x| x * 1e-3).collect::<Vec<_>>();
        let bias = (seed % 3 != 0).then_some(&bias[..]);
        near(&pool, &plain, &x, bias, |x, w| {
            let length = |values: &[f32]| squares(values).sqrt();
            6e-4 * length(x) * length(w) / (plain.inner as f64).sqrt()
        });
    }
}

/// Numbers for which sums of products are as large as they get.
#[test]
fn rounded_products_never_wrap_around() {
    let pool = Pool::new(2);
    for inner in [1, 2, 31, 127, 128, 129, 384, 1000] {
        let shapes: [&dyn Fn(usize) -> f32; 6] = [
            &|_| 1.0,
            &|_| -3.0e37 / inner as f32,
            &|place| if place % 2 == 0 { 0.7 } else { -0.7 },
            &|place| if place == 0 { 1.0 } else { 1e-3 },
            &|place| if place < 17 { -1.0 } else { 0.0 },
            &|place| (place % 128) as f32,
        ];
        for x in shapes {
            let x: Vec<f32> = (0..inner).map(x).collect();
            for w in shapes {
                // Weights are of ordinary size.
                let values: Vec<f32> = (0..inner).map(w).collect();
                let largest = values.iter().fold(f32::MIN_POSITIVE, |a, b| a.max(b.abs()));
                let values: Vec<f32> = values.iter().map(|w| w / largest).collect();
                let plain = Plain { outputs: 1, inner, dtype: 0, bytes: stored(&values, 0) };
                // Values that are alike are rounded alike, so that what is off adds up; a sum that had wrapped around
                // would be off by far more.
                near(&pool, &plain, &x, None, |x, w| {
                    let sizes = x.iter().zip(w).map(|(x, w)| (f64::from(*x) * f64::from(*w)).abs());
                    sizes.sum::<f64>() / 2048.0 + squares(x).sqrt() * squares(w).sqrt() / 4096.0
                });
            }
        }
    }
}

#[test]
fn what_is_no_number_is_not_rounded_away() {
    let (pool, mut dice) = (Pool::new(1), Dice(1));
    let (outputs, inner) = (40, 300);
    let bytes = stored(&dice.floats(outputs * inner), 0);
    let plain = Plain { outputs, inner, dtype: 0, bytes };
    for isa in Isa::all() {
        let rounded = plain.rounded(&pool, isa);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = dice.floats(3 * inner);
            x[inner + 200] = odd;
            let mut out = vec![0.0; 3 * outputs];
            let product = Product { weight: &rounded, bias: None, out: &mut out };
            linear(&pool, isa, &x, vec![product]);
            let rows: Vec<bool> =
                out.chunks(outputs).map(|row| row.iter().all(|x| x.is_finite())).collect();
            assert_eq!(rows, [true, false, true], "{odd}, {}", isa.name());
            assert!(out[outputs..2 * outputs].iter().all(|x| !x.is_finite()), "{}", isa.name());
        }
        // A weight that is none makes none of its output alone.
        let mut values = plain.values();
        values[7 * inner + 140] = f32::NAN;
        let odd = Plain { outputs, inner, dtype: 0, bytes: stored(&values, 0) };
        let (x, mut out) = (dice.floats(inner), vec![0.0; outputs]);
        let weight = &odd.rounded(&pool, isa);
        linear(&pool, isa, &x, vec![Product { weight, bias: None, out: &mut out }]);
        let none: Vec<usize> = (0..outputs).filter(|&output| !out[output].is_finite()).collect();
        assert_eq!(none, [7], "{}", isa.name());
        // Nothing but zeros, and what is too small to have a scale.
        let mut out = vec![1.0; 2 * outputs];
        let x: Vec<f32> = (0..2 * inner).map(|i| if i < inner { 0.0 } else { 1e-42 }).collect();
        linear(&pool, isa, &x, vec![Product { weight: &rounded, bias: None, out: &mut out }]);
        assert!(out.iter().all(|out| out.abs() < 1e-38), "{}", isa.name());
    }
}

/// Rounded, on every instruction set: off by at most what is allowed for a row of x and one of weights.
fn near(
    pool: &Pool,
    plain: &Plain,
    x: &[f32],
    bias: Option<&[f32]>,
    allowed: impl Fn(&[f32], &[f32]) -> f64,
) {
    let expected = plain.products(x, None);
    let values = plain.values();
    for isa in Isa::all() {
        let rounded = plain.rounded(pool, isa);
        let mut out = vec![f32::NAN; expected.len()];
        linear(pool, isa, x, vec![Product { weight: &rounded, bias, out: &mut out }]);
        for (index, (found, expected)) in out.iter().zip(&expected).enumerate() {
            let (row, output) = (index / plain.outputs, index % plain.outputs);
            let x = &x[row * plain.inner..][..plain.inner];
            let w = &values[output * plain.inner..][..plain.inner];
            let bias = f64::from(bias.map_or(0.0, |bias| bias[output]));
            let off = (f64::from(*found) - (f64::from(*expected) + bias)).abs();
            let rounding = 1e-6 * (bias.abs() + f64::from(expected.abs()));
            let allowed = allowed(x, w) + rounding;
            assert!(
                off <= allowed,
                "{}, tiles {}: {found} for {expected} and {bias}, allowed {allowed}, at {index} of {plain:?}",
                isa.name(),
                isa.has_tiles(),
            );
        }
    }
}

fn squares(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}

#[test]
fn blocks_written_together_are_those_written_alone() {
    let (pool, mut dice) = (Pool::new(2), Dice(1));
    let [kv_heads, head_dim] = [3, 20];
    let width = kv_heads * head_dim;
    let (keys, values) = (dice.floats(100 * width), dice.floats(100 * width));
    for format in KvFormat::ALL {
        let blocks = KvBlocks::new(format, kv_heads, head_dim);
        let zeros = || {
            let mut block = blocks.block().unwrap();
            block.fill(&vec![0; blocks.bytes()]);
            block
        };
        let rows = [0..KEY_BLOCK, 40..40, 50..51, 60..75];
        let mut together: Vec<KvBlock> = rows.iter().map(|_| zeros()).collect();
        write_blocks(&pool, &mut together, &rows, &keys, &values);
        for (rows, together) in rows.iter().zip(&together) {
            let floats = rows.start * width..rows.end * width;
            let mut alone = zeros();
            alone.write(0, &keys[floats.clone()], &values[floats]);
            let saved = |block: &KvBlock| {
                let mut bytes = Vec::new();
                block.save(&mut bytes);
                bytes
            };
            assert_eq!(saved(together), saved(&alone), "{format}, {rows:?}");
        }
    }
}

#[test]
fn products_of_one_x_are_those_of_each_alone() {
    let pool = Pool::new(2);
    for rows in [1, 5, 40] {
        let (mut dice, inner) = (Dice(rows as u64), 300);
        let x = dice.floats(rows * inner);
        let plain = [(90, 0), (1, 1), (64, 2)].map(|(outputs, dtype)| {
            let bytes = stored(&dice.floats(outputs * inner), dtype);
            Plain { outputs, inner, dtype, bytes }
        });
        let dense = plain.each_ref().map(|plain| plain.dense(&pool));
        let alone = dense.each_ref().map(|weight| {
            let mut out = vec![f32::NAN; rows * weight.shape()[0]];
            linear(&pool, Isa::best(), &x, vec![Product { weight, bias: None, out: &mut out }]);
            out
        });
        let mut outs = alone.each_ref().map(|alone| vec![f32::NAN; alone.len()]);
        let products = dense.iter().zip(&mut outs);
        let products = products.map(|(weight, out)| Product { weight, bias: None, out });
        linear(&pool, Isa::best(), &x, products.collect());
        assert_eq!(outs, alone, "{rows} rows");
    }
}

#[test]
fn unpacked_rows_are_those_of_the_matrix() {
    let pool = Pool::new(2);
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let plain = Plain::new(&mut dice);
        let (dense, inner) = (plain.dense(&pool), plain.inner);
        let taken: Vec<u32> = (0..64).map(|_| dice.below(plain.outputs) as u32).collect();
        let values = plain.values();
        for isa in Isa::all() {
            let mut out = vec![f32::NAN; taken.len() * inner];
            dense.unpack_rows(&pool, isa, &taken, &mut out);
            for (row, out) in taken.iter().zip(out.chunks(inner)) {
                let expected = &values[*row as usize * inner..][..inner];
                assert_eq!(out, expected, "{}: row {row} of {plain:?}", isa.name());
            }
            let mut out = vec![f32::NAN; taken.len() * inner];
            plain.rounded(&pool, isa).unpack_rows(&pool, isa, &taken, &mut out);
            for (row, out) in taken.iter().zip(out.chunks(inner)) {
                let expected = &values[*row as usize * inner..][..inner];
                let largest = expected.iter().fold(0.0, |a: f32, b| a.max(b.abs()));
                for (found, expected) in out.iter().zip(expected) {
                    let far = (found - expected).abs() / largest;
                    assert!(far < 2e-4, "{}: row {row} of {plain:?}, rounded: {found}", isa.name());
                }
            }
        }
    }
}

#[test]
fn a_row_beyond_a_matrix_is_no_row_of_zeros() {
    let (pool, mut dice) = (Pool::new(1), Dice(1));
    let groups = Groups { outputs: 5, ..Groups::new(&mut dice) };
    let (inner, group) = (groups.inner, groups.group);
    let groups = Groups {
        packed: groups.packed[..5 * inner / 8 * groups.bits as usize].to_vec(),
        scales: stored(&dice.floats(5 * inner / group), groups.dtype),
        biases: stored(&dice.floats(5 * inner / group), groups.dtype),
        ..groups
    };
    let plain = Plain { outputs: 5, inner, dtype: 1, bytes: stored(&dice.floats(5 * inner), 1) };
    let (packed, dense) = (groups.packed(&pool), plain.dense(&pool));
    // The first beyond, which still has a place in the last panel, and one beyond any.
    for (row, is_there) in [(4, true), (5, false), (15, false), (1000, false)] {
        let mut out = vec![0.0; inner];
        let found = catch_unwind(AssertUnwindSafe(|| packed.unpack_rows(&pool, &[row], &mut out)));
        assert_eq!(found.is_ok(), is_there, "row {row} of {groups:?}");
        let unpack = || dense.unpack_rows(&pool, Isa::best(), &[row], &mut out);
        let found = catch_unwind(AssertUnwindSafe(unpack));
        assert_eq!(found.is_ok(), is_there, "row {row} of {plain:?}");
    }
}

#[test]
fn a_product_has_the_same_bits_at_every_batch_size() {
    let pool = Pool::new(2);
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let (plain, affine) = (Plain::new(&mut dice), Groups::new(&mut dice));
        let (dense, packed) = (plain.dense(&pool), affine.packed(&pool));
        bits_are_the_same(&format!("{plain:?}"), &mut dice, 64, dense.shape(), |isa, x, out| {
            linear(&pool, isa, x, vec![Product { weight: &dense, bias: None, out }]);
        });
        let what = format!("{plain:?}, rounded");
        bits_are_the_same(&what, &mut dice, 64, dense.shape(), |isa, x, out| {
            let rounded = plain.rounded(&pool, isa);
            linear(&pool, isa, x, vec![Product { weight: &rounded, bias: None, out }]);
        });
        bits_are_the_same(&format!("{affine:?}"), &mut dice, 64, packed.shape(), |isa, x, out| {
            linear_packed(&pool, isa, x, vec![Product { weight: &packed, bias: None, out }]);
        });
    }
    // More rows than go together.
    let (mut dice, outputs, inner, dtype) = (Dice(1), 40, 3000, 2);
    let bytes = stored(&dice.floats(outputs * inner), dtype);
    let plain = Plain { outputs, inner, dtype, bytes };
    let dense = plain.dense(&pool);
    bits_are_the_same(&format!("{plain:?}"), &mut dice, 210, dense.shape(), |isa, x, out| {
        linear(&pool, isa, x, vec![Product { weight: &dense, bias: None, out }]);
    });
    let plain = Plain { dtype: 0, bytes: stored(&plain.values(), 0), ..plain };
    let what = format!("{plain:?}, rounded");
    bits_are_the_same(&what, &mut dice, 210, dense.shape(), |isa, x, out| {
        let rounded = plain.rounded(&pool, isa);
        linear(&pool, isa, x, vec![Product { weight: &rounded, bias: None, out }]);
    });
    let x = dice.floats(210 * inner);
    near(&pool, &plain, &x, None, |x, w| {
        6e-4 * squares(x).sqrt() * squares(w).sqrt() / (inner as f64).sqrt()
    });
}

fn bits_are_the_same(
    what: &str,
    dice: &mut Dice,
    most: usize,
    [outputs, inner]: [usize; 2],
    product: impl Fn(Isa, &[f32], &mut [f32]),
) {
    let x = dice.floats(most * inner);
    for isa in Isa::all() {
        let product = |rows| {
            let mut out = vec![0.0; rows * outputs];
            product(isa, &x[..rows * inner], &mut out);
            out
        };
        let all = product(most);
        for rows in [1, 2, 3, 4, 7, 8, 13, 25] {
            let same = product(rows).iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: {rows} rows, {what}", isa.name());
        }
    }
}

#[test]
fn other_rows_have_the_same_bits_alone_too() {
    let pool = Pool::new(2);
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let width = dice.below(900) + 1;
        let (a, b) = (dice.floats(ROWS * width), dice.floats(ROWS * width));
        let of = |rows: Range<usize>| rows.start * width..rows.end * width;
        same_alone(&format!("add of {width}"), |isa, rows, out| {
            out.resize(rows.len() * width, f32::NAN);
            add(&pool, isa, &a[of(rows.clone())], &b[of(rows)], out);
        });
        same_alone(&format!("swiglu of {width}"), |isa, rows, out| {
            out.resize(rows.len() * width, f32::NAN);
            swiglu(&pool, isa, &a[of(rows.clone())], &b[of(rows)], out);
        });
        same_alone(&format!("rms_norm of {width}"), |isa, rows, out| {
            out.resize(rows.len() * width, f32::NAN);
            rms_norm(&pool, isa, &a[of(rows)], &b[..width], 1e-6, out);
        });
        same_alone(&format!("layer_norm of {width}"), |isa, rows, out| {
            out.resize(rows.len() * width, f32::NAN);
            let norm = LayerNorm { w: &b[..width], bias: &a[..width], eps: 1e-6 };
            layer_norm(&pool, isa, &a[of(rows)], norm, out);
        });
        same_alone(&format!("gelu of {width}"), |isa, rows, out| {
            out.resize(rows.len() * width, f32::NAN);
            activate(&pool, isa, Activation::Gelu, &a[of(rows)], out);
        });

        let (heads, head_dim) = (dice.below(5) + 1, dice.below(80) + 2);
        let pairs = dice.below(head_dim / 2) + 1;
        let inv_freq = dice.floats(pairs);
        let positions: Vec<u32> = (0..ROWS).map(|_| dice.below(9000) as u32).collect();
        let x = dice.floats(ROWS * heads * head_dim);
        same_alone(&format!("rope of {heads} heads of {head_dim}"), |isa, rows, out| {
            let table = RopeTable::new(&pool, &positions[rows.clone()], &inv_freq, 1.1);
            let x = &x[rows.start * heads * head_dim..rows.end * heads * head_dim];
            out.resize(x.len(), f32::NAN);
            rope(&pool, isa, x, heads, head_dim, &table, out);
        });

        let (plain, affine) = (Plain::new(&mut dice), Groups::new(&mut dice));
        let (dense, packed) = (plain.dense(&pool), affine.packed(&pool));
        let mut taken =
            |outputs| -> Vec<u32> { (0..ROWS).map(|_| dice.below(outputs) as u32).collect() };
        let (of_dense, of_packed) = (taken(plain.outputs), taken(affine.outputs));
        same_alone(&format!("unpack_rows of {plain:?}"), |isa, rows, out| {
            out.resize(rows.len() * plain.inner, f32::NAN);
            dense.unpack_rows(&pool, isa, &of_dense[rows], out);
        });
        same_alone(&format!("unpack_rows of {affine:?}"), |_, rows, out| {
            out.resize(rows.len() * affine.inner, f32::NAN);
            packed.unpack_rows(&pool, &of_packed[rows], out);
        });
    }
}

/// Compares all rows together with each by itself.
fn same_alone(what: &str, kernel: impl Fn(Isa, Range<usize>, &mut Vec<f32>)) {
    for isa in Isa::all() {
        let run = |rows| {
            let mut out = Vec::new();
            kernel(isa, rows, &mut out);
            out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
        };
        let all = run(0..ROWS);
        for (row, together) in all.chunks(all.len() / ROWS).enumerate() {
            assert_eq!(run(row..row + 1), together, "{}: row {row}, {what}", isa.name());
        }
    }
}

const ROWS: usize = 64;

#[test]
fn packed_products_agree_and_are_close_to_the_exact_ones() {
    let pool = Pool::new(2);
    let mut seen = [false; 9];
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let affine = Groups::new(&mut dice);
        let Groups { outputs, inner, bits, .. } = affine;
        seen[bits as usize] = true;
        let rows = dice.below(11) + 1;
        let packed = affine.packed(&pool);
        let (x, bias) = (dice.floats(rows * inner), dice.floats(outputs));
        let bias = (seed % 2 == 0).then_some(&bias[..]);
        let what = format!("{rows} rows, {affine:?}");
        agree(&what, rows * outputs, |isa, out| {
            linear_packed(&pool, isa, &x, vec![Product { weight: &packed, bias, out }]);
        });

        let values = affine.values();
        let plain = Plain { outputs, inner, dtype: 0, bytes: stored(&values, 0) };
        let (exact, mut found) = (plain.products(&x, bias), vec![0.0; rows * outputs]);
        let product = Product { weight: &packed, bias, out: &mut found };
        linear_packed(&pool, Isa::best(), &x, vec![product]);
        // A value of x is off by up to 1/254 of its group's largest; such errors add up like a walk at random.
        let size = f32::from(1_u16 << bits) * (inner as f32).sqrt() / 254.0;
        for (found, exact) in found.iter().zip(&exact) {
            let far = (found - exact).abs();
            assert!(far < 3.0 * size, "{what}: {found} for {exact}");
        }

        let taken: Vec<u32> = (0..7).map(|_| dice.below(outputs) as u32).collect();
        let mut rows = vec![0.0; taken.len() * inner];
        packed.unpack_rows(&pool, &taken, &mut rows);
        for (row, found) in taken.iter().zip(rows.chunks(inner)) {
            for (found, exact) in found.iter().zip(&values[*row as usize * inner..]) {
                // Scale and bias have 11 bits, and a value is up to 2^bits scales.
                let far = (found - exact).abs() / f32::from(1_u16 << bits);
                assert!(far < 1.0 / 2048.0, "{affine:?}: {found} for {exact}");
            }
        }
    }
    assert_eq!(seen.iter().filter(|seen| **seen).count(), 6, "each width");
}

#[test]
fn sums_norms_and_gates_agree() {
    let pool = Pool::new(2);
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let (rows, width) = (dice.below(40) + 1, dice.below(700) + 1);
        let (a, b) = (dice.floats(rows * width), dice.floats(rows * width));
        let gate: Vec<f32> = a.iter().map(|a| a * 100.0).collect();
        agree("add", a.len(), |isa, out| add(&pool, isa, &a, &b, out));
        agree("swiglu", a.len(), |isa, out| swiglu(&pool, isa, &gate, &b, out));
        agree("rms_norm", a.len(), |isa, out| rms_norm(&pool, isa, &a, &b[..width], 1e-6, out));
        let norm = LayerNorm { w: &b[..width], bias: &a[..width], eps: 1e-6 };
        agree("layer_norm", a.len(), |isa, out| layer_norm(&pool, isa, &a, norm, out));
        for activation in ACTIVATIONS {
            let what = format!("{activation:?}");
            agree(&what, a.len(), |isa, out| activate(&pool, isa, activation, &gate, out));
        }
    }
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh];

#[test]
fn activations_keep_what_is_no_number_and_end_where_they_should() {
    for isa in Isa::all() {
        for activation in ACTIVATIONS {
            let x = [f32::NAN, -1e30, -40.0, 0.0, 40.0, 1e30];
            let mut out = [0.0; 6];
            activate(&Pool::new(1), isa, activation, &x, &mut out);
            let what = format!("{}: {activation:?} {out:?}", isa.name());
            assert!(out[0].is_nan(), "{what}");
            let ends = match activation {
                Activation::Tanh => [-1.0, -1.0, 0.0, 1.0, 1.0],
                _ => [0.0, 0.0, 0.0, 40.0, 1e30],
            };
            for (found, expected) in out[1..].iter().zip(ends) {
                assert!((found - expected).abs() <= 1e-6 * expected.abs().max(1.0), "{what}");
            }
        }
    }
}

#[test]
fn rotations_agree() {
    let pool = Pool::new(2);
    for seed in 0..100 {
        let mut dice = Dice(seed);
        let (tokens, heads, head_dim) = (dice.below(40) + 1, dice.below(5) + 1, dice.below(80) + 2);
        let pairs = dice.below(head_dim / 2) + 1;
        let inv_freq = dice.floats(pairs);
        let positions: Vec<u32> = (0..tokens).map(|_| dice.below(9000) as u32).collect();
        let table = RopeTable::new(&pool, &positions, &inv_freq, 1.1);
        let x = dice.floats(tokens * heads * head_dim);
        agree("rope", x.len(), |isa, out| rope(&pool, isa, &x, heads, head_dim, &table, out));
    }
}

#[test]
fn attentions_agree() {
    let pool = Pool::new(2);
    for seed in 0..100 {
        let mut dice = Dice(seed);
        let (kv_heads, group) = (dice.below(3) + 1, dice.below(7) + 1);
        let (heads, head_dim) = (kv_heads * group, dice.below(90) + 1);
        let sees = match seed % 4 {
            0 => Sees::Window(dice.below(90) + 1),
            1 => Sees::All,
            _ => Sees::Past,
        };
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.4, sees };
        let longest = [80, 80, 1200][seed as usize % 3];
        let lens: Vec<(usize, usize)> =
            (0..3).map(|_| (dice.below(longest), dice.below(40))).collect();
        let tokens: usize = lens.iter().map(|(_, rows)| rows).sum();
        let q = dice.floats(tokens * heads * head_dim);
        let what = format!("{shape:?}, {lens:?}");
        for format in FORMATS {
            attend_everywhere(format, &what, &pool, shape, &mut dice, &lens, &q);
        }
    }
}

/// Each sequence has a past and some rows.
fn attend_everywhere(
    format: KvFormat,
    what: &str,
    pool: &Pool,
    shape: AttentionShape,
    dice: &mut Dice,
    lens: &[(usize, usize)],
    q: &[f32],
) {
    let caches: Vec<_> =
        lens.iter().map(|(start, rows)| cache(format, shape, dice, start + rows)).collect();
    let mut tokens = 0;
    let spans: Vec<AttentionSpan> = lens
        .iter()
        .zip(&caches)
        .map(|(&(start, rows), blocks)| {
            tokens += rows;
            AttentionSpan { rows: tokens - rows..tokens, start, blocks: blocks.iter().collect() }
        })
        .collect();
    agree(what, q.len(), |isa, out| attention(pool, isa, shape, q, &spans, out));
}

/// Random keys and values of so many positions.
fn cache(format: KvFormat, shape: AttentionShape, dice: &mut Dice, len: usize) -> Vec<KvBlock> {
    let AttentionShape { kv_heads, head_dim, .. } = shape;
    let (from, mut blocks) = (KvBlocks::new(format, kv_heads, head_dim), Vec::new());
    for start in (0..len).step_by(KEY_BLOCK) {
        let mut block = from.block().unwrap();
        let count = KEY_BLOCK.min(len - start) * kv_heads * head_dim;
        block.write(0, &dice.floats(count), &dice.floats(count));
        blocks.push(block);
    }
    blocks
}

#[test]
fn a_row_attends_with_the_same_bits_in_any_chunk() {
    for (seed, window) in
        [None, Some(1), Some(33), Some(150), Some(700)].into_iter().cycle().take(15).enumerate()
    {
        let sees = window.map_or(Sees::Past, Sees::Window);
        let mut dice = Dice(seed as u64);
        let (kv_heads, group) = (dice.below(2) + 1, [1, 2, 3, 4, 7][seed % 5]);
        let (heads, head_dim) = (kv_heads * group, [64, 40, 96, 7][dice.below(4)]);
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 2.0, sees };
        let len = 300 + dice.below(100) + if seed % 2 == 0 { 600 } else { 0 };
        for format in FORMATS {
            chunks_have_the_same_bits(format, shape, &mut dice, len);
        }
    }
}

fn chunks_have_the_same_bits(format: KvFormat, shape: AttentionShape, dice: &mut Dice, len: usize) {
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let row = heads * head_dim;
    let q = dice.floats(len * row);
    let mut cache = cache(format, shape, dice, len);
    // What nobody may see gets into no sum.
    let rest = len.next_multiple_of(KEY_BLOCK) - len;
    let infinite = vec![f32::INFINITY; rest * kv_heads * head_dim];
    cache.last_mut().unwrap().write(KEY_BLOCK - rest, &infinite, &infinite);
    for isa in Isa::all() {
        let in_chunks = |threads, rows: usize| {
            let pool = Pool::new(threads);
            let mut out = vec![f32::NAN; len * row];
            for start in (0..len).step_by(rows) {
                let rows = rows.min(len - start);
                let some = start * row..(start + rows) * row;
                let span = AttentionSpan { rows: 0..rows, start, blocks: cache.iter().collect() };
                attention(&pool, isa, shape, &q[some.clone()], &[span], &mut out[some]);
            }
            out
        };
        let alone = in_chunks(2, 1);
        assert!(alone.iter().all(|x| x.is_finite()), "{}: {shape:?}", isa.name());
        for (threads, rows) in [(1, 1), (2, 7), (1, 64), (2, len)] {
            let same = in_chunks(threads, rows)
                .iter()
                .zip(&alone)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{}: {len} keys in chunks of {rows}, {shape:?}", isa.name());
        }
    }
}

const FORMATS: [KvFormat; 4] = [KvFormat::F32, KvFormat::F16, KvFormat::Q8, KvFormat::Q4];

#[test]
fn fewer_bits_are_as_close_as_their_step() {
    let shape =
        AttentionShape { heads: 2, kv_heads: 1, head_dim: 40, scale: 0.2, sees: Sees::Past };
    let (mut dice, len) = (Dice(3), 100);
    let q = dice.floats(len * 80);
    let rows = |format| {
        let blocks = cache(format, shape, &mut Dice(4), len);
        let span = AttentionSpan { rows: 0..len, start: 0, blocks: blocks.iter().collect() };
        let mut out = vec![0.0; q.len()];
        attention(&Pool::new(1), Isa::best(), shape, &q, &[span], &mut out);
        out
    };
    let exact = rows(KvFormat::F32);
    for (format, bounds) in [(KvFormat::Q8, 1e-5..0.01), (KvFormat::Q4, 1e-3..0.15)] {
        let far = exact.iter().zip(rows(format)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(bounds.contains(&far), "{format}: {far}");
    }
}

#[test]
fn a_value_in_four_bits_is_off_by_an_eighth_of_its_groups_largest() {
    for head_dim in [1, 7, 32, 40, 64, 90] {
        let shape =
            AttentionShape { heads: 1, kv_heads: 1, head_dim, scale: 1.0, sees: Sees::Past };
        let value: Vec<f32> = Dice(head_dim as u64).floats(head_dim);
        let mut block = KvBlocks::new(KvFormat::Q4, 1, head_dim).block().unwrap();
        block.write(0, &value, &value);
        let span = AttentionSpan { rows: 0..1, start: 0, blocks: vec![&block] };
        let mut out = vec![f32::NAN; head_dim];
        attention(&Pool::new(1), Isa::best(), shape, &value, &[span], &mut out);
        for (out, value) in out.chunks(32).zip(value.chunks(32)) {
            let largest = value.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= largest / 8.0 * 1.001;
            assert!(out.iter().zip(value).all(close), "{value:?} as {out:?}");
        }
    }
}

/// Two dimensions are as large as keys' biases in some models: one that stays, and one that turns.
#[test]
fn large_dimensions_of_keys_leave_the_others_their_bits() {
    let shape =
        AttentionShape { heads: 1, kv_heads: 1, head_dim: 64, scale: 0.1, sees: Sees::Past };
    let (mut dice, len) = (Dice(5), 2 * KEY_BLOCK);
    let (keys, values) = (dice.floats(len * 64), dice.floats(len * 64));
    let mut q = dice.floats(64);
    (q[0], q[60]) = (0.02, 0.01);
    let attend = |format, large: f32| {
        let mut keys = keys.clone();
        for (position, key) in keys.chunks_exact_mut(64).enumerate() {
            (key[0], key[60]) = (large * 0.1 * (position as f32).cos(), large + key[60]);
        }
        let (from, row) = (KvBlocks::new(format, 1, 64), KEY_BLOCK * 64);
        let blocks: Vec<KvBlock> = (keys.chunks(row).zip(values.chunks(row)))
            .map(|(keys, values)| {
                let mut block = from.block().unwrap();
                // In any parts.
                block.write(0, &keys[..5 * 64], &values[..5 * 64]);
                block.write(5, &keys[5 * 64..], &values[5 * 64..]);
                block
            })
            .collect();
        let span = AttentionSpan { rows: 0..1, start: len - 1, blocks: blocks.iter().collect() };
        let mut out = vec![0.0; 64];
        attention(&Pool::new(1), Isa::best(), shape, &q, &[span], &mut out);
        out
    };
    for large in [0.0, 100.0] {
        let (exact, rounded) = (attend(KvFormat::F32, large), attend(KvFormat::Q4, large));
        let far = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 0.1, "{large}: {far}");
    }
}

#[test]
fn a_value_not_yet_due_is_not_touched() {
    let pool = Pool::new(1);
    let shape =
        AttentionShape { heads: 2, kv_heads: 1, head_dim: 16, scale: 1.0, sees: Sees::Window(20) };
    let (len, bad) = (90, 50);
    let mut dice = Dice(1);
    let q = dice.floats(len * 32);
    let mut blocks = cache(KvFormat::F32, shape, &mut dice, len);
    blocks[bad / KEY_BLOCK].write(bad % KEY_BLOCK, &[0.5; 16], &[f32::INFINITY; 16]);
    for isa in Isa::all() {
        let mut out = vec![0.0; q.len()];
        let span = AttentionSpan { rows: 0..len, start: 0, blocks: blocks.iter().collect() };
        attention(&pool, isa, shape, &q, &[span], &mut out);
        for (row, out) in out.chunks(32).enumerate() {
            let seen = (bad..bad + 20).contains(&row);
            assert_eq!(out.iter().all(|x| x.is_finite()), !seen, "{}: row {row}", isa.name());
        }
    }
}

#[test]
fn what_is_not_a_number_is_seen_by_whoever_attends_to_it() {
    let (heads, head_dim, len) = (2, 40, 600);
    let mut dice = Dice(2);
    let q: Vec<f32> = dice.floats(len * heads * head_dim).iter().map(|q| q.abs() + 0.1).collect();
    let (ones, nan) = (vec![1.0; head_dim], vec![f32::NAN; head_dim]);
    let infinite = vec![f32::INFINITY; head_dim];
    let nothing: Vec<f32> = infinite.iter().map(|x| -x).collect();
    // The first of all, the last of a block, which a window leaves alone there, and the first of a segment.
    for (format, window, bad) in FORMATS
        .into_iter()
        .flat_map(|format| [None, Some(50)].map(|window| (format, window)))
        .flat_map(|(format, window)| [0, 31, 512].map(|bad| (format, window, bad)))
    {
        let sees = window.map_or(Sees::Past, Sees::Window);
        let shape = AttentionShape { heads, kv_heads: 1, head_dim, scale: 0.3, sees };
        let poisons = [(&nan, &ones, true), (&ones, &nan, true), (&infinite, &ones, true)];
        // Half a float keeps the largest number instead, and so do four bits.
        let bounded = [KvFormat::F16, KvFormat::Q4].contains(&format);
        let scores = if bounded { 2 } else { 3 };
        let weightless = (&nothing, &ones, false);
        for (key, value, spreads) in poisons.into_iter().take(scores).chain([weightless]) {
            let mut blocks = cache(format, shape, &mut dice, len);
            blocks[bad / KEY_BLOCK].write(bad % KEY_BLOCK, key, value);
            for isa in Isa::all() {
                let run = |rows: Range<usize>| {
                    let some = rows.start * heads * head_dim..rows.end * heads * head_dim;
                    let (start, rows) = (rows.start, 0..rows.len());
                    let mut out = vec![0.0; some.len()];
                    let span = AttentionSpan { rows, start, blocks: blocks.iter().collect() };
                    attention(&Pool::new(2), isa, shape, &q[some], &[span], &mut out);
                    out
                };
                let together = run(0..len);
                for (row, out) in together.chunks(heads * head_dim).enumerate() {
                    let sees = (bad..window.map_or(len, |window| bad + window)).contains(&row);
                    // Who sees nothing but what weighs nothing has no answer either.
                    let alone = !bounded && bad == 0 && row == 0;
                    let none = if spreads { sees } else { alone };
                    let what = format!("{}: {format} {window:?}, row {row}, {key:?}", isa.name());
                    assert!(out.iter().all(|x| x.is_nan() == none), "{what}: {out:?}");
                    assert!(none || out.iter().all(|x| x.abs() < 1.001), "{what}: {out:?}");
                }
                for row in [bad, bad + 40, len - 1] {
                    let together = &together[row * heads * head_dim..][..heads * head_dim];
                    let same = run(row..row + 1)
                        .iter()
                        .zip(together)
                        .all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                    assert!(same, "{}: row {row} alone", isa.name());
                }
            }
        }
    }
}

#[test]
fn what_is_beyond_half_a_float_is_kept_as_the_largest() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 1, scale: 1.0, sees: Sees::Past };
    for (value, kept) in [(1e9, 65504.0), (f32::NEG_INFINITY, -65504.0), (-1.5, -1.5)] {
        let mut block = KvBlocks::new(KvFormat::F16, 1, 1).block().unwrap();
        block.write(0, &[1.0], &[value]);
        let span = AttentionSpan { rows: 0..1, start: 0, blocks: vec![&block] };
        let mut out = [0.0];
        attention(&Pool::new(1), Isa::best(), shape, &[1.0], &[span], &mut out);
        assert_eq!(out, [kept]);
    }
}

#[test]
fn sums_and_largest_are_of_all_lanes() {
    struct Whole<'a>(&'a [f32]);
    impl Kernel for Whole<'_> {
        type Output = (usize, f32, f32);
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> Self::Output {
            let vector = lanes.load(self.0);
            (L::WIDTH, lanes.sum(vector), lanes.largest(vector))
        }
    }
    for seed in 0..100 {
        let x = Dice(seed).floats(16);
        for isa in Isa::all() {
            let (width, sum, largest) = isa.run(Whole(&x));
            let exact: f32 = x[..width].iter().sum();
            assert!((sum - exact).abs() < 1e-5, "{}: {sum} for {exact}", isa.name());
            let expected = x[..width].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest, expected, "{}", isa.name());
        }
    }
}

#[test]
fn powers_of_e_are_close_to_the_exact_ones() {
    struct Exp<'a>(&'a [f32]);
    impl Kernel for Exp<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> Vec<f32> {
            let mut out = Vec::new();
            for x in self.0.chunks(L::WIDTH) {
                let start = out.len();
                out.resize(start + x.len(), 0.0);
                lanes.store_some(lanes.exp(lanes.load_some(x)), &mut out[start..]);
            }
            out
        }
    }
    let x: Vec<f32> = (-8700..8800).map(|x| x as f32 / 100.0).collect();
    for isa in Isa::all() {
        for (x, found) in x.iter().zip(isa.run(Exp(&x))) {
            let exact = f64::from(*x).exp();
            let error = (f64::from(found) - exact).abs() / exact;
            assert!(error < 3e-7, "{}: e^{x} is {found}, {error:e} off", isa.name());
        }
        assert!(isa.run(Exp(&[f32::NAN; 17])).iter().all(|x| x.is_nan()), "{}", isa.name());
        let ends = [f32::NEG_INFINITY, -1e9, 1e9, f32::INFINITY, 0.0, -0.0, 1.0, -88.0];
        let found = isa.run(Exp(&ends));
        assert!(found[..2].iter().all(|x| (0.0..1e-37).contains(x)), "{found:?}");
        assert!(found[2..4].iter().all(|x| x.is_finite() && *x > 1e38), "{found:?}");
        assert_eq!(found[4..6], [1.0, 1.0]);
    }
}

/// Runs a kernel on each instruction set and compares it with the portable one.
fn agree(what: &str, len: usize, kernel: impl Fn(Isa, &mut [f32])) {
    let run = |isa| {
        let mut out = vec![f32::NAN; len];
        kernel(isa, &mut out);
        out
    };
    close(what, &run(Isa::all()[0]), &Isa::all()[1..], kernel);
}

/// Runs a kernel on each of some instruction sets and compares it with what is expected.
fn close(what: &str, expected: &[f32], isas: &[Isa], kernel: impl Fn(Isa, &mut [f32])) {
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    for isa in isas {
        let mut out = vec![f32::NAN; expected.len()];
        kernel(*isa, &mut out);
        for (index, (found, expected)) in out.into_iter().zip(expected).enumerate() {
            let far = (found - expected).abs() / largest;
            assert!(far < 4e-6, "{what}, {}: {found} for {expected} at {index}", isa.name());
        }
    }
}

#[test]
#[should_panic(expected = "one x, by weights of different inner sizes")]
fn one_x_is_not_multiplied_by_weights_of_different_inner_sizes() {
    let pool = Pool::new(1);
    let of = |inner: usize| {
        let (bits, group, packed) = (4, 32, vec![1; 2 * inner / 2]);
        let ones = stored(&vec![1.0; 2 * inner / group], 0);
        let (scales, biases) = (ones.clone(), ones);
        Groups { outputs: 2, inner, bits, group, packed, dtype: 0, scales, biases }.packed(&pool)
    };
    let (narrow, wide) = (of(32), of(64));
    let (mut two, mut one) = ([0.0; 4], [0.0; 2]);
    let products = vec![
        Product { weight: &narrow, bias: None, out: &mut two },
        Product { weight: &wide, bias: None, out: &mut one },
    ];
    linear_packed(&pool, Isa::best(), &[1.0; 64], products);
}

/// A random matrix of a random type.
struct Plain {
    outputs: usize,
    inner: usize,
    dtype: usize,
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Plain {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "[{}, {}] of {}", self.outputs, self.inner, ["F32", "F16", "BF16"][self.dtype])
    }
}

impl Plain {
    fn new(dice: &mut Dice) -> Self {
        let (outputs, inner, dtype) = (dice.below(90) + 1, dice.below(700) + 1, dice.below(3));
        let bytes = stored(&dice.floats(outputs * inner), dtype);
        Self { outputs, inner, dtype, bytes }
    }

    fn dense(&self, pool: &Pool) -> Dense {
        let floats = floats(&self.bytes, self.dtype);
        Dense::new(pool, &Arena::default(), floats, self.outputs, self.inner).unwrap()
    }

    fn rounded(&self, pool: &Pool, isa: Isa) -> Dense {
        let floats = floats(&self.bytes, self.dtype);
        Dense::rounded(pool, isa, &Arena::default(), floats, self.outputs, self.inner).unwrap()
    }

    fn values(&self) -> Vec<f32> {
        read(&self.bytes, self.dtype)
    }

    /// Of rows of x, rounded once.
    fn products(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let values = self.values();
        let mut products = Vec::new();
        for x in x.chunks(self.inner) {
            for (output, w) in values.chunks(self.inner).enumerate() {
                let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let bias = bias.map_or(0.0, |bias| f64::from(bias[output]));
                products.push((terms.sum::<f64>() + bias) as f32);
            }
        }
        products
    }
}

/// A random quantised matrix.
struct Groups {
    outputs: usize,
    inner: usize,
    bits: u32,
    group: usize,
    packed: Vec<u8>,
    dtype: usize,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl std::fmt::Debug for Groups {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { outputs, inner, bits, group, dtype, .. } = self;
        let dtype = ["F32", "F16", "BF16"][*dtype];
        write!(f, "[{outputs}, {inner}] of {bits} bits in groups of {group} {dtype}")
    }
}

impl Groups {
    fn new(dice: &mut Dice) -> Self {
        let (outputs, dtype) = (dice.below(90) + 1, dice.below(3));
        let bits = [2, 3, 4, 5, 6, 8][dice.below(6)];
        let group = [16, 32, 48, 64, 128][dice.below(5)];
        let inner = group * (dice.below(20) + 1);
        let packed = (0..outputs * inner / 8 * bits).map(|_| dice.next() as u8).collect();
        let scales = dice.floats(outputs * inner / group);
        let biases = match dice.below(3) {
            0 => {
                let zero = -f32::from(1_u8 << (bits - 1));
                read(&stored(&scales, dtype), dtype).iter().map(|scale| zero * scale).collect()
            }
            _ => dice.floats(scales.len()),
        };
        let (scales, biases) = (stored(&scales, dtype), stored(&biases, dtype));
        Self { outputs, inner, bits: bits as u32, group, packed, dtype, scales, biases }
    }

    fn packed(&self, pool: &Pool) -> Packed {
        let (scales, biases) = (floats(&self.scales, self.dtype), floats(&self.biases, self.dtype));
        let (bits, group) = (self.bits, self.group);
        let affine = Affine { packed: &self.packed, scales, biases, bits, group };
        Packed::new(pool, &Arena::default(), &affine, self.outputs, self.inner).unwrap()
    }

    /// Bit by bit.
    fn values(&self) -> Vec<f32> {
        let (scales, biases) = (read(&self.scales, self.dtype), read(&self.biases, self.dtype));
        let bits = self.bits as usize;
        let bit = |index: usize| u32::from(self.packed[index / 8] >> (index % 8) & 1);
        let value =
            |index: usize| (0..bits).map(|i| bit(index * bits + i) << i).sum::<u32>() as f32;
        let of_group = |index: usize| (scales[index / self.group], biases[index / self.group]);
        (0..self.outputs * self.inner)
            .map(|index| (value(index), of_group(index)))
            .map(|(value, (scale, bias))| scale * value + bias)
            .collect()
    }
}

fn floats(bytes: &[u8], dtype: usize) -> Floats<'_> {
    [Floats::F32, Floats::F16, Floats::BF16][dtype](bytes)
}

/// As little-endian F32, F16 or BF16.
fn stored(values: &[f32], dtype: usize) -> Vec<u8> {
    let values = values.iter().copied();
    match dtype {
        0 => values.flat_map(f32::to_le_bytes).collect(),
        1 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        _ => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

fn read(stored: &[u8], dtype: usize) -> Vec<f32> {
    let pairs = stored.as_chunks().0.iter();
    match dtype {
        0 => stored.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        1 => pairs.map(|x| f16::from_le_bytes(*x).to_f32()).collect(),
        _ => pairs.map(|x| half::bf16::from_le_bytes(*x).to_f32()).collect(),
    }
}

/// Splitmix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From -1 to 1.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}
