//! `base-mlx bench`. `measure` asks the engine as a client would and takes the time.

mod measure;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base_mlx_core::engine::{Engine, EngineOptions};
use base_mlx_core::store::{DEFAULT_MODEL, Store};
use clap::Args;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;

use self::measure::measure;
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

fn decode_line(decode: f64, Arguments { generate, streams, .. }: &Arguments) -> String {
    match streams {
        1 => format!("{decode:.1} tok/s ({generate} tokens)"),
        _ => format!("{decode:.1} tok/s in all ({streams} answers of {generate} tokens)"),
    }
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
