use std::collections::VecDeque;

use base_mlx_core::engine::{
    Draft, Engine, EngineOptions, Event, FinishReason, GenerateRequest, Generation,
};
use base_mlx_core::sample::SamplingParams;
use base_mlx_core::text::AddSpecial;
use base_mlx_core::text::output::OutputParser;

use crate::corpus::{Report, Schema, every, schemas};
use crate::support::answer::DEVICE;
use crate::support::test_models::test_model;
use crate::vocabulary::Vocabulary;

/// What a model that knows little makes of a schema is valid, if it comes to an end.
#[test]
fn what_a_model_makes_of_a_schema_is_valid() {
    let options = EngineOptions { parallel: 3 * AT_ONCE, ..EngineOptions::default() };
    let engine = Engine::start(&test_model("smollm2.gguf"), "smollm2", &DEVICE, options).unwrap();
    let vocabulary = Vocabulary::smollm2();
    let mut report = Report::default();
    let mut running: VecDeque<(Schema, Generation)> = VecDeque::new();
    for of in schemas(every(40)) {
        let Some(constraint) = report.compile(&vocabulary, &of) else { continue };
        if running.len() == AT_ONCE {
            let (of, generation) = running.pop_front().unwrap();
            finish(&mut report, &of, generation);
        }
        let prompt = format!("An example in JSON of {}:\n", of.name);
        let request = GenerateRequest {
            prompt: engine.text().tokenizer.encode(&prompt, AddSpecial::No),
            choices: 3,
            sampling: SamplingParams { temperature: 1.0, seed: 7, ..SamplingParams::default() },
            max_tokens: Some(200),
            stop: Vec::new(),
            ignore_end: false,
            score_prompt: false,
            background: false,
            draft: Draft::Nobody,
            output: OutputParser::plain(),
            constraint: Some(constraint),
            thinking: None,
            streamed: true,
        };
        running.push_back((of, engine.generate(request).unwrap()));
    }
    for (of, generation) in running {
        finish(&mut report, &of, generation);
    }
    println!("{report:#?}");
    assert!(report.invalid.is_empty());
    assert!(report.ended > report.cut / 4);
}

fn finish(report: &mut Report, of: &Schema, mut generation: Generation) {
    let mut texts = vec![String::new(); 3];
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Text { choice, text, .. } => texts[choice].push_str(&text),
            Event::Finish { choice, reason: FinishReason::Stop } => {
                report.check(of, Some(texts[choice].as_bytes()));
            }
            Event::Finish { .. } => report.check(of, None),
            Event::Error(error) => panic!("{}: {error}", of.name),
            _ => {}
        }
    }
}

/// Requests, of three answers each.
const AT_ONCE: usize = 5;
