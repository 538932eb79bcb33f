//! Encoders against transformers and sentence-transformers, on what `cargo xtask golden encoders` makes: tiny checkpoints of
//! every family, and fifty texts for a real model. Whoever shares their steps, texts get the vectors that they get alone.

#![allow(clippy::unwrap_used, reason = "all of it is test code, its helpers too")]

mod support;

use std::sync::LazyLock;

use base_mlx_core::TokenId;
use base_mlx_core::backend::{Backend, CpuBackend, KvFormat, ReferenceBackend};
use base_mlx_core::engine::{
    Draft, Encodable, EncodeError, Encoder, Engine, EngineOptions, GenerateRequest, Purpose,
};
use base_mlx_core::models::{self, Progress};
use base_mlx_core::sample::SamplingParams;
use base_mlx_core::step::Step;
use base_mlx_core::text::AddSpecial;
use base_mlx_core::text::output::OutputParser;
use base_mlx_core::weights::Checkpoint;
use base_mlx_simd::Isa;
use safetensors::SafeTensors;
use serde_json::Value;
use support::answer::{DEVICE, run};
use support::encoders::{Golden, VARIANTS, agree_with_transformers, compute, encoder, golden};
use support::golden::{bits, relative_error};
use support::test_models::test_model;

/// The largest difference of two values, as a part of the largest.
const TOLERANCE: f32 = 1e-4;

/// The same on the CPU for quantised weights, which it multiplies by in 8-bit integers.
const ROUNDED: f32 = 8e-2;

static MINILM: LazyLock<Encoder> = LazyLock::new(|| minilm(&EngineOptions::default()));

fn minilm(options: &EngineOptions) -> Encoder {
    Encoder::start(&test_model("minilm"), "minilm", &DEVICE, options).unwrap()
}

#[test]
fn the_reference_backend_agrees_with_transformers() {
    agree_with_transformers(&ReferenceBackend, [TOLERANCE; 2]);
}

#[test]
fn the_cpu_backend_agrees_with_transformers() {
    let backend = CpuBackend::new(2).with_kv(KvFormat::F32);
    agree_with_transformers(&backend, [TOLERANCE, ROUNDED]);
}

#[test]
fn a_text_has_the_same_bits_alone_and_in_company() {
    let backend = CpuBackend::new(2);
    for name in VARIANTS {
        let golden = Golden::read(name);
        let encoder = encoder(name, &backend);
        let texts: Vec<&[TokenId]> = golden.texts.iter().map(Vec::as_slice).collect();
        let (together, _) = compute(&backend, &encoder, &texts, &golden.types);
        let mut row = 0;
        for text in texts {
            let types = &golden.types[row..row + text.len()];
            let (alone, _) = compute(&backend, &encoder, &[text], types);
            let width = alone.len() / text.len();
            let of_text = &together[row * width..][..alone.len()];
            assert_eq!(bits(&alone), bits(of_text), "{name}, row {row}");
            row += text.len();
        }
    }
}

/// Fifty texts of 3 to 482 tokens, and their vectors by sentence-transformers.
fn fifty() -> (Vec<String>, Vec<Vec<f32>>) {
    let texts: Value =
        serde_json::from_slice(&std::fs::read(golden().join("minilm.json")).unwrap()).unwrap();
    let texts = texts["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().into());
    let bytes = std::fs::read(golden().join("minilm.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let vectors = file.tensor("vectors").unwrap();
    let values: Vec<f32> =
        vectors.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    (texts.collect(), values.chunks(vectors.shape()[1]).map(<[f32]>::to_vec).collect())
}

fn encode(encoder: &Encoder, texts: Vec<Encodable>) -> Result<Vec<Vec<f32>>, EncodeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(encoder.encode(texts))
}

fn encodable(encoder: &Encoder, texts: &[String]) -> Vec<Encodable> {
    texts.iter().map(|text| encoder.text(text, None, None)).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let (texts, expected) = fifty();
    assert_eq!(texts.len(), 50);
    let texts = encodable(&MINILM, &texts);
    let longest = texts.iter().map(|text| text.tokens.len()).max();
    assert!(longest.is_some_and(|tokens| tokens > 450));
    let vectors = encode(&MINILM, texts).unwrap();
    let least = vectors.iter().zip(&expected).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
    println!("least cosine: 1 - {:.1e}", 1.0 - least);
    assert!(least >= 0.9999, "{least}");
    for vector in vectors {
        let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
    }
}

/// Whatever this CPU gains by it: products rounded to 16 bits turn no vector by more than a thousandth, and a text's states
/// have the same bits alone.
#[test]
fn rounded_products_turn_vectors_little() {
    let checkpoint = Checkpoint::open(&test_model("minilm")).unwrap();
    let (texts, expected) = fifty();
    let texts: Vec<Vec<TokenId>> =
        encodable(&MINILM, &texts).into_iter().map(|text| text.tokens).collect();
    for isa in Isa::all() {
        let backend = CpuBackend::with_isa(2, isa).rounding();
        let encoder = models::load_encoder(&checkpoint, &backend).unwrap();
        let states = |texts: &[&[TokenId]]| {
            let types = vec![0; texts.iter().map(|text| text.len()).sum()];
            compute(&backend, &encoder, texts, &types).0
        };
        // The portable kernels are slow.
        let some = if matches!(isa, Isa::Scalar) { 6 } else { texts.len() };
        for (texts, expected) in texts[..some].chunks(5).zip(expected.chunks(5)) {
            let texts: Vec<&[TokenId]> = texts.iter().map(Vec::as_slice).collect();
            let together = states(&texts);
            let width = expected[0].len();
            let mut rest = &together[..];
            for (text, expected) in texts.iter().zip(expected) {
                let (of_text, others) = rest.split_at(text.len() * width);
                rest = others;
                let mut mean = vec![0.0; width];
                for row in of_text.chunks(width) {
                    mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
                }
                let cosine = cosine(&mean, expected);
                assert!(cosine >= 1.0 - 5e-7, "{}: 1 - {:e}", isa.name(), 1.0 - cosine);
            }
            let alone = states(&texts[..1]);
            assert_eq!(bits(&alone), bits(&together[..alone.len()]), "{}", isa.name());
        }
    }
}

/// Callers of many and of single texts beside a chat: everybody gets what they get alone.
#[test]
fn texts_of_all_callers_and_a_chat_share_the_device() {
    let (texts, _) = fifty();
    let alone: Vec<Vec<f32>> = texts
        .iter()
        .map(|text| {
            encode(&MINILM, encodable(&MINILM, std::slice::from_ref(text))).unwrap().remove(0)
        })
        .collect();
    let engine =
        Engine::start(&test_model("smollm2.gguf"), "smollm2", &DEVICE, EngineOptions::default())
            .unwrap();
    let request = || GenerateRequest {
        prompt: engine.text().tokenizer.encode("The capital of France is", AddSpecial::Yes),
        choices: 1,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: Some(12),
        stop: Vec::new(),
        ignore_end: true,
        score_prompt: false,
        background: false,
        draft: Draft::Nobody,
        output: OutputParser::plain(),
        constraint: None,
        thinking: None,
        streamed: true,
    };
    let answer = run(&engine, request());
    std::thread::scope(|scope| {
        let chat = scope.spawn(|| run(&engine, request()));
        let many: Vec<_> = (0..3)
            .map(|first| {
                let texts = &texts;
                scope.spawn(move || {
                    encode(&MINILM, encodable(&MINILM, &texts[first * 10..])).unwrap()
                })
            })
            .collect();
        let one = scope.spawn(|| encode(&MINILM, encodable(&MINILM, &texts[7..8])).unwrap());
        assert_eq!(one.join().unwrap(), alone[7..8]);
        for (first, vectors) in many.into_iter().enumerate() {
            assert_eq!(vectors.join().unwrap(), alone[first * 10..], "from text {}", first * 10);
        }
        assert_eq!(chat.join().unwrap(), answer);
    });
}

#[test]
fn what_cannot_be_encoded_is_told_before_anything_is_computed() {
    let wrong = |tokens: Vec<TokenId>| {
        let texts = vec![MINILM.text("a", None, None), Encodable::new(tokens)];
        encode(&MINILM, texts).unwrap_err()
    };
    assert_eq!(wrong(Vec::new()), EncodeError::Empty { text: 1 });
    assert_eq!(wrong(vec![7; 513]), EncodeError::TooLong { text: 1, tokens: 513, longest: 512 });
    let unknown = EncodeError::UnknownToken { text: 1, token: 30_522, vocab_size: 30_522 };
    assert_eq!(wrong(vec![101, 30_522]), unknown);
    assert_eq!(encode(&MINILM, Vec::new()).unwrap(), Vec::<Vec<f32>>::new());
    // As many as there may be are fine, with the tokens around them in their places.
    let long = "word ".repeat(600);
    let cut = MINILM.text(&long, None, Some(512));
    assert_eq!((cut.tokens.len(), cut.tokens[0], cut.tokens[511]), (512, 101, 102));
    assert_eq!(encode(&MINILM, vec![cut]).unwrap()[0].len(), 384);
}

#[test]
fn who_gives_up_costs_nobody_else_anything() {
    let (texts, _) = fifty();
    let all = encodable(&MINILM, &texts);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let gone = MINILM.encode(all.iter().cycle().take(2000).cloned().collect());
        let millisecond = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(millisecond, gone).await.is_err(), "not as fast as that");
        assert_eq!(MINILM.encode(all[..1].to_vec()).await.unwrap()[0].len(), 384);
    });
}

#[test]
fn a_model_is_started_for_what_it_is_for() {
    let minilm = test_model("minilm");
    assert_eq!(Purpose::of(&minilm).unwrap(), Purpose::Embed);
    assert_eq!(Purpose::of(&golden().join("bert_ranks")).unwrap(), Purpose::Rank);
    assert_eq!(Purpose::of(&test_model("smollm2.gguf")).unwrap(), Purpose::Generate);
    let options = EngineOptions::default();
    let error = Engine::start(&minilm, "minilm", &DEVICE, options.clone()).unwrap_err();
    assert!(
        error.to_string().contains("it turns texts into vectors, and does not write"),
        "{error}"
    );
    let error = Encoder::start(&test_model("smollm2.gguf"), "smollm2", &DEVICE, &options);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("it writes texts, and makes no vectors of them"), "{error}");
}

/// A decoder with sentence-transformers' files beside it: its texts are computed in pieces, the last token's state counts.
#[test]
fn a_decoder_embeds_in_pieces_what_it_embeds_whole() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden().join("qwen3").join(file), folder.path().join(file)).unwrap();
    }
    let modules = r#"[
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]"#;
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    std::fs::write(folder.path().join("modules.json"), modules).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), TOKENIZER).unwrap();
    let golden = Golden::read("qwen3");
    let width = golden.states.len() / golden.texts.iter().map(Vec::len).sum::<usize>();
    for (mode, mean) in [("lasttoken", false), ("mean_tokens", true)] {
        let pooling = format!(r#"{{"pooling_mode_{mode}": true}}"#);
        std::fs::write(folder.path().join("1_Pooling/config.json"), pooling).unwrap();
        for step_tokens in [Some(5), None] {
            let options = EngineOptions { step_tokens, ..EngineOptions::default() };
            let encoder = Encoder::start(folder.path(), "tiny", &DEVICE, &options).unwrap();
            let texts = golden.texts.iter().cloned().map(Encodable::new).collect();
            let vectors = encode(&encoder, texts).unwrap();
            let mut row = 0;
            for (text, vector) in golden.texts.iter().zip(&vectors) {
                let states = &golden.states[row * width..(row + text.len()) * width];
                let expected: Vec<f32> = match mean {
                    false => states[states.len() - width..].to_vec(),
                    true => (0..width)
                        .map(|i| {
                            states.iter().skip(i).step_by(width).sum::<f32>() / text.len() as f32
                        })
                        .collect(),
                };
                let error = relative_error(vector, &expected);
                assert!(error <= TOLERANCE, "{mode}, {step_tokens:?}, {}: {error:e}", text.len());
                row += text.len();
            }
        }
    }
}

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2}, "unk_token": "[UNK]"}}"#;

#[test]
fn a_step_that_pauses_between_all_layers_comes_to_the_same() {
    let backend = CpuBackend::new(2);
    for name in ["bert", "nomic_bert"] {
        let (golden, encoder) = (Golden::read(name), encoder(name, &backend));
        let texts: Vec<&[TokenId]> = golden.texts.iter().map(Vec::as_slice).collect();
        let (whole, _) = compute(&backend, &encoder, &texts, &golden.types);
        let (mut paused, mut pauses) = (None, 0);
        let states = loop {
            let mut kvs: Vec<_> = texts.iter().map(|_| backend.new_kv(&[]).unwrap()).collect();
            let spans = kvs.iter_mut().zip(texts.iter().copied()).collect();
            let step = Step::new(&backend, spans).unwrap();
            let mut step = step.with_types(&backend, &golden.types).unwrap();
            match encoder.model.hidden_until(&mut step, paused.take(), &|| true) {
                Progress::Done(states) => break states,
                Progress::Paused(at) => paused = Some(at),
            }
            pauses += 1;
        };
        assert_eq!(pauses, 1, "between two layers");
        assert_eq!(bits(&backend.download(states.array()).unwrap().to_f32()), bits(&whole));
    }
}

/// A folder of a tiny model whose weights are no numbers.
#[test]
fn what_is_no_number_is_a_failure_and_no_vector() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden().join("bert/config.json"), folder.path().join("config.json")).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), TOKENIZER).unwrap();
    let mut weights = std::fs::read(golden().join("bert/model.safetensors")).unwrap();
    let header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    weights[8 + header..].as_chunks_mut::<2>().0.fill(half::f16::NAN.to_le_bytes());
    std::fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    let encoder =
        Encoder::start(folder.path(), "broken", &DEVICE, &EngineOptions::default()).unwrap();
    for _ in 0..2 {
        let error = encode(&encoder, vec![encoder.text("a b", None, None)]).unwrap_err();
        assert_eq!(error, EncodeError::Failed("what it makes of text 0 is no number".to_owned()));
    }
}
