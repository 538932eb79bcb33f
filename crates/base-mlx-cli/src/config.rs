//! Settings come from three places: a flag beats a variable, a variable beats the config file. The first two are
//! clap's; the file is read here. Its keys are the flags' names.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base_mlx_core::engine::{Device, DeviceKind, DeviceOptions, EngineOptions, KvFormat};
use base_mlx_core::store::Store;
use base_mlx_server::{ModelOptions, ReasoningField};
use clap::{Args, Command, ValueEnum};
use etcetera::BaseStrategy;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// Where things lie; every command takes these.
#[derive(Args)]
pub(crate) struct Place {
    /// A folder of models, known under their file and folder names
    #[arg(long, global = true, env = "BASE_MLX_MODELS_DIR", value_name = "FOLDER")]
    pub(crate) models_dir: Option<PathBuf>,
    /// The config file [default: base-mlx/config.toml in the folder for configuration]
    #[arg(long, global = true, env = "BASE_MLX_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// How models are computed; `serve`, `run` and `bench` take these.
#[derive(Args)]
pub(crate) struct Compute {
    /// Most tokens of a conversation, prompt and answer [default: the model's]
    #[arg(long, env = "BASE_MLX_CTX", value_name = "TOKENS", value_parser = count)]
    pub(crate) ctx: Option<usize>,
    /// Compute threads, at most the default [default: one for each fast core]
    #[arg(long, env = "BASE_MLX_THREADS", value_name = "N", value_parser = count)]
    pub(crate) threads: Option<usize>,
    /// What computes [default: auto]
    #[arg(long, env = "BASE_MLX_DEVICE", value_name = "DEVICE")]
    pub(crate) device: Option<DeviceName>,
    /// What keys and values are kept as [default: f16 on the CPU, elsewhere the type of the model]
    #[arg(long, env = "BASE_MLX_KV_CACHE_TYPE", value_name = "TYPE")]
    pub(crate) kv_cache_type: Option<KvName>,
    /// Most memory for all models together, keys and values included [default: nine tenths of what is free]
    #[arg(long, env = "BASE_MLX_MEMORY_GB", value_name = "GB")]
    pub(crate) memory_gb: Option<Gigabytes>,
    /// Most memory for what earlier prompts have left behind, 0 for none [default: what running answers leave]
    #[arg(long, env = "BASE_MLX_PREFIX_CACHE_GB", value_name = "GB")]
    pub(crate) prefix_cache_gb: Option<Gigabytes>,
    /// How many tokens a draft has [default: as many as are measured to be worth their time]
    #[arg(long, env = "BASE_MLX_DRAFT_TOKENS", value_name = "N", value_parser = count)]
    pub(crate) draft_tokens: Option<usize>,
    /// Compute with MLX's own operations alone, for comparing: no kernels of ours on CUDA
    #[arg(long, env = "BASE_MLX_STOCK_KERNELS", value_name = "BOOL", num_args = 0..=1)]
    #[arg(require_equals = true, default_missing_value = "true")]
    #[arg(value_parser = clap::builder::BoolishValueParser::new())]
    pub(crate) stock_kernels: Option<bool>,
}

impl Compute {
    /// Starts the device; says on stderr if it is not the one that could be expected.
    pub(crate) fn start_device(&self, file: &ConfigFile, store: &Store) -> Result<Device> {
        let device = self.start_device_quietly(file, store)?;
        if let Some(warning) = device.warning() {
            writeln!(std::io::stderr(), "warning: {warning}")?;
        }
        Ok(device)
    }

    /// Starts the device; the caller says why it is not another.
    pub(crate) fn start_device_quietly(&self, file: &ConfigFile, store: &Store) -> Result<Device> {
        Ok(Device::start(DeviceOptions {
            kind: self.device.or(file.device).unwrap_or_default().kind(),
            threads: self.threads.or(file.threads.map(Count::get)),
            memory_bytes: self.memory_gb.or(file.memory_gb).map(Gigabytes::bytes),
            stock_kernels: self.stock_kernels(file),
            kernel_cache: Some(store.options().home.join("kernels")),
        })?)
    }

    pub(crate) fn stock_kernels(&self, file: &ConfigFile) -> bool {
        self.stock_kernels.or(file.stock_kernels).unwrap_or(false)
    }

    pub(crate) fn engine(&self, file: &ConfigFile) -> EngineOptions {
        let context = self.ctx.or(file.ctx.map(Count::get));
        let kv_format = self.kv_cache_type.or(file.kv_cache_type).map(KvName::format);
        let prefix_bytes = self.prefix_cache_gb.or(file.prefix_cache_gb).map(Gigabytes::bytes);
        let draft_tokens = self.draft_tokens.or(file.draft_tokens.map(Count::get));
        EngineOptions { context, kv_format, prefix_bytes, draft_tokens, ..EngineOptions::default() }
    }
}

/// What the config file says. An absent file says nothing.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct ConfigFile {
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) model: Option<String>,
    pub(crate) models_dir: Option<PathBuf>,
    pub(crate) ctx: Option<Count>,
    pub(crate) threads: Option<Count>,
    pub(crate) device: Option<DeviceName>,
    pub(crate) kv_cache_type: Option<KvName>,
    pub(crate) memory_gb: Option<Gigabytes>,
    pub(crate) prefix_cache_gb: Option<Gigabytes>,
    pub(crate) kv_disk: Option<PathBuf>,
    pub(crate) kv_disk_gb: Option<Gigabytes>,
    pub(crate) keep_alive: Option<u64>,
    pub(crate) queue: Option<usize>,
    pub(crate) max_wait_ms: Option<u64>,
    pub(crate) draft_tokens: Option<Count>,
    pub(crate) draft: Option<String>,
    pub(crate) reasoning_field: Option<ReasoningName>,
    pub(crate) tool_format: Option<String>,
    pub(crate) stock_kernels: Option<bool>,
    pub(crate) parallel: Option<Count>,
    pub(crate) allow_host: Option<Vec<String>>,
    pub(crate) cors: Option<Vec<String>>,
    #[serde(deserialize_with = "api_keys")]
    pub(crate) api_key: Option<Vec<String>>,
    pub(crate) api_key_file: Option<PathBuf>,
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) grace: Option<u64>,
    /// What some models have of their own, by name.
    pub(crate) models: BTreeMap<String, OfModel>,
}

/// What the config file says of one model.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct OfModel {
    pub(crate) ctx: Option<Count>,
    pub(crate) kv_cache_type: Option<KvName>,
    pub(crate) tool_format: Option<String>,
}

impl OfModel {
    pub(crate) fn options(self) -> ModelOptions {
        ModelOptions {
            context: self.ctx.map(Count::get),
            kv_format: self.kv_cache_type.map(KvName::format),
            tool_format: self.tool_format,
        }
    }
}

impl ConfigFile {
    /// Where it is, or would be.
    pub(crate) fn place(place: &Place) -> Option<PathBuf> {
        place.config.clone().or_else(usual_place)
    }

    /// Reads the file that was named, which must be there, or the one at the usual place, which need not.
    pub(crate) fn read(place: &Place) -> Result<Self> {
        let Some(path) = Self::place(place) else {
            return Ok(Self::default());
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && place.config.is_none() =>
            {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot read the config file {}", path.display()));
            }
        };
        Self::parse(&text, &path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        match toml::from_str(text) {
            Ok(file) => Ok(file),
            Err(error) => {
                let at = error.span().map_or(0, |span| span.start).min(text.len());
                let line = text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count();
                let key = text.lines().nth(line).and_then(|line| line.split_once('='));
                let key = key.map(|(key, _)| format!(", key `{}`", key.trim()));
                bail!(
                    "config file {}, line {}{}: {}",
                    path.display(),
                    line + 1,
                    key.unwrap_or_default(),
                    error.message()
                )
            }
        }
    }
}

/// The engine's devices as users call them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DeviceName {
    /// A GPU if one can be used, else the CPU
    #[default]
    Auto,
    /// A Mac's GPU, through MLX
    Metal,
    /// An NVIDIA GPU, through MLX
    Cuda,
    /// The CPU, with kernels of our own
    Cpu,
    /// MLX's own CPU device: slow, for checking
    MlxCpu,
}

impl DeviceName {
    fn kind(self) -> DeviceKind {
        match self {
            Self::Auto => DeviceKind::Auto,
            Self::Metal => DeviceKind::Metal,
            Self::Cuda => DeviceKind::Cuda,
            Self::Cpu => DeviceKind::Cpu,
            Self::MlxCpu => DeviceKind::MlxCpu,
        }
    }
}

/// Types of keys and values as users call them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum KvName {
    F32,
    F16,
    /// 8-bit integers: half the memory of f16
    #[serde(rename = "q8_0")]
    #[value(name = "q8_0")]
    Q8,
    /// 4-bit integers: a third of the memory of f16
    #[serde(rename = "q4_0")]
    #[value(name = "q4_0")]
    Q4,
}

impl KvName {
    fn format(self) -> KvFormat {
        match self {
            Self::F32 => KvFormat::F32,
            Self::F16 => KvFormat::F16,
            Self::Q8 => KvFormat::Q8,
            Self::Q4 => KvFormat::Q4,
        }
    }
}

/// What the thoughts of a model are called in answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum ReasoningName {
    #[default]
    ReasoningContent,
    Reasoning,
    Both,
}

impl ReasoningName {
    pub(crate) fn field(self) -> ReasoningField {
        match self {
            Self::ReasoningContent => ReasoningField::ReasoningContent,
            Self::Reasoning => ReasoningField::Reasoning,
            Self::Both => ReasoningField::Both,
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// A whole number of at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Count(std::num::NonZeroUsize);

impl Count {
    pub(crate) fn get(self) -> usize {
        self.0.get()
    }
}

/// An amount of memory: gigabytes of 1024³ bytes, not negative.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "f64")]
pub(crate) struct Gigabytes(f64);

impl Gigabytes {
    pub(crate) fn bytes(self) -> usize {
        (self.0 * (1u64 << 30) as f64) as usize
    }
}

impl TryFrom<f64> for Gigabytes {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        let fits = number.is_finite() && number >= 0.0;
        fits.then_some(Self(number)).ok_or("expected a number of gigabytes, 0 or more")
    }
}

impl std::str::FromStr for Gigabytes {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_from(text.parse().unwrap_or(f64::NAN))
    }
}

pub(crate) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count >= 1 => Ok(count),
        _ => Err("expected a whole number of at least 1".to_owned()),
    }
}

/// An empty key would be sent by clients that have none.
pub(crate) fn api_key(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        Err("a key cannot be empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

fn api_keys<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Vec<String>>, D::Error> {
    let keys: Vec<String> = Vec::deserialize(value)?;
    keys.iter()
        .map(|key| api_key(key))
        .collect::<Result<_, _>>()
        .map(Some)
        .map_err(D::Error::custom)
}

/// Takes empty variables for unset, as files that list all of them have it.
pub(crate) fn without_empty_variables(command: Command) -> Command {
    let is_empty =
        |name: &std::ffi::OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| match arg.get_env() {
            Some(name) if is_empty(name) => arg.env(clap::builder::Resettable::Reset),
            _ => arg,
        })
        .mut_subcommands(without_empty_variables)
}

/// `~/.config/base-mlx/config.toml` or what XDG_CONFIG_HOME makes of it, on every system.
fn usual_place() -> Option<PathBuf> {
    let folders = etcetera::base_strategy::Xdg::new().ok()?;
    Some(folders.config_dir().join("base-mlx/config.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        ConfigFile::parse(text, Path::new("c.toml")).unwrap_err().to_string()
    }

    #[test]
    fn every_key_can_be_read() {
        let text = r#"
            host = "::1"
            port = 1
            model = "m"
            models-dir = "/m"
            ctx = 2
            threads = 3
            device = "mlx-cpu"
            kv-cache-type = "q8_0"
            stock-kernels = true
            memory-gb = 8
            prefix-cache-gb = 1.5
            kv-disk = "/kv"
            kv-disk-gb = 2
            keep-alive = 600
            queue = 7
            max-wait-ms = 8
            draft = "prompt-lookup"
            draft-tokens = 6
            reasoning-field = "both"
            tool-format = "hermes"
            parallel = 4
            allow-host = ["a.example"]
            cors = ["https://a.example"]
            api-key = ["k"]
            api-key-file = "/k"
            log-format = "json"
            grace = 5

            [models."owner/name"]
            ctx = 9
            kv-cache-type = "q4_0"
            tool-format = "mistral"
        "#;
        let file = ConfigFile::parse(text, Path::new("c.toml")).unwrap();
        let count = |number| std::num::NonZeroUsize::new(number).map(Count);
        let one = |text: &str| Some(vec![text.to_owned()]);
        // Every field, so that a new one is not forgotten here.
        let expected = ConfigFile {
            host: Some("::1".to_owned()),
            port: Some(1),
            model: Some("m".to_owned()),
            models_dir: Some("/m".into()),
            ctx: count(2),
            threads: count(3),
            device: Some(DeviceName::MlxCpu),
            kv_cache_type: Some(KvName::Q8),
            memory_gb: Some(Gigabytes(8.0)),
            prefix_cache_gb: Some(Gigabytes(1.5)),
            kv_disk: Some("/kv".into()),
            kv_disk_gb: Some(Gigabytes(2.0)),
            keep_alive: Some(600),
            queue: Some(7),
            max_wait_ms: Some(8),
            draft_tokens: count(6),
            draft: Some("prompt-lookup".to_owned()),
            reasoning_field: Some(ReasoningName::Both),
            tool_format: Some("hermes".to_owned()),
            stock_kernels: Some(true),
            parallel: count(4),
            allow_host: one("a.example"),
            cors: one("https://a.example"),
            api_key: one("k"),
            api_key_file: Some("/k".into()),
            log_format: Some(LogFormat::Json),
            grace: Some(5),
            models: BTreeMap::from([(
                "owner/name".to_owned(),
                OfModel {
                    ctx: count(9),
                    kv_cache_type: Some(KvName::Q4),
                    tool_format: Some("mistral".to_owned()),
                },
            )]),
        };
        assert_eq!(file, expected);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let fault = fault("port = 1\n\nprot = 2\n");
        assert!(fault.starts_with("config file c.toml, line 3, key `prot`: unknown field `prot`"));
        assert!(fault.contains("`port`"), "{fault}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_with_its_line() {
        let text = fault("host = \"::1\"\nport = \"many\"\n");
        assert!(text.contains("line 2, key `port`"), "{text}");
        let text = fault("port = 1\napi-key = [\"k\", \"\"]\n");
        assert!(text.contains("line 2, key `api-key`: a key cannot be empty"), "{text}");
        let text = fault("prefix-cache-gb = -1\n");
        assert!(text.contains("expected a number of gigabytes, 0 or more"), "{text}");
        let text = fault("threads = 0\n");
        assert!(text.contains("line 1, key `threads`"), "{text}");
    }
}
