//! `base-mlx bench`. `measure` asks the engine as a client would and takes the time, `report` is what comes out of it,
//! `compare` sets one beside another.

mod compare;
mod grammar;
mod measure;
mod mixed;
mod report;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base_mlx_core::engine::{Device, Engine, EngineOptions, KvFormat};
use base_mlx_core::store::{DEFAULT_MODEL, Store};
use clap::Args;

use self::measure::{check_sizes, measure};
use self::report::{Report, Spread, round};
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
    /// Answers made at once, up to 4096
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = streams)]
    streams: usize,
    /// Measure instead how far apart the tokens of running answers are while a prompt of so many tokens is read beside them
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    #[arg(conflicts_with_all = ["json", "report", "compare"])]
    mixed: Option<usize>,
    /// Measure instead what it costs to hold an answer to a JSON schema
    #[arg(long)]
    #[arg(conflicts_with_all = ["mixed", "streams", "json", "report", "compare"])]
    grammar: bool,
    #[command(flatten)]
    compute: Compute,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Also write the results to a file: one JSON object with what this machine and this build are
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// An earlier JSON object, to be set beside the results
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    compare: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments, file: &ConfigFile, store: &Store) -> Result<()> {
    ensure!(arguments.generate >= 2, "a rate needs --generate of at least 2");
    // Minutes of measuring would be lost. What is there stays until there is something better.
    let earlier = arguments.compare.as_deref().map(Report::read).transpose()?;
    let cannot_write = |path: &Path| format!("cannot write the report {}", path.display());
    if let Some(path) = &arguments.report {
        let opened = File::options().create(true).append(true).open(path);
        opened.with_context(|| cannot_write(path))?;
    }
    let model = models::find_or_pull(store, &arguments.model)?;
    let begun = Instant::now();
    let device = arguments.compute.start_device(file, store)?;
    // What an earlier run has left behind would be measured instead of the prompt.
    let prefix_bytes = Some(0);
    let options = EngineOptions {
        parallel: arguments.streams + usize::from(arguments.mixed.is_some()),
        prefix_bytes,
        ..arguments.compute.engine(file)
    };
    if arguments.grammar {
        let start = |options| Ok(Engine::start(&model.path, &model.name, &device, options)?);
        return grammar::measure(start, &device, options, &arguments, &mut io::stdout());
    }
    let load = Instant::now();
    let kv_cache_type = options.kv_format;
    let engine = Engine::start(&model.path, &model.name, &device, options)?;
    let load_ms = load.elapsed().as_millis() as u64;
    let until_loaded_ms = begun.elapsed().as_secs_f64() * 1000.0;
    if let Some(tokens) = arguments.mixed {
        return mixed::measure(&engine, &arguments, tokens, &mut io::stdout());
    }
    check_sizes(&arguments, engine.info())?;
    let stock_kernels = arguments.compute.stock_kernels(file);
    let loaded = Loaded { device, engine, kv_cache_type, stock_kernels, load_ms, until_loaded_ms };
    let report = report(&arguments, &loaded)?;
    if let Some(path) = &arguments.report {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text + "\n").with_context(|| cannot_write(path))?;
    }
    let mut stdout = io::stdout();
    if arguments.json {
        writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    write_aligned(&mut stdout, &table(&report))?;
    if let Some(earlier) = earlier {
        for difference in compare::differences(&earlier, &report) {
            writeln!(io::stderr(), "warning: not measured alike: {difference}")?;
        }
        writeln!(stdout)?;
        compare::write(&mut stdout, &earlier, &report)?;
    }
    Ok(())
}

/// What is measured.
struct Loaded {
    device: Device,
    engine: Engine,
    kv_cache_type: Option<KvFormat>,
    stock_kernels: bool,
    load_ms: u64,
    until_loaded_ms: f64,
}

fn report(arguments: &Arguments, loaded: &Loaded) -> Result<Report> {
    let Loaded { device, engine, .. } = loaded;
    // The first run pays for cold memory.
    let first = measure(engine, arguments, 0)?;
    let runs = (1..=arguments.repeat)
        .map(|number| measure(engine, arguments, number))
        .collect::<Result<Vec<_>>>()?;
    let prefill = Spread::of(runs.iter().map(|run| run.prefill_tokens_per_second));
    let decode = Spread::of(runs.iter().map(|run| run.decode_tokens_per_second));
    let first_token_ms = Spread::of(runs.iter().map(|run| run.first_token_ms));
    // Before the memory that is read for comparing counts too.
    let peak_rss_mb = report::peak_rss_mb()?;
    let info = engine.info();
    let bytes_per_token = bytes_per_token(arguments, info.step_bytes, info.kv_bytes_per_token);
    let memory = device.read_bandwidth();
    let share = memory.map(|memory| bytes_per_token * decode.median / memory);
    Ok(Report {
        model: info.name.clone(),
        family: info.family.clone(),
        model_bytes: info.bytes,
        device: device.describe(),
        kv_cache_type: loaded.kv_cache_type.map(|format| format.to_string()),
        kv_bytes_per_token: Some(info.kv_bytes_per_token),
        stock_kernels: Some(loaded.stock_kernels),
        context: Some(info.context),
        streams: arguments.streams,
        prompt_tokens: arguments.prompt,
        generated_tokens: arguments.generate,
        repeat: arguments.repeat,
        prefill_tokens_per_second: prefill.median,
        prefill_tokens_per_second_range: Some(prefill.range),
        decode_tokens_per_second: decode.median,
        decode_tokens_per_second_range: Some(decode.range),
        first_token_ms: first_token_ms.median,
        first_token_ms_range: Some(first_token_ms.range),
        cold_first_token_ms: Some(round(loaded.until_loaded_ms + first.first_token_ms)),
        decode_bytes_per_token: Some(bytes_per_token as u64),
        memory_bytes_per_second: memory.map(|memory| memory as u64),
        memory_share: share.map(|share| (share * 1e4).round() / 1e4),
        peak_rss_mb: round(peak_rss_mb),
        load_ms: loaded.load_ms,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        os: std::env::consts::OS.to_owned(),
        os_version: report::os_version(),
        arch: std::env::consts::ARCH.to_owned(),
        cpu: report::cpu(),
        cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
    })
}

fn streams(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(streams) if (1..=MOST_STREAMS).contains(&streams) => Ok(streams),
        _ => Err(format!("expected a whole number from 1 to {MOST_STREAMS}")),
    }
}

/// What decoding reads for one token: its part of the parameters, which all streams share, and all that its own stream
/// remembers, as if no layer had a window; on average, as the answer grows.
fn bytes_per_token(arguments: &Arguments, step_bytes: u64, kv_bytes_per_token: u64) -> f64 {
    let seen = arguments.prompt as f64 + arguments.generate as f64 / 2.0;
    step_bytes as f64 / arguments.streams as f64 + kv_bytes_per_token as f64 * seen
}

fn table(report: &Report) -> Vec<[String; 2]> {
    let Report { prompt_tokens, generated_tokens, streams, repeat, .. } = report;
    let range = |range: Option<[f64; 2]>| match range {
        Some([lowest, highest]) if *repeat > 1 => {
            format!(", {lowest:.1} to {highest:.1} in {repeat} runs")
        }
        _ => String::new(),
    };
    let prefill_range = range(report.prefill_tokens_per_second_range);
    let decode_range = range(report.decode_tokens_per_second_range);
    let prefill = report.prefill_tokens_per_second;
    let decode = report.decode_tokens_per_second;
    let row = |name: &str, value: String| [name.to_owned(), value];
    let mut table = vec![
        row("model", report.model.clone()),
        row("device", report.device.clone()),
        row("prefill", format!("{prefill:.1} tok/s ({prompt_tokens} tokens{prefill_range})")),
        row(
            "decode",
            match streams {
                1 => format!("{decode:.1} tok/s ({generated_tokens} tokens{decode_range})"),
                _ => format!(
                    "{decode:.1} tok/s in all ({streams} answers of {generated_tokens} tokens{decode_range})"
                ),
            },
        ),
    ];
    if let Report {
        decode_bytes_per_token: Some(bytes),
        memory_bytes_per_second: Some(memory),
        memory_share: Some(share),
        ..
    } = report
    {
        let (megabytes, gigabytes) = (*bytes as f64 / 1e6, *memory as f64 / 1e9);
        table.push(row(
            "of memory's speed",
            format!(
                "{:.0} % ({megabytes:.1} MB a token; the same threads read {gigabytes:.1} GB/s)",
                share * 100.0
            ),
        ));
    }
    table.push(row("first token", format!("{:.0} ms", report.first_token_ms)));
    table.push(row("load", format!("{} ms", report.load_ms)));
    if let Some(cold) = report.cold_first_token_ms {
        table.push(row("cold first token", format!("{cold:.0} ms")));
    }
    table.push(row("peak host memory", format!("{:.0} MB", report.peak_rss_mb)));
    table
}

/// Their prompts are made before the first of them is read.
const MOST_STREAMS: usize = 4096;
