//! What it costs to hold an answer to a grammar.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base_mlx_core::engine::{Device, Engine, EngineOptions, Event, GenerateRequest};
use base_mlx_core::text::output::{GrammarSource, Part, Rule, Spacing};
use serde_json::{Value, json};

use super::Arguments;
use super::measure::request;
use super::report::Spread;
use crate::commands::list::write_aligned;

/// Times answers that are free, held to a schema token by token, and held with the tokens drafted that must come.
pub(super) fn measure(
    start: impl Fn(EngineOptions) -> Result<Engine>,
    device: &Device,
    options: EngineOptions,
    arguments: &Arguments,
    out: &mut impl Write,
) -> Result<()> {
    let (free, held) = {
        let engine = start(EngineOptions { draft_tokens: Some(0), ..options.clone() })?;
        (times(&engine, arguments, false)?, times(&engine, arguments, true)?)
    };
    let drafted = times(&start(options)?, arguments, true)?;
    let row = |name: &str, value: String| [name.to_owned(), value];
    let ms = |spread: &Spread| format!("{:.3} ms", spread.median);
    let cost = (held.median / free.median - 1.0) * 100.0;
    write_aligned(
        out,
        &[
            row("device", device.describe()),
            row("a token of a free answer", ms(&free)),
            row("held to a schema", format!("{} ({cost:+.1} %)", ms(&held))),
            row("with tokens drafted that must come", ms(&drafted)),
        ],
    )?;
    Ok(())
}

/// Milliseconds of each token after the first.
fn times(engine: &Engine, arguments: &Arguments, held: bool) -> Result<Spread> {
    let part = Part {
        name: "content".to_owned(),
        origin: "schema".to_owned(),
        rule: Rule::Json { schema: schema(), strict: true, spacing: Spacing::Compact },
    };
    let source = GrammarSource { lark: "start: @content".to_owned(), parts: vec![part] };
    let constraint = held.then(|| engine.compile(&source)).transpose()?;
    let run = |number| {
        let asked = request(engine, arguments.prompt, arguments.generate, number)?;
        time(engine, GenerateRequest { constraint: constraint.clone(), ..asked })
    };
    // The first run pays for cold memory.
    run(0)?;
    let runs = (1..=arguments.repeat).map(run).collect::<Result<Vec<f64>>>()?;
    Ok(Spread::of(runs.into_iter()))
}

fn time(engine: &Engine, request: GenerateRequest) -> Result<f64> {
    let mut generation = engine.generate(request)?;
    let (mut first, mut tokens) = (None, 0);
    while let Some(event) = generation.next_blocking() {
        match event {
            Event::Text { .. } => {
                first.get_or_insert_with(Instant::now);
            }
            Event::Usage(usage) => tokens = usage.completion_tokens,
            Event::Error(error) => return Err(error.into()),
            _ => {}
        }
    }
    let took = first.context("the answer has no text")?.elapsed();
    ensure!(tokens > 1, "the answer was over too soon");
    Ok(took.as_secs_f64() * 1000.0 / (tokens - 1) as f64)
}

/// Of a text without an end.
fn schema() -> Value {
    json!({
        "type": "array",
        "minItems": 1000,
        "items": {
            "type": "object",
            "properties": {
                "date": { "type": "string", "format": "date" },
                "wind": { "enum": ["north", "east", "south", "west"] },
                "wave_height": { "type": "number", "minimum": 0, "maximum": 20 },
                "remarks": { "type": "string", "maxLength": 80 },
                "ships": { "type": "array", "items": { "type": "string", "maxLength": 30 } },
            },
            "required": ["date", "wind", "wave_height", "remarks", "ships"],
            "additionalProperties": false,
        },
    })
}
