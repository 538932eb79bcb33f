use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use base_mlx_core::TokenId;
use base_mlx_core::engine::{
    Draft, Engine, Event, GenerateError, GenerateRequest, Generation, ModelInfo, Usage,
};
use base_mlx_core::sample::SamplingParams;
use base_mlx_core::text::AddSpecial;
use base_mlx_core::text::output::OutputParser;
use futures_util::StreamExt;
use futures_util::future::try_join_all;

use super::Arguments;

pub(super) struct Run {
    pub(super) prefill_tokens_per_second: f64,
    pub(super) decode_tokens_per_second: f64,
    pub(super) first_token_ms: f64,
}

/// What can be known of the sizes before anything is computed.
pub(super) fn check_sizes(arguments: &Arguments, info: &ModelInfo) -> Result<()> {
    let Arguments { prompt, generate, .. } = arguments;
    ensure!(
        prompt.saturating_add(*generate) <= info.context,
        "a --prompt of {prompt} tokens and {generate} to --generate do not fit into the context of {}\n\
         hint: is it long enough (--ctx)? A model's own is the longest",
        info.context
    );
    Ok(())
}

/// As many prompts as streams, all at once, and their answers. Every one has another prompt, so that no cache helps.
pub(super) fn measure(engine: &Engine, arguments: &Arguments, number: usize) -> Result<Run> {
    let streams = arguments.streams;
    let requests = (0..streams)
        .map(|stream| {
            request(engine, arguments.prompt, arguments.generate, number * streams + stream)
        })
        .collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let generations = requests
        .into_iter()
        .map(|request| engine.generate(request))
        .collect::<Result<Vec<_>, _>>()?;
    // All on this thread, for others would take time from those that compute.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .context("cannot listen to the answers")?;
    let heard = runtime.block_on(try_join_all(generations.into_iter().map(listen)))?;
    let mut answers = Vec::new();
    let mut prompts = 0;
    for Heard { tokens, usage, end } in heard {
        let usage = usage.context("the answer broke off")?;
        if usage.cached_tokens > 0 || usage.completion_tokens < arguments.generate {
            bail!("the run does not count: {usage:?}");
        }
        let first = *tokens.first().context("the answer has no text")?;
        prompts += usage.prompt_tokens;
        answers.push((first, tokens, usage.completion_tokens, end));
    }
    // The first token comes out of the prefill. Answers that run while other prompts are still read wait for them, so
    // only what comes after the last prompt is decoding.
    let first = answers.iter().map(|(first, ..)| *first).max().expect("at least one stream");
    let end = answers.iter().map(|(.., end)| *end).max().expect("at least one stream");
    let decoded = answers.iter().map(|(_, texts, tokens, _)| {
        // A piece of text may be several tokens: an unfinished character waits for its end.
        let after = texts.iter().filter(|text| **text > first).count();
        *tokens as f64 * after as f64 / texts.len() as f64
    });
    let prefill = (first - begun).as_secs_f64();
    let decode = (end - first).as_secs_f64();
    Ok(Run {
        prefill_tokens_per_second: prompts as f64 / prefill,
        decode_tokens_per_second: decoded.sum::<f64>() / decode,
        first_token_ms: prefill * 1000.0,
    })
}

/// When an answer's pieces of text came, and its end.
struct Heard {
    tokens: Vec<Instant>,
    usage: Option<Usage>,
    end: Instant,
}

async fn listen(mut generation: Generation) -> Result<Heard, GenerateError> {
    let mut tokens = Vec::new();
    let mut usage = None;
    while let Some(event) = generation.next().await {
        match event {
            Event::Text { .. } => tokens.push(Instant::now()),
            Event::Usage(found) => usage = Some(found),
            Event::Error(error) => return Err(error),
            Event::Begun(_) | Event::Prompt { .. } | Event::Reasoning { .. } => {}
            Event::ToolStart { .. } | Event::ToolArgs { .. } | Event::Finish { .. } => {}
        }
    }
    Ok(Heard { tokens, usage, end: Instant::now() })
}

/// A request for so many tokens after a prompt of so many; each number has another prompt.
pub(super) fn request(
    engine: &Engine,
    tokens: usize,
    generate: usize,
    number: usize,
) -> Result<GenerateRequest> {
    Ok(GenerateRequest {
        prompt: prompt(engine, tokens, number)?,
        choices: 1,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: Some(generate),
        stop: Vec::new(),
        ignore_end: true,
        score_prompt: false,
        background: false,
        draft: Draft::Nobody,
        output: OutputParser::plain(),
        constraint: None,
        thinking: None,
        streamed: true,
    })
}

/// So many tokens of plain English.
fn prompt(engine: &Engine, tokens: usize, number: usize) -> Result<Vec<TokenId>> {
    let begin = engine.text().tokenizer.encode(&format!("{number}. "), AddSpecial::Yes);
    let sentence = engine.text().tokenizer.encode(SENTENCE, AddSpecial::No);
    ensure!(!sentence.is_empty(), "the tokenizer makes nothing of plain English");
    Ok(begin.into_iter().chain(sentence.into_iter().cycle()).take(tokens).collect())
}

const SENTENCE: &str = " The keeper of the lighthouse wrote down the weather every evening, the wind first, then the \
     height of the waves, and last of all the ships that had passed since noon.";
