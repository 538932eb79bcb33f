use base_mlx_sys::{self as mlx, Array, Dtype};

use super::device::{built, failed};
use super::paged::Paged;
use crate::backend::{DeviceError, KV_CHUNK, KvCache, LayerSpec, not_a_chunk};

/// One sequence's keys and values: arrays that grow, or, where own kernels read them, blocks.
pub struct MlxKv(pub(super) Store);

pub(super) enum Store {
    Growing(Growing),
    Paged(Paged),
}

impl KvCache for MlxKv {
    fn len(&self) -> usize {
        match &self.0 {
            Store::Growing(kv) => kv.len(),
            Store::Paged(kv) => kv.len(),
        }
    }

    fn truncate(&mut self, len: usize) -> usize {
        match &mut self.0 {
            Store::Growing(kv) => kv.truncate(len),
            Store::Paged(kv) => kv.truncate(len),
        }
    }

    fn fork(&self) -> Self {
        Self(match &self.0 {
            Store::Growing(kv) => Store::Growing(kv.clone()),
            Store::Paged(kv) => Store::Paged(kv.fork()),
        })
    }

    fn share(&mut self, from: &Self, len: usize) {
        if let (Store::Paged(kv), Store::Paged(from)) = (&mut self.0, &from.0) {
            kv.share(from, len);
        }
    }

    fn save(&self, chunk: usize) -> Result<Vec<u8>, DeviceError> {
        match &self.0 {
            Store::Growing(kv) => kv.save(chunk),
            Store::Paged(kv) => kv.save(chunk),
        }
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), DeviceError> {
        match &mut self.0 {
            Store::Growing(kv) => kv.restore(saved),
            Store::Paged(kv) => kv.restore(saved),
        }
    }

    fn bytes(&self) -> usize {
        match &self.0 {
            Store::Growing(kv) => kv.bytes(),
            Store::Paged(kv) => kv.bytes(),
        }
    }
}

/// For each layer one array of keys and one of values, with room at the end. Who holds an array alone writes in place:
/// MLX copies before it writes only where a fork holds it too.
#[derive(Clone)]
pub(super) struct Growing {
    layers: Vec<Layer>,
    dtype: Dtype,
}

#[derive(Clone)]
pub(super) struct Layer {
    spec: LayerSpec,
    len: usize,
    capacity: usize,
    /// Keys and values, both `[1, kv_heads, capacity, head_dim]`.
    arrays: Option<[Array; 2]>,
}

impl Growing {
    pub(super) fn new(layers: &[LayerSpec], dtype: Dtype) -> Self {
        let layer = |&spec| Layer { spec, len: 0, capacity: 0, arrays: None };
        Self { layers: layers.iter().map(layer).collect(), dtype }
    }

    pub(super) fn layer(&mut self, layer: usize) -> &mut Layer {
        &mut self.layers[layer]
    }

    fn len(&self) -> usize {
        self.layers.iter().map(|layer| layer.len).min().unwrap_or(0)
    }

    fn truncate(&mut self, len: usize) -> usize {
        for layer in &mut self.layers {
            layer.len = layer.len.min(len);
            if layer.len == 0 {
                (layer.capacity, layer.arrays) = (0, None);
            }
        }
        self.len()
    }

    fn save(&self, chunk: usize) -> Result<Vec<u8>, DeviceError> {
        let mut saved = Vec::new();
        for layer in &self.layers {
            let LayerSpec { kv_heads, head_dim } = layer.spec;
            let arrays = layer.arrays.as_ref().expect("a whole chunk was appended");
            let (start, stop) = (KV_CHUNK * chunk, KV_CHUNK * (chunk + 1));
            for array in arrays {
                let part = array.slice(&[0, 0, start, 0], &[1, kv_heads, stop, head_dim]);
                saved.extend(part.and_then(|part| part.to_bytes()).map_err(failed)?);
            }
        }
        Ok(saved)
    }

    fn restore(&mut self, saved: &[u8]) -> Result<(), DeviceError> {
        let bytes = |layer: &Layer| {
            KV_CHUNK * layer.spec.kv_heads * layer.spec.head_dim * self.dtype.size()
        };
        let expected = self.layers.iter().map(|layer| 2 * bytes(layer)).sum();
        if saved.len() != expected {
            return Err(not_a_chunk(saved.len(), expected));
        }
        let sizes: Vec<usize> = self.layers.iter().map(bytes).collect();
        let mut rest = saved;
        let mut new = Vec::with_capacity(2 * self.layers.len());
        for (layer, bytes) in self.layers.iter_mut().zip(sizes) {
            let LayerSpec { kv_heads, head_dim } = layer.spec;
            let mut next = || {
                let (these, others) = rest.split_at(bytes);
                rest = others;
                Array::from_bytes(these, &[1, kv_heads, KV_CHUNK, head_dim], self.dtype)
            };
            let [keys, values] = [next().map_err(failed)?, next().map_err(failed)?];
            layer.append(&keys, &values);
            new.extend(layer.arrays.iter().flatten().cloned());
        }
        // Now, and not with the first step that reads it.
        mlx::async_eval(&new.iter().collect::<Vec<_>>()).map_err(failed)
    }

    fn bytes(&self) -> usize {
        let arrays = self.layers.iter().filter_map(|layer| layer.arrays.as_ref());
        arrays.flatten().map(Array::nbytes).sum()
    }
}

impl Layer {
    pub(super) fn spec(&self) -> LayerSpec {
        self.spec
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// `[1, kv_heads, positions, head_dim]` each.
    pub(super) fn append(&mut self, keys: &Array, values: &Array) {
        let end = self.len + keys.shape()[2];
        if end > self.capacity {
            self.grow(end, built(keys.dtype()));
        }
        let LayerSpec { kv_heads, head_dim } = self.spec;
        let (start, stop) = ([0, 0, self.len, 0], [1, kv_heads, end, head_dim]);
        let [old_keys, old_values] = self.arrays.take().expect("it has grown to hold something");
        self.arrays = Some([
            built(old_keys.slice_update(keys, &start, &stop)),
            built(old_values.slice_update(values, &start, &stop)),
        ]);
        self.len = end;
    }

    /// Keys and values from position `first` on, `[1, kv_heads, positions, head_dim]` each.
    pub(super) fn from(&self, first: usize) -> [Array; 2] {
        let LayerSpec { kv_heads, head_dim } = self.spec;
        let arrays = self.arrays.as_ref().expect("something was appended");
        let stop = [1, kv_heads, self.len, head_dim];
        arrays.each_ref().map(|array| built(array.slice(&[0, 0, first, 0], &stop)))
    }

    /// By an eighth, so that what growing copies stays a fixed part of what is written.
    fn grow(&mut self, needed: usize, dtype: Dtype) {
        let capacity = (needed + needed / 8).next_multiple_of(ROOM);
        let LayerSpec { kv_heads, head_dim } = self.spec;
        let room = |positions| built(Array::full(&[1, kv_heads, positions, head_dim], 0.0, dtype));
        self.arrays = Some(match (self.len, &self.arrays) {
            (0, _) | (_, None) => [room(capacity), room(capacity)],
            (len, Some(_)) => self
                .from(0)
                .map(|held| built(Array::concatenate(&[&held, &room(capacity - len)], 2))),
        });
        self.capacity = capacity;
    }
}

/// Arrays grow to multiples of so many positions.
const ROOM: usize = 256;
