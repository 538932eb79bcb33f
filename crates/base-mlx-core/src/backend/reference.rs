//! The judge: plain loops over plain vectors, one thread, sums in f64. Slow, and obviously right.

use std::ops::Range;
use std::sync::Arc;

use super::{
    Activation, Attend, Backend, Batch, DeviceError, KV_CHUNK, KvCache, KvFormat, LayerNorm,
    LayerSpec, Qkv, Role, Rope, Span, not_a_chunk,
};
use crate::tensor::{Dtype, HostArray, HostWeight, Shape, Tensor, Weight};

#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceBackend;

/// Values in the host's memory.
#[derive(Clone)]
pub enum ReferenceArray {
    F32(Arc<Vec<f32>>),
    U32(Arc<Vec<u32>>),
}

impl ReferenceArray {
    fn new(values: Vec<f32>) -> Self {
        Self::F32(Arc::new(values))
    }

    fn as_f32(&self) -> &[f32] {
        match self {
            Self::F32(values) => values,
            Self::U32(_) => panic!("an array of U32 read as floats"),
        }
    }

    fn as_u32(&self) -> &[u32] {
        match self {
            Self::U32(values) => values,
            Self::F32(_) => panic!("an array of F32 read as U32"),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => size_of_val(&values[..]),
            Self::U32(values) => size_of_val(&values[..]),
        }
    }
}

/// For each layer all keys and all values, `[positions, kv_heads, head_dim]`.
pub struct ReferenceKv {
    layers: Vec<Layer>,
}

#[derive(Clone)]
struct Layer {
    spec: LayerSpec,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Layer {
    fn width(&self) -> usize {
        self.spec.kv_heads * self.spec.head_dim
    }

    fn len(&self) -> usize {
        self.keys.len() / self.width()
    }
}

impl KvCache for ReferenceKv {
    fn len(&self) -> usize {
        self.layers.iter().map(Layer::len).min().unwrap_or(0)
    }

    fn truncate(&mut self, len: usize) -> usize {
        for layer in &mut self.layers {
            let end = len * layer.width();
            layer.keys.truncate(end);
            layer.values.truncate(end);
        }
        self.len()
    }

    fn fork(&self) -> Self {
        Self { layers: self.layers.clone() }
    }

    fn save(&self, chunk: usize) -> Result<Vec<u8>, DeviceError> {
        let mut saved: Vec<u8> = Vec::new();
        for layer in &self.layers {
            let range = KV_CHUNK * chunk * layer.width()..KV_CHUNK * (chunk + 1) * layer.width();
            for values in [&layer.keys[range.clone()], &layer.values[range]] {
                saved.extend_from_slice(bytemuck::cast_slice(values));
            }
        }
        Ok(saved)
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), DeviceError> {
        let bytes = |layer: &Layer| KV_CHUNK * layer.width() * size_of::<f32>();
        let expected = self.layers.iter().map(|layer| 2 * bytes(layer)).sum();
        if saved.len() != expected {
            return Err(not_a_chunk(saved.len(), expected));
        }
        let mut rest = saved;
        for layer in &mut self.layers {
            let bytes = bytes(layer);
            for values in [&mut layer.keys, &mut layer.values] {
                let (these, others) = rest.split_at(bytes);
                let floats = these.chunks_exact(size_of::<f32>());
                values.extend(floats.map(bytemuck::pod_read_unaligned::<f32>));
                rest = others;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let values = self.layers.iter().map(|layer| layer.keys.len() + layer.values.len());
        values.sum::<usize>() * size_of::<f32>()
    }
}

impl Backend for ReferenceBackend {
    type Array = ReferenceArray;
    type Kv = ReferenceKv;
    type Layout = ();

    fn for_model(&self, _dtype: Dtype, _kv: Option<KvFormat>) -> Result<Self, DeviceError> {
        Ok(*self)
    }

    fn upload(&self, data: HostArray) -> Result<ReferenceArray, DeviceError> {
        Ok(match data.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => ReferenceArray::new(data.to_f32()),
            Dtype::U32 => ReferenceArray::U32(Arc::new(data.to_u32())),
            Dtype::U8 => panic!("an array of U8 on the reference backend"),
        })
    }

    fn upload_weight(&self, data: HostWeight, _: Role) -> Result<Weight<Self>, DeviceError> {
        let shape = Shape::new(&data.shape());
        Ok(match data {
            HostWeight::Dense(array) => Weight::Dense { array: self.upload(array)?, shape },
            HostWeight::Affine { packed, scales, biases, bits, group_size } => Weight::Affine {
                packed: self.upload(packed)?,
                scales: self.upload(scales)?,
                biases: self.upload(biases)?,
                bits,
                group_size,
                shape,
            },
        })
    }

    fn weight_bytes(&self, weight: &Weight<Self>) -> usize {
        match weight {
            Weight::Dense { array, .. } => array.bytes(),
            Weight::Affine { packed, scales, biases, .. } => {
                packed.bytes() + scales.bytes() + biases.bytes()
            }
        }
    }

    fn download(&self, x: &ReferenceArray) -> Result<HostArray, DeviceError> {
        Ok(match x {
            ReferenceArray::F32(values) => HostArray::from_f32(&[values.len()], values),
            ReferenceArray::U32(values) => HostArray::from_u32(&[values.len()], values),
        })
    }

    fn kv_format(&self) -> Option<KvFormat> {
        Some(KvFormat::F32)
    }

    fn kv_identity(&self) -> String {
        "reference f32".to_owned()
    }

    fn kv_bytes(&self, LayerSpec { kv_heads, head_dim }: LayerSpec) -> usize {
        2 * kv_heads * head_dim * size_of::<f32>()
    }

    fn new_kv(&self, layers: &[LayerSpec]) -> Result<ReferenceKv, DeviceError> {
        let layer = |&spec| Layer { spec, keys: Vec::new(), values: Vec::new() };
        Ok(ReferenceKv { layers: layers.iter().map(layer).collect() })
    }

    fn embed(&self, table: &Weight<Self>, tokens: &Tensor<Self>) -> ReferenceArray {
        let tokens = tokens.array().as_u32().iter();
        ReferenceArray::new(tokens.flat_map(|&token| weight_row(table, token as usize)).collect())
    }

    fn linear(
        &self,
        x: &Tensor<Self>,
        w: &Weight<Self>,
        bias: Option<&Tensor<Self>>,
    ) -> ReferenceArray {
        let [outputs, inner] = [w.shape().dim(0), w.shape().dim(1)];
        assert_eq!(x.width(), inner, "linear: x {:?}, w {:?}", x.shape(), w.shape());
        let rows = x.shape().elements() / inner;
        let mut out = vec![0.0; rows * outputs];
        for output in 0..outputs {
            let w = weight_row(w, output);
            let bias = bias.map_or(0.0, |bias| f64::from(bias.array().as_f32()[output]));
            for (row, x) in x.array().as_f32().chunks_exact(inner).enumerate() {
                out[row * outputs + output] = (dot(x, &w) + bias) as f32;
            }
        }
        ReferenceArray::new(out)
    }

    fn rms_norm(&self, x: &Tensor<Self>, w: &Tensor<Self>, eps: f32) -> ReferenceArray {
        let w = w.array().as_f32();
        assert_eq!(x.width(), w.len(), "rms_norm: x {:?}", x.shape());
        let mut out = Vec::new();
        for x in x.array().as_f32().chunks_exact(w.len()) {
            let factor = 1.0 / (dot(x, x) / w.len() as f64 + f64::from(eps)).sqrt();
            out.extend(x.iter().zip(w).map(|(x, w)| (f64::from(*x) * factor) as f32 * w));
        }
        ReferenceArray::new(out)
    }

    fn layer_norm(&self, x: &Tensor<Self>, norm: LayerNorm<Self>) -> ReferenceArray {
        let (w, bias) = (norm.w.array().as_f32(), norm.bias.array().as_f32());
        let width = w.len();
        assert_eq!((x.width(), bias.len()), (width, width), "layer_norm: x {:?}", x.shape());
        let mut out = Vec::new();
        for x in x.array().as_f32().chunks_exact(width) {
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
            let centred: Vec<f64> = x.iter().map(|x| f64::from(*x) - mean).collect();
            let variance = centred.iter().map(|x| x * x).sum::<f64>() / width as f64;
            let factor = 1.0 / (variance + f64::from(norm.eps)).sqrt();
            let parameters = w.iter().zip(bias).map(|(w, bias)| (f64::from(*w), f64::from(*bias)));
            out.extend(
                centred.iter().zip(parameters).map(|(x, (w, b))| (x * factor * w + b) as f32),
            );
        }
        ReferenceArray::new(out)
    }

    fn activate(&self, x: &Tensor<Self>, activation: Activation) -> ReferenceArray {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let of = |x: f64| match activation {
            Activation::Gelu => x * (1.0 + erf(x / 2f64.sqrt())) / 2.0,
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                x * (1.0 + inner.tanh()) / 2.0
            }
            Activation::Relu => x.max(0.0),
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
        };
        let values = x.array().as_f32().iter();
        ReferenceArray::new(values.map(|x| of(f64::from(*x)) as f32).collect())
    }

    fn rope(&self, x: &Tensor<Self>, positions: &Tensor<Self>, rope: &Rope) -> ReferenceArray {
        let [tokens, heads, head_dim] = [x.rows(), x.shape().dim(1), x.width()];
        let pairs = rope.inv_freq.len();
        let positions = positions.array().as_u32();
        assert_eq!(tokens, positions.len(), "rope: x {:?}", x.shape());
        let mut out = x.array().as_f32().to_vec();
        for (head, values) in out.chunks_exact_mut(head_dim).enumerate() {
            for pair in 0..pairs {
                // The angle is rounded to f32 as in the implementations that models were trained with.
                let angle = positions[head / heads] as f32 * rope.inv_freq[pair];
                let (sin, cos) = f64::from(angle).sin_cos();
                let factor = f64::from(rope.attention_factor);
                let (a, b) = (f64::from(values[pair]), f64::from(values[pair + pairs]));
                values[pair] = ((a * cos - b * sin) * factor) as f32;
                values[pair + pairs] = ((b * cos + a * sin) * factor) as f32;
            }
        }
        ReferenceArray::new(out)
    }

    fn swiglu(&self, gate: &Tensor<Self>, up: &Tensor<Self>) -> ReferenceArray {
        assert_eq!(gate.shape(), up.shape(), "swiglu");
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let pairs = gate.array().as_f32().iter().zip(up.array().as_f32());
        let out = pairs.map(|(&gate, &up)| (silu(f64::from(gate)) * f64::from(up)) as f32);
        ReferenceArray::new(out.collect())
    }

    fn add(&self, a: &Tensor<Self>, b: &Tensor<Self>) -> ReferenceArray {
        assert_eq!(a.shape(), b.shape(), "add");
        let pairs = a.array().as_f32().iter().zip(b.array().as_f32());
        ReferenceArray::new(pairs.map(|(a, b)| a + b).collect())
    }

    fn take_rows(&self, x: &Tensor<Self>, rows: &[u32]) -> ReferenceArray {
        let (width, values) = (x.shape().elements() / x.rows().max(1), x.array().as_f32());
        let row = |&row: &u32| values[row as usize * width..][..width].iter().copied();
        ReferenceArray::new(rows.iter().flat_map(row).collect())
    }

    fn layout(&self, _: &mut [Span<Self>]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn attend(
        &self,
        layer: usize,
        Qkv { q, k, v }: Qkv<Self>,
        batch: &mut Batch<Self>,
        how: Attend,
    ) -> ReferenceArray {
        let [heads, head_dim] = [q.shape().dim(1), q.width()];
        let q = q.array().as_f32();
        let mut out = vec![0.0; q.len()];
        for span in &mut batch.spans {
            let cache = &mut span.kv.layers[layer];
            let (start, width) = (cache.len(), cache.width());
            assert_eq!(k.shape().dim(1) * k.width(), width, "attend: k {:?}", k.shape());
            let new = span.rows.start * width..span.rows.end * width;
            cache.keys.extend_from_slice(&k.array().as_f32()[new.clone()]);
            cache.values.extend_from_slice(&v.array().as_f32()[new]);

            for row in span.rows.clone() {
                let position = start + row - span.rows.start;
                let first = how.window.map_or(0, |window| (position + 1).saturating_sub(window));
                let of_row = row * heads * head_dim..(row + 1) * heads * head_dim;
                let seen = first * width..(position + 1) * width;
                let past = Past {
                    keys: &cache.keys[seen.clone()],
                    values: &cache.values[seen],
                    width,
                    head_dim,
                };
                past.look(&q[of_row.clone()], how.scale, &mut out[of_row]);
            }
        }
        ReferenceArray::new(out)
    }

    fn attend_within(
        &self,
        Qkv { q, k, v }: Qkv<Self>,
        texts: &[Range<usize>],
        scale: f32,
    ) -> ReferenceArray {
        let [heads, head_dim] = [q.shape().dim(1), q.width()];
        let width = k.shape().dim(1) * k.width();
        let (q, k, v) = (q.array().as_f32(), k.array().as_f32(), v.array().as_f32());
        let mut out = vec![0.0; q.len()];
        for text in texts {
            let all = text.start * width..text.end * width;
            let text_kv = Past { keys: &k[all.clone()], values: &v[all], width, head_dim };
            for row in text.clone() {
                let of_row = row * heads * head_dim..(row + 1) * heads * head_dim;
                text_kv.look(&q[of_row.clone()], scale, &mut out[of_row]);
            }
        }
        ReferenceArray::new(out)
    }
}

/// Keys and values that a row sees, `[positions, kv_heads, head_dim]`.
struct Past<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    /// `kv_heads * head_dim`
    width: usize,
    head_dim: usize,
}

impl Past<'_> {
    /// What each head of a row, `[heads, head_dim]`, sees.
    fn look(&self, q: &[f32], scale: f32, out: &mut [f32]) {
        let Self { keys, values, width, head_dim } = *self;
        let positions = keys.len() / width;
        let group = q.len() / width;
        let heads = q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim));
        for (head, (q, out)) in heads.enumerate() {
            let at = |position| position * width + head / group * head_dim;
            let score = |p| dot(q, &keys[at(p)..][..head_dim]) * f64::from(scale);
            let weights = softmax(&(0..positions).map(score).collect::<Vec<f64>>());
            for (dim, out) in out.iter_mut().enumerate() {
                let values = (0..positions).map(|p| f64::from(values[at(p) + dim]));
                *out = values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() as f32;
            }
        }
    }
}

/// The error function by its series of terms of one sign (Abramowitz and Stegun 1964, 7.1.6).
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= 2.0 * x * x / f64::from(2 * n + 1);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// Row `row` of a weight in f32, which is the precision that every backend's products see.
fn weight_row(weight: &Weight<ReferenceBackend>, row: usize) -> Vec<f32> {
    let inner = weight.shape().dim(1);
    match weight {
        Weight::Dense { array, .. } => array.as_f32()[row * inner..][..inner].to_vec(),
        Weight::Affine { packed, scales, biases, bits, group_size, .. } => {
            let bits = *bits as usize;
            let words = inner * bits / 32;
            let packed = &packed.as_u32()[row * words..][..words];
            let bit = |index: usize| packed[index / 32] >> (index % 32) & 1;
            let group = |index: usize| (row * inner + index) / group_size;
            let value = |index: usize| {
                let q: u32 = (0..bits).map(|b| bit(index * bits + b) << b).sum();
                let scale = f64::from(scales.as_f32()[group(index)]);
                let bias = f64::from(biases.as_f32()[group(index)]);
                (scale * f64::from(q) + bias) as f32
            };
            (0..inner).map(value).collect()
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}
