//! One forward pass as models see it: a ragged batch (tokens of many sequences laid end to end) and each sequence's
//! cache. A prompt chunk, ten decodes and a five-token draft are one step and one code path.
//!
//! May import `tensor` and `backend`.

use std::ops::Range;

use crate::TokenId;
use crate::backend::{Attend, Backend, Batch, DeviceError, KvCache, Qkv, Span};
use crate::tensor::{HostArray, Shape, Tensor};

/// The batch of one forward pass.
pub struct Step<'a, B: Backend> {
    /// U32 `[tokens]`
    pub tokens: Tensor<B>,
    /// U32 `[tokens]`: each token's place in its own sequence.
    pub positions: Tensor<B>,
    /// U32 `[tokens]`: which text of a pair each token belongs to. Encoders read them, so that their steps have them.
    pub types: Option<Tensor<B>>,
    batch: Batch<'a, B>,
}

impl<'a, B: Backend> Step<'a, B> {
    /// Lays the sequences end to end. Each brings its cache and the tokens that follow what the cache holds.
    pub fn new(
        backend: &B,
        sequences: Vec<(&'a mut B::Kv, &[TokenId])>,
    ) -> Result<Self, DeviceError> {
        let tokens: Vec<u32> = sequences.iter().flat_map(|(_, new)| *new).copied().collect();
        let spans = sequences.into_iter().map(|(kv, new)| (kv, new.len())).collect();
        let tokens = upload(backend, &tokens)?;
        Self::with_tokens(backend, tokens, spans)
    }

    /// The same with the tokens on the device already, U32 `[tokens]`: each sequence brings its cache and how many
    /// of them are its own.
    pub fn with_tokens(
        backend: &B,
        tokens: Tensor<B>,
        sequences: Vec<(&'a mut B::Kv, usize)>,
    ) -> Result<Self, DeviceError> {
        let mut positions = Vec::with_capacity(tokens.rows());
        let mut spans = Vec::with_capacity(sequences.len());
        for (kv, count) in sequences {
            let rows = positions.len()..positions.len() + count;
            let start = kv.len();
            positions.extend((start..start + count).map(|position| position as u32));
            spans.push(Span { kv, rows });
        }
        assert_eq!(tokens.rows(), positions.len(), "every token belongs to a sequence");
        let positions = upload(backend, &positions)?;
        Ok(Self { tokens, positions, types: None, batch: Batch::new(backend, spans)? })
    }

    /// With the types of all tokens, end to end.
    pub fn with_types(self, backend: &B, types: &[u32]) -> Result<Self, DeviceError> {
        assert_eq!(self.tokens.rows(), types.len(), "every token has a type");
        Ok(Self { types: Some(upload(backend, types)?), ..self })
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
        let array = backend.attend(layer, Qkv { q, k, v }, &mut self.batch, how);
        Tensor::new(backend, array, q.shape())
    }

    /// Lets each token look at all of its own sequence, none of which is remembered: `[tokens, heads, head_dim]`.
    pub fn attend_within(
        &self,
        q: &Tensor<B>,
        k: &Tensor<B>,
        v: &Tensor<B>,
        scale: f32,
    ) -> Tensor<B> {
        let texts: Vec<Range<usize>> =
            self.batch.spans.iter().map(|span| span.rows.clone()).collect();
        let array = q.backend().attend_within(Qkv { q, k, v }, &texts, scale);
        Tensor::new(q.backend(), array, q.shape())
    }
}

fn upload<B: Backend>(backend: &B, values: &[u32]) -> Result<Tensor<B>, DeviceError> {
    let array = backend.upload(HostArray::from_u32(&[values.len()], values))?;
    Ok(Tensor::new(backend, array, Shape::new(&[values.len()])))
}
