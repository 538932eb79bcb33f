//! The tiny encoders of `golden/encoders/`, and what transformers says of them.

use std::path::{Path, PathBuf};

use base_mlx_core::TokenId;
use base_mlx_core::backend::Backend;
use base_mlx_core::models::{self, FAMILIES};
use base_mlx_core::step::Step;
use base_mlx_core::weights::Checkpoint;
use safetensors::SafeTensors;

use super::golden::relative_error;

/// Folders, and GGUF files in them.
pub(crate) const VARIANTS: [&str; 16] = [
    "bert",
    "bert_tanh",
    "bert_ranks",
    "xlm_roberta",
    "xlm_roberta_ranks",
    "nomic_bert",
    "nomic_bert_transformers",
    "qwen3",
    "qwen3_untied",
    "bert/twin.gguf",
    "bert_q8/twin.gguf",
    "bert_ranks/twin.gguf",
    "xlm_roberta/twin.gguf",
    "xlm_roberta_ranks/twin.gguf",
    "nomic_bert/twin.gguf",
    "qwen3/twin.gguf",
];

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders")
}

/// Some texts, and what the reference makes of them.
pub(crate) struct Golden {
    pub(crate) texts: Vec<Vec<TokenId>>,
    pub(crate) types: Vec<u32>,
    pub(crate) states: Vec<f32>,
    /// Of a cross-encoder.
    pub(crate) scores: Option<Vec<f32>>,
}

impl Golden {
    pub(crate) fn read(name: &str) -> Self {
        let name = name.split('/').next().unwrap();
        let bytes = std::fs::read(golden().join(format!("{name}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let whole = |name: &str| {
            let data = file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
            data.into_iter().map(u32::from_le_bytes).collect::<Vec<u32>>()
        };
        let floats = |name: &str| whole(name).into_iter().map(f32::from_bits).collect();
        let (tokens, mut start) = (whole("tokens"), 0);
        let text = |end: u32| {
            let text = tokens[start..end as usize].to_vec();
            start = end as usize;
            text
        };
        let texts = whole("ends").into_iter().map(text).collect();
        let scores = file.tensor("scores").is_ok().then(|| floats("scores"));
        Self { texts, types: whole("types"), states: floats("states"), scores }
    }
}

pub(crate) fn encoder<B: Backend>(name: &str, backend: &B) -> models::EncoderModel<B> {
    let checkpoint = Checkpoint::open(&golden().join(name)).unwrap();
    let family = checkpoint.config().model_type().unwrap();
    if FAMILIES.contains(&family) {
        let model = models::load_states(&checkpoint, backend).unwrap();
        return models::EncoderModel { model, scorer: None };
    }
    models::load_encoder(&checkpoint, backend).unwrap()
}

/// States and scores of texts in one step.
pub(crate) fn compute<B: Backend>(
    backend: &B,
    encoder: &models::EncoderModel<B>,
    texts: &[&[TokenId]],
    types: &[u32],
) -> (Vec<f32>, Option<Vec<f32>>) {
    let mut kvs: Vec<_> =
        texts.iter().map(|_| backend.new_kv(&encoder.model.layers()).unwrap()).collect();
    let step = Step::new(backend, kvs.iter_mut().zip(texts.iter().copied()).collect()).unwrap();
    let mut step = step.with_types(backend, types).unwrap();
    let states = encoder.model.hidden(&mut step);
    let scores = encoder.scorer.as_ref().map(|scorer| {
        let firsts = texts.iter().scan(0, |row, text| {
            let first = *row;
            *row += text.len() as u32;
            Some(first)
        });
        let first = states.take_rows(&firsts.collect::<Vec<u32>>());
        backend.download(scorer.forward(&first, &step).array()).unwrap().to_f32()
    });
    (backend.download(states.array()).unwrap().to_f32(), scores)
}

/// Fails if a variant is farther from transformers than that part of the largest value, or one of quantised weights farther
/// than the other.
pub(crate) fn agree_with_transformers<B: Backend>(backend: &B, [of_plain, of_quantised]: [f32; 2]) {
    for name in VARIANTS {
        let tolerance = if name.contains("_q8") { of_quantised } else { of_plain };
        let golden = Golden::read(name);
        let encoder = encoder(name, backend);
        let texts: Vec<&[TokenId]> = golden.texts.iter().map(Vec::as_slice).collect();
        let (states, scores) = compute(backend, &encoder, &texts, &golden.types);
        let error = relative_error(&states, &golden.states);
        println!("{name:24} {error:.1e}");
        assert!(error <= tolerance, "{name}: {error:e}");
        assert_eq!(scores.is_some(), golden.scores.is_some(), "{name}");
        if let (Some(scores), Some(expected)) = (scores, golden.scores) {
            let error = relative_error(&scores, &expected);
            assert!(error <= tolerance, "scores of {name}: {error:e}");
        }
    }
}
