//! The tiny checkpoints of `golden/`, and what mlx-lm says of them.

use std::path::{Path, PathBuf};

use base_mlx_core::TokenId;
use base_mlx_core::backend::Backend;
use base_mlx_core::models::{self, LanguageModel};
use base_mlx_core::step::Step;
use base_mlx_core::weights::Checkpoint;
use safetensors::SafeTensors;

pub(crate) const VARIANTS: &[&str] = &[
    "llama/tied",
    "llama/untied",
    "llama/bias",
    "llama/llama3_rope",
    "llama/linear_rope",
    "llama/yarn_rope",
    "llama/mistral",
    "llama/layer_types",
    "llama/every_width",
    "qwen2/tied",
    "qwen2/quantised",
    "qwen3/tied",
    "qwen3/sharded",
    "qwen3/quantised",
];
/// The logits after each token, of one sequence in one step.
pub(crate) fn alone<B: Backend>(
    backend: &B,
    model: &dyn LanguageModel<B>,
    tokens: &[TokenId],
) -> Vec<f32> {
    let mut kv = backend.new_kv(&model.layers()).unwrap();
    let mut step = Step::new(backend, vec![(&mut kv, tokens)]).unwrap();
    let logits = model.logits(&model.hidden(&mut step));
    backend.download(logits.array()).unwrap().to_f32()
}

/// The same of several sequences, which advance by chunks of changing sizes and now and then sit a step out.
pub(crate) fn in_company<B: Backend>(
    backend: &B,
    model: &dyn LanguageModel<B>,
    sequences: &[&[TokenId]],
) -> Vec<Vec<f32>> {
    let mut kvs: Vec<_> =
        sequences.iter().map(|_| backend.new_kv(&model.layers()).unwrap()).collect();
    let mut done = vec![0; sequences.len()];
    let mut logits = vec![Vec::new(); sequences.len()];
    for turn in 0.. {
        let mut rows = Vec::new();
        let mut batch = Vec::new();
        for (i, kv) in kvs.iter_mut().enumerate() {
            let left = &sequences[i][done[i]..];
            let chunk = &left[..left.len().min((7 * i + 5 * turn) % 8)];
            if !chunk.is_empty() {
                rows.extend(std::iter::repeat_n(i, chunk.len()));
                done[i] += chunk.len();
                batch.push((kv, chunk));
            }
        }
        if !batch.is_empty() {
            let mut step = Step::new(backend, batch).unwrap();
            let all = model.logits(&model.hidden(&mut step));
            let all = backend.download(all.array()).unwrap().to_f32();
            for (i, row) in rows.into_iter().zip(all.chunks(model.vocab_size())) {
                logits[i].extend_from_slice(row);
            }
        }
        if done.iter().zip(sequences).all(|(done, tokens)| *done == tokens.len()) {
            break;
        }
    }
    logits
}

pub(crate) fn load<B: Backend>(path: &Path, backend: &B) -> Box<dyn LanguageModel<B>> {
    let checkpoint = Checkpoint::open(path).unwrap_or_else(|error| panic!("{error}"));
    models::load(&checkpoint, backend).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn relative_error(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    let differences = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    // Not `max`, which would pass over a NaN.
    differences.fold(0.0, |most, d| if d <= most { most } else { d }) / largest
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What mlx-lm says: the tokens of a prompt, and the logits after each.
pub(crate) struct Golden {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) logits: Vec<f32>,
}

impl Golden {
    pub(crate) fn read(name: &str) -> Self {
        let file = std::fs::read(folder(name).with_extension("safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let words = |name| {
            let data = tensors.tensor(name).unwrap().data().to_vec();
            data.as_chunks::<4>().0.to_vec()
        };
        Self {
            tokens: words("tokens").into_iter().map(u32::from_le_bytes).collect(),
            logits: words("logits").into_iter().map(f32::from_le_bytes).collect(),
        }
    }
}
