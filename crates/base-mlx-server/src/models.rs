use std::collections::HashMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base_mlx_core::engine::{Device, Draft, Engine, EngineOptions};
use base_mlx_core::store::{ModelDir, OwnTemplate, Store, StoreError};
use base_mlx_core::weights::{Checkpoint, LoadError};
use tokio::sync::{Notify, watch};

use crate::error::ApiError;
use crate::request::{Defaults, DraftName, KeepAlive};
use crate::running::Running;
use crate::{ModelOptions, Preset, ServerOptions};

/// All models that can be asked for, and the engines of those that were. Models are loaded when they are first asked
/// for, each on a thread of its own, so that loading one delays no other.
pub(crate) struct Models {
    store: Store,
    device: Device,
    engine: EngineOptions,
    /// Of some models, by name.
    own: HashMap<String, ModelOptions>,
    /// Of requests that name none.
    default: Option<ModelDir>,
    /// Of requests that say nothing about it, where it fits the model.
    draft: DraftName,
    /// How long models stay after their last use, if requests do not say.
    keep_for: Option<Duration>,
    slots: Mutex<HashMap<PathBuf, Slot>>,
    changed: Arc<Notify>,
    /// What the headers of sound models on disk said, and when those files were written.
    headers: Mutex<HashMap<PathBuf, (SystemTime, Header)>>,
}

enum Slot {
    Loading(watch::Receiver<Option<Loaded>>),
    Ready(Arc<Model>),
}

type Loaded = Result<Arc<Model>, ApiError>;

/// A model in memory.
pub(crate) struct Model {
    pub engine: Engine,
    directory: ModelDir,
    /// Requests that need it.
    uses: AtomicUsize,
    stay: Mutex<Stay>,
    /// Told whenever it may have become idle, or is to go at another time.
    changed: Arc<Notify>,
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

/// What a request for an answer asked for, by name or by leaving that out.
pub(crate) struct Asked {
    pub model: Arc<Model>,
    /// What answers call it.
    pub called: String,
    /// Models that share their weights may differ in it.
    pub preset: Preset,
}

/// What there is to know of a model that is not loaded.
#[derive(Clone, Copy)]
struct Header {
    /// The context that it was made for.
    trained: Option<usize>,
}

/// What a request to load a model says beside its name.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoadRequest {
    pub keep_alive: Option<KeepAlive>,
    pub pinned: Option<bool>,
    pub options: ModelOptions,
}

/// A model that can be asked for, loaded or not.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    pub name: String,
    pub bytes: u64,
    pub created: SystemTime,
    pub loaded: bool,
    pub pinned: bool,
    /// Unknown of files that cannot be read.
    pub context: Option<usize>,
    path: PathBuf,
}

impl Model {
    /// What requests to this model may leave open.
    pub(crate) fn defaults(&self, preset: Preset) -> Defaults {
        Defaults { vocab_size: self.engine.info().vocab_size, preset }
    }

    /// Whether the tool that keeps it has a chat template for it that is not read here.
    pub(crate) fn has_foreign_template(&self) -> bool {
        self.directory.extras.template == OwnTemplate::Go
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

    fn is_idle(&self) -> bool {
        self.uses.load(Ordering::Relaxed) == 0
    }

    /// When it is to go if nobody asks for it; `None` for never.
    fn expires(&self) -> Option<Instant> {
        let stay = *lock(&self.stay);
        stay.after.filter(|_| !stay.pinned).and_then(|after| stay.last_used.checked_add(after))
    }
}

impl Models {
    pub(crate) fn new(store: Store, device: Device, options: &ServerOptions) -> Arc<Self> {
        Arc::new(Self {
            store,
            device,
            engine: options.engine.clone(),
            own: options.models.clone(),
            default: options.model.clone(),
            draft: options.draft.clone(),
            keep_for: options.keep_models,
            slots: Mutex::default(),
            changed: Arc::default(),
            headers: Mutex::default(),
        })
    }

    /// The model of that name, loaded if need be, and what is kept beside it for requests that leave something open. The
    /// request holds it.
    pub(crate) async fn get(
        self: &Arc<Self>,
        name: Option<&str>,
        running: &mut Running,
    ) -> Result<Asked, ApiError> {
        let directory = match (name, &self.default) {
            (Some(name), _) => self.find("model", name).await?,
            (None, Some(default)) => default.clone(),
            (None, None) => {
                let message = "`model` is missing, and the server has no model of its own";
                return Err(ApiError::invalid("model", message));
            }
        };
        let called = name.unwrap_or(&directory.name).to_owned();
        let extras = directory.extras.clone();
        let model = self.load(directory, ModelOptions::default()).await?;
        running.hold(InUse::new(&model));
        let preset = Preset::new(&extras, &model.engine.info().sampling);
        Ok(Asked { model, called, preset })
    }

    /// Who drafts for `model`, loaded if need be. What was asked for must fit; the server's own choice is passed over where it
    /// does not. The request holds it.
    pub(crate) async fn draft(
        self: &Arc<Self>,
        asked: Option<DraftName>,
        model: &Model,
        running: &mut Running,
    ) -> Result<Draft, ApiError> {
        let own = asked.is_none();
        let name = match asked.unwrap_or_else(|| self.draft.clone()) {
            DraftName::Nobody => return Ok(Draft::Nobody),
            DraftName::PromptLookup => return Ok(Draft::PromptLookup),
            DraftName::Model(name) => name,
        };
        let directory = self.find("draft_model", &name).await?;
        if own && directory.path == model.directory.path {
            return Ok(Draft::Nobody);
        }
        let draft = self.load(directory, ModelOptions::default()).await?;
        match model.engine.check_draft(&draft.engine) {
            Ok(()) => {
                running.hold(InUse::new(&draft));
                Ok(Draft::Model(draft.engine.clone()))
            }
            Err(error) if own => {
                tracing::debug!("no draft: {error}");
                Ok(Draft::Nobody)
            }
            Err(error) => Err(ApiError::invalid("draft_model", error.to_string())),
        }
    }

    /// Every model on disk or in memory, by name.
    pub(crate) async fn list(self: &Arc<Self>) -> Result<Vec<Listed>, ApiError> {
        let models = Arc::clone(self);
        blocking(move || models.list_now()).await
    }

    /// The model of that name, which need not be loaded.
    pub(crate) async fn show(self: &Arc<Self>, name: &str) -> Result<Listed, ApiError> {
        let directory = self.find("model", name).await?;
        let models = Arc::clone(self);
        let name = name.to_owned();
        blocking(move || models.listed(name, directory.path, directory.bytes)).await
    }

    /// Loads the model of that name; perhaps it is to stay, or to be loaded in another way than otherwise. Fails if it is loaded
    /// in a third one.
    pub(crate) async fn load_now(
        self: &Arc<Self>,
        name: &str,
        asked: LoadRequest,
    ) -> Result<(), ApiError> {
        let directory = self.find("model", name).await?;
        let (context, kv_format) = (asked.options.context, asked.options.kv_format);
        let model = self.load(directory, asked.options).await?;
        let info = model.engine.info();
        let differs = |key: &str| {
            let message = format!(
                "`{name}` is loaded with another `{key}`\nhint: unload it first, by POST /v1/models/{name}/unload"
            );
            Err(ApiError::invalid(key, message))
        };
        if kv_format.is_some() && kv_format != info.kv_format {
            return differs("kv_cache_type");
        }
        // More than the model was made for is what the model was made for.
        if context.is_some_and(|context| context != info.context && context < info.trained) {
            return differs("context_length");
        }
        if let Some(after) = asked.keep_alive {
            model.keep_for(after.0);
        }
        if let Some(pinned) = asked.pinned {
            model.pin(pinned);
        }
        Ok(())
    }

    /// Can anything be computed at all?
    pub(crate) fn device_runs(&self) -> bool {
        self.device.is_running()
    }

    /// The names of the models in memory.
    pub(crate) fn loaded(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.ready().iter().map(|model| model.directory.name.clone()).collect();
        names.sort_unstable();
        names
    }

    async fn find(self: &Arc<Self>, param: &'static str, name: &str) -> Result<ModelDir, ApiError> {
        if let Some(default) = self.default.as_ref().filter(|default| default.name == name) {
            return Ok(default.clone());
        }
        if let Some(model) = self.ready().into_iter().find(|model| model.directory.name == name) {
            return Ok(model.directory.clone());
        }
        let store = self.store.clone();
        let asked = name.to_owned();
        match blocking(move || store.find_installed(&asked)).await? {
            Ok(directory) => Ok(directory),
            Err(StoreError::NotFound { name: model, in_catalogue, closest }) => {
                Err(ApiError::ModelNotFound { param, model, in_catalogue, closest })
            }
            Err(StoreError::Broken { name: model, why: message, .. }) => {
                Err(ApiError::ModelDamaged { model, message })
            }
            Err(error) => {
                // What it says may be a path.
                tracing::error!(%error, "model not looked for");
                Err(ApiError::internal("the server cannot look for the model"))
            }
        }
    }

    /// Whoever asks while a model is being loaded waits for that load and shares its outcome; after a failure the
    /// next one to ask tries again.
    async fn load(self: &Arc<Self>, directory: ModelDir, asked: ModelOptions) -> Loaded {
        let mut outcome = {
            let mut slots = self.slots();
            match slots.get(&directory.path) {
                Some(Slot::Ready(model)) => return Ok(Arc::clone(model)),
                Some(Slot::Loading(outcome)) => outcome.clone(),
                None => {
                    let (sender, outcome) = watch::channel(None);
                    slots.insert(directory.path.clone(), Slot::Loading(outcome.clone()));
                    // A task of its own: it goes on if the client that caused it goes.
                    tokio::spawn(Arc::clone(self).start(directory, asked, sender));
                    outcome
                }
            }
        };
        let loaded = outcome.wait_for(Option::is_some).await;
        match loaded.as_deref() {
            Ok(Some(loaded)) => loaded.clone(),
            _ => Err(ApiError::internal("the model's load was given up")),
        }
    }

    async fn start(
        self: Arc<Self>,
        directory: ModelDir,
        asked: ModelOptions,
        sender: watch::Sender<Option<Loaded>>,
    ) {
        let path = directory.path.clone();
        let mut options = self.engine.clone();
        let own = self.own.get(&directory.name).cloned().unwrap_or_default();
        own.change(&mut options);
        asked.change(&mut options);
        let started = loop {
            let starting = {
                let (directory, device, options) =
                    (directory.clone(), self.device.clone(), options.clone());
                move || Engine::start(&directory.path, &directory.name, &device, options)
            };
            match blocking(starting).await {
                Ok(Err(LoadError::NoRoom(room))) if room.could_fit() && self.unload_idle() => {}
                Ok(Err(LoadError::ShortOfMemory { .. })) if self.unload_idle() => {}
                started => break started,
            }
        };
        let loaded = match started {
            Ok(Ok(engine)) => Ok(Arc::new(self.model(engine, directory))),
            Ok(Err(error)) => {
                tracing::warn!(%error, "model not loaded");
                Err(refused(directory.name, &error))
            }
            Err(error) => {
                tracing::warn!(%error, "model not loaded");
                Err(error)
            }
        };
        match &loaded {
            Ok(model) => {
                self.slots().insert(path, Slot::Ready(Arc::clone(model)));
            }
            Err(_) => {
                self.slots().remove(&path);
            }
        }
        sender.send_replace(Some(loaded));
    }

    fn model(&self, engine: Engine, directory: ModelDir) -> Model {
        let (last_used, after) = (Instant::now(), self.keep_for);
        Model {
            engine,
            directory,
            uses: AtomicUsize::new(0),
            stay: Mutex::new(Stay { last_used, after, pinned: false }),
            changed: Arc::clone(&self.changed),
        }
    }

    /// Takes a model out of memory; answers that it is giving go on. False if it was not there.
    pub(crate) async fn unload(self: &Arc<Self>, name: &str) -> Result<bool, ApiError> {
        let directory = self.find("model", name).await?;
        let mut slots = self.slots();
        let there = matches!(slots.get(&directory.path), Some(Slot::Ready(_)));
        if there {
            slots.remove(&directory.path);
            tracing::info!(model = directory.name, "model unloaded, as was asked");
        }
        Ok(there)
    }

    /// Takes the model out of memory that nobody has asked for longest; false if all are in use or pinned.
    fn unload_idle(&self) -> bool {
        let mut slots = self.slots();
        let idle = slots.iter().filter_map(|(path, slot)| match slot {
            Slot::Ready(model) if model.is_idle() => {
                let stay = *lock(&model.stay);
                (!stay.pinned).then(|| (stay.last_used, path.clone()))
            }
            _ => None,
        });
        let Some((_, path)) = idle.min_by_key(|(last_used, _)| *last_used) else { return false };
        if let Some(Slot::Ready(model)) = slots.remove(&path) {
            tracing::info!(model = model.directory.name, "model unloaded, another needs the room");
        }
        true
    }

    /// Unloads models when their time is over; never returns.
    pub(crate) async fn unload_expired(self: Arc<Self>) {
        loop {
            let now = Instant::now();
            let mut next = None;
            self.slots().retain(|_, slot| {
                let Slot::Ready(model) = slot else { return true };
                let Some(expires) = model.expires().filter(|_| model.is_idle()) else {
                    return true;
                };
                if expires <= now {
                    tracing::info!(model = model.directory.name, "model unloaded, it was not used");
                    return false;
                }
                next = next.into_iter().chain([expires]).min();
                true
            });
            match next {
                Some(next) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(next.into()) => {}
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    /// What `base-mlx list` calls usable, and what the server was started with.
    fn list_now(&self) -> Vec<Listed> {
        let read = |path: &Path| self.header(path).map(|_| ()).ok_or_else(String::new);
        let on_disk = self.store.survey(|entry| read(&entry.path)).models;
        let mut models: Vec<Listed> = on_disk
            .into_iter()
            .map(|entry| self.listed(entry.name, entry.path, entry.bytes))
            .collect();
        let ready = self.ready();
        let others = self.default.iter().chain(ready.iter().map(|model| &model.directory));
        for ModelDir { name, path, bytes, .. } in others {
            let known = models.iter().any(|model| model.name == *name || model.path == *path);
            let loaded = ready.iter().any(|model| model.directory.path == *path);
            if !known && (loaded || read(path).is_ok()) {
                models.push(self.listed(name.clone(), path.clone(), *bytes));
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    fn listed(&self, name: String, path: PathBuf, bytes: u64) -> Listed {
        let created = std::fs::metadata(&path).and_then(|file| file.modified());
        let created = created.unwrap_or(SystemTime::UNIX_EPOCH);
        let ready = match self.slots().get(&path) {
            Some(Slot::Ready(model)) => Some(Arc::clone(model)),
            _ => None,
        };
        let context = match &ready {
            Some(model) => Some(model.engine.info().context),
            None => self.header(&path).and_then(|header| header.trained).map(|trained| {
                let limit = self.own.get(&name).and_then(|own| own.context).or(self.engine.context);
                limit.map_or(trained, |limit| limit.min(trained))
            }),
        };
        let pinned = ready.as_ref().is_some_and(|model| lock(&model.stay).pinned);
        Listed { name, bytes, created, loaded: ready.is_some(), pinned, context, path }
    }

    /// `None` if the files are not what they should be. Those that are read once.
    fn header(&self, path: &Path) -> Option<Header> {
        let written = std::fs::metadata(path).and_then(|file| file.modified()).ok()?;
        let known = lock(&self.headers).get(path).filter(|known| known.0 == written).copied();
        if let Some((_, header)) = known {
            return Some(header);
        }
        let checkpoint = Checkpoint::open(path).ok()?;
        checkpoint.config().model_type().ok()?;
        let header = Header { trained: checkpoint.config().count("max_position_embeddings").ok() };
        lock(&self.headers).insert(path.to_owned(), (written, header));
        Some(header)
    }

    fn ready(&self) -> Vec<Arc<Model>> {
        let slots = self.slots();
        let ready = slots.values().filter_map(|slot| match slot {
            Slot::Ready(model) => Some(Arc::clone(model)),
            Slot::Loading(_) => None,
        });
        ready.collect()
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<PathBuf, Slot>> {
        lock(&self.slots)
    }
}

/// Runs what reads disks or computes for long where it holds up no request.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError::internal("the server failed while it prepared the answer"))
}

/// No map is ever left half changed, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What clients are told of a load that failed. Where the files lie on this machine is not for them.
fn refused(model: String, error: &LoadError) -> ApiError {
    let mut message = error.to_string();
    if let Some(path) = error.path()
        && let Some(file) = path.file_name()
    {
        message = message.replace(&path.display().to_string(), &file.to_string_lossy());
    }
    match error {
        LoadError::UnknownFamily { .. } | LoadError::Unsupported { .. } => {
            ApiError::ModelUnsuitable {
                message: format!("the model `{model}` cannot be used here: {message}"),
            }
        }
        LoadError::ToolFormat { .. } => ApiError::ModelUnsuitable {
            message: format!("the model `{model}` cannot be set up: {message}"),
        },
        LoadError::NoRoom(room) if !room.could_fit() => ApiError::ModelUnsuitable {
            message: format!("the model `{model}` can never fit: {message}"),
        },
        LoadError::Device(_) | LoadError::NoRoom(_) | LoadError::ShortOfMemory { .. } => {
            ApiError::LoadRefused { model, message }
        }
        LoadError::Io { source, .. } if source.kind() != ErrorKind::NotFound => {
            ApiError::LoadFailed { model, message }
        }
        _ => ApiError::ModelDamaged { model, message },
    }
}
