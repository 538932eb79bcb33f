use std::sync::{Arc, Mutex, PoisonError};

use base_mlx_simd::{KEY_BLOCK, KvBlock, KvBlocks, KvFormat};

use crate::backend::{DeviceError, KV_CHUNK, KvCache, LayerSpec, not_a_chunk};

/// Keys and values in blocks of [`KEY_BLOCK`] positions. A fork shares all blocks; who writes to a shared one copies
/// it first.
pub struct CpuKv(pub(super) Vec<Layer>);

/// Where a model's blocks come from.
pub(super) struct KvMemory {
    pub(super) format: KvFormat,
    /// Layers of the same shape share what is free.
    blocks: Mutex<Vec<KvBlocks>>,
}

impl KvMemory {
    pub(super) fn new(format: KvFormat) -> Self {
        Self { format, blocks: Mutex::default() }
    }

    pub(super) fn cache(&self, layers: &[LayerSpec]) -> CpuKv {
        let layer = |&spec| Layer { from: self.blocks(spec), len: 0, blocks: Vec::new() };
        CpuKv(layers.iter().map(layer).collect())
    }

    pub(super) fn blocks(&self, LayerSpec { kv_heads, head_dim }: LayerSpec) -> KvBlocks {
        // A panic elsewhere cannot leave the list half changed.
        let mut all = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.iter().find(|blocks| blocks.shape() == [kv_heads, head_dim]).cloned();
        known.unwrap_or_else(|| {
            let blocks = KvBlocks::new(self.format, kv_heads, head_dim);
            all.push(blocks.clone());
            blocks
        })
    }
}

impl KvCache for CpuKv {
    fn len(&self) -> usize {
        self.0.iter().map(Layer::len).min().unwrap_or(0)
    }

    fn truncate(&mut self, len: usize) -> usize {
        self.0.iter_mut().for_each(|layer| layer.truncate(len));
        self.len()
    }

    fn fork(&self) -> Self {
        Self(self.0.clone())
    }

    fn share(&mut self, from: &Self, len: usize) {
        for (layer, from) in self.0.iter_mut().zip(&from.0) {
            let blocks = len.min(layer.len).min(from.len) / KEY_BLOCK;
            layer.blocks[..blocks].clone_from_slice(&from.blocks[..blocks]);
        }
    }

    fn save(&self, chunk: usize) -> Result<Vec<u8>, DeviceError> {
        let blocks = KV_CHUNK / KEY_BLOCK * chunk..KV_CHUNK / KEY_BLOCK * (chunk + 1);
        let mut saved = Vec::with_capacity(self.chunk_bytes());
        for layer in &self.0 {
            for block in &layer.blocks[blocks.clone()] {
                block.save(&mut saved);
            }
        }
        Ok(saved)
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), DeviceError> {
        if saved.len() != self.chunk_bytes() {
            return Err(not_a_chunk(saved.len(), self.chunk_bytes()));
        }
        let mut rest = saved;
        let mut new = Vec::with_capacity(self.0.len() * KV_CHUNK / KEY_BLOCK);
        for layer in &self.0 {
            for _ in 0..KV_CHUNK / KEY_BLOCK {
                let (bytes, others) = rest.split_at(layer.from.bytes());
                let no_memory = |_| DeviceError::OutOfMemory {
                    device: "cpu".to_owned(),
                    bytes: layer.from.bytes(),
                };
                let mut block = layer.from.block().map_err(no_memory)?;
                block.fill(bytes);
                new.push(Arc::new(block));
                rest = others;
            }
        }
        for (layer, blocks) in self.0.iter_mut().zip(new.chunks(KV_CHUNK / KEY_BLOCK)) {
            layer.blocks.extend_from_slice(blocks);
            layer.len += KV_CHUNK;
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|layer| layer.blocks.len() * layer.from.bytes()).sum()
    }
}

impl CpuKv {
    /// Of a chunk as it is saved.
    fn chunk_bytes(&self) -> usize {
        self.0.iter().map(|layer| KV_CHUNK / KEY_BLOCK * layer.from.bytes()).sum()
    }
}

#[derive(Clone)]
pub(super) struct Layer {
    from: KvBlocks,
    len: usize,
    blocks: Vec<Arc<KvBlock>>,
}

impl Layer {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// `[kv_heads, head_dim]`
    pub(super) fn shape(&self) -> [usize; 2] {
        self.from.shape()
    }

    pub(super) fn blocks(&self) -> Vec<&KvBlock> {
        self.blocks.iter().map(|block| &**block).collect()
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.blocks.truncate(self.len.div_ceil(KEY_BLOCK));
    }

    /// `[positions, kv_heads, head_dim]` each.
    pub(super) fn append(&mut self, keys: &[f32], values: &[f32]) {
        let [kv_heads, head_dim] = self.shape();
        let width = kv_heads * head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(width), "append");
        let (mut keys, mut values) = (keys, values);
        while !keys.is_empty() {
            let place = self.len % KEY_BLOCK;
            if place == 0 {
                self.blocks.push(Arc::new(self.from.block().expect(NO_MEMORY)));
            }
            let block = self.blocks.last_mut().expect("the length says there is one");
            if Arc::get_mut(block).is_none() {
                *block = Arc::new(block.copy().expect(NO_MEMORY));
            }
            let count = (keys.len() / width).min(KEY_BLOCK - place);
            let (key, later_keys) = keys.split_at(count * width);
            let (value, later_values) = values.split_at(count * width);
            let block = Arc::get_mut(block).expect("it is nobody else's by now");
            block.write(place, key, value);
            (keys, values) = (later_keys, later_values);
            self.len += count;
        }
    }
}

/// As with any memory of the host, which only its system's limits keep from being there.
pub(super) const NO_MEMORY: &str = "memory for keys and values";
