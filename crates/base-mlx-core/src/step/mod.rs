//! One forward pass as models see it: a ragged batch (tokens of many sequences laid end to end) and each sequence's
//! cache. A prompt chunk, ten decodes and a five-token draft are one step and one code path.
//!
//! May import `tensor` and `backend`.

use crate::TokenId;
use crate::backend::{Attend, Backend, DeviceError, KvCache, Qkv, Span};
use crate::tensor::{HostArray, Shape, Tensor};

/// The batch of one forward pass.
pub struct Step<'a, B: Backend> {
    /// U32 `[tokens]`
    pub tokens: Tensor<B>,
    /// U32 `[tokens]`: each token's place in its own sequence.
    pub positions: Tensor<B>,
    spans: Vec<Span<'a, B>>,
}

impl<'a, B: Backend> Step<'a, B> {
    /// Lays the sequences end to end. Each brings its cache and the tokens that follow what the cache holds.
    pub fn new(
        backend: &B,
        sequences: Vec<(&'a mut B::Kv, &[TokenId])>,
    ) -> Result<Self, DeviceError> {
        let mut tokens = Vec::new();
        let mut positions = Vec::new();
        let mut spans = Vec::with_capacity(sequences.len());
        for (kv, new) in sequences {
            let rows = tokens.len()..tokens.len() + new.len();
            let start = kv.len();
            positions.extend((start..start + new.len()).map(|position| position as u32));
            tokens.extend_from_slice(new);
            spans.push(Span { kv, rows });
        }
        let shape = Shape::new(&[tokens.len()]);
        let upload = |values: &[u32]| {
            let array = backend.upload(HostArray::from_u32(&[values.len()], values))?;
            Ok(Tensor::new(backend, array, shape))
        };
        Ok(Self { tokens: upload(&tokens)?, positions: upload(&positions)?, spans })
    }

    /// Appends `k` and `v` to the caches at `layer` and attends: `[tokens, heads, head_dim]`.
    pub fn attend(
        &mut self,
        layer: usize,
        q: &Tensor<B>,
        k: &Tensor<B>,
        v: &Tensor<B>,
        how: Attend,
    ) -> Tensor<B> {
        let backend = q.backend();
        let array = backend.attend(layer, Qkv { q, k, v }, &mut self.spans, how);
        Tensor::new(backend, array, q.shape())
    }
}
