//! Every kernel on every instruction set this CPU has, compared with the portable one on random sizes.

use base_mlx_simd::{
    Affine, AttentionShape, AttentionSpan, Floats, Isa, KEY_BLOCK, Kernel, Lanes, Matrix, Packed,
    Pool, RopeTable, add, attention, linear, linear_packed, rms_norm, rope, swiglu, unpack_rows,
};

#[test]
fn products_and_unpacked_rows_agree() {
    let pool = Pool::new(2);
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let stored = Stored::new(&mut dice);
        let (matrix, rows) = (stored.matrix(), dice.below(11) + 1);
        let [outputs, inner] = matrix.shape();
        let (x, bias) = (dice.floats(rows * inner), dice.floats(outputs));
        let bias = (seed % 2 == 0).then_some(&bias[..]);
        agree(&format!("linear, {rows} rows, {stored:?}"), rows * outputs, |isa, out| {
            linear(&pool, isa, &x, &matrix, bias, out);
        });
        let taken: Vec<u32> = (0..7).map(|_| dice.below(outputs) as u32).collect();
        agree(&format!("unpack_rows {stored:?}"), 7 * inner, |isa, out| {
            unpack_rows(&pool, isa, &matrix, &taken, out);
        });
    }
}

#[test]
fn a_row_has_the_same_bits_at_every_batch_size() {
    let pool = Pool::new(2);
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let stored = Stored::new(&mut dice);
        let matrix = stored.matrix();
        let [outputs, inner] = matrix.shape();
        let x = dice.floats(64 * inner);
        for isa in Isa::all() {
            let product = |rows| {
                let mut out = vec![0.0; rows * outputs];
                linear(&pool, isa, &x[..rows * inner], &matrix, None, &mut out);
                out
            };
            let all = product(64);
            for rows in [1, 3, 8] {
                let same = product(rows).iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: {rows} rows, {stored:?}", isa.name());
            }
        }
    }
}

#[test]
fn packed_products_agree_and_are_close_to_the_exact_ones() {
    let pool = Pool::new(2);
    let mut seen = [false; 9];
    for seed in 0..600 {
        let mut dice = Dice(seed);
        let stored = Stored::new(&mut dice);
        let Some((bits, _)) = stored.affine else { continue };
        seen[bits as usize] = true;
        let rows = dice.below(11) + 1;
        let [outputs, inner] = stored.matrix().shape();
        let packed = Packed::new(&pool, &stored.affine(), outputs, inner);
        let (x, bias) = (dice.floats(rows * inner), dice.floats(outputs));
        let bias = (seed % 2 == 0).then_some(&bias[..]);
        let what = format!("{rows} rows, {stored:?}");
        agree(&what, rows * outputs, |isa, out| {
            linear_packed(&pool, isa, &x, &packed, bias, out);
        });
        let (mut exact, mut found) = (vec![0.0; rows * outputs], vec![0.0; rows * outputs]);
        linear(&pool, Isa::best(), &x, &stored.matrix(), bias, &mut exact);
        linear_packed(&pool, Isa::best(), &x, &packed, bias, &mut found);
        // A value of x is off by up to 1/254 of its group's largest; such errors add up like a walk at random.
        let size = f32::from(1_u16 << bits) * (inner as f32).sqrt() / 254.0;
        for (found, exact) in found.iter().zip(&exact) {
            let far = (found - exact).abs();
            assert!(far < 3.0 * size, "{what}: {found} for {exact}");
        }
    }
    assert_eq!(seen.iter().filter(|seen| **seen).count(), 6, "each width");
}

#[test]
fn a_row_has_the_same_bits_in_packed_products_at_every_batch_size() {
    let pool = Pool::new(2);
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let stored = Stored::new(&mut dice);
        if stored.affine.is_none() {
            continue;
        }
        let [outputs, inner] = stored.matrix().shape();
        let packed = Packed::new(&pool, &stored.affine(), outputs, inner);
        let x = dice.floats(64 * inner);
        for isa in Isa::all() {
            let product = |rows| {
                let mut out = vec![0.0; rows * outputs];
                linear_packed(&pool, isa, &x[..rows * inner], &packed, None, &mut out);
                out
            };
            let all = product(64);
            for rows in [1, 3, 4, 8, 13] {
                let same = product(rows).iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: {rows} rows, {stored:?}", isa.name());
            }
        }
    }
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
        let window = (seed % 3 == 0).then(|| dice.below(90) + 1);
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 0.4, window };
        let block = kv_heads * KEY_BLOCK * head_dim;
        let mut tokens = 0;
        let lens: Vec<(usize, usize)> = (0..3).map(|_| (dice.below(80), dice.below(40))).collect();
        let blocks: Vec<Vec<f32>> = (0..8).map(|_| dice.floats(block)).collect();
        let spans: Vec<AttentionSpan> = lens
            .iter()
            .map(|&(start, rows)| {
                let count = (start + rows).div_ceil(KEY_BLOCK);
                let some = |first: usize| {
                    (0..count).map(|i| &blocks[(first + i) % 8][..]).collect::<Vec<_>>()
                };
                let (keys, values) = (some(0), some(3));
                tokens += rows;
                AttentionSpan { rows: tokens - rows..tokens, start, keys, values }
            })
            .collect();
        let q = dice.floats(tokens * heads * head_dim);
        agree(&format!("{shape:?}, {lens:?}"), q.len(), |isa, out| {
            attention(&pool, isa, shape, &q, &spans, out);
        });
    }
}

#[test]
fn a_row_attends_with_the_same_bits_in_any_chunk() {
    let pool = Pool::new(2);
    for (seed, window) in
        [None, Some(1), Some(33), Some(150)].into_iter().cycle().take(12).enumerate()
    {
        let mut dice = Dice(seed as u64);
        let (kv_heads, group) = (dice.below(2) + 1, [1, 2, 3, 4, 7][seed % 5]);
        let (heads, head_dim) = (kv_heads * group, [64, 40, 96, 7][dice.below(4)]);
        let shape = AttentionShape { heads, kv_heads, head_dim, scale: 2.0, window };
        let len = 300 + dice.below(100);
        let row = heads * head_dim;
        let q = dice.floats(len * row);
        let mut cache = || -> Vec<Vec<f32>> {
            let block = kv_heads * KEY_BLOCK * head_dim;
            (0..len.div_ceil(KEY_BLOCK)).map(|_| dice.floats(block)).collect()
        };
        let (mut keys, mut values) = (cache(), cache());
        // What nobody may see gets into no sum.
        for blocks in [&mut keys, &mut values] {
            for head in blocks.last_mut().unwrap().chunks_mut(KEY_BLOCK * head_dim) {
                head[(len - 1) % KEY_BLOCK * head_dim + head_dim..].fill(f32::INFINITY);
            }
        }
        for isa in Isa::all() {
            let in_chunks = |rows: usize| {
                let mut out = vec![f32::NAN; len * row];
                for start in (0..len).step_by(rows) {
                    let rows = rows.min(len - start);
                    let some = start * row..(start + rows) * row;
                    let span = AttentionSpan {
                        rows: 0..rows,
                        start,
                        keys: keys.iter().map(|block| &block[..]).collect(),
                        values: values.iter().map(|block| &block[..]).collect(),
                    };
                    attention(&pool, isa, shape, &q[some.clone()], &[span], &mut out[some]);
                }
                out
            };
            let alone = in_chunks(1);
            assert!(alone.iter().all(|x| x.is_finite()), "{}: {shape:?}", isa.name());
            for rows in [7, 64, len] {
                let same =
                    in_chunks(rows).iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}: {len} keys in chunks of {rows}, {shape:?}", isa.name());
            }
        }
    }
}

#[test]
fn a_value_not_yet_due_is_not_touched() {
    let pool = Pool::new(1);
    let shape =
        AttentionShape { heads: 2, kv_heads: 1, head_dim: 16, scale: 1.0, window: Some(20) };
    let (len, bad) = (90, 50);
    let mut dice = Dice(1);
    let (q, keys) = (dice.floats(len * 32), dice.floats(96 * 16));
    let mut values = dice.floats(96 * 16);
    values[bad * 16..(bad + 1) * 16].fill(f32::INFINITY);
    let blocks = [&keys, &values].map(|all| all.chunks(KEY_BLOCK * 16).collect::<Vec<_>>());
    for isa in Isa::all() {
        let mut out = vec![0.0; q.len()];
        let [keys, values] = blocks.clone();
        let span = AttentionSpan { rows: 0..len, start: 0, keys, values };
        attention(&pool, isa, shape, &q, &[span], &mut out);
        for (row, out) in out.chunks(32).enumerate() {
            let seen = (bad..bad + 20).contains(&row);
            assert_eq!(out.iter().all(|x| x.is_finite()), !seen, "{}: row {row}", isa.name());
        }
    }
}

#[test]
fn four_sums_have_the_bits_of_one() {
    struct Sums<'a>(&'a [f32]);
    impl Kernel for Sums<'_> {
        type Output = ([f32; 4], [f32; 4], f32);
        #[inline(always)]
        fn run<L: Lanes>(self, lanes: L) -> Self::Output {
            let mut vectors = [lanes.splat(0.0); 4];
            let mut each = [0.0; 4];
            for (index, x) in self.0.as_chunks::<8>().0.iter().enumerate() {
                vectors[index] = lanes.load(x);
                each[index] = lanes.sum(vectors[index]);
            }
            (lanes.sums(vectors), each, lanes.largest(vectors[0]))
        }
    }
    for seed in 0..100 {
        let x = Dice(seed).floats(32);
        let largest = x[..8].iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for isa in Isa::all() {
            let (four, each, found) = isa.run(Sums(&x));
            assert_eq!(four.map(f32::to_bits), each.map(f32::to_bits), "{}", isa.name());
            assert_eq!(found, largest, "{}", isa.name());
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
            for x in self.0.as_chunks::<8>().0 {
                out.extend(lanes.to_array(lanes.exp(lanes.load(x))));
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
    let expected = run(Isa::all()[0]);
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    for isa in &Isa::all()[1..] {
        for (index, (found, expected)) in run(*isa).into_iter().zip(&expected).enumerate() {
            let far = (found - expected).abs() / largest;
            assert!(far < 4e-6, "{what}, {}: {found} for {expected} at {index}", isa.name());
        }
    }
}

/// A random matrix of a random kind.
struct Stored {
    outputs: usize,
    inner: usize,
    /// (bits, group), or dense.
    affine: Option<(u32, usize)>,
    packed: Vec<u8>,
    dtype: usize,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let dtype = ["F32", "F16", "BF16"][self.dtype];
        write!(f, "[{}, {}] of {:?} {dtype}", self.outputs, self.inner, self.affine)
    }
}

impl Stored {
    fn new(dice: &mut Dice) -> Self {
        let (outputs, dtype) = (dice.below(90) + 1, dice.below(3));
        let bits = [0, 2, 3, 4, 5, 6, 8][dice.below(7)];
        if bits == 0 {
            let inner = dice.below(300) + 1;
            let (scales, packed) = (dice.stored(outputs * inner, dtype), Vec::new());
            return Self { outputs, inner, affine: None, packed, dtype, scales, biases: vec![] };
        }
        let group = [16, 32, 48, 64, 128][dice.below(5)];
        let inner = group * (dice.below(20) + 1);
        let packed = (0..outputs * inner / 8 * bits).map(|_| dice.next() as u8).collect();
        let scales = dice.stored(outputs * inner / group, dtype);
        let biases = match dice.below(3) {
            0 => multiplied(&scales, dtype, -f32::from(1_u8 << (bits - 1))),
            _ => dice.stored(outputs * inner / group, dtype),
        };
        let affine = Some((bits as u32, group));
        Self { outputs, inner, affine, packed, dtype, scales, biases }
    }

    fn matrix(&self) -> Matrix<'_> {
        let floats = [Floats::F32, Floats::F16, Floats::BF16][self.dtype];
        match self.affine {
            None => Matrix::dense(floats(&self.scales), self.outputs, self.inner),
            Some(_) => Matrix::affine(self.affine(), self.outputs, self.inner),
        }
    }

    fn affine(&self) -> Affine<'_> {
        let floats = [Floats::F32, Floats::F16, Floats::BF16][self.dtype];
        let (bits, group) = self.affine.expect("the matrix is quantised");
        let (scales, biases) = (floats(&self.scales), floats(&self.biases));
        Affine { packed: &self.packed, scales, biases, bits, group }
    }
}

/// Stored floats times a power of two.
fn multiplied(stored: &[u8], dtype: usize, by: f32) -> Vec<u8> {
    let pairs = stored.as_chunks::<2>().0.iter();
    match dtype {
        0 => {
            let quads = stored.as_chunks::<4>().0.iter();
            quads.flat_map(|x| (f32::from_le_bytes(*x) * by).to_le_bytes()).collect()
        }
        1 => pairs
            .flat_map(|x| {
                half::f16::from_f32(half::f16::from_le_bytes(*x).to_f32() * by).to_le_bytes()
            })
            .collect(),
        _ => pairs
            .flat_map(|x| {
                half::bf16::from_f32(half::bf16::from_le_bytes(*x).to_f32() * by).to_le_bytes()
            })
            .collect(),
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

    /// The same as little-endian F32, F16 or BF16.
    fn stored(&mut self, count: usize, dtype: usize) -> Vec<u8> {
        let values = self.floats(count).into_iter();
        match dtype {
            0 => values.flat_map(f32::to_le_bytes).collect(),
            1 => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
            _ => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
        }
    }
}
