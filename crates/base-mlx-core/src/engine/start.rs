//! Where a device and a model are chosen, and the only place that knows both backends by name.

use std::any::Any;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use super::compute::LOGITS_ROWS;
use super::device::{Device, Runner};
use super::draft::DraftModel;
use super::memory::{Room, Wish};
use super::runner::{ModelRunner, NewRunner};
use super::scheduler::Limits;
use super::stored::Stored;
use super::{Engine, EngineOptions, LazyGrammars, ModelInfo, Purpose, SamplingDefaults};
use crate::backend::{Backend, CpuBackend, DeviceError, MlxBackend, MlxDevice, MlxOptions};
use crate::grammar::Grammars;
use crate::models;
use crate::text::Text;
use crate::weights::{Checkpoint, Config, LoadError};

/// How a device is set up.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    pub kind: DeviceKind,
    /// Compute threads of the CPU; `None` is one for each of [`base_mlx_simd::cores`], the most there can be.
    pub threads: Option<usize>,
    /// Compute with MLX's stock operations where own kernels would be faster. For comparing.
    pub stock_kernels: bool,
    /// Most bytes of all models together, their keys and values included; `None` is nine tenths of what is free at the start.
    pub memory_bytes: Option<usize>,
    /// A folder where compiled kernels are kept between runs.
    pub kernel_cache: Option<PathBuf>,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// The best that works: a GPU if there is one that this build can use, else the CPU.
    #[default]
    Auto,
    Metal,
    Cuda,
    Cpu,
    /// MLX's own CPU device: for checking what runs on the others, not for users.
    MlxCpu,
}

/// A backend, whichever it is.
#[derive(Clone)]
pub(super) enum AnyBackend {
    Cpu(CpuBackend),
    Mlx(MlxBackend),
}

impl AnyBackend {
    /// The device that was asked for, or an error; with [`DeviceKind::Auto`] the best that works. Runs on the thread
    /// that will own the device.
    pub(super) fn open(options: &DeviceOptions) -> Result<Opened, DeviceError> {
        let gpu = if cfg!(target_os = "macos") { MlxDevice::Metal } else { MlxDevice::Cuda };
        let mlx = |device| {
            let own_kernels = !options.stock_kernels;
            let kernel_cache = options.kernel_cache.clone();
            MlxBackend::open(MlxOptions { device, own_kernels, cache_bytes: None, kernel_cache })
        };
        let wanted = |backend| Ok(Opened { backend, warning: None });
        match options.kind {
            DeviceKind::Cpu => wanted(cpu(options)),
            DeviceKind::Metal => wanted(Self::Mlx(mlx(MlxDevice::Metal)?)),
            DeviceKind::Cuda => wanted(Self::Mlx(mlx(MlxDevice::Cuda)?)),
            DeviceKind::MlxCpu => wanted(Self::Mlx(mlx(MlxDevice::Cpu)?)),
            DeviceKind::Auto => match MlxBackend::is_there(gpu).and_then(|there| match there {
                true => mlx(gpu).map(Some),
                false => Ok(None),
            }) {
                Ok(None) => wanted(cpu(options)),
                Ok(Some(backend)) => wanted(Self::Mlx(backend)),
                Err(error) => {
                    let warning =
                        format!("computing on the CPU, because no GPU can be used: {error}");
                    Ok(Opened { backend: cpu(options), warning: Some(warning) })
                }
            },
        }
    }

    /// Bytes that models on it can have, where the system says so: what is free before there are any.
    pub(super) fn room(&self) -> Option<usize> {
        self.free_bytes().or_else(mac_room)
    }

    /// Bytes that are free at the moment, where the system says so. Cheap enough to ask every second.
    pub(super) fn free_bytes(&self) -> Option<usize> {
        let own = match self {
            Self::Cpu(backend) => backend.free_bytes(),
            Self::Mlx(backend) => backend.free_bytes(),
        };
        own.or_else(free_bytes)
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Self::Cpu(backend) => backend.describe(),
            Self::Mlx(backend) => backend.describe(),
        }
    }

    pub(super) fn read_bandwidth(&self) -> Option<f64> {
        let Self::Cpu(backend) = self else { return None };
        let bytes = free_bytes()
            .or_else(mac_room)
            .map_or(FAR_BEYOND_CACHES, |free| (free / 2).min(FAR_BEYOND_CACHES));
        (bytes >= BEYOND_CACHES).then(|| backend.read_bandwidth(bytes).ok()).flatten()
    }
}

/// Caches of servers hold hundreds of megabytes, which several machines share.
const FAR_BEYOND_CACHES: usize = 1 << 30;
/// Machines with so little memory have small caches.
const BEYOND_CACHES: usize = 128 << 20;

/// What was opened, and what its user should know of it.
pub(super) struct Opened {
    pub(super) backend: AnyBackend,
    pub(super) warning: Option<String>,
}

fn cpu(options: &DeviceOptions) -> AnyBackend {
    AnyBackend::Cpu(CpuBackend::new(options.threads.unwrap_or(usize::MAX)))
}

/// Behind [`Engine::start`].
pub(super) fn engine(
    path: &Path,
    name: &str,
    device: &Device,
    options: EngineOptions,
) -> Result<Engine, LoadError> {
    let Loaded { runner, draft_model, text, info } = match device.backend() {
        AnyBackend::Cpu(backend) => load(path, name, backend, device, options)?,
        AnyBackend::Mlx(backend) => load(path, name, backend, device, options)?,
    };
    let grammars = Arc::new(grammars(Arc::clone(&text), info.vocab_size));
    {
        let grammars = Arc::clone(&grammars);
        // Without the thread the first request that wants a grammar waits a little longer.
        let _ = std::thread::Builder::new().name("grammars".to_owned()).spawn(move || {
            LazyLock::force(&grammars);
        });
    }
    let port = device.thread().add(runner);
    Ok(Engine { port, draft_model, text, info: Arc::new(info), grammars })
}

fn grammars(text: Arc<Text>, vocab_size: usize) -> LazyGrammars {
    LazyLock::new(Box::new(move || {
        // Logits beyond the tokenizer's vocabulary are padding and never chosen.
        let vocab_size = vocab_size.min(text.tokenizer.vocab_size());
        Grammars::new(&text.tokenizer, vocab_size, &text.end_tokens)
    }))
}

/// A model that is ready for its device.
struct Loaded {
    runner: Box<dyn Runner>,
    draft_model: Arc<dyn Any + Send + Sync>,
    text: Arc<Text>,
    info: ModelInfo,
}

fn load<B: Backend>(
    path: &Path,
    name: &str,
    backend: &B,
    device: &Device,
    options: EngineOptions,
) -> Result<Loaded, LoadError> {
    let checkpoint = Checkpoint::open(path)?;
    let is = match Purpose::of_checkpoint(&checkpoint)? {
        Purpose::Generate => None,
        Purpose::Embed => Some("it turns texts into vectors, and does not write"),
        Purpose::Rank => Some("it scores pairs of texts, and does not write"),
    };
    if let Some(is) = is {
        return Err(LoadError::WrongPurpose { path: path.to_owned(), is });
    }
    let backend = backend.for_model(checkpoint.dtype(), options.kv_format)?;
    let config = checkpoint.config();
    let trained = config.count("max_position_embeddings")?;
    let context = options.context.map_or(trained, |context| context.min(trained));
    let step_tokens = options.step_tokens.unwrap_or_else(|| backend.step_tokens()).max(1);
    let on_disk: u64 = checkpoint.tensors().map(|tensor| tensor.bytes as u64).sum();
    let layers = models::layers(&checkpoint)?;
    let position: usize = layers.iter().map(|&layer| backend.kv_bytes(layer)).sum();
    let most = context.saturating_mul(options.parallel.max(1));
    let most = options.kv_bytes.map_or(most, |bytes| most.min(bytes / position)).max(1);
    let workspace = step_bytes(config, step_tokens);
    let fixed = on_disk as usize + workspace;
    let wish = Wish { fixed, position, context: context.min(most), most };
    let room = enter(device, wish)?;
    // A large vocabulary takes as long to read as the weights of a small model.
    let (text, model) = std::thread::scope(|scope| {
        let text = scope.spawn(|| Text::load(&checkpoint));
        let model = models::load(&checkpoint, &backend);
        (text.join().unwrap_or_else(|panic| resume_unwind(panic)), model)
    });
    let (mut text, model) = (text?, model?);
    if let Some(name) = &options.tool_format {
        text = text.with_tool_format(name).map_err(|unknown| LoadError::ToolFormat {
            name: unknown.name,
            known: unknown.known,
        })?;
    }
    let text = Arc::new(text);
    // Some formats take more memory than their files.
    device.ledger().weigh(&room, workspace + model.step_bytes().max(on_disk as usize))?;
    let info = ModelInfo {
        name: name.to_owned(),
        family: config.model_type()?.to_owned(),
        context: room.promised(),
        trained,
        vocab_size: model.vocab_size(),
        bytes: on_disk,
        step_bytes: model.step_bytes() as u64,
        kv_bytes_per_token: position as u64,
        kv_format: backend.kv_format(),
        sampling: SamplingDefaults::load(path)?,
    };
    let limits = Limits {
        running: options.parallel.max(1),
        step_tokens,
        kv_tokens: room.positions(),
        kept_tokens: options.prefix_bytes.map_or(usize::MAX, |bytes| bytes / position),
        block: backend.kv_block(&model.layers()),
        context: info.context,
    };
    let stored = options.kv_disk.as_ref().map(|disk| {
        let how = format!("{} {layers:?}", backend.kv_identity());
        Stored::new(disk.clone(), disk.model_key(path, how))
    });
    let model = Arc::new(DraftModel {
        layers,
        room,
        // Logits beyond the tokenizer's vocabulary are padding and never chosen.
        vocab_size: model.vocab_size().min(text.tokenizer.vocab_size()),
        model: model.into(),
        backend,
    });
    let draft_model: Arc<dyn Any + Send + Sync> = model.clone();
    let runner = ModelRunner::new(NewRunner {
        model: &model,
        name: name.to_owned(),
        text: text.clone(),
        weight_bytes: on_disk as usize,
        limits,
        options,
        stored,
    });
    Ok(Loaded { runner: Box::new(runner), draft_model, text, info })
}

/// Room for a model among those of its device, which give back first what is not theirs any more.
pub(super) fn enter(device: &Device, wish: Wish) -> Result<Arc<Room>, LoadError> {
    let ledger = device.ledger();
    if let Some(free) = device.backend().free_bytes()
        && free < wish.fixed
    {
        // What others have kept may be enough, if not all that they were promised.
        ledger.observe(free, wish.fixed);
        device.thread().settle();
        let free = device.backend().free_bytes().unwrap_or(free);
        if free < wish.fixed {
            return Err(LoadError::ShortOfMemory { needed: wish.fixed, free });
        }
    }
    let room = ledger.enter(wish).or_else(|_| {
        // Some model may be about to leave.
        device.thread().settle();
        ledger.enter(wish)
    })?;
    // Others give back what is not theirs any more before this one takes it.
    device.thread().settle();
    Ok(room)
}

/// Bytes that a step of so many tokens computes in, roughly: what a layer has at once, and rows of logits.
fn step_bytes(config: &Config, tokens: usize) -> usize {
    let of = |key| config.count(key).unwrap_or(0);
    let row = 8 * of("hidden_size") + 3 * of("intermediate_size");
    (tokens * row + LOGITS_ROWS * of("vocab_size")) * size_of::<f32>()
}

/// Memory that this process could still get, where the system says so: free memory, and what a cgroup leaves. What only
/// caches files counts as free in both.
fn free_bytes() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let of_group = |group: &Path| {
        let read = |name: &str| read(&format!("/sys/fs/cgroup/{}/{name}", group.display()));
        let limit: usize = read("memory.max")?.trim().parse().ok()?;
        let used: usize = read("memory.current")?.trim().parse().ok()?;
        let files = number_after(&read("memory.stat")?, "file ")?;
        Some(limit.saturating_sub(used.saturating_sub(files)))
    };
    // The limit of a group above may be the one that counts; in a container the root is its own.
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let cgroup = || Path::new(group).ancestors().filter_map(of_group).min();
    let system = || Some(number_after(&read("/proc/meminfo")?, "MemAvailable:")? * 1024);
    [system(), cgroup()].into_iter().flatten().min()
}

/// The number in the line that begins like this.
fn number_after(text: &str, beginning: &str) -> Option<usize> {
    let rest = text.lines().find_map(|line| line.strip_prefix(beginning))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(not(target_os = "macos"))]
fn mac_room() -> Option<usize> {
    None
}

/// A Mac gives memory back from its caches late, so its size says more than what is free at the moment.
#[cfg(target_os = "macos")]
fn mac_room() -> Option<usize> {
    let output = std::process::Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
    let bytes: usize = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    Some(bytes / 2)
}
