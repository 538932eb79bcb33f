use std::sync::Arc;

use base_mlx_simd::{KEY_BLOCK, KvBlock, KvValue};
use half::f16;

use crate::backend::{KvCache, LayerSpec};
use crate::tensor::Dtype;

/// Keys and values in blocks of [`KEY_BLOCK`] positions. A fork shares all blocks; who writes to a shared one copies
/// it first.
pub struct CpuKv(pub(super) Layers);

/// By the type that keys and values are kept in.
pub(super) enum Layers {
    F16(Vec<Layer<f16>>),
    F32(Vec<Layer<f32>>),
}

impl CpuKv {
    /// In F16 or F32.
    pub(super) fn new(layers: &[LayerSpec], dtype: Dtype) -> Self {
        Self(match dtype {
            Dtype::F16 => Layers::F16(empty(layers)),
            Dtype::F32 => Layers::F32(empty(layers)),
            other => panic!("keys and values in {other}"),
        })
    }
}

fn empty<T>(layers: &[LayerSpec]) -> Vec<Layer<T>> {
    layers.iter().map(|&spec| Layer { spec, len: 0, blocks: Vec::new() }).collect()
}

impl KvCache for CpuKv {
    fn len(&self) -> usize {
        match &self.0 {
            Layers::F16(layers) => layers.iter().map(Layer::len).min(),
            Layers::F32(layers) => layers.iter().map(Layer::len).min(),
        }
        .unwrap_or(0)
    }

    fn truncate(&mut self, len: usize) -> usize {
        match &mut self.0 {
            Layers::F16(layers) => layers.iter_mut().for_each(|layer| layer.truncate(len)),
            Layers::F32(layers) => layers.iter_mut().for_each(|layer| layer.truncate(len)),
        }
        self.len()
    }

    fn fork(&self) -> Self {
        Self(match &self.0 {
            Layers::F16(layers) => Layers::F16(layers.clone()),
            Layers::F32(layers) => Layers::F32(layers.clone()),
        })
    }

    fn bytes(&self) -> usize {
        match &self.0 {
            Layers::F16(layers) => layers.iter().map(Layer::bytes).sum(),
            Layers::F32(layers) => layers.iter().map(Layer::bytes).sum(),
        }
    }
}

#[derive(Clone)]
pub(super) struct Layer<T> {
    spec: LayerSpec,
    len: usize,
    blocks: Vec<Arc<KvBlock<T>>>,
}

impl<T> Layer<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn spec(&self) -> LayerSpec {
        self.spec
    }

    pub(super) fn blocks(&self) -> Vec<&KvBlock<T>> {
        self.blocks.iter().map(|block| &**block).collect()
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.blocks.truncate(self.len.div_ceil(KEY_BLOCK));
    }
}

impl<T: KvValue> Layer<T> {
    fn bytes(&self) -> usize {
        let LayerSpec { kv_heads, head_dim } = self.spec;
        self.blocks.len() * KvBlock::<T>::bytes(kv_heads, head_dim)
    }

    /// `[positions, kv_heads, head_dim]` each.
    pub(super) fn append(&mut self, keys: &[f32], values: &[f32]) {
        let LayerSpec { kv_heads, head_dim } = self.spec;
        let width = kv_heads * head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(width), "append");
        let (mut keys, mut values) = (keys, values);
        while !keys.is_empty() {
            let place = self.len % KEY_BLOCK;
            if place == 0 {
                self.blocks.push(Arc::new(KvBlock::new(kv_heads, head_dim)));
            }
            let block = self.blocks.last_mut().expect("the length says there is one");
            let count = (keys.len() / width).min(KEY_BLOCK - place);
            let (key, later_keys) = keys.split_at(count * width);
            let (value, later_values) = values.split_at(count * width);
            Arc::make_mut(block).write(place, key, value);
            (keys, values) = (later_keys, later_values);
            self.len += count;
        }
    }
}
