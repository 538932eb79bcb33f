use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use base_mlx_core::TokenId;
use base_mlx_core::engine::{Engine, EngineOptions, Event, GenerateRequest};
use base_mlx_core::sample::SamplingParams;
use base_mlx_core::store::{DEFAULT_MODEL, Store};
use base_mlx_core::text::AddSpecial;
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

use super::list::write_aligned;
use crate::config::{Compute, ConfigFile, count};
use crate::models;

/// Measure a model's speed on this machine
#[derive(Args)]
pub(crate) struct Arguments {
    /// An alias, `owner/name` on the hub, a folder or a .gguf file; pulled if missing
    #[arg(long, default_value = DEFAULT_MODEL)]
    model: String,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512, value_name = "TOKENS", value_parser = count)]
    prompt: usize,
    /// Tokens to generate, at least 2
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = count)]
    generate: usize,
    /// How often to measure; the median counts
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = count)]
    repeat: usize,
    /// Answers made at once
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = count)]
    streams: usize,
    #[command(flatten)]
    compute: Compute,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Also write the results to a file: one JSON object with what this machine and this build are
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments, file: &ConfigFile, store: &Store) -> Result<()> {
    ensure!(arguments.generate >= 2, "a rate needs --generate of at least 2");
    let cannot_write = |path: &Path| format!("cannot write the report {}", path.display());
    // Minutes of measuring would be lost. What is there stays until there is something better.
    if let Some(path) = &arguments.report {
        let opened = File::options().create(true).append(true).open(path);
        opened.with_context(|| cannot_write(path))?;
    }
    let model = models::find_or_pull(store, &arguments.model)?;
    let device = arguments.compute.start_device(file, store)?;
    let options = EngineOptions { parallel: arguments.streams, ..arguments.compute.engine(file) };
    let begun = Instant::now();
    let engine = Engine::start(&model.path, &model.name, &device, options)?;
    let load_ms = begun.elapsed().as_millis() as u64;
    // The first run pays for cold memory.
    measure(&engine, &arguments, 0)?;
    let mut runs = Vec::new();
    for number in 1..=arguments.repeat {
        runs.push(measure(&engine, &arguments, number)?);
    }
    let prefill = median(runs.iter().map(|run| run.prefill_tokens_per_second));
    let decode = median(runs.iter().map(|run| run.decode_tokens_per_second));
    let first_token_ms = median(runs.iter().map(|run| run.first_token_ms));
    let peak_rss_mb = peak_rss_mb()?;
    let round = |value: f64| (value * 10.0).round() / 10.0;
    let object = json!({
        "model": model.name,
        "family": engine.info().family,
        "model_bytes": engine.info().bytes,
        "device": device.describe(),
        "streams": arguments.streams,
        "prompt_tokens": arguments.prompt,
        "generated_tokens": arguments.generate,
        "repeat": arguments.repeat,
        "prefill_tokens_per_second": round(prefill),
        "decode_tokens_per_second": round(decode),
        "first_token_ms": round(first_token_ms),
        "peak_rss_mb": round(peak_rss_mb),
        "load_ms": load_ms,
        "version": env!("CARGO_PKG_VERSION"),
        "os": std::env::consts::OS,
        "os_version": os_version(),
        "arch": std::env::consts::ARCH,
        "cores": std::thread::available_parallelism().map_or(1, |cores| cores.get()),
    });
    if let Some(path) = &arguments.report {
        std::fs::write(path, format!("{object:#}\n")).with_context(|| cannot_write(path))?;
    }
    let mut stdout = io::stdout();
    if arguments.json {
        writeln!(stdout, "{object}")?;
        return Ok(());
    }
    let row = |name: &str, value: String| [name.to_owned(), value];
    let table = [
        row("model", model.name),
        row("device", device.describe()),
        row("prefill", format!("{prefill:.1} tok/s ({} tokens)", arguments.prompt)),
        row("decode", decode_line(decode, &arguments)),
        row("first token", format!("{first_token_ms:.0} ms")),
        row("load", format!("{load_ms} ms")),
        row("peak host memory", format!("{peak_rss_mb:.0} MB")),
    ];
    write_aligned(&mut stdout, &table)?;
    Ok(())
}

struct Run {
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    first_token_ms: f64,
}

fn decode_line(decode: f64, Arguments { generate, streams, .. }: &Arguments) -> String {
    match streams {
        1 => format!("{decode:.1} tok/s ({generate} tokens)"),
        _ => format!("{decode:.1} tok/s in all ({streams} answers of {generate} tokens)"),
    }
}

/// As many prompts as streams, all at once, and their answers. Every one has another prompt, so that no cache helps.
fn measure(engine: &Engine, arguments: &Arguments, number: usize) -> Result<Run> {
    let streams = arguments.streams;
    let requests = (0..streams)
        .map(|stream| {
            Ok(GenerateRequest {
                prompt: prompt(engine, arguments.prompt, number * streams + stream)?,
                choices: 1,
                sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
                max_tokens: Some(arguments.generate),
                stop: Vec::new(),
                ignore_end: true,
                score_prompt: false,
                streamed: true,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let generations = requests
        .into_iter()
        .map(|request| engine.generate(request))
        .collect::<Result<Vec<_>, _>>()?;
    let waiting: Vec<_> = generations
        .into_iter()
        .map(|mut generation| {
            std::thread::spawn(move || {
                let mut tokens = Vec::new();
                let mut usage = None;
                while let Some(event) = generation.next_blocking() {
                    match event {
                        Event::Text { .. } => tokens.push(Instant::now()),
                        Event::Usage(found) => usage = Some(found),
                        Event::Error(error) => return Err(error),
                        Event::Prompt { .. } | Event::Finish { .. } => {}
                    }
                }
                Ok((tokens, usage, Instant::now()))
            })
        })
        .collect();
    let mut answers = Vec::new();
    let mut prompts = 0;
    for thread in waiting {
        let (tokens, usage, end) =
            thread.join().map_err(|_| anyhow::anyhow!("a thread that listened broke off"))??;
        let usage = usage.context("the answer broke off")?;
        if usage.cached_tokens > 0 || usage.completion_tokens < arguments.generate {
            bail!("the run does not count: {usage:?}\nhint: is the context long enough (--ctx)?");
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

/// So many tokens of plain English.
fn prompt(engine: &Engine, tokens: usize, number: usize) -> Result<Vec<TokenId>> {
    let begin = engine.text().tokenizer.encode(&format!("{number}. "), AddSpecial::Yes);
    let sentence = engine.text().tokenizer.encode(SENTENCE, AddSpecial::No);
    ensure!(!sentence.is_empty(), "the tokenizer makes nothing of plain English");
    Ok(begin.into_iter().chain(sentence.into_iter().cycle()).take(tokens).collect())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// As the system calls itself: `Linux 6.1.0`, `macOS 26.1`.
fn os_version() -> String {
    let (program, arguments, name) = match std::env::consts::OS {
        "macos" => ("sw_vers", "-productVersion", "macOS"),
        _ => ("uname", "-r", "Linux"),
    };
    let output = std::process::Command::new(program).arg(arguments).output();
    let version = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!("{name} {}", version.unwrap_or_default())
}

/// The most memory this process ever held.
fn peak_rss_mb() -> Result<f64> {
    let peak = getrusage(UsageWho::RUSAGE_SELF)?.max_rss() as f64;
    // Linux counts in KiB, macOS in bytes.
    let bytes = if cfg!(target_os = "macos") { peak } else { peak * 1024.0 };
    Ok(bytes / 1e6)
}

const SENTENCE: &str = " The keeper of the lighthouse wrote down the weather every evening, the wind first, then the \
     height of the waves, and last of all the ships that had passed since noon.";
