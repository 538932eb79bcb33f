//! Whatever is asked for together and in whatever company, an answer is the one that its request gets alone, from a cold
//! cache and without drafts, to the last bit of its log probabilities.

#![allow(clippy::unwrap_used, reason = "all of it is test code, its helpers too")]

mod support;

use std::collections::HashMap;
use std::sync::LazyLock;

use base_mlx_core::backend::KV_CHUNK;
use base_mlx_core::engine::{
    Draft, Encoder, Engine, EngineOptions, GenerateRequest, KvDisk, Thinking,
};
use base_mlx_core::grammar::Constraint;
use base_mlx_core::sample::SamplingParams;
use base_mlx_core::text::AddSpecial;
use base_mlx_core::text::output::{Calls, OutputFormat, OutputParser, Rule, Spacing, Tool, Wanted};
use serde_json::{Value, json};
use support::answer::{Answer, DEVICE, fold, run};
use support::dice::Dice;
use support::test_models::test_model;

/// Requests of each world, all at once.
const COMPANY: usize = 16;
const WORLDS: u64 = 165;
/// Different requests; each is in several worlds.
const REQUESTS: usize = 420;
/// Tokens that only prompts with a long beginning have, more than what is kept on disk together.
const LONG_PROMPT: usize = 270;

static DRAFT: LazyLock<Engine> = LazyLock::new(|| smollm2(EngineOptions::default()));

fn smollm2(options: EngineOptions) -> Engine {
    Engine::start(&test_model("smollm2.gguf"), "smollm2", &DEVICE, options).unwrap()
}

#[test]
fn everything_composes() {
    let first = std::env::var("BASE_MLX_SEED").ok().and_then(|seed| seed.parse().ok());
    let (first, worlds) = first.map_or((1, WORLDS), |seed: u64| (seed, 1));
    let kv_bytes_per_token = 30 * 3 * 2 * 64 * 2;
    let cold = smollm2(EngineOptions { prefix_bytes: Some(0), ..EngineOptions::default() });
    let engines = [
        smollm2(EngineOptions::default()),
        smollm2(EngineOptions { step_tokens: Some(13), parallel: 3, ..EngineOptions::default() }),
        // Neither the company nor what it leaves behind has room for long.
        smollm2(EngineOptions {
            kv_bytes: Some(500 * kv_bytes_per_token),
            draft_tokens: Some(3),
            ..EngineOptions::default()
        }),
        smollm2(EngineOptions { draft_tokens: Some(5), parallel: 5, ..EngineOptions::default() }),
    ];
    let folder = tempfile::tempdir().unwrap();
    let disk = KvDisk::open(folder.path(), 1 << 30).unwrap();
    LazyLock::force(&VECTORS);
    let mut alone: HashMap<usize, Answer> = HashMap::new();
    let mut seen = Seen::default();
    for seed in first..first + worlds {
        let mut dice = Dice(seed);
        let numbers: Vec<usize> = (0..COMPANY).map(|_| dice.below(REQUESTS)).collect();
        let fresh;
        let engine = match engines.get(dice.below(engines.len() + 1)) {
            Some(engine) => engine,
            None => {
                // It knows nothing but what others have left on disk.
                let kv_disk = Some(disk.clone());
                fresh = smollm2(EngineOptions { kv_disk, ..EngineOptions::default() });
                let long = |number: &&usize| request(**number).prompt.len() > LONG_PROMPT;
                if let Some(&number) = numbers.iter().find(long) {
                    let answer = run(&fresh, request(number));
                    seen.from_disk += usize::from(answer.cached.tokens >= KV_CHUNK);
                    assert_eq!(answer, *alone_of(&mut alone, &cold, number), "request {number}");
                }
                &fresh
            }
        };
        // Texts for another model, which has steps on the same device in turn.
        let texts: Vec<&str> = (0..5).map(|_| TEXTS[dice.below(TEXTS.len())]).collect();
        let vectors = std::thread::spawn({
            let texts = texts.clone();
            move || vectors(&texts)
        });
        let mut running = Vec::new();
        for &number in &numbers {
            alone_of(&mut alone, &cold, number);
            let draft = match dice.below(3) {
                0 => Draft::Nobody,
                1 => Draft::PromptLookup,
                _ => Draft::Model(DRAFT.clone()),
            };
            let background = dice.below(4) == 0;
            let asked = GenerateRequest { draft, background, ..request(number) };
            seen.add(&asked);
            let mut generation = engine.generate(asked).unwrap();
            // Some of the company leave, before they begin or in the middle of their answers.
            if dice.below(5) == 0 {
                for _ in 0..dice.below(4) {
                    generation.next_blocking();
                }
                drop(generation);
                seen.left += 1;
            } else {
                running.push((number, generation));
            }
        }
        for (text, vector) in texts.iter().zip(vectors.join().unwrap()) {
            assert_eq!(vector, VECTORS[text], "{text:?} in world {seed}");
            seen.embedded += 1;
        }
        for (number, generation) in running {
            let answer = fold(generation);
            seen.cases += 1;
            seen.calls += usize::from(answer.calls.iter().any(|calls| !calls.is_empty()));
            seen.thoughts += usize::from(answer.thoughts.iter().any(|text| !text.is_empty()));
            seen.warm += usize::from(answer.cached.tokens > 0);
            assert_eq!(
                answer,
                alone[&number],
                "request {number} of world {seed}; BASE_MLX_SEED={seed} replays it alone: {:?}",
                request(number)
            );
        }
    }
    println!("{seen:?}");
    assert!(worlds == 1 || seen.enough(), "something was hardly tried: {seen:?}");
}

const TEXTS: [&str; 6] = ["a", "The sky is blue.", "red green blue", "", "Tell me a story.", "42"];

static ENCODER: LazyLock<Encoder> = LazyLock::new(|| {
    Encoder::start(&test_model("minilm"), "minilm", &DEVICE, &EngineOptions::default()).unwrap()
});

/// What each text gives alone.
static VECTORS: LazyLock<HashMap<&str, Vec<f32>>> =
    LazyLock::new(|| TEXTS.map(|text| (text, vectors(&[text]).remove(0))).into());

fn vectors(texts: &[&str]) -> Vec<Vec<f32>> {
    let texts = texts.iter().map(|text| ENCODER.text(text, None, None)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(ENCODER.encode(texts)).unwrap()
}

/// What a request gives alone.
fn alone_of<'a>(known: &'a mut HashMap<usize, Answer>, cold: &Engine, number: usize) -> &'a Answer {
    known.entry(number).or_insert_with(|| run(cold, request(number)))
}

/// What the dice showed.
#[derive(Debug, Default)]
struct Seen {
    cases: usize,
    warm: usize,
    left: usize,
    from_disk: usize,
    sampled: usize,
    penalties: usize,
    bias: usize,
    logprobs: usize,
    scored: usize,
    stop: usize,
    several: usize,
    drafted: usize,
    background: usize,
    held: usize,
    calls: usize,
    thoughts: usize,
    embedded: usize,
}

impl Seen {
    fn add(&mut self, request: &GenerateRequest) {
        let sampling = &request.sampling;
        let penalties = sampling.repetition_penalty != 1.0 || sampling.frequency_penalty != 0.0;
        self.sampled += usize::from(sampling.temperature > 0.0);
        self.penalties += usize::from(penalties);
        self.bias += usize::from(!sampling.logit_bias.is_empty());
        self.logprobs += usize::from(sampling.logprobs.is_some());
        self.scored += usize::from(request.score_prompt);
        self.stop += usize::from(!request.stop.is_empty());
        self.several += usize::from(request.choices > 1);
        self.drafted += usize::from(!matches!(request.draft, Draft::Nobody));
        self.background += usize::from(request.background);
        self.held += usize::from(request.constraint.is_some());
    }

    fn enough(&self) -> bool {
        let Self { cases, warm, left, from_disk, .. } = *self;
        let kinds = [
            self.sampled,
            self.penalties,
            self.bias,
            self.logprobs,
            self.scored,
            self.stop,
            self.several,
            self.drafted,
            self.background,
            self.held,
            self.calls,
            self.thoughts,
            self.embedded,
        ];
        let disk = from_disk >= 5;
        cases >= 2000
            && warm > cases / 3
            && left > 200
            && disk
            && kinds.into_iter().all(|n| n > 100)
    }
}

/// What an answer is held to, how it is read, and how long it may think.
#[derive(Clone)]
struct Held {
    output: OutputParser,
    constraint: Option<Constraint>,
    thinking: Option<Thinking>,
}

static HELD: LazyLock<Vec<Held>> = LazyLock::new(|| {
    let person = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 8 },
            "colours": { "type": "array", "items": { "enum": ["red", "green"] }, "maxItems": 2 },
        },
        "required": ["name", "colours"],
        "additionalProperties": false,
    });
    let river = json!({ "type": "object", "properties": { "river": { "type": "string" } } });
    let tool = |name: &str, parameters: &Value| Tool {
        name: name.to_owned(),
        parameters: parameters.clone(),
        strict: true,
        origin: String::new(),
    };
    let tools = vec![tool("find_person", &person), tool("find_river", &river)];
    let calls = |required| Calls { tools: tools.clone(), required, parallel: true };
    let content =
        |rule| Wanted { content: Some(("content".to_owned(), rule)), ..Wanted::default() };
    let schema = Rule::Json { schema: person.clone(), strict: true, spacing: Spacing::Compact };
    let object = json!({ "type": "object" });
    let object = Rule::Json { schema: object, strict: true, spacing: Spacing::Flexible };
    let wanted = [
        ("hermes", content(schema.clone()), None),
        ("hermes", content(Rule::Regex("(Yes|No), [a-z ]{3,20}\\.".to_owned())), None),
        ("hermes", Wanted { opened: true, ..content(schema) }, Some(5)),
        ("hermes", Wanted { opened: true, ..Wanted::default() }, Some(3)),
        ("hermes", Wanted { calls: calls(true), ..Wanted::default() }, None),
        ("plain", Wanted { calls: calls(false), ..content(object) }, None),
        ("hermes", Wanted { calls: calls(false), opened: true, ..Wanted::default() }, Some(0)),
        ("qwen3-coder", Wanted { calls: calls(true), ..Wanted::default() }, None),
        ("llama3-pythonic", Wanted { calls: calls(true), ..Wanted::default() }, None),
    ];
    let thinker = OutputFormat::of_template("<tool_call> <think> </think>");
    let held = |(format, wanted, tokens): (&str, Wanted, Option<usize>)| {
        let shape = thinker.clone().with_tools(format).unwrap().shape(&wanted);
        let close = shape.closes_thoughts.unwrap_or_default();
        Held {
            output: shape.parser,
            constraint: shape.grammar.map(|grammar| DRAFT.compile(&grammar).unwrap()),
            thinking: tokens.map(|tokens| Thinking { tokens, close }),
        }
    };
    wanted.into_iter().map(held).collect()
});

/// One of them: the same for the same number.
fn request(number: usize) -> GenerateRequest {
    let mut dice = Dice(number as u64 ^ 0x5eed);
    let systems = ["You are brief.", "You answer in rhymes.", ""];
    let questions = [
        "Name a colour.",
        "Count: one, two, three, one, two, three, one, two,",
        "Which river flows through Paris, and which through London?",
        "Repeat after me: red green blue red green blue red",
        "Why?",
    ];
    let mut text = String::new();
    if dice.below(12) == 0 {
        let number = dice.below(2);
        let line = |i: usize| format!("Rule {i} of {number}: say {}. ", i * 37 % 11);
        text += &(0..22).map(line).collect::<String>();
    }
    let system = systems[dice.below(systems.len())];
    if !system.is_empty() {
        text += &format!("<|im_start|>system\n{system}<|im_end|>\n");
    }
    for turn in 0..=dice.below(3) {
        let question = questions[dice.below(questions.len())];
        text += &format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
        if turn > 0 {
            text += "Yes.<|im_end|>\n";
        }
    }
    let mut half = |value: f32, other: f32| if dice.below(2) == 0 { value } else { other };
    let sampling = SamplingParams {
        temperature: half(0.0, 0.9),
        top_p: half(1.0, 0.8),
        min_p: half(0.0, 0.02),
        repetition_penalty: half(1.0, 1.2),
        presence_penalty: half(0.0, 0.4),
        frequency_penalty: half(0.0, 0.5),
        ..SamplingParams::default()
    };
    let sampling = SamplingParams {
        top_k: dice.one_of(&[0, 0, 5, 40]),
        logit_bias: dice.one_of(&[&[][..], &[], &[(28, 4.0), (30, -100.0)]]).to_vec(),
        logprobs: dice.one_of(&[None, Some(0), Some(3)]),
        seed: dice.next(),
        ..sampling
    };
    let stop = dice.one_of(&["", "", "two", " is", "e"]);
    let is_held = dice.below(3) == 0;
    let held = match is_held {
        true => HELD[dice.below(HELD.len())].clone(),
        false => Held { output: OutputParser::plain(), constraint: None, thinking: None },
    };
    let max_tokens = dice.one_of(&[1, 2, 6, 12, 20]);
    let mut sampling = sampling;
    if is_held {
        // A grammar may leave nothing but what is banned, which is an error.
        sampling.logit_bias.retain(|&(_, bias)| bias > -100.0);
    }
    GenerateRequest {
        prompt: DRAFT.text().tokenizer.encode(&text, AddSpecial::No),
        choices: dice.one_of(&[1, 1, 1, 2, 3]),
        sampling,
        max_tokens: Some(if is_held { 2 * max_tokens } else { max_tokens }),
        stop: if stop.is_empty() { Vec::new() } else { vec![stop.to_owned()] },
        ignore_end: dice.below(3) == 0,
        score_prompt: dice.below(6) == 0,
        background: false,
        draft: Draft::Nobody,
        output: held.output,
        constraint: held.constraint,
        thinking: held.thinking,
        streamed: dice.below(2) == 0,
    }
}
