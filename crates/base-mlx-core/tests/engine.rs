//! The engine with a real model: whatever the company, the schedule and the room, an answer is the one that its
//! request gets alone.

#![allow(clippy::unwrap_used, reason = "all of it is test code, its helpers too")]

mod support;

use std::sync::LazyLock;
use std::time::Duration;

use base_mlx_core::engine::{
    Draft, Engine, EngineOptions, Event, FinishReason, GenerateError, GenerateRequest, Generation,
    KvFormat, Uncached,
};
use base_mlx_core::sample::SamplingParams;
use base_mlx_core::text::AddSpecial;
use base_mlx_core::text::output::{GrammarSource, OutputParser, Part, Rule, Spacing};
use serde_json::{Value, json};
use support::answer::{Answer, DEVICE, fold, fold_begun, run};
use support::test_models::test_model;

/// Plenty of room: nobody waits and nobody is preempted.
static SMOLLM2: LazyLock<Engine> = LazyLock::new(|| smollm2(EngineOptions::default()));

fn smollm2(options: EngineOptions) -> Engine {
    Engine::start(&test_model("smollm2.gguf"), "smollm2", &DEVICE, options).unwrap()
}

fn request(prompt: &str) -> GenerateRequest {
    let prompt = format!("<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n");
    GenerateRequest {
        prompt: SMOLLM2.text().tokenizer.encode(&prompt, AddSpecial::No),
        choices: 1,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: Some(24),
        stop: Vec::new(),
        ignore_end: false,
        score_prompt: false,
        background: false,
        draft: Draft::Nobody,
        output: OutputParser::plain(),
        constraint: None,
        thinking: None,
        streamed: true,
    }
}

/// Requests that differ in everything that decides about a token.
fn mixed_requests() -> Vec<GenerateRequest> {
    let sampled = |prompt: &str, seed: u64| {
        let mut sampled = request(prompt);
        sampled.sampling = SamplingParams { temperature: 0.8, seed, ..SamplingParams::default() };
        sampled
    };
    let long = "Here is a list of words: ".to_owned() + &"apple river stone cloud ".repeat(30);
    let mut requests = vec![
        request("What is the capital of France?"),
        sampled("Tell me a story about a fox.", 1),
        request(&long),
        sampled("Name three colours.", 2),
        request("Count from one to ten."),
        sampled("Write a haiku about rain.", 3),
        sampled("Why is the sky blue?", 4),
        sampled("Say something surprising.", 5),
    ];
    requests[1].choices = 3;
    requests[3].sampling.top_p = 0.9;
    requests[3].sampling.logprobs = Some(3);
    requests[4].stop = vec!["four".to_owned(), " 4".to_owned()];
    requests[5].sampling.top_k = 20;
    requests[5].sampling.frequency_penalty = 0.7;
    requests[5].sampling.repetition_penalty = 1.1;
    requests[6].sampling.min_p = 0.05;
    requests[6].sampling.presence_penalty = 0.5;
    requests[6].sampling.logit_bias = vec![(28, 5.0), (30, -100.0)];
    requests[7].score_prompt = true;
    requests[7].sampling.logprobs = Some(0);
    requests[7].max_tokens = Some(4);
    requests
}

#[test]
fn whatever_the_company_and_the_room_an_answer_is_that_of_running_alone() {
    // Bytes of a head's keys or values: in 8 bits with an f32; in 4 with three f16 to 32 numbers of both, and the first of 32
    // keys in f16 too.
    for (kv_format, bytes) in [(KvFormat::F16, 128), (KvFormat::Q8, 64 + 4), (KvFormat::Q4, 40)] {
        // Of a token: 30 layers, 3 heads of 64, keys and values.
        let bytes = 30 * 3 * 2 * bytes;
        answers_do_not_depend_on_company(
            EngineOptions { kv_format: Some(kv_format), ..EngineOptions::default() },
            bytes,
        );
    }
}

fn answers_do_not_depend_on_company(options: EngineOptions, bytes_per_token: usize) {
    let cold = smollm2(EngineOptions { prefix_bytes: Some(0), ..options.clone() });
    assert_eq!(cold.info().kv_bytes_per_token, bytes_per_token as u64);
    let alone: Vec<Answer> =
        mixed_requests().into_iter().map(|request| run(&cold, request)).collect();
    assert!(alone.iter().all(|answer| answer.cached.tokens == 0));
    assert_eq!(alone[1].texts.len(), 3);
    assert_ne!(alone[1].texts[0], alone[1].texts[1], "choices have their own random numbers");
    assert_eq!(alone[7].prompt_logprobs.len(), mixed_requests()[7].prompt.len());

    let crowded = EngineOptions { step_tokens: Some(13), parallel: 3, ..options.clone() };
    // Room for 300 tokens, the longest prompt and a little.
    let tight = EngineOptions { kv_bytes: Some(300 * bytes_per_token), ..options.clone() };
    let roomy = smollm2(options);
    // The second time over, most of each prompt is cached.
    let drafting = |tokens| EngineOptions { draft_tokens: tokens, ..crowded.clone() };
    let mut engines: Vec<(Engine, Draft)> =
        [roomy.clone(), roomy, smollm2(crowded.clone()), smollm2(tight)]
            .map(|engine| (engine, Draft::Nobody))
            .into();
    // By lookup, by a model whose guesses are always right, and by the same when it is worth its time.
    engines.push((smollm2(drafting(Some(3))), Draft::PromptLookup));
    engines.push((smollm2(drafting(None)), Draft::PromptLookup));
    engines.push((smollm2(drafting(Some(2))), Draft::Model(SMOLLM2.clone())));
    engines.push((smollm2(drafting(None)), Draft::Model(SMOLLM2.clone())));
    for (engine, draft) in engines {
        let generations: Vec<Generation> = mixed_requests()
            .into_iter()
            .map(|request| engine.generate(GenerateRequest { draft: draft.clone(), ..request }))
            .collect::<Result<_, _>>()
            .unwrap();
        for (index, generation) in generations.into_iter().enumerate() {
            assert_eq!(fold(generation), alone[index], "request {index} with {draft:?}");
        }
    }
}

#[test]
fn a_second_turn_computes_only_what_is_new() {
    let engine = smollm2(EngineOptions::default());
    let cold = smollm2(EngineOptions { prefix_bytes: Some(0), ..EngineOptions::default() });
    let first = request("What is the capital of France?");
    let answer = run(&engine, first.clone());
    assert_eq!(answer.cached.tokens, 0);
    let turn = |text: &str| {
        let text = format!("{}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n", answer.texts[0]);
        let mut next = first.clone();
        next.prompt.extend(engine.text().tokenizer.encode(&text, AddSpecial::No));
        next
    };
    let second = turn("And of Italy?");
    let warm = run(&engine, second.clone());
    // All of the first prompt and its answer but the last token, which was never computed.
    assert!(warm.cached.tokens >= first.prompt.len() + answer.usage.completion_tokens - 1);
    assert_eq!((warm.cached.prompt_tokens, warm.cached.why), (second.prompt.len(), Uncached::New));
    assert_eq!(warm, run(&cold, second.clone()));

    // From the middle of the other conversation.
    let other = turn("Tell me about Rome.");
    let warm = run(&engine, other.clone());
    assert_eq!(warm.cached.why, Uncached::Differs);
    assert!((first.prompt.len()..other.prompt.len() - 5).contains(&warm.cached.tokens));
    assert_eq!(warm, run(&cold, other));

    let again = run(&engine, second.clone());
    assert_eq!(again.cached.tokens, second.prompt.len() - 1, "its last row is needed");
    let mut scored = second;
    scored.score_prompt = true;
    let scored = run(&engine, scored);
    assert_eq!((scored.cached.tokens, scored.cached.why), (0, Uncached::Scored));
}

#[test]
fn a_draft_model_must_have_the_same_vocabulary() {
    let path = test_model("qwen2.5-coder-0.5b.gguf");
    let qwen = Engine::start(&path, "qwen", &DEVICE, EngineOptions::default()).unwrap();
    let mut drafted = request("What is the capital of France?");
    drafted.draft = Draft::Model(qwen);
    let error = SMOLLM2.generate(drafted).err().unwrap().to_string();
    assert!(error.contains("qwen cannot draft for smollm2: token 0 is not the same"), "{error}");
}

#[test]
fn an_answer_that_was_cancelled_leaves_its_prompt_behind() {
    let engine = smollm2(EngineOptions::default());
    let mut endless = request("Tell me a long story.");
    (endless.max_tokens, endless.ignore_end) = (None, true);
    let mut generation = engine.generate(endless.clone()).unwrap();
    while !matches!(generation.next_blocking(), Some(Event::Text { .. })) {}
    drop(generation);
    endless.max_tokens = Some(1);
    assert_eq!(run(&engine, endless.clone()).cached.tokens, endless.prompt.len() - 1);
}

#[test]
fn the_model_answers() {
    let answer = run(&SMOLLM2, request("What is the capital of France? Answer in one word."));
    assert!(answer.texts[0].contains("Paris"), "{}", answer.texts[0]);
    assert_eq!(answer.reasons, [Some(FinishReason::Stop)]);
}

#[test]
fn an_answer_ends_at_its_limit_before_a_stop_string_or_at_the_context() {
    let mut limited = request("Tell me a long story.");
    limited.max_tokens = Some(5);
    let answer = run(&SMOLLM2, limited.clone());
    assert_eq!(answer.reasons, [Some(FinishReason::Length)]);
    assert_eq!(answer.usage.completion_tokens, 5);
    assert_eq!(answer.usage.prompt_tokens, limited.prompt.len());

    let mut stopped = request("Tell me a long story.");
    let word = answer.texts[0].split_whitespace().nth(2).unwrap().to_owned();
    stopped.stop = vec![word.clone()];
    let answer = run(&SMOLLM2, stopped);
    assert_eq!(answer.reasons, [Some(FinishReason::Stop)]);
    assert!(!answer.texts[0].contains(&word));

    let small = smollm2(EngineOptions { context: Some(40), ..EngineOptions::default() });
    assert_eq!(small.info().context, 40);
    let mut endless = request("Count.");
    endless.max_tokens = None;
    endless.ignore_end = true;
    let prompt = endless.prompt.len();
    let answer = run(&small, endless);
    assert_eq!(answer.reasons, [Some(FinishReason::Length)]);
    assert_eq!(answer.usage.completion_tokens, 40 - prompt);
}

#[test]
fn a_prompt_that_cannot_run_is_refused_with_the_numbers() {
    let small = smollm2(EngineOptions { context: Some(8), ..EngineOptions::default() });
    let long = request("What is the capital of France?");
    let prompt = long.prompt.len();
    let error = small.generate(long).err().unwrap();
    assert_eq!(error, GenerateError::PromptTooLong { prompt, context: 8 });
    let token = small.info().vocab_size as u32;
    let unknown = GenerateRequest { prompt: vec![1, token], ..request("") };
    let error = small.generate(unknown).err().unwrap();
    assert!(error.to_string().contains(&format!("token {token}")), "{error}");
    let empty = GenerateRequest { prompt: Vec::new(), ..request("") };
    assert_eq!(small.generate(empty).err().unwrap(), GenerateError::PromptEmpty);
}

#[test]
fn a_dropped_answer_gives_its_place_to_the_next() {
    let engine = smollm2(EngineOptions { parallel: 1, ..EngineOptions::default() });
    let mut endless = request("Tell me a long story.");
    endless.max_tokens = None;
    endless.ignore_end = true;
    let mut first = engine.generate(endless).unwrap();
    assert!(matches!(first.next_blocking(), Some(Event::Begun(_))));
    assert!(matches!(first.next_blocking(), Some(Event::Text { .. })));
    let second =
        engine.generate(request("What is the capital of France? Answer in one word.")).unwrap();
    drop(first);
    let answer = fold(second);
    assert!(answer.texts[0].contains("Paris"), "{}", answer.texts[0]);
}

fn endless(prompt: &str) -> GenerateRequest {
    GenerateRequest { max_tokens: None, ignore_end: true, ..request(prompt) }
}

#[test]
fn a_queue_has_a_length_and_a_wait_an_end() {
    let max_wait = Some(Duration::from_millis(300));
    let engine =
        smollm2(EngineOptions { parallel: 1, queue: 1, max_wait, ..EngineOptions::default() });
    let mut first = engine.generate(endless("Tell me a long story.")).unwrap();
    assert!(matches!(first.next_blocking(), Some(Event::Begun(_))));
    let mut second = engine.generate(request("Name a colour.")).unwrap();
    let mut third = engine.generate(request("Name a town.")).unwrap();
    let full = GenerateError::QueueFull { waiting: 1 };
    assert_eq!(third.next_blocking(), Some(Event::Error(full)));
    let late = second.next_blocking();
    assert!(
        matches!(late, Some(Event::Error(GenerateError::WaitedTooLong { ms: 300.. }))),
        "{late:?}"
    );
    assert!(matches!(first.next_blocking(), Some(Event::Text { .. })), "who runs goes on");
}

#[test]
fn the_background_lets_others_pass() {
    let engine = smollm2(EngineOptions { parallel: 1, ..EngineOptions::default() });
    let alone = run(&engine, request("Name a colour."));
    let slow = GenerateRequest { background: true, max_tokens: Some(200), ..endless("Count.") };
    let mut background = engine.generate(slow.clone()).unwrap();
    let Some(Event::Begun(cached)) = background.next_blocking() else { panic!("it runs") };
    let mut waiting = engine.generate(slow.clone()).unwrap();
    assert_eq!(run(&engine, request("Name a colour.")), alone);
    // It has not even begun, though it came first.
    let begun = waiting.next_blocking();
    assert!(matches!(begun, Some(Event::Begun(_))), "{begun:?}");
    let cold = smollm2(EngineOptions { prefix_bytes: Some(0), ..EngineOptions::default() });
    assert_eq!(
        fold_begun(cached, background).texts,
        run(&cold, slow).texts,
        "it goes on where it was"
    );
}

#[test]
fn an_answer_outlives_its_engine() {
    let generation = smollm2(EngineOptions::default()).generate(request("Count to five.")).unwrap();
    assert!(!fold(generation).texts[0].is_empty());
}

#[test]
fn two_models_share_a_device_without_a_trace() {
    let path = test_model("qwen2.5-coder-0.5b.gguf");
    let qwen = Engine::start(&path, "qwen", &DEVICE, EngineOptions::default()).unwrap();
    let mut for_qwen = request("What is the capital of France?");
    for_qwen.prompt = qwen.text().tokenizer.encode("The capital of France is", AddSpecial::No);
    for_qwen.max_tokens = Some(8);
    let alone = (run(&qwen, for_qwen.clone()), run(&SMOLLM2, request("Name a colour.")));
    let first = qwen.generate(for_qwen).unwrap();
    let second = SMOLLM2.generate(request("Name a colour.")).unwrap();
    assert_eq!((fold(first), fold(second)), alone);
    assert!(alone.0.texts[0].contains("Paris"), "{}", alone.0.texts[0]);
}

/// Held to a schema: JSON of a person.
fn held(prompt: &str) -> GenerateRequest {
    let schema = json!({
        "type": "object",
        "properties": {
            "first_name": { "type": "string", "maxLength": 12 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "favourite_colours": {
                "type": "array", "items": { "enum": ["red", "green", "blue"] }, "maxItems": 3
            },
        },
        "required": ["first_name", "age", "favourite_colours"],
        "additionalProperties": false,
    });
    let rule = Rule::Json { schema, strict: true, spacing: Spacing::Compact };
    let part = Part { name: "content".into(), origin: "schema".into(), rule };
    let source = GrammarSource { lark: "start: @content".into(), parts: vec![part] };
    let constraint = Some(SMOLLM2.compile(&source).unwrap());
    GenerateRequest { constraint, max_tokens: Some(100), ..request(prompt) }
}

fn is_a_person(text: &str) -> bool {
    let person: Value = serde_json::from_str(text).unwrap();
    let keys: Vec<&String> = person.as_object().unwrap().keys().collect();
    let age = person["age"].as_u64().unwrap();
    keys == ["first_name", "age", "favourite_colours"]
        && person["first_name"].is_string()
        && age <= 120
        && person["favourite_colours"].as_array().unwrap().len() <= 3
}

#[test]
fn an_answer_held_to_a_schema_is_the_same_with_all_drafts() {
    for seed in 0..4 {
        let mut asked = held("Tell me about yourself.");
        asked.sampling = SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() };
        asked.sampling.logprobs = Some(2);
        asked.choices = 2;
        let plain = run(&SMOLLM2, asked.clone());
        for (text, reason) in plain.texts.iter().zip(&plain.reasons) {
            assert_eq!(*reason, Some(FinishReason::Stop), "{text}");
            assert!(is_a_person(text), "{text}");
        }
        for draft in [Draft::PromptLookup, Draft::Model(SMOLLM2.clone())] {
            assert_eq!(run(&SMOLLM2, GenerateRequest { draft, ..asked.clone() }), plain);
        }
        let mut company: Vec<_> =
            mixed_requests().into_iter().map(|other| SMOLLM2.generate(other).unwrap()).collect();
        company.truncate(5);
        assert_eq!(run(&SMOLLM2, asked), plain);
    }
}

#[test]
fn an_answer_cut_in_its_grammar_says_so() {
    let asked = GenerateRequest { max_tokens: Some(4), ..held("Tell me about yourself.") };
    let answer = run(&SMOLLM2, asked);
    assert_eq!(answer.reasons, [Some(FinishReason::Length)]);
    assert!(answer.texts[0].starts_with("{\"first_name"), "{:?}", answer.texts);
}

#[test]
fn a_grammar_that_everything_is_banned_from_is_an_error() {
    let mut asked = held("Tell me about yourself.");
    let tokens = SMOLLM2.text().tokenizer.vocab_size() as u32;
    let brace = |token: &u32| SMOLLM2.text().tokenizer.token_bytes(*token).starts_with(b"{");
    asked.sampling.logit_bias = (0..tokens).filter(brace).map(|token| (token, -100.0)).collect();
    let mut generation = SMOLLM2.generate(asked).unwrap();
    let events = std::iter::from_fn(|| generation.next_blocking());
    let last = events.last().unwrap();
    assert!(matches!(last, Event::Error(GenerateError::NoTokenLeft(_))), "{last:?}");
}
