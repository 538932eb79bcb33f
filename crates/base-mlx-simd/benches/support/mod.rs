//! Kernels with something to work on: what the benches time, `examples/speed.rs` tabulates and `examples/instructions.rs`
//! has counted.

#![allow(dead_code)] // Each of them uses its own part.

use std::fmt;
use std::hint::black_box;

use base_mlx_simd::{
    Affine, Arena, AttentionShape, AttentionSpan, Dense, Floats, Isa, KEY_BLOCK, KvBlock, KvBlocks,
    KvFormat, Packed, Pool, Product, RopeTable, Sees, attention, linear, linear_packed, rms_norm,
    rope, swiglu,
};

/// A kernel, and how much it has to do.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    LinearPacked { outputs: usize, inner: usize, bits: u32, group: usize, rows: usize },
    LinearF16 { outputs: usize, inner: usize, rows: usize },
    LinearRounded { outputs: usize, inner: usize, rows: usize },
    Attention { format: KvFormat, rows: usize, keys: usize },
    RmsNorm { rows: usize, width: usize },
    Rope { tokens: usize },
    Swiglu { rows: usize, width: usize },
}

/// What an answer spends its time in, in the shape of a 135M model.
pub(crate) const HOT: [Work; 18] = [
    packed(4, 32, 1),
    packed(4, 32, 64),
    packed(6, 16, 1),
    packed(6, 16, 64),
    packed(8, 32, 1),
    packed(8, 32, 64),
    Work::LinearF16 { outputs: 576, inner: 576, rows: 1 },
    Work::LinearF16 { outputs: 576, inner: 576, rows: 64 },
    Work::LinearRounded { outputs: 576, inner: 576, rows: 64 },
    Work::Attention { format: KvFormat::F16, rows: 1, keys: 4096 },
    Work::Attention { format: KvFormat::F16, rows: 128, keys: 512 },
    Work::Attention { format: KvFormat::Q8, rows: 1, keys: 4096 },
    Work::Attention { format: KvFormat::Q8, rows: 128, keys: 512 },
    Work::Attention { format: KvFormat::Q4, rows: 1, keys: 4096 },
    Work::Attention { format: KvFormat::Q4, rows: 128, keys: 512 },
    Work::RmsNorm { rows: 64, width: 576 },
    Work::Rope { tokens: 64 },
    Work::Swiglu { rows: 64, width: 1536 },
];

const fn packed(bits: u32, group: usize, rows: usize) -> Work {
    Work::LinearPacked { outputs: 576, inner: 576, bits, group, rows }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match *self {
            Self::LinearPacked { bits, rows, .. } => write!(f, "linear_packed {bits} bits x{rows}"),
            Self::LinearF16 { rows, .. } => write!(f, "linear f16 x{rows}"),
            Self::LinearRounded { rows, .. } => write!(f, "linear rounded x{rows}"),
            Self::Attention { format, rows, keys } => {
                write!(f, "attention {format} x{rows} over {keys}")
            }
            Self::RmsNorm { rows, .. } => write!(f, "rms_norm x{rows}"),
            Self::Rope { tokens } => write!(f, "rope x{tokens}"),
            Self::Swiglu { rows, .. } => write!(f, "swiglu x{rows}"),
        }
    }
}

/// Work with all that it needs.
pub(crate) struct Ready<'a> {
    /// Of a call: weights, or keys and values.
    pub(crate) bytes: usize,
    pub(crate) call: Box<dyn FnMut(Isa) + 'a>,
}

/// How much memory calls go through in turn, as those of a model's layers do.
#[derive(Clone, Copy)]
pub(crate) enum Memory {
    FarBeyondCaches,
    OfOneCall,
}

impl Memory {
    fn copies(self, bytes: usize) -> usize {
        match self {
            Self::FarBeyondCaches => (FAR_BEYOND_CACHES / bytes).max(1),
            Self::OfOneCall => 1,
        }
    }
}

const FAR_BEYOND_CACHES: usize = 96 << 20;

impl Work {
    /// Multiplications and additions of the kernels that have hardly anything else.
    pub(crate) fn flops(self) -> usize {
        match self {
            Self::LinearPacked { outputs, inner, rows, .. }
            | Self::LinearF16 { outputs, inner, rows }
            | Self::LinearRounded { outputs, inner, rows } => 2 * rows * outputs * inner,
            Self::Attention { rows, keys, .. } => {
                let seen: usize = (keys - rows + 1..=keys).sum();
                4 * seen * ATTENTION.heads * ATTENTION.head_dim
            }
            Self::RmsNorm { .. } | Self::Rope { .. } | Self::Swiglu { .. } => 0,
        }
    }

    pub(crate) fn ready(self, pool: &Pool, memory: Memory) -> Ready<'_> {
        match self {
            Self::LinearPacked { outputs, inner, bits, group, rows } => {
                let weight = packed_weights(pool, memory, outputs, inner, bits, group);
                ready_packed(pool, weight, rows)
            }
            Self::LinearF16 { outputs, inner, rows } => {
                let new =
                    |arena: &Arena, floats: Floats| Dense::new(pool, arena, floats, outputs, inner);
                ready_dense(pool, dense_weights(memory, [outputs, inner], new), rows)
            }
            Self::LinearRounded { outputs, inner, rows } => {
                // Halves are laid out alike for all instructions.
                let new = |arena: &Arena, floats: Floats| {
                    Dense::rounded(pool, Isa::best(), arena, floats, outputs, inner)
                };
                ready_dense(pool, dense_weights(memory, [outputs, inner], new), rows)
            }
            Self::Attention { format, rows, keys } => {
                ready_attention(pool, memory, format, rows, keys)
            }
            Self::RmsNorm { rows, width } => {
                let (x, w) = (wave(rows * width), wave(width));
                let mut out = vec![0.0; x.len()];
                let call = move |isa| rms_norm(pool, isa, black_box(&x), &w, 1e-5, &mut out);
                Ready { bytes: 0, call: Box::new(call) }
            }
            Self::Rope { tokens } => {
                let AttentionShape { heads, head_dim, .. } = ATTENTION;
                let positions: Vec<u32> = (0..tokens as u32).collect();
                let table = RopeTable::new(pool, &positions, &wave(head_dim / 2), 1.0);
                let x = wave(tokens * heads * head_dim);
                let mut out = vec![0.0; x.len()];
                let call =
                    move |isa| rope(pool, isa, black_box(&x), heads, head_dim, &table, &mut out);
                Ready { bytes: 0, call: Box::new(call) }
            }
            Self::Swiglu { rows, width } => {
                let (gate, up) = (wave(rows * width), wave(rows * width));
                let mut out = vec![0.0; gate.len()];
                let call = move |isa| swiglu(pool, isa, black_box(&gate), &up, &mut out);
                Ready { bytes: 0, call: Box::new(call) }
            }
        }
    }
}

fn packed_weights(
    pool: &Pool,
    memory: Memory,
    outputs: usize,
    inner: usize,
    bits: u32,
    group: usize,
) -> Vec<Packed> {
    let packed: Vec<u8> = (0..outputs * inner / 8 * bits as usize).map(|i| i as u8).collect();
    let scales = vec![0x11; outputs * inner / group * 2];
    let floats = Floats::F16(&scales);
    let affine = Affine { packed: &packed, scales: floats, biases: floats, bits, group };
    let arena = Arena::default();
    (0..memory.copies(packed.len() + 2 * scales.len()))
        .map(|_| Packed::new(pool, &arena, &affine, outputs, inner).expect("memory"))
        .collect()
}

fn ready_packed(pool: &Pool, weights: Vec<Packed>, rows: usize) -> Ready<'_> {
    let [outputs, inner] = weights[0].shape();
    let x = vec![0.5; rows * inner];
    let mut out = vec![0.0; rows * outputs];
    let bytes = weights[0].bytes();
    let mut turns = (0..weights.len()).cycle();
    let call = move |isa| {
        let weight = &weights[turns.next().expect("a cycle has no end")];
        let product = Product { weight, bias: None, out: &mut out };
        linear_packed(pool, isa, black_box(&x), vec![product]);
    };
    Ready { bytes, call: Box::new(call) }
}

fn ready_dense<'a>(pool: &'a Pool, weights: Vec<Dense>, rows: usize) -> Ready<'a> {
    let (bytes, [outputs, inner]) = (weights[0].bytes(), weights[0].shape());
    let x = vec![0.5; rows * inner];
    let mut out = vec![0.0; rows * outputs];
    let mut turns = (0..weights.len()).cycle();
    let call = move |isa| {
        let weight = &weights[turns.next().expect("a cycle has no end")];
        let product = Product { weight, bias: None, out: &mut out };
        linear(pool, isa, black_box(&x), vec![product]);
    };
    Ready { bytes, call: Box::new(call) }
}

/// `[outputs, inner]` in F16, laid out by `new`.
fn dense_weights(
    memory: Memory,
    [outputs, inner]: [usize; 2],
    new: impl Fn(&Arena, Floats) -> std::io::Result<Dense>,
) -> Vec<Dense> {
    let bytes = outputs * inner * 2;
    let (arena, floats) = (Arena::default(), vec![0x11; bytes]);
    let copies = 0..memory.copies(bytes);
    copies.map(|_| new(&arena, Floats::F16(&floats)).expect("memory")).collect()
}

/// The last rows of a sequence of `keys` positions.
fn ready_attention(
    pool: &Pool,
    memory: Memory,
    format: KvFormat,
    rows: usize,
    keys: usize,
) -> Ready<'_> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = ATTENTION;
    let values = wave(KEY_BLOCK * kv_heads * head_dim);
    let from = KvBlocks::new(format, kv_heads, head_dim);
    let block = || {
        let mut block = from.block().expect("memory");
        block.write(0, &values, &values);
        block
    };
    let bytes = keys.div_ceil(KEY_BLOCK) * from.bytes();
    let layers: Vec<Vec<KvBlock>> = (0..memory.copies(bytes))
        .map(|_| (0..keys.div_ceil(KEY_BLOCK)).map(|_| block()).collect())
        .collect();
    let q = wave(rows * heads * head_dim);
    let mut out = vec![0.0; q.len()];
    let mut turns = (0..layers.len()).cycle();
    let call = move |isa| {
        let blocks = layers[turns.next().expect("a cycle has no end")].iter().collect();
        let span = AttentionSpan { rows: 0..rows, start: keys - rows, blocks };
        attention(pool, isa, ATTENTION, black_box(&q), &[span], &mut out);
    };
    Ready { bytes, call: Box::new(call) }
}

/// From -1 to 1.
fn wave(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i as f32 * 0.37).sin()).collect()
}

const ATTENTION: AttentionShape =
    AttentionShape { heads: 9, kv_heads: 3, head_dim: 64, scale: 0.125, sees: Sees::Past };
