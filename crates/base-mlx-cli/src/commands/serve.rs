use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base_mlx_core::engine::{Device, KvDisk};
use base_mlx_core::store::{DEFAULT_MODEL, Entry, ModelDir, Store, StoreError};
use base_mlx_core::text::output::OutputFormat;
use base_mlx_server::{DraftName, Server, ServerOptions};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{
    Compute, ConfigFile, Count, Gigabytes, LogFormat, ReasoningName, api_key, count,
};
use crate::models;

/// Serve models over the OpenAI API
#[derive(Args)]
pub(crate) struct Arguments {
    /// Name or address to listen on [default: 127.0.0.1]
    #[arg(long, env = "BASE_MLX_HOST")]
    host: Option<String>,
    /// Port to listen on, 0 for any that is free [default: 11435]
    #[arg(long, env = "BASE_MLX_PORT")]
    port: Option<u16>,
    /// Model of requests that name none, pulled if missing [default: smollm2, or what is on disk]
    #[arg(long, env = "BASE_MLX_MODEL", value_name = "NAME")]
    model: Option<String>,
    #[command(flatten)]
    compute: Compute,
    /// Who guesses at answers to make them faster: a small model's name, or prompt-lookup [default: none]
    #[arg(long, env = "BASE_MLX_DRAFT", value_name = "NAME")]
    draft: Option<String>,
    /// How models write tool calls [default: as their chat templates say]
    #[arg(long, env = "BASE_MLX_TOOL_FORMAT", value_name = "NAME")]
    tool_format: Option<String>,
    /// What answers call the thoughts of a model [default: reasoning_content]
    #[arg(long, env = "BASE_MLX_REASONING_FIELD", value_name = "NAME")]
    reasoning_field: Option<ReasoningName>,
    /// Most answers computed at once, for each model; more wait [default: 8]
    #[arg(long, env = "BASE_MLX_PARALLEL", value_name = "N", value_parser = count)]
    parallel: Option<usize>,
    /// Most answers that wait for their turn, for each model; what comes on top gets status 429 [default: 1024]
    #[arg(long, env = "BASE_MLX_QUEUE", value_name = "N")]
    queue: Option<usize>,
    /// How long a request may wait for its turn before it gets status 429 [default: no limit]
    #[arg(long, env = "BASE_MLX_MAX_WAIT_MS", value_name = "MS")]
    max_wait_ms: Option<u64>,
    /// A folder where what earlier prompts have left behind outlives its place in memory, and this process
    #[arg(long, env = "BASE_MLX_KV_DISK", value_name = "FOLDER")]
    kv_disk: Option<PathBuf>,
    /// Most space for it [default: 10]
    #[arg(long, env = "BASE_MLX_KV_DISK_GB", value_name = "GB")]
    kv_disk_gb: Option<Gigabytes>,
    /// How long a model stays in memory after its last use [default: until another needs the room]
    #[arg(long, env = "BASE_MLX_KEEP_ALIVE", value_name = "SECONDS")]
    keep_alive: Option<u64>,
    /// A name, beside the loopback ones, under which clients may call; `*` for all
    #[arg(long, env = "BASE_MLX_ALLOW_HOST", value_name = "NAME", value_delimiter = ',')]
    allow_host: Vec<String>,
    /// An origin whose web pages may read the answers; `*` for all
    #[arg(long, env = "BASE_MLX_CORS", value_name = "ORIGIN", value_delimiter = ',')]
    cors: Vec<String>,
    /// A key of which clients must send one
    #[arg(long, env = "BASE_MLX_API_KEY", value_name = "KEY", value_delimiter = ',')]
    #[arg(hide_env_values = true, value_parser = api_key)]
    api_key: Vec<String>,
    /// A file with such keys, one a line
    #[arg(long, env = "BASE_MLX_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// How log lines look [default: text]
    #[arg(long, env = "BASE_MLX_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// How long running answers may go on after SIGTERM or Ctrl-C [default: 30]
    #[arg(long, env = "BASE_MLX_GRACE", value_name = "SECONDS")]
    grace: Option<u64>,
}

pub(crate) fn run(arguments: Arguments, file: &ConfigFile, store: &Store) -> Result<()> {
    start_log(arguments.log_format.or(file.log_format).unwrap_or_default());
    let mut options = arguments.options(file)?;
    for (name, of) in &file.models {
        check_tool_format(of.tool_format.as_deref())
            .with_context(|| format!("[models.\"{name}\"] of the config file"))?;
        if let Err(error) = store.find(name) {
            // It may be pulled later.
            tracing::warn!("[models.\"{name}\"] of the config file: {error}");
        }
        options.models.insert(name.clone(), of.clone().options());
    }
    let key = arguments.key_word(file);
    let device = arguments.compute.start_device_quietly(file, store)?;
    if let Some(warning) = device.warning() {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Runtime::new().context("cannot start the server's threads")?;
    let served = runtime.block_on(async {
        let wanted = arguments.model.or_else(|| file.model.clone());
        let model = match on_disk(store, wanted.as_deref())? {
            Some(model) => model,
            None => {
                // A port in use is to be known before a long download.
                Server::bind(options.clone(), store.clone(), device.clone()).await?;
                let store = store.clone();
                tokio::task::spawn_blocking(move || pull(&store, wanted.as_deref())).await??
            }
        };
        options.model = Some(model.clone());
        let refuses_others = options.allow_hosts.is_empty();
        let server = Server::bind(options, store.clone(), device.clone()).await?;
        // Whoever has read where it listens may stop it, too.
        let stop = asked_to_stop()?;
        greet(server.address(), &device, refuses_others)?;
        let mut stdout = io::stdout();
        // The one line on stdout can be pasted into another terminal.
        writeln!(stdout, "{}", curl_line(server.address(), &model.name, key.as_deref()))?;
        stdout.flush()?;
        server.run(stop).await?;
        anyhow::Ok(())
    });
    // Dropping it would wait for a model that is being loaded.
    runtime.shutdown_background();
    served?;
    device.stop();
    Ok(())
}

impl Arguments {
    fn options(&self, file: &ConfigFile) -> Result<ServerOptions> {
        let mut options =
            ServerOptions { engine: self.compute.engine(file), ..ServerOptions::default() };
        if let Some(parallel) = self.parallel.or(file.parallel.map(Count::get)) {
            options.engine.parallel = parallel;
        }
        if let Some(draft) = self.draft.as_ref().or(file.draft.as_ref()) {
            options.draft = DraftName::from(&draft[..]);
        }
        options.engine.tool_format = self.tool_format.clone().or(file.tool_format.clone());
        check_tool_format(options.engine.tool_format.as_deref())?;
        let field = self.reasoning_field.or(file.reasoning_field).unwrap_or_default();
        options.reasoning_field = field.field();
        if let Some(host) = self.host.as_ref().or(file.host.as_ref()) {
            options.host = host.clone();
        }
        if let Some(port) = self.port.or(file.port) {
            options.port = port;
        }
        if let Some(seconds) = self.grace.or(file.grace) {
            options.grace = Duration::from_secs(seconds);
        }
        let most = self.kv_disk_gb.or(file.kv_disk_gb).map(Gigabytes::bytes);
        let folder = self.kv_disk.as_ref().or(file.kv_disk.as_ref());
        ensure!(folder.is_some() || most.is_none(), "`--kv-disk-gb` needs a folder: `--kv-disk`");
        if let Some(folder) = folder {
            let most = most.unwrap_or(10 << 30);
            options.engine.kv_disk = Some(KvDisk::open(folder, most as u64)?);
        }
        if let Some(queue) = self.queue.or(file.queue) {
            options.engine.queue = queue;
        }
        options.engine.max_wait = self.max_wait_ms.or(file.max_wait_ms).map(Duration::from_millis);
        options.keep_models = self.keep_alive.or(file.keep_alive).map(Duration::from_secs);
        options.allow_hosts = list(&self.allow_host, &file.allow_host);
        options.cors = list(&self.cors, &file.cors);
        options.api_keys = list(&self.api_key, &file.api_key);
        if let Some(path) = self.api_key_file.as_ref().or(file.api_key_file.as_ref()) {
            options.api_keys.extend(keys(path)?);
        }
        Ok(options)
    }

    /// How a shell comes by a key. The key itself belongs into no terminal's history and no log.
    fn key_word(&self, file: &ConfigFile) -> Option<String> {
        match list(&self.api_key, &file.api_key).len() {
            0 => {}
            1 => return Some("$BASE_MLX_API_KEY".to_owned()),
            // The variable may hold all of them.
            _ => return Some("${BASE_MLX_API_KEY%%,*}".to_owned()),
        }
        let path = self.api_key_file.as_ref().or(file.api_key_file.as_ref())?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Some(format!("$(head -1 {})", quoted(&path.to_string_lossy())))
    }
}

/// Better said now than when a model is loaded.
fn check_tool_format(name: Option<&str>) -> Result<()> {
    if let Some(name) = name {
        OutputFormat::default().with_tools(name)?;
    }
    Ok(())
}

/// A list given on a higher place replaces the lower one; it does not add to it.
fn list(given: &[String], file: &Option<Vec<String>>) -> Vec<String> {
    if given.is_empty() { file.clone().unwrap_or_default() } else { given.to_owned() }
}

fn keys(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the file of API keys {}", path.display()))?;
    let keys: Vec<_> =
        text.lines().map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned).collect();
    // An empty file must not open the server to everybody.
    ensure!(!keys.is_empty(), "the file of API keys {} holds none", path.display());
    Ok(keys)
}

/// The model that was named, or else the default one, or else the first on disk that can be run.
fn on_disk(store: &Store, wanted: Option<&str>) -> Result<Option<ModelDir>> {
    match store.find(wanted.unwrap_or(DEFAULT_MODEL)) {
        Ok(model) => return Ok(Some(model)),
        Err(StoreError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    if wanted.is_some() {
        return Ok(None);
    }
    let mut others = store.list();
    // What pulls have brought before what another tool keeps.
    others.sort_by_key(|entry| entry.source.owner().is_some());
    let model = |entry: Entry| {
        let found = store.find(&entry.name).ok().filter(|found| found.path == entry.path)?;
        models::can_write(&found.path).then_some(found)
    };
    Ok(others.into_iter().find_map(model))
}

fn pull(store: &Store, wanted: Option<&str>) -> Result<ModelDir> {
    let name = wanted.unwrap_or(DEFAULT_MODEL);
    writeln!(io::stderr(), "{name} is not on disk, pulling it")?;
    models::pull(store, name)
}

fn greet(address: SocketAddr, device: &Device, refuses_others: bool) -> io::Result<()> {
    let mut stderr = io::stderr();
    writeln!(stderr, "listening on http://{address} ({})", device.describe())?;
    if refuses_others && !address.ip().is_loopback() {
        let hint =
            "other machines are refused until `--allow-host` lists the name they use for this one";
        writeln!(stderr, "hint: {hint}")?;
    }
    Ok(())
}

/// `key` is what a shell makes the key of.
fn curl_line(address: SocketAddr, model: &str, key: Option<&str>) -> String {
    let host = match address {
        _ if address.ip().is_unspecified() => format!("localhost:{}", address.port()),
        address => address.to_string(),
    };
    let body = serde_json::json!({
        "model": model,
        "messages": [{ "role": "user", "content": "What is the capital of France? Answer in one word." }],
        // A first answer should be short and to the point, whatever the model.
        "temperature": 0,
        "max_tokens": 100,
    });
    let mut line =
        format!("curl http://{host}/v1/chat/completions -H 'Content-Type: application/json'");
    if let Some(key) = key {
        line += &format!(" -H \"Authorization: Bearer {key}\"");
    }
    line += &format!(" -d {}", quoted(&body.to_string()));
    line
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Ends with the first SIGTERM or Ctrl-C; the second ends the process at once.
fn asked_to_stop() -> io::Result<impl Future<Output = ()> + Send> {
    let mut signals = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
    Ok(async move {
        first_of(&mut signals).await;
        tokio::spawn(async move { std::process::exit(128 + first_of(&mut signals).await) });
    })
}

/// The number of the signal that came.
async fn first_of([interrupt, terminate]: &mut [Signal; 2]) -> i32 {
    tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
    }
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::builder()
        .with_default_directive(tracing::level_filters::LevelFilter::INFO.into())
        .from_env_lossy();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    match format {
        LogFormat::Text => log.with_ansi(colour).with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curl_line_survives_a_shell() {
        let address = "0.0.0.0:1".parse().unwrap();
        let line = curl_line(address, "it's", Some("$BASE_MLX_API_KEY"));
        assert!(line.starts_with("curl http://localhost:1/v1/chat/completions "), "{line}");
        assert!(line.contains(r#" -H "Authorization: Bearer $BASE_MLX_API_KEY" "#), "{line}");
        assert!(line.contains(r#"-d '{"model":"it'\''s","#), "{line}");
    }

    #[test]
    fn an_unknown_tool_format_is_told_at_once_with_those_there_are() {
        let error = check_tool_format(Some("smoke-signs")).unwrap_err().to_string();
        assert!(error.contains("smoke-signs") && error.contains("hermes"), "{error}");
        assert!(check_tool_format(Some("hermes")).is_ok() && check_tool_format(None).is_ok());
    }

    #[test]
    fn a_file_without_keys_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        std::fs::write(&file, "\n  \n").unwrap();
        assert!(keys(&file).is_err());
        std::fs::write(&file, " a \n\nb\n").unwrap();
        assert_eq!(keys(&file).unwrap(), ["a", "b"]);
    }
}
