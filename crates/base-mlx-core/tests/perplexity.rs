//! What rounding costs: the perplexity of a text on the CPU, beside that of the plain reference on the same file, or of the
//! CPU with plain keys and values.

#![allow(clippy::unwrap_used, reason = "all of it is test code, its helpers too")]

mod support;

use base_mlx_core::TokenId;
use base_mlx_core::backend::{Backend, CpuBackend, KvFormat, ReferenceBackend};
use base_mlx_core::models;
use base_mlx_core::step::Step;
use base_mlx_core::text::{AddSpecial, Text};
use base_mlx_core::weights::Checkpoint;
use support::test_models::test_model;

const TEXT: &str = include_str!("golden/perplexity/tides.txt");

#[test]
fn rounding_costs_smollm2_next_to_nothing_and_in_four_bits_little() {
    let formats = [(KvFormat::F16, 0.005), (KvFormat::Q8, 0.005), (KvFormat::Q4, 0.08)];
    rounding_costs("smollm2.gguf", &ReferenceBackend, &formats);
}

/// Whose keys have biases far larger than what tells one from another: with 4-bit keys as they are it would be two thirds.
/// The plain reference would take minutes.
#[test]
fn rounding_costs_qwen_little() {
    let formats = [(KvFormat::F16, 0.005), (KvFormat::Q8, 0.08), (KvFormat::Q4, 0.1)];
    let exact = CpuBackend::new(usize::MAX).with_kv(KvFormat::F32);
    rounding_costs("qwen2.5-coder-0.5b.gguf", &exact, &formats);
}

/// Less than such a part of the exact perplexity.
fn rounding_costs<B: Backend>(model: &str, exact: &B, formats: &[(KvFormat, f64)]) {
    let checkpoint = Checkpoint::open(&test_model(model)).unwrap();
    let tokens = Text::load(&checkpoint).unwrap().tokenizer.encode(TEXT, AddSpecial::Yes);
    let exact = perplexity(exact, &checkpoint, &tokens);
    let mut far = Vec::new();
    for (format, most) in formats {
        let cpu = CpuBackend::new(usize::MAX).with_kv(*format);
        let rounded = perplexity(&cpu, &checkpoint, &tokens);
        let part = rounded / exact - 1.0;
        let percent = part * 100.0;
        let tokens = tokens.len();
        let what = format!(
            "{model}, {tokens} tokens: {exact:.4} exactly, {rounded:.4} on the CPU with keys and values as {format}, {percent:+.3} %"
        );
        println!("{what}");
        far.extend((part.abs() >= *most).then_some(what));
    }
    assert!(far.is_empty(), "{far:#?}");
}

/// e to the power of how surprising a token is in the mean, the first not counted.
fn perplexity<B: Backend>(backend: &B, checkpoint: &Checkpoint, tokens: &[TokenId]) -> f64 {
    let model = models::load(checkpoint, backend).unwrap();
    let mut kv = backend.new_kv(&model.layers()).unwrap();
    let mut step = Step::new(backend, vec![(&mut kv, tokens)]).unwrap();
    let logits = model.logits(&model.hidden(&mut step));
    let logits = backend.download(logits.array()).unwrap().to_f32();
    let mut surprise = 0.0;
    for (logits, next) in logits.chunks(model.vocab_size()).zip(&tokens[1..]) {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        surprise += sum.ln() - f64::from(logits[*next as usize] - largest);
    }
    (surprise / (tokens.len() - 1) as f64).exp()
}
