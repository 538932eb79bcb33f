use std::sync::Arc;

use base_mlx_simd::KEY_BLOCK;

use crate::backend::{KvCache, LayerSpec};

/// Keys and values in blocks of [`KEY_BLOCK`] positions. A fork shares all blocks; who writes to a shared one copies
/// it first.
pub struct CpuKv {
    layers: Vec<Layer>,
}

impl CpuKv {
    pub(super) fn new(layers: &[LayerSpec]) -> Self {
        let layers =
            layers.iter().map(|&spec| Layer { spec, len: 0, blocks: Vec::new() }).collect();
        Self { layers }
    }

    pub(super) fn layer(&self, layer: usize) -> &Layer {
        &self.layers[layer]
    }

    pub(super) fn layer_mut(&mut self, layer: usize) -> &mut Layer {
        &mut self.layers[layer]
    }
}

impl KvCache for CpuKv {
    fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.len).min().unwrap_or(0)
    }

    fn truncate(&mut self, len: usize) -> usize {
        for layer in &mut self.layers {
            layer.len = layer.len.min(len);
            layer.blocks.truncate(layer.len.div_ceil(KEY_BLOCK));
        }
        self.len()
    }

    fn fork(&self) -> Self {
        Self { layers: self.layers.clone() }
    }

    fn bytes(&self) -> usize {
        let blocks = self.layers.iter().flat_map(|layer| &layer.blocks);
        blocks.map(|block| (block.keys.len() + block.values.len()) * size_of::<f32>()).sum()
    }
}

#[derive(Clone)]
pub(super) struct Layer {
    spec: LayerSpec,
    len: usize,
    blocks: Vec<Arc<Block>>,
}

/// Both `[kv_heads, KEY_BLOCK, head_dim]`: a head's keys lie side by side.
#[derive(Clone)]
struct Block {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Layer {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn spec(&self) -> LayerSpec {
        self.spec
    }

    pub(super) fn keys(&self) -> Vec<&[f32]> {
        self.blocks.iter().map(|block| block.keys.as_slice()).collect()
    }

    pub(super) fn values(&self) -> Vec<&[f32]> {
        self.blocks.iter().map(|block| block.values.as_slice()).collect()
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
                let empty = vec![0.0; width * KEY_BLOCK];
                self.blocks.push(Arc::new(Block { keys: empty.clone(), values: empty }));
            }
            let block = self.blocks.last_mut().expect("the length says there is one");
            let block = Arc::make_mut(block);
            let count = (keys.len() / width).min(KEY_BLOCK - place);
            keys = fill(&mut block.keys, keys, place, count, self.spec);
            values = fill(&mut block.values, values, place, count, self.spec);
            self.len += count;
        }
    }
}

/// Writes `count` positions from `place` on; returns what is left.
fn fill<'a>(
    block: &mut [f32],
    from: &'a [f32],
    place: usize,
    count: usize,
    LayerSpec { kv_heads, head_dim }: LayerSpec,
) -> &'a [f32] {
    let (now, later) = from.split_at(count * kv_heads * head_dim);
    for (index, head) in now.chunks_exact(head_dim).enumerate() {
        let (position, kv_head) = (place + index / kv_heads, index % kv_heads);
        block[(kv_head * KEY_BLOCK + position) * head_dim..][..head_dim].copy_from_slice(head);
    }
    later
}
