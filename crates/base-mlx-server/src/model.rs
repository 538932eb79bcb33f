//! A model in memory: what it does, and how long it stays.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base_mlx_core::engine::{Device, Encoder, Engine, EngineOptions, Purpose};
use base_mlx_core::store::{DEFAULT_ENCODER, ModelDir};
use base_mlx_core::weights::LoadError;
use tokio::sync::Notify;

use crate::Preset;
use crate::error::ApiError;
use crate::request::Defaults;

/// A model in memory.
pub(crate) struct Model {
    pub door: Door,
    pub directory: ModelDir,
    /// The same under other names by which it was asked for.
    others: Mutex<HashMap<String, ModelDir>>,
    /// Requests that need it.
    uses: AtomicUsize,
    stay: Mutex<Stay>,
    /// Told whenever it may have become idle, or is to go at another time.
    changed: Arc<Notify>,
}

/// What a model does.
pub(crate) enum Door {
    Writes(Engine),
    Encodes(Encoder),
}

/// A model that writes, as a request asked for it.
pub(crate) struct Writer {
    pub engine: Engine,
    /// Where its files really lie.
    pub real: PathBuf,
    /// What answers call it.
    pub called: String,
    /// Models that share their weights may differ in it.
    pub preset: Preset,
    /// Whether the tool that keeps it has a chat template for it that is not read here.
    pub foreign_template: bool,
}

/// How long a model stays in memory.
#[derive(Clone, Copy, Debug)]
struct Stay {
    last_used: Instant,
    /// After its last use; `None` is until another needs the room.
    after: Option<Duration>,
    /// Until somebody says otherwise.
    pinned: bool,
}

/// Keeps a model in memory.
pub(crate) struct InUse(Arc<Model>);

impl Door {
    /// Loads the model. Blocks while it reads.
    pub(crate) fn open(
        directory: &ModelDir,
        device: &Device,
        options: EngineOptions,
    ) -> Result<Self, LoadError> {
        let ModelDir { path, name, .. } = directory;
        match Purpose::of(path)? {
            Purpose::Generate => Engine::start(path, name, device, options).map(Self::Writes),
            Purpose::Embed | Purpose::Rank => {
                Encoder::start(path, name, device, &options).map(Self::Encodes)
            }
        }
    }

    pub(crate) fn purpose(&self) -> Purpose {
        match self {
            Self::Writes(_) => Purpose::Generate,
            Self::Encodes(encoder) => encoder.info().purpose,
        }
    }

    /// Tokens of the longest text: of a writer's with its answer.
    pub(crate) fn context(&self) -> usize {
        match self {
            Self::Writes(engine) => engine.info().context,
            Self::Encodes(encoder) => encoder.info().longest,
        }
    }
}

/// That a model for this purpose was asked for something else.
pub(crate) fn unsuitable(purpose: Purpose, called: &str) -> ApiError {
    let (is, at) = match purpose {
        Purpose::Generate => (
            "writes texts, and makes no vectors or scores of them",
            format!("/v1/chat/completions; `{DEFAULT_ENCODER}` is a model for embeddings"),
        ),
        Purpose::Embed => (
            "is an embedding model: it turns texts into vectors, and does nothing else",
            "/v1/embeddings".to_owned(),
        ),
        Purpose::Rank => (
            "is a cross-encoder: it scores pairs of texts, and does nothing else",
            "/v1/rerank".to_owned(),
        ),
    };
    let message = format!("the model `{called}` {is}\nhint: it answers at {at}");
    ApiError::ModelUnsuitable { message }
}

impl Writer {
    /// What requests to this model may leave open.
    pub(crate) fn defaults(&self) -> Defaults {
        Defaults { vocab_size: self.engine.info().vocab_size, preset: self.preset.clone() }
    }
}

impl Model {
    pub(crate) fn new(
        door: Door,
        directory: ModelDir,
        after: Option<Duration>,
        changed: Arc<Notify>,
    ) -> Self {
        let stay = Stay { last_used: Instant::now(), after, pinned: false };
        let (others, uses) = (Mutex::default(), AtomicUsize::new(0));
        Self { door, directory, others, uses, stay: Mutex::new(stay), changed }
    }

    /// What a name means if it has meant this model before, so that nobody has to look for it again.
    pub(crate) fn called(&self, name: &str) -> Option<ModelDir> {
        if self.directory.name == name {
            return Some(self.directory.clone());
        }
        lock(&self.others).get(name).cloned()
    }

    pub(crate) fn remember(&self, directory: ModelDir) {
        if self.directory.name == directory.name {
            return;
        }
        let mut others = lock(&self.others);
        if others.contains_key(&directory.name) {
            return;
        }
        if others.len() >= MOST_NAMES {
            others.clear();
        }
        others.insert(directory.name.clone(), directory);
    }

    /// From now on it stays so long after its last use; `None` is until another needs the room.
    pub(crate) fn keep_for(&self, after: Option<Duration>) {
        lock(&self.stay).after = after;
        self.changed.notify_one();
    }

    pub(crate) fn pin(&self, pinned: bool) {
        lock(&self.stay).pinned = pinned;
        self.changed.notify_one();
    }

    pub(crate) fn is_pinned(&self) -> bool {
        lock(&self.stay).pinned
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.uses.load(Ordering::Relaxed) == 0
    }

    /// When it was last used, if it may go now.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        let stay = *lock(&self.stay);
        (self.is_idle() && !stay.pinned).then_some(stay.last_used)
    }

    /// When it is to go if nobody asks for it; `None` for never.
    pub(crate) fn expires(&self) -> Option<Instant> {
        let stay = *lock(&self.stay);
        stay.after.filter(|_| !stay.pinned).and_then(|after| stay.last_used.checked_add(after))
    }
}

impl InUse {
    pub(crate) fn new(model: &Arc<Model>) -> Self {
        model.uses.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(model))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        lock(&self.0.stay).last_used = Instant::now();
        self.0.uses.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

impl fmt::Debug for InUse {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_tuple("InUse").field(&self.0.directory.name).finish()
    }
}

/// Nothing is ever left half changed, so a panic elsewhere does not spoil it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// More than one model has, unless somebody tries out how a tag may be spelled.
const MOST_NAMES: usize = 64;
