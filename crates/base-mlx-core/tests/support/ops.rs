//! One table of rows for every operation, which any backend can be asked to compute.

use std::ops::Range;

use base_mlx_core::backend::{
    Activation, Attend, Backend, Batch, KV_CHUNK, KvCache, LayerNorm, LayerSpec, Qkv,
    ReferenceBackend, Role, Rope, Span,
};
use base_mlx_core::tensor::{Dtype, HostArray, HostWeight, Shape, Tensor, Weight};

use super::dice::Dice;

/// How far a backend is from the reference on a row whose activations are of that type; parameters are what the row says.
pub(crate) fn far_from_reference<B: Backend>(
    backend: &B,
    case: &Case,
    seed: u64,
    activations: Dtype,
) -> f64 {
    let expected = case.run(&ReferenceBackend, seed, activations);
    distance(&case.run(backend, seed, activations), &expected)
}

/// One row for each thing that has gone wrong somewhere, or could.
pub(crate) fn table() -> Vec<Case> {
    use Act::{Fork, Reload, Step, Truncate};
    use Dtype::{BF16, F16, F32};
    let mut table = Vec::new();
    for (dtype, inner) in [(F32, 64), (F16, 77), (BF16, 129), (F32, 1)] {
        for rows in [1, 2, 5, 67] {
            let weight = Kind::Dense(dtype);
            table.push(Case::Linear { rows, outputs: 50, inner, weight, bias: rows == 2 });
        }
    }
    for bits in [2, 3, 4, 5, 6, 8] {
        for (group, scales) in [(16, F16), (32, F16), (64, BF16), (128, F32)] {
            let weight = Kind::Affine { bits, group, scales };
            for (rows, outputs) in [(1, 33), (3, 7), (6, 64)] {
                let (inner, bias) = (group * 10, rows == 3);
                table.push(Case::Linear { rows, outputs, inner, weight, bias });
            }
            table.push(Case::Embed { vocab: 40, width: group * 4, tokens: 9, table: weight });
        }
    }
    // Enough work for every thread to get several pieces.
    table.push(Case::Linear { rows: 130, outputs: 301, inner: 576, weight: AFFINE_4, bias: true });
    table.push(Case::Linear { rows: 1, outputs: 2050, inner: 576, weight: AFFINE_8, bias: false });
    table.push(Case::Linear { rows: 9, outputs: 5, inner: 9728, weight: AFFINE_4, bias: false });
    // As many rows as kernels of many rows are for, and one more than the largest but one.
    for (bits, group) in [(4, 64), (8, 32)] {
        let weight = Kind::Affine { bits, group, scales: BF16 };
        for rows in [16, 33, 64] {
            let (outputs, inner, bias) = (150, 640, rows == 33);
            table.push(Case::Linear { rows, outputs, inner, weight, bias });
        }
    }
    for dtype in [F32, F16, BF16] {
        table.push(Case::Embed { vocab: 11, width: 37, tokens: 500, table: Kind::Dense(dtype) });
    }
    table.extend([
        Case::RmsNorm { shape: &[], rows: 1, width: 576 },
        Case::RmsNorm { shape: &[], rows: 200, width: 579 },
        Case::RmsNorm { shape: &[3], rows: 7, width: 20 },
        Case::Rope { tokens: 1, heads: 9, head_dim: 64, rotary_dim: 64, factor: 1.0 },
        Case::Rope { tokens: 40, heads: 2, head_dim: 36, rotary_dim: 36, factor: 1.0 },
        Case::Rope { tokens: 5, heads: 3, head_dim: 64, rotary_dim: 20, factor: 1.25 },
        Case::Swiglu { rows: 1, width: 3 },
        Case::Swiglu { rows: 40, width: 1537 },
        Case::Add { rows: 1, width: 13 },
        Case::Add { rows: 65, width: 577 },
        Case::TakeRows { rows: 9, width: 11, taken: &[8, 0, 3, 3] },
        Case::TakeRows { rows: 2, width: 5, taken: &[] },
    ]);
    let shape = |heads, kv_heads, head_dim| AttendShape { heads, kv_heads, head_dim, window: None };
    for (shape, acts) in [
        (shape(1, 1, 8), &[Step(&[(0, 1)])] as &[Act]),
        (shape(9, 3, 64), &[Step(&[(0, 50)]), Step(&[(0, 1)]), Step(&[(0, 1)])]),
        (shape(8, 1, 33), &[Step(&[(0, 31), (1, 1), (2, 34)]), Step(&[(2, 1), (0, 1)])]),
        (shape(14, 2, 64), &[Step(&[(0, 300)]), Step(&[(0, 5), (1, 100)])]),
        (shape(8, 2, 64), &[Step(&[(0, 70)]), Step(&[(0, 70), (1, 1)]), Step(&[(1, 90), (0, 66)])]),
        (shape(4, 4, 128), &[Step(&[(0, 32)]), Step(&[(1, 0), (0, 32)]), Step(&[(0, 1)])]),
        (
            shape(4, 2, 40),
            &[
                Step(&[(0, 45)]),
                Fork(0),
                Truncate(3, 33),
                Step(&[(0, 3), (3, 7)]),
                Truncate(0, 0),
                Step(&[(3, 1), (0, 2)]),
                Fork(3),
                Step(&[(4, 40), (3, 1)]),
            ],
        ),
        (
            shape(6, 2, 64),
            &[
                Step(&[(0, 300), (1, 256)]),
                Reload(0),
                Reload(1),
                Step(&[(1, 1), (0, 70)]),
                Fork(0),
                Step(&[(0, 1), (3, 2), (1, 40)]),
            ],
        ),
    ] {
        for window in [None, Some(1), Some(16), Some(40), Some(1000)] {
            table.push(Case::Attend { shape: AttendShape { window, ..shape }, acts });
        }
    }
    table.extend([
        Case::LayerNorm { rows: 1, width: 384 },
        Case::LayerNorm { rows: 200, width: 579 },
        Case::LayerNorm { rows: 7, width: 3 },
        Case::Activate { activation: Activation::Gelu, rows: 40, width: 1537 },
        Case::Activate { activation: Activation::GeluTanh, rows: 40, width: 1537 },
        Case::Activate { activation: Activation::Relu, rows: 1, width: 13 },
        Case::Activate { activation: Activation::Silu, rows: 7, width: 100 },
        Case::Activate { activation: Activation::Tanh, rows: 7, width: 100 },
    ]);
    for (heads, kv_heads, head_dim, texts) in [
        (12, 12, 32, &[0_usize..1, 1..70, 70..75] as &'static [Range<usize>]),
        (1, 1, 8, &[0..5, 5..6]),
        (4, 2, 40, &[0..0, 0..33, 33..600]),
        (3, 1, 64, &[2..30, 30..31]),
    ] {
        let shape = AttendShape { heads, kv_heads, head_dim, window: None };
        table.push(Case::AttendWithin { shape, texts });
    }
    table
}

pub(crate) const AFFINE_4: Kind = Kind::Affine { bits: 4, group: 32, scales: Dtype::F16 };
pub(crate) const AFFINE_8: Kind = Kind::Affine { bits: 8, group: 32, scales: Dtype::F32 };
pub(crate) const AFFINE_3: Kind = Kind::Affine { bits: 3, group: 64, scales: Dtype::BF16 };
pub(crate) const DENSE_BF16: Kind = Kind::Dense(Dtype::BF16);

#[derive(Clone, Debug)]
pub(crate) enum Case {
    Linear {
        rows: usize,
        outputs: usize,
        inner: usize,
        weight: Kind,
        bias: bool,
    },
    Embed {
        vocab: usize,
        width: usize,
        tokens: usize,
        table: Kind,
    },
    /// `shape` are dimensions between the rows and the width.
    RmsNorm {
        shape: &'static [usize],
        rows: usize,
        width: usize,
    },
    Rope {
        tokens: usize,
        heads: usize,
        head_dim: usize,
        rotary_dim: usize,
        factor: f32,
    },
    Swiglu {
        rows: usize,
        width: usize,
    },
    Add {
        rows: usize,
        width: usize,
    },
    TakeRows {
        rows: usize,
        width: usize,
        taken: &'static [u32],
    },
    LayerNorm {
        rows: usize,
        width: usize,
    },
    Activate {
        activation: Activation,
        rows: usize,
        width: usize,
    },
    AttendWithin {
        shape: AttendShape,
        texts: &'static [Range<usize>],
    },
    Attend {
        shape: AttendShape,
        acts: &'static [Act],
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Dense(Dtype),
    Affine { bits: u32, group: usize, scales: Dtype },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct AttendShape {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// (sequence, new tokens), laid end to end. Three empty sequences exist from the start.
    Step(&'static [(usize, usize)]),
    /// A new sequence with this one's past.
    Fork(usize),
    /// The sequence forgets all from this position on.
    Truncate(usize, usize),
    /// The sequence's whole chunks are saved, and a new cache is made of them; what is no whole chunk is forgotten.
    Reload(usize),
}

impl Case {
    pub(crate) fn run<B: Backend>(&self, backend: &B, seed: u64, activations: Dtype) -> Vec<f32> {
        let dice = &mut Dice(seed);
        let dtype = activations;
        let array = match *self {
            Self::Linear { rows, outputs, inner, weight, bias } => {
                let weight = weight.make(backend, dice, outputs, inner);
                let bias = bias.then(|| dice.tensor(backend, dtype, &[outputs]));
                // Made last, so that more rows only add to the fewer.
                let x = dice.tensor(backend, dtype, &[rows, inner]);
                backend.linear(&x, &weight, bias.as_ref())
            }
            Self::Embed { vocab, width, tokens, table } => {
                let table = table.make(backend, dice, vocab, width);
                let tokens: Vec<u32> =
                    (0..tokens).map(|_| (dice.next() % vocab as u64) as u32).collect();
                backend.embed(&table, &whole_numbers(backend, &tokens))
            }
            Self::RmsNorm { shape, rows, width } => {
                let w = dice.tensor(backend, dtype, &[width]);
                let shape = [&[rows], shape, &[width]].concat();
                backend.rms_norm(&dice.tensor(backend, dtype, &shape), &w, 1e-5)
            }
            Self::Rope { tokens, heads, head_dim, rotary_dim, factor } => {
                let inv_freq = (0..rotary_dim / 2)
                    .map(|pair| 10_000f32.powf(-(2.0 * pair as f32) / rotary_dim as f32))
                    .collect();
                let rope = Rope { inv_freq, attention_factor: factor };
                let positions: Vec<u32> =
                    (0..tokens).map(|_| (dice.next() % 5000) as u32).collect();
                let positions = whole_numbers(backend, &positions);
                let x = dice.tensor(backend, dtype, &[tokens, heads, head_dim]);
                // The second time through whatever is remembered of the first.
                backend.rope(&x, &positions, &rope);
                backend.rope(&x, &positions, &rope)
            }
            Self::Swiglu { rows, width } => {
                let gate: Vec<f32> = dice.floats(rows * width).iter().map(|x| x * 20.0).collect();
                let gate = floats(backend, dtype, &[rows, width], &gate);
                backend.swiglu(&gate, &dice.tensor(backend, dtype, &[rows, width]))
            }
            Self::Add { rows, width } => {
                let a = dice.tensor(backend, dtype, &[rows, width]);
                backend.add(&a, &dice.tensor(backend, dtype, &[rows, width]))
            }
            Self::TakeRows { rows, width, taken } => {
                backend.take_rows(&dice.tensor(backend, dtype, &[rows, width]), taken)
            }
            Self::LayerNorm { rows, width } => {
                let w = &dice.tensor(backend, dtype, &[width]);
                let bias = &dice.tensor(backend, dtype, &[width]);
                let norm = LayerNorm { w, bias, eps: 1e-5 };
                backend.layer_norm(&dice.tensor(backend, dtype, &[rows, width]), norm)
            }
            Self::Activate { activation, rows, width } => {
                let x: Vec<f32> = dice.floats(rows * width).iter().map(|x| x * 8.0).collect();
                backend.activate(&floats(backend, dtype, &[rows, width], &x), activation)
            }
            Self::AttendWithin { shape, texts } => {
                let AttendShape { heads, kv_heads, head_dim, .. } = shape;
                let tokens = texts.last().map_or(0, |text| text.end);
                let mut of = |heads| dice.tensor(backend, dtype, &[tokens, heads, head_dim]);
                let (q, k, v) = (&of(heads), &of(kv_heads), &of(kv_heads));
                let out = read(backend, &backend.attend_within(Qkv { q, k, v }, texts, 1.5));
                // What rows of no text have may be anything.
                let row = heads * head_dim;
                let of = |text: &Range<usize>| out[text.start * row..text.end * row].to_vec();
                return texts.iter().flat_map(of).collect();
            }
            Self::Attend { shape, acts } => {
                let mut attention = Attention::new(backend, shape, seed, activations);
                return acts.iter().flat_map(|&act| attention.act(backend, act)).collect();
            }
        };
        read(backend, &array)
    }
}

impl Kind {
    fn make<B: Backend>(
        self,
        backend: &B,
        dice: &mut Dice,
        outputs: usize,
        inner: usize,
    ) -> Weight<B> {
        let weight = match self {
            Self::Dense(dtype) => HostWeight::Dense(dice.host(dtype, &[outputs, inner])),
            Self::Affine { bits, group, scales } => {
                let words = inner * bits as usize / 32;
                let packed: Vec<u32> = (0..outputs * words).map(|_| dice.next() as u32).collect();
                HostWeight::Affine {
                    packed: HostArray::from_u32(&[outputs, words], &packed),
                    scales: dice.host(scales, &[outputs, inner / group]),
                    biases: dice.host(scales, &[outputs, inner / group]),
                    bits,
                    group_size: group,
                }
            }
        };
        assert_eq!(weight.shape(), [outputs, inner]);
        backend.upload_weight(weight, Role::Factor).unwrap()
    }
}

/// Sequences that attend, each with its own dice, so that its values are the same in any company.
pub(crate) struct Attention<B: Backend> {
    shape: AttendShape,
    activations: Dtype,
    pub(crate) sequences: Vec<Sequence<B>>,
}

pub(crate) struct Sequence<B: Backend> {
    pub(crate) kv: B::Kv,
    dice: Dice,
}

impl AttendShape {
    fn new_kv<B: Backend>(&self, backend: &B) -> B::Kv {
        let layer = LayerSpec { kv_heads: self.kv_heads, head_dim: self.head_dim };
        backend.new_kv(&[layer]).unwrap()
    }
}

impl<B: Backend> Attention<B> {
    pub(crate) fn new(backend: &B, shape: AttendShape, seed: u64, activations: Dtype) -> Self {
        let sequence =
            |index| Sequence { kv: shape.new_kv(backend), dice: Dice(seed * 100 + index) };
        Self { shape, activations, sequences: (0..3).map(sequence).collect() }
    }

    pub(crate) fn act(&mut self, backend: &B, act: Act) -> Vec<f32> {
        match act {
            Act::Step(spans) => return self.step(backend, spans),
            Act::Fork(from) => {
                let kv = self.sequences[from].kv.fork();
                let dice = Dice(self.sequences.len() as u64);
                self.sequences.push(Sequence { kv, dice });
            }
            Act::Truncate(sequence, len) => {
                assert_eq!(self.sequences[sequence].kv.truncate(len), len);
            }
            Act::Reload(sequence) => {
                let kv = &mut self.sequences[sequence].kv;
                let chunks = kv.len() / KV_CHUNK;
                let saved: Vec<_> = (0..chunks).map(|chunk| kv.save(chunk).unwrap()).collect();
                *kv = self.shape.new_kv(backend);
                for saved in &saved {
                    assert!(kv.restore(&saved[1..]).is_err(), "a part of a chunk");
                    kv.restore(saved).unwrap();
                }
                assert_eq!(kv.len(), KV_CHUNK * chunks);
            }
        }
        Vec::new()
    }

    pub(crate) fn step(&mut self, backend: &B, spans: &[(usize, usize)]) -> Vec<f32> {
        let AttendShape { heads, kv_heads, head_dim, window } = self.shape;
        let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
        let mut rows = vec![0..0; self.sequences.len()];
        let mut tokens = 0;
        for &(sequence, count) in spans {
            rows[sequence] = tokens..tokens + count;
            tokens += count;
            for _ in 0..count {
                let dice = &mut self.sequences[sequence].dice;
                q.extend(dice.floats(heads * head_dim));
                k.extend(dice.floats(kv_heads * head_dim));
                v.extend(dice.floats(kv_heads * head_dim));
            }
        }
        let lens: Vec<usize> = self.sequences.iter().map(|sequence| sequence.kv.len()).collect();
        let in_order = |sequence: &usize| spans.iter().position(|(s, _)| s == sequence);
        let mut spans: Vec<(usize, Span<B>)> = self
            .sequences
            .iter_mut()
            .enumerate()
            .filter_map(|(index, sequence)| {
                let span = Span { kv: &mut sequence.kv, rows: rows[index].clone() };
                Some((in_order(&index)?, span))
            })
            .collect();
        spans.sort_by_key(|(order, _)| *order);
        let spans: Vec<Span<B>> = spans.into_iter().map(|(_, span)| span).collect();

        let dtype = self.activations;
        let q = floats(backend, dtype, &[tokens, heads, head_dim], &q);
        let k = floats(backend, dtype, &[tokens, kv_heads, head_dim], &k);
        let v = floats(backend, dtype, &[tokens, kv_heads, head_dim], &v);
        let how = Attend { window, ..Attend::causal(1.5) };
        let mut batch = Batch::new(backend, spans).unwrap();
        let out = backend.attend(0, Qkv { q: &q, k: &k, v: &v }, &mut batch, how);
        for (index, sequence) in self.sequences.iter().enumerate() {
            assert_eq!(sequence.kv.len(), lens[index] + rows[index].len());
        }
        read(backend, &out)
    }

    pub(crate) fn prompt(mut self, backend: &B, tokens: usize, chunk: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for start in (0..tokens).step_by(chunk) {
            out.extend(self.step(backend, &[(0, chunk.min(tokens - start))]));
        }
        out
    }
}

/// The largest difference, in units of the largest value.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // A NaN is far from everything.
    let far = differences.fold(0.0, |far: f32, x| if x > far || x.is_nan() { x } else { far });
    f64::from(far) / f64::from(largest)
}

pub(crate) fn read<B: Backend>(backend: &B, array: &B::Array) -> Vec<f32> {
    backend.download(array).unwrap().to_f32()
}

pub(crate) fn floats<B: Backend>(
    backend: &B,
    dtype: Dtype,
    shape: &[usize],
    values: &[f32],
) -> Tensor<B> {
    let array = backend.upload(stored(dtype, shape, values)).unwrap();
    Tensor::new(backend, array, Shape::new(shape))
}

pub(crate) fn whole_numbers<B: Backend>(backend: &B, values: &[u32]) -> Tensor<B> {
    let shape = [values.len()];
    let array = backend.upload(HostArray::from_u32(&shape, values)).unwrap();
    Tensor::new(backend, array, Shape::new(&shape))
}

impl Dice {
    /// From -1 to 1.
    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn tensor<B: Backend>(&mut self, backend: &B, dtype: Dtype, shape: &[usize]) -> Tensor<B> {
        floats(backend, dtype, shape, &self.floats(shape.iter().product()))
    }

    fn host(&mut self, dtype: Dtype, shape: &[usize]) -> HostArray {
        stored(dtype, shape, &self.floats(shape.iter().product()))
    }
}

fn stored(dtype: Dtype, shape: &[usize], values: &[f32]) -> HostArray {
    let data: Vec<u8> = match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::U32 | Dtype::U8 => unreachable!("these are floats"),
    };
    HostArray { dtype, shape: shape.to_vec(), data: data.into() }
}
