//! The door to a running model: [`Engine`] takes requests and gives streams of [`Event`]s. Behind it one thread per
//! device runs the loop: plan, forward, choose, commit.
//!
//! The scheduler and the sequence hold no tensor, clock, thread or await, so a seed replays them. May import
//! everything else in this crate but `store`.

mod answer;
mod defaults;
mod device;
mod event;
mod generation;
mod log;
mod pace;
mod request;
mod runner;
mod scheduler;
mod sequence;
#[cfg(test)]
mod simulation;
mod stop;

pub use defaults::SamplingDefaults;
pub use device::{Device, DeviceOptions};
pub use event::{Event, FinishReason, GenerateError, TokenLogprob, TopLogprob, Usage};
pub use generation::Generation;
pub use request::GenerateRequest;
pub use scheduler::{Finished, Fork, Limits, Outcome, Plan, PlannedSpan, Refused, Scheduler};
pub use sequence::{Sequence, SequenceId};

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc::unbounded_channel;

use self::device::Port;
use self::log::RequestLog;
use self::runner::{ModelRunner, Submission};
use crate::backend::{Backend, LayerSpec};
use crate::models;
use crate::text::Text;
use crate::weights::{Checkpoint, LoadError};

/// How a model is run.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Most tokens of one sequence, prompt and answer; `None`, or more than the model's, is the model's own limit.
    pub context: Option<usize>,
    /// Most sequences computed at once; more wait.
    pub parallel: usize,
    /// Most tokens computed in one step. More of them share the reading of the weights, fewer let running answers
    /// wait less for a prompt beside them.
    pub step_tokens: usize,
    /// Most bytes of keys and values over all sequences; `None` is what `parallel` full contexts need, at most half
    /// of the memory that is free when the model is loaded.
    pub kv_bytes: Option<usize>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { context: None, parallel: 8, step_tokens: 128, kv_bytes: None }
    }
}

/// What is known of a loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The id it was loaded under.
    pub name: String,
    /// `model_type` of its config.
    pub family: String,
    /// Most tokens of one sequence, prompt and answer.
    pub context: usize,
    pub vocab_size: usize,
    /// Bytes of the weights on disk.
    pub bytes: u64,
    pub sampling: SamplingDefaults,
}

/// A loaded model. Clones share it; it leaves the device when the last one and the last answer are gone.
#[derive(Clone)]
pub struct Engine {
    port: Arc<Port>,
    text: Arc<Text>,
    info: Arc<ModelInfo>,
}

impl Engine {
    /// Loads the model at `path` (a folder or a `.gguf` file) for `device`. Blocks while it reads; running answers of
    /// other models go on meanwhile.
    pub fn start(
        path: &Path,
        name: &str,
        device: &Device,
        options: EngineOptions,
    ) -> Result<Self, LoadError> {
        let checkpoint = Checkpoint::open(path)?;
        let backend = device.backend();
        // A large vocabulary takes as long to read as the weights of a small model.
        let (text, model) = std::thread::scope(|scope| {
            let text = scope.spawn(|| Text::load(&checkpoint));
            let model = models::load(&checkpoint, backend);
            (text.join().unwrap_or_else(|panic| resume_unwind(panic)), model)
        });
        let (text, model) = (Arc::new(text?), model?);
        let config = checkpoint.config();
        let trained = config.count("max_position_embeddings")?;
        let context = options.context.map_or(trained, |context| context.min(trained));
        let kv_tokens = kv_tokens(&options, context, kv_bytes_per_token(backend, &model.layers()));
        let bytes = checkpoint.tensors().map(|tensor| tensor.bytes as u64).sum();
        let info = ModelInfo {
            name: name.to_owned(),
            family: config.model_type()?.to_owned(),
            // One sequence must always fit, or nothing could ever run.
            context: context.min(kv_tokens),
            vocab_size: model.vocab_size(),
            bytes,
            sampling: SamplingDefaults::load(path)?,
        };
        let limits = Limits {
            running: options.parallel.max(1),
            step_tokens: options.step_tokens.max(1),
            kv_tokens,
            context: info.context,
        };
        let runner = ModelRunner::new(backend.clone(), model, text.clone(), bytes as usize, limits);
        let port = device.thread().add(Box::new(runner));
        Ok(Self { port, text, info: Arc::new(info) })
    }

    /// Starts an answer. Errors known before the first token are returned here.
    pub fn generate(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        let (prompt, context) = (request.prompt.len(), self.info.context);
        if prompt == 0 {
            return Err(GenerateError::PromptEmpty);
        }
        if prompt >= context {
            return Err(GenerateError::PromptTooLong { prompt, context });
        }
        // A tokenizer may know more tokens than the model has rows for.
        let vocab_size = self.info.vocab_size;
        if let Some(&token) = request.prompt.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(GenerateError::UnknownToken { token, vocab_size });
        }
        let (events, receiver) = unbounded_channel();
        let log = RequestLog::new(&self.info.name, request.streamed);
        let request = self.port.submit(Submission { request, events, log })?;
        Ok(Generation::new(receiver, self.port.clone(), request))
    }

    pub fn text(&self) -> &Text {
        &self.text
    }

    pub fn info(&self) -> &ModelInfo {
        &self.info
    }
}

fn kv_bytes_per_token<B: Backend>(backend: &B, layers: &[LayerSpec]) -> usize {
    let values: usize = layers.iter().map(|layer| 2 * layer.kv_heads * layer.head_dim).sum();
    values * backend.kv_dtype().size()
}

/// How many tokens all sequences together may keep.
fn kv_tokens(options: &EngineOptions, context: usize, bytes_per_token: usize) -> usize {
    let wanted = context.saturating_mul(options.parallel.max(1));
    let bytes = options.kv_bytes.or_else(|| free_bytes().map(|free| free / 2));
    bytes.map_or(wanted, |bytes| wanted.min(bytes / bytes_per_token)).max(1)
}

/// Memory that this process could still get, where the system says so: free memory, and what a cgroup leaves.
fn free_bytes() -> Option<usize> {
    let cgroup = || {
        let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
        let limit: usize = read("memory.max")?.trim().parse().ok()?;
        let used: usize = read("memory.current")?.trim().parse().ok()?;
        Some(limit.saturating_sub(used))
    };
    [system_free_bytes(), cgroup()].into_iter().flatten().min()
}

#[cfg(not(target_os = "macos"))]
fn system_free_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// A Mac gives memory back from its caches late, so its size says more than what is free at the moment.
#[cfg(target_os = "macos")]
fn system_free_bytes() -> Option<usize> {
    let output = std::process::Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    let bytes: usize = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    Some(bytes / 2)
}
