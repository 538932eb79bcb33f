//! Every operation on every backend: one table of rows, each compared with the plain reference; then the promise that
//! a row has the same bits alone and in company, and a prompt the same bits whole and in chunks.

#![allow(clippy::unwrap_used)]

mod support;

use base_mlx_core::backend::{
    Attend, Backend, CpuBackend, KvCache, LayerSpec, Qkv, ReferenceBackend, Rope, Span,
};
use base_mlx_core::tensor::{Dtype, HostArray, HostWeight, Shape, Tensor, Weight};
use base_mlx_simd::Isa;
use support::dice::Dice;

#[test]
fn every_backend_agrees_with_the_reference_on_every_row_of_the_table() {
    for (seed, case) in table().into_iter().enumerate() {
        let expected = case.run(&ReferenceBackend, seed as u64);
        for (name, backend) in cpus() {
            let found = case.run(&backend, seed as u64);
            let far = distance(&found, &expected);
            assert!(far < 1e-5, "{case:?} on {name}: {far:e} away from the reference");
        }
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
        for window in [None, Some(37), Some(190)] {
            let shape = AttendShape { heads: 9, kv_heads: 3, head_dim: 40, window };
            let whole = Attention::new(&backend, shape, 5).prompt(&backend, 405, 405);
            for chunk in [1, 7, 64] {
                let chunks = Attention::new(&backend, shape, 5).prompt(&backend, 405, chunk);
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
        let mut alone = Attention::new(&backend, shape, 9);
        let alone = [alone.step(&backend, &[(0, 70)]), alone.step(&backend, &[(0, 1)])];

        let mut company = Attention::new(&backend, shape, 9);
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
    let mut attention = Attention::new(&backend, shape, 1);
    attention.step(&backend, &[(0, 40)]);
    let fork = attention.sequences[0].kv.fork();
    assert_eq!(fork.len(), 40);
    assert_eq!(fork.bytes(), attention.sequences[0].kv.bytes());

    let mut twin = Attention::new(&backend, shape, 1);
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
    let mut attention = Attention::new(&backend, shape, 1);
    assert!(attention.sequences[0].kv.is_empty());
    attention.step(&backend, &[(0, 10)]);
    let few = attention.sequences[0].kv.bytes();
    attention.step(&backend, &[(0, 90)]);
    assert!(attention.sequences[0].kv.bytes() > few);
    let kv = &mut attention.sequences[0].kv;
    assert_eq!((kv.truncate(200), kv.truncate(10), kv.bytes()), (100, 10, few));
    assert_eq!((kv.truncate(0), kv.bytes()), (0, 0));
}

/// One row for each thing that has gone wrong somewhere, or could.
fn table() -> Vec<Case> {
    use Act::{Fork, Step, Truncate};
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
    ] {
        for window in [None, Some(1), Some(16), Some(40), Some(1000)] {
            table.push(Case::Attend { shape: AttendShape { window, ..shape }, acts });
        }
    }
    table
}

const AFFINE_4: Kind = Kind::Affine { bits: 4, group: 32, scales: Dtype::F16 };
const AFFINE_8: Kind = Kind::Affine { bits: 8, group: 32, scales: Dtype::F32 };
const AFFINE_3: Kind = Kind::Affine { bits: 3, group: 64, scales: Dtype::BF16 };
const DENSE_BF16: Kind = Kind::Dense(Dtype::BF16);

#[derive(Clone, Debug)]
enum Case {
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
    Attend {
        shape: AttendShape,
        acts: &'static [Act],
    },
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Dense(Dtype),
    Affine { bits: u32, group: usize, scales: Dtype },
}

#[derive(Clone, Copy, Debug)]
struct AttendShape {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// (sequence, new tokens), laid end to end. Three empty sequences exist from the start.
    Step(&'static [(usize, usize)]),
    /// A new sequence with this one's past.
    Fork(usize),
    /// The sequence forgets all from this position on.
    Truncate(usize, usize),
}

impl Case {
    fn run<B: Backend>(&self, backend: &B, seed: u64) -> Vec<f32> {
        let dice = &mut Dice(seed);
        let array = match *self {
            Self::Linear { rows, outputs, inner, weight, bias } => {
                let weight = weight.make(backend, dice, outputs, inner);
                let bias = bias.then(|| dice.tensor(backend, &[outputs]));
                // Made last, so that more rows only add to the fewer.
                let x = dice.tensor(backend, &[rows, inner]);
                backend.linear(&x, &weight, bias.as_ref())
            }
            Self::Embed { vocab, width, tokens, table } => {
                let table = table.make(backend, dice, vocab, width);
                let tokens: Vec<u32> =
                    (0..tokens).map(|_| (dice.next() % vocab as u64) as u32).collect();
                backend.embed(&table, &whole_numbers(backend, &tokens))
            }
            Self::RmsNorm { shape, rows, width } => {
                let w = dice.tensor(backend, &[width]);
                let shape = [&[rows], shape, &[width]].concat();
                backend.rms_norm(&dice.tensor(backend, &shape), &w, 1e-5)
            }
            Self::Rope { tokens, heads, head_dim, rotary_dim, factor } => {
                let inv_freq = (0..rotary_dim / 2)
                    .map(|pair| 10_000f32.powf(-(2.0 * pair as f32) / rotary_dim as f32))
                    .collect();
                let rope = Rope { inv_freq, attention_factor: factor };
                let positions: Vec<u32> =
                    (0..tokens).map(|_| (dice.next() % 5000) as u32).collect();
                let positions = whole_numbers(backend, &positions);
                let x = dice.tensor(backend, &[tokens, heads, head_dim]);
                // The second time through whatever is remembered of the first.
                backend.rope(&x, &positions, &rope);
                backend.rope(&x, &positions, &rope)
            }
            Self::Swiglu { rows, width } => {
                let gate: Vec<f32> = dice.floats(rows * width).iter().map(|x| x * 20.0).collect();
                let gate = floats(backend, &[rows, width], &gate);
                backend.swiglu(&gate, &dice.tensor(backend, &[rows, width]))
            }
            Self::Add { rows, width } => {
                let a = dice.tensor(backend, &[rows, width]);
                backend.add(&a, &dice.tensor(backend, &[rows, width]))
            }
            Self::TakeRows { rows, width, taken } => {
                backend.take_rows(&dice.tensor(backend, &[rows, width]), taken)
            }
            Self::Attend { shape, acts } => {
                let mut attention = Attention::new(backend, shape, seed);
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
        backend.upload_weight(weight).unwrap()
    }
}

/// Sequences that attend, each with its own dice, so that its values are the same in any company.
struct Attention<B: Backend> {
    shape: AttendShape,
    sequences: Vec<Sequence<B>>,
}

struct Sequence<B: Backend> {
    kv: B::Kv,
    dice: Dice,
}

impl<B: Backend> Attention<B> {
    fn new(backend: &B, shape: AttendShape, seed: u64) -> Self {
        let layer = LayerSpec { kv_heads: shape.kv_heads, head_dim: shape.head_dim };
        let sequence = |index| {
            let kv = backend.new_kv(&[layer]).unwrap();
            Sequence { kv, dice: Dice(seed * 100 + index) }
        };
        Self { shape, sequences: (0..3).map(sequence).collect() }
    }

    fn act(&mut self, backend: &B, act: Act) -> Vec<f32> {
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
        }
        Vec::new()
    }

    fn step(&mut self, backend: &B, spans: &[(usize, usize)]) -> Vec<f32> {
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
        let mut spans: Vec<Span<B>> = spans.into_iter().map(|(_, span)| span).collect();

        let q = floats(backend, &[tokens, heads, head_dim], &q);
        let k = floats(backend, &[tokens, kv_heads, head_dim], &k);
        let v = floats(backend, &[tokens, kv_heads, head_dim], &v);
        let how = Attend { window, ..Attend::causal(1.5) };
        let out = backend.attend(0, Qkv { q: &q, k: &k, v: &v }, &mut spans, how);
        for (index, sequence) in self.sequences.iter().enumerate() {
            assert_eq!(sequence.kv.len(), lens[index] + rows[index].len());
        }
        read(backend, &out)
    }

    fn prompt(mut self, backend: &B, tokens: usize, chunk: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for start in (0..tokens).step_by(chunk) {
            out.extend(self.step(backend, &[(0, chunk.min(tokens - start))]));
        }
        out
    }
}

/// All ways to compute on this machine's CPU.
fn cpus() -> Vec<(String, CpuBackend)> {
    let all = Isa::all().into_iter().flat_map(|isa| [(1, isa), (2, isa)]);
    let backends = all.map(|(threads, isa)| CpuBackend::with_isa(threads, isa));
    backends.map(|backend| (backend.describe(), backend)).collect()
}

fn rows_have_the_same_bits(case: impl Fn(usize) -> Case, width: usize) {
    for (name, backend) in cpus() {
        let all = case(64).run(&backend, 3);
        for rows in [1, 3, 8] {
            let few = case(rows).run(&backend, 3);
            assert!(bits(&few) == bits(&all[..rows * width]), "{:?} on {name}", case(rows));
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The largest difference, in units of the largest value.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    // A NaN is far from everything.
    let far = differences.fold(0.0, |far: f32, x| if x > far || x.is_nan() { x } else { far });
    f64::from(far) / f64::from(largest)
}

fn read<B: Backend>(backend: &B, array: &B::Array) -> Vec<f32> {
    backend.download(array).unwrap().to_f32()
}

fn floats<B: Backend>(backend: &B, shape: &[usize], values: &[f32]) -> Tensor<B> {
    let array = backend.upload(HostArray::from_f32(shape, values)).unwrap();
    Tensor::new(backend, array, Shape::new(shape))
}

fn whole_numbers<B: Backend>(backend: &B, values: &[u32]) -> Tensor<B> {
    let shape = [values.len()];
    let array = backend.upload(HostArray::from_u32(&shape, values)).unwrap();
    Tensor::new(backend, array, Shape::new(&shape))
}

impl Dice {
    /// From -1 to 1.
    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn tensor<B: Backend>(&mut self, backend: &B, shape: &[usize]) -> Tensor<B> {
        floats(backend, shape, &self.floats(shape.iter().product()))
    }

    fn host(&mut self, dtype: Dtype, shape: &[usize]) -> HostArray {
        let values = self.floats(shape.iter().product());
        let data: Vec<u8> = match dtype {
            Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => {
                values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect()
            }
            Dtype::BF16 => {
                values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect()
            }
            Dtype::U32 | Dtype::U8 => unreachable!("weights are floats"),
        };
        HostArray { dtype, shape: shape.to_vec(), data: data.into() }
    }
}
