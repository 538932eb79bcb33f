//! The whole engine on MLX: its CPU device, or the one that `BASE_MLX_TEST_DEVICE` names. A file of its own, because a
//! process has one MLX and the engine's device thread takes it.

#![allow(clippy::unwrap_used, reason = "all of it is test code, its helpers too")]

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use base_mlx_core::engine::{
    Device, DeviceKind, DeviceOptions, Draft, Engine, EngineOptions, Event, GenerateRequest,
};
use base_mlx_core::sample::SamplingParams;
use base_mlx_core::text::output::{GrammarSource, OutputParser, Part, Rule};
use serde_json::json;

static DEVICE: LazyLock<Device> = LazyLock::new(|| {
    let kind = match std::env::var("BASE_MLX_TEST_DEVICE").as_deref() {
        Ok("cuda") => DeviceKind::Cuda,
        Ok("metal") => DeviceKind::Metal,
        Ok("mlx-cpu") => DeviceKind::MlxCpu,
        Ok(other) => panic!("BASE_MLX_TEST_DEVICE is {other}, expected metal, cuda or mlx-cpu"),
        Err(_) if cfg!(target_os = "macos") => DeviceKind::Metal,
        Err(_) => DeviceKind::MlxCpu,
    };
    Device::start(DeviceOptions { kind, ..DeviceOptions::default() }).unwrap()
});

static CPU: LazyLock<Device> = LazyLock::new(|| {
    Device::start(DeviceOptions { kind: DeviceKind::Cpu, ..DeviceOptions::default() }).unwrap()
});

/// A tiny checkpoint of noise with a tokenizer, whose every token is a byte.
fn noise(name: &str) -> PathBuf {
    static MADE: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut made = MADE.lock().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mlx-engine").join(name);
    // A model that maps its files must not see them written again.
    if made.iter().any(|done| done == name) {
        return folder;
    }
    made.push(name.to_owned());
    std::fs::create_dir_all(&folder).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), folder.join(file)).unwrap();
    }
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let letters =
        ('!'..='~').chain('\u{100}'..).take(config["vocab_size"].as_u64().unwrap() as usize);
    let vocab: serde_json::Map<_, _> =
        letters.zip(0..).map(|(letter, id)| (letter.to_string(), json!(id))).collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true });
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": bytes,
        "decoder": bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    // Nobody ends by it but who is held to a grammar.
    std::fs::write(folder.join("tokenizer_config.json"), r#"{"eos_token":"!"}"#).unwrap();
    folder
}

fn engine(device: &Device, name: &str) -> Engine {
    Engine::start(&noise(name), name, device, EngineOptions::default()).unwrap()
}

fn request(first: u32, sampling: SamplingParams) -> GenerateRequest {
    GenerateRequest {
        prompt: (0..20).map(|n| (first + n * 7) % 60).collect(),
        choices: 1,
        sampling,
        max_tokens: Some(24),
        stop: Vec::new(),
        ignore_end: true,
        score_prompt: false,
        background: false,
        draft: Draft::Nobody,
        output: OutputParser::plain(),
        constraint: None,
        thinking: None,
        streamed: false,
    }
}

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, ..SamplingParams::default() }
}

/// Requests of every kind: chosen on the device, chosen on the host, and forks.
fn mixed() -> Vec<GenerateRequest> {
    let sampled = |seed| SamplingParams { temperature: 0.9, seed, ..SamplingParams::default() };
    let mut all = vec![
        request(1, greedy()),
        request(2, sampled(5)),
        request(3, SamplingParams { top_k: 9, top_p: 0.8, min_p: 0.02, ..sampled(6) }),
        request(4, SamplingParams { logprobs: Some(2), ..greedy() }),
        request(
            5,
            SamplingParams { repetition_penalty: 1.3, frequency_penalty: 0.4, ..sampled(7) },
        ),
        request(6, SamplingParams { logit_bias: vec![(3, -100.0)], ..sampled(8) }),
        request(7, sampled(9)),
    ];
    all[6].choices = 3;
    all[1].max_tokens = Some(3);
    all
}

/// What each choice says, and the tokens counted.
fn answer(engine: &Engine, request: GenerateRequest) -> (Vec<String>, usize) {
    fold(engine.generate(request).unwrap())
}

fn fold(mut generation: base_mlx_core::engine::Generation) -> (Vec<String>, usize) {
    let mut texts = Vec::new();
    let mut tokens = 0;
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Text { choice, text, .. } => {
                texts.resize(texts.len().max(choice + 1), String::new());
                texts[choice] += &text;
            }
            Event::Usage(usage) => tokens = usage.completion_tokens,
            Event::Error(error) => panic!("{error}"),
            Event::Begun(_) | Event::Prompt { .. } | Event::Reasoning { .. } => {}
            Event::ToolStart { .. } | Event::ToolArgs { .. } | Event::Finish { .. } => {}
        }
    }
    (texts, tokens)
}

/// Rounding may tip a choice, but with these models of noise it does so for one token in hundreds at most.
fn nearly_equal(found: &[String], expected: &[String]) -> bool {
    let same = |(a, b): (&String, &String)| {
        a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count() >= 12.min(b.chars().count())
    };
    found.len() == expected.len() && found.iter().zip(expected).all(same)
}

/// A checkpoint in F32: others are computed in their own type here, in F32 on the CPU.
#[test]
fn mlx_says_what_the_cpu_says() {
    let name = "llama/tied";
    let (mlx, cpu) = (engine(&DEVICE, name), engine(&CPU, name));
    for request in mixed() {
        let (found, expected) = (answer(&mlx, request.clone()), answer(&cpu, request.clone()));
        assert_eq!(found.1, expected.1, "{request:?}");
        assert!(nearly_equal(&found.0, &expected.0), "{found:?}, {expected:?}");
    }
}

#[test]
fn rows_of_every_kind_share_a_batch_without_a_trace() {
    let name = "qwen3/tied";
    // A prompt whose beginning is kept is computed in other shapes, which rounds otherwise.
    let options = EngineOptions { prefix_bytes: Some(0), ..EngineOptions::default() };
    let engine = Engine::start(&noise(name), name, &DEVICE, options).unwrap();
    let alone: Vec<_> = mixed().into_iter().map(|request| answer(&engine, request)).collect();
    assert_ne!(alone[6].0[0], alone[6].0[1], "choices have their own random numbers");
    for _ in 0..3 {
        let running: Vec<_> =
            mixed().into_iter().map(|request| engine.generate(request).unwrap()).collect();
        for (number, generation) in running.into_iter().enumerate() {
            let found = fold(generation);
            assert_eq!(found.1, alone[number].1, "request {number}");
            let expected = &alone[number].0;
            assert!(nearly_equal(&found.0, expected), "request {number}: {found:?}, {expected:?}");
        }
    }
}

#[test]
fn an_answer_held_to_a_grammar_has_company() {
    let engine = engine(&DEVICE, "qwen3/tied");
    let rule = Rule::Regex("([0-9][A-F]){4,6}".to_owned());
    let part = Part { name: "content".into(), origin: "regex".into(), rule };
    let source = GrammarSource { lark: "start: @content".into(), parts: vec![part] };
    let constraint = Some(engine.compile(&source).unwrap());
    let sampling = SamplingParams { temperature: 0.9, seed: 3, ..SamplingParams::default() };
    let held = GenerateRequest { constraint, choices: 2, ..request(1, sampling) };
    let company: Vec<_> =
        mixed().into_iter().map(|other| engine.generate(other).unwrap()).collect();
    let (texts, _) = answer(&engine, held);
    company.into_iter().for_each(|other| drop(fold(other)));
    for text in texts {
        let pairs: Vec<&[u8]> = text.as_bytes().chunks(2).collect();
        let fits = |pair: &&[u8]| pair[0].is_ascii_digit() && (b'A'..=b'F').contains(&pair[1]);
        assert!((4..=6).contains(&pairs.len()) && pairs.iter().all(fits), "{text}");
    }
}

/// The next step is begun before this one is read, also for answers that are about to end or be dropped.
#[test]
fn answers_that_end_or_are_dropped_leave_the_others_alone() {
    let engine = engine(&DEVICE, "qwen3/tied");
    let long = GenerateRequest { max_tokens: Some(60), ..request(1, greedy()) };
    let alone = answer(&engine, long.clone());
    let running = engine.generate(long).unwrap();
    for round in 0..6 {
        let short = GenerateRequest { max_tokens: Some(1 + round), ..request(9, greedy()) };
        let dropped = engine.generate(request(12, greedy())).unwrap();
        assert_eq!(answer(&engine, short).1, 1 + round);
        drop(dropped);
    }
    let found = fold(running);
    assert_eq!(found.1, alone.1);
    assert!(nearly_equal(&found.0, &alone.0), "{found:?}, {alone:?}");
}

#[test]
fn memory_is_flat_over_two_hundred_requests() {
    let engine = engine(&DEVICE, "qwen3/quantised");
    let ask = |number: u32| {
        let request = GenerateRequest {
            max_tokens: Some(4 + (number % 3) as usize),
            ..request(number, greedy())
        };
        answer(&engine, request);
    };
    (0..10).for_each(ask);
    let before = base_mlx_sys::active_memory();
    (10..210).for_each(ask);
    let after = base_mlx_sys::active_memory();
    // Other tests of this file run meanwhile, on models of a few hundred kilobytes.
    println!("active: {before} bytes before, {after} bytes after");
    assert!(after < before + (8 << 20), "{before} bytes before, {after} bytes after");
}

/// A prompt's chunks but its last are computed without anybody waiting for them.
#[test]
fn prompts_that_are_dropped_midway_leave_nothing_behind() {
    let name = "qwen3/tied";
    let options = EngineOptions { step_tokens: Some(8), ..EngineOptions::default() };
    let engine = Engine::start(&noise(name), name, &DEVICE, options).unwrap();
    let long = || GenerateRequest {
        prompt: (0..200).map(|n| (n * 7) % 60).collect(),
        max_tokens: Some(2),
        ..request(0, greedy())
    };
    let alone = (answer(&engine, long()), answer(&engine, request(3, greedy())));
    let before = base_mlx_sys::active_memory();
    for _ in 0..20 {
        drop(engine.generate(long()).unwrap());
        let dropped = engine.generate(long()).unwrap();
        let found = answer(&engine, request(3, greedy()));
        assert!(nearly_equal(&found.0, &alone.1.0), "{found:?}, {alone:?}");
        drop(dropped);
    }
    let found = answer(&engine, long());
    assert!(nearly_equal(&found.0, &alone.0.0), "{found:?}, {alone:?}");
    let after = base_mlx_sys::active_memory();
    assert!(after < before + (8 << 20), "{before} bytes before, {after} bytes after");
}
