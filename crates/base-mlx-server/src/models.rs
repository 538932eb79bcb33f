use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use base_mlx_core::engine::{Device, Draft, Encoder, EngineOptions, Purpose};
use base_mlx_core::models;
use base_mlx_core::store::{
    DEFAULT_ENCODER, Extras, Fault, ModelDir, OwnTemplate, Store, StoreError,
};
use base_mlx_core::weights::{Checkpoint, LoadError};
use tokio::sync::{Notify, watch};

use crate::error::ApiError;
use crate::model::{Door, InUse, Model, Writer, lock, unsuitable};
use crate::request::{DraftName, KeepAlive};
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
    default_purpose: Option<Purpose>,
    /// Of requests that say nothing about it, where it fits the model.
    draft: DraftName,
    /// How long models stay after their last use, if requests do not say.
    keep_for: Option<Duration>,
    /// By where their files really lie.
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

/// A model that a request asked for, by name or by leaving that out.
struct Asked {
    model: Arc<Model>,
    /// What answers call it.
    called: String,
    /// Models that share their weights may differ in it.
    extras: Extras,
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
    real: PathBuf,
}

impl Models {
    pub(crate) fn new(store: Store, device: Device, options: &ServerOptions) -> Arc<Self> {
        Arc::new(Self {
            store,
            device,
            engine: options.engine.clone(),
            own: options.models.clone(),
            default: options.model.clone(),
            default_purpose: options.model.as_ref().and_then(|model| Purpose::of(&model.path).ok()),
            draft: options.draft.clone(),
            keep_for: options.keep_models,
            slots: Mutex::default(),
            changed: Arc::default(),
            headers: Mutex::default(),
        })
    }

    /// The model of that name to write, loaded if need be. The request holds it.
    pub(crate) async fn writer(
        self: &Arc<Self>,
        name: Option<&str>,
        keep_alive: Option<KeepAlive>,
        running: &mut Running,
    ) -> Result<Arc<Writer>, ApiError> {
        let Asked { model, called, extras } =
            self.get(name, Purpose::Generate, keep_alive, running).await?;
        match &model.door {
            Door::Writes(engine) => {
                let preset = Preset::new(&extras, &engine.info().sampling);
                let foreign_template = extras.template == OwnTemplate::Go;
                let (engine, real) = (engine.clone(), model.directory.real.clone());
                Ok(Arc::new(Writer { engine, real, called, preset, foreign_template }))
            }
            Door::Encodes(_) => Err(unsuitable(model.door.purpose(), &called)),
        }
    }

    /// The same to encode texts for `purpose`, and the name by which answers call it. Who names none gets embeddings of the
    /// default encoder, unless the server has one of its own.
    pub(crate) async fn encoder(
        self: &Arc<Self>,
        name: Option<&str>,
        purpose: Purpose,
        keep_alive: Option<KeepAlive>,
        running: &mut Running,
    ) -> Result<(Encoder, String), ApiError> {
        let own = self.default_purpose == Some(purpose);
        let name = name.or((purpose == Purpose::Embed && !own).then_some(DEFAULT_ENCODER));
        let Asked { model, called, .. } = self.get(name, purpose, keep_alive, running).await?;
        match &model.door {
            Door::Encodes(encoder) if encoder.info().purpose == purpose => {
                Ok((encoder.clone(), called))
            }
            door => Err(unsuitable(door.purpose(), &called)),
        }
    }

    /// What is for something else is not loaded.
    async fn get(
        self: &Arc<Self>,
        name: Option<&str>,
        purpose: Purpose,
        keep_alive: Option<KeepAlive>,
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
        // What cannot be read is told when it is loaded.
        if let Some(its) = self.purpose(&directory).await?.filter(|its| *its != purpose) {
            return Err(unsuitable(its, &called));
        }
        let extras = directory.extras.clone();
        let model = self.load(directory, ModelOptions::default()).await?;
        running.hold(InUse::new(&model));
        if let Some(KeepAlive(after)) = keep_alive {
            model.keep_for(after);
        }
        Ok(Asked { model, called, extras })
    }

    /// `None` if its files do not say.
    async fn purpose(&self, directory: &ModelDir) -> Result<Option<Purpose>, ApiError> {
        if let Some(Slot::Ready(model)) = self.slots().get(&directory.real) {
            return Ok(Some(model.door.purpose()));
        }
        let path = directory.path.clone();
        blocking(move || Purpose::of(&path).ok()).await
    }

    /// Who drafts for `writer`, loaded if need be. What was asked for must fit; the server's own choice is passed over where it
    /// does not. The request holds it.
    pub(crate) async fn draft(
        self: &Arc<Self>,
        asked: Option<DraftName>,
        writer: &Writer,
        running: &mut Running,
    ) -> Result<Draft, ApiError> {
        let own = asked.is_none();
        let name = match asked.unwrap_or_else(|| self.draft.clone()) {
            DraftName::Nobody => return Ok(Draft::Nobody),
            DraftName::PromptLookup => return Ok(Draft::PromptLookup),
            DraftName::Model(name) => name,
        };
        let directory = self.find("draft_model", &name).await?;
        if own && directory.real == writer.real {
            return Ok(Draft::Nobody);
        }
        let no_writer = |its| match own {
            true => Ok(Draft::Nobody),
            false => Err(ApiError::invalid("draft_model", unsuitable(its, &name).to_string())),
        };
        if let Some(its) = self.purpose(&directory).await?.filter(|its| *its != Purpose::Generate) {
            return no_writer(its);
        }
        let draft = self.load(directory, ModelOptions::default()).await?;
        let Door::Writes(engine) = &draft.door else { return no_writer(draft.door.purpose()) };
        match writer.engine.check_draft(engine) {
            Ok(()) => {
                running.hold(InUse::new(&draft));
                Ok(Draft::Model(engine.clone()))
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
        blocking(move || models.listed(directory, &models.own_by_file())).await
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
        let its = self.purpose(&directory).await?;
        if kv_format.is_some() && its.is_some_and(|its| its != Purpose::Generate) {
            let message = format!("`{name}` keeps no keys and values");
            return Err(ApiError::unsupported("kv_cache_type", message));
        }
        let model = self.load(directory, asked.options).await?;
        let (holds, format, trained) = match &model.door {
            Door::Writes(engine) => {
                let info = engine.info();
                (info.context, info.kv_format, info.trained)
            }
            Door::Encodes(encoder) => (encoder.info().longest, None, encoder.info().trained),
        };
        let differs = |key: &str| {
            let message = format!(
                "`{name}` is loaded with another `{key}`\nhint: unload it first, by POST /v1/models/{name}/unload"
            );
            Err(ApiError::invalid(key, message))
        };
        if kv_format.is_some() && kv_format != format {
            return differs("kv_cache_type");
        }
        // More than the model was made for is what the model was made for.
        if context.is_some_and(|context| context != holds && context < trained) {
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
        // While it is in memory, a name goes on meaning what it meant.
        if let Some(directory) = self.ready().iter().find_map(|model| model.called(name)) {
            return Ok(directory);
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
            match slots.get(&directory.real) {
                Some(Slot::Ready(model)) => {
                    model.remember(directory);
                    return Ok(Arc::clone(model));
                }
                Some(Slot::Loading(outcome)) => outcome.clone(),
                None => {
                    let (sender, outcome) = watch::channel(None);
                    slots.insert(directory.real.clone(), Slot::Loading(outcome.clone()));
                    // A task of its own: it goes on if the client that caused it goes.
                    tokio::spawn(Arc::clone(self).start(directory.clone(), asked, sender));
                    outcome
                }
            }
        };
        let loaded = outcome.wait_for(Option::is_some).await;
        match loaded.as_deref() {
            Ok(Some(loaded)) => loaded.clone().inspect(|model| model.remember(directory)),
            _ => Err(ApiError::internal("the model's load was given up")),
        }
    }

    async fn start(
        self: Arc<Self>,
        directory: ModelDir,
        asked: ModelOptions,
        sender: watch::Sender<Option<Loaded>>,
    ) {
        let real = directory.real.clone();
        let mut options = self.engine.clone();
        let (models, of) = (Arc::clone(&self), directory.clone());
        let own = blocking(move || models.own(&of, &models.own_by_file()).cloned()).await;
        own.ok().flatten().unwrap_or_default().change(&mut options);
        asked.change(&mut options);
        let started = loop {
            let starting = {
                let (directory, device, options) =
                    (directory.clone(), self.device.clone(), options.clone());
                move || Door::open(&directory, &device, options)
            };
            match blocking(starting).await {
                Ok(Err(LoadError::NoRoom(room))) if room.could_fit() && self.unload_idle() => {}
                Ok(Err(LoadError::ShortOfMemory { .. })) if self.unload_idle() => {}
                started => break started,
            }
        };
        let loaded = match started {
            Ok(Ok(door)) => {
                let changed = Arc::clone(&self.changed);
                Ok(Arc::new(Model::new(door, directory, self.keep_for, changed)))
            }
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
                self.slots().insert(real, Slot::Ready(Arc::clone(model)));
            }
            Err(_) => {
                self.slots().remove(&real);
            }
        }
        sender.send_replace(Some(loaded));
    }

    /// Takes a model out of memory; answers that it is giving go on. False if it was not there.
    pub(crate) async fn unload(self: &Arc<Self>, name: &str) -> Result<bool, ApiError> {
        let directory = self.find("model", name).await?;
        let mut slots = self.slots();
        let there = matches!(slots.get(&directory.real), Some(Slot::Ready(_)));
        if there {
            slots.remove(&directory.real);
            tracing::info!(model = directory.name, "model unloaded, as was asked");
        }
        Ok(there)
    }

    /// Takes the model out of memory that nobody has asked for longest; false if all are in use or pinned.
    fn unload_idle(&self) -> bool {
        let mut slots = self.slots();
        let idle = slots.iter().filter_map(|(real, slot)| match slot {
            Slot::Ready(model) => Some((model.idle_since()?, real.clone())),
            Slot::Loading(_) => None,
        });
        let Some((_, real)) = idle.min_by_key(|(last_used, _)| *last_used) else { return false };
        if let Some(Slot::Ready(model)) = slots.remove(&real) {
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
        let read =
            |path: &Path| self.header(path).map(|_| ()).ok_or_else(|| Fault::broken("damaged"));
        let own = self.own_by_file();
        let ready = self.ready();
        let loaded = ready.iter().map(|model| &model.directory);
        let others: Vec<&ModelDir> = self.default.iter().chain(loaded).collect();
        let mut on_disk = self.store.survey(|entry| read(&entry.path)).models;
        // Who asks for a name that one of these has, or has been called by, gets it, whatever else is called so.
        on_disk.retain(|entry| {
            let default = self.default.clone().filter(|default| default.name == entry.name);
            let called = || ready.iter().find_map(|model| model.called(&entry.name));
            default.or_else(called).is_none_or(|it| it.real == entry.real)
        });
        let mut models: Vec<Listed> =
            on_disk.into_iter().map(|entry| self.listed(entry.into(), &own)).collect();
        for other in others {
            let ModelDir { name, path, real, .. } = other;
            let known = models.iter().any(|model| model.name == *name || model.real == *real);
            let loaded = ready.iter().any(|model| model.directory.real == *real);
            if !known && (loaded || read(path).is_ok()) {
                models.push(self.listed(other.clone(), &own));
            }
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    fn listed(&self, model: ModelDir, own: &HashMap<PathBuf, &ModelOptions>) -> Listed {
        let created = std::fs::metadata(&model.path).and_then(|file| file.modified());
        let created = created.unwrap_or(SystemTime::UNIX_EPOCH);
        let ready = match self.slots().get(&model.real) {
            Some(Slot::Ready(model)) => Some(Arc::clone(model)),
            _ => None,
        };
        let context = match &ready {
            Some(model) => Some(model.door.context()),
            None => self.header(&model.path).and_then(|header| header.trained).map(|trained| {
                let limit = self.own(&model, own).and_then(|own| own.context);
                limit.or(self.engine.context).map_or(trained, |limit| limit.min(trained))
            }),
        };
        let pinned = ready.as_ref().is_some_and(|model| model.is_pinned());
        let ModelDir { name, real, bytes, .. } = model;
        Listed { name, bytes, created, loaded: ready.is_some(), pinned, context, real }
    }

    /// What a model has of its own: what was said of it by the name that is asked for, or else by any other.
    fn own<'a>(
        &'a self,
        model: &ModelDir,
        by_file: &HashMap<PathBuf, &'a ModelOptions>,
    ) -> Option<&'a ModelOptions> {
        self.own.get(&model.name).or_else(|| by_file.get(&model.real).copied())
    }

    /// The same by where the files lie now: a model may have come to the disk after its options were read.
    fn own_by_file(&self) -> HashMap<PathBuf, &ModelOptions> {
        let mut names: Vec<_> = self.own.keys().collect();
        // Of several names of one model the last one inserted counts, which is the first in their order.
        names.sort_by(|a, b| b.cmp(a));
        let found = |name: &String| Some((self.store.find(name).ok()?.real, &self.own[name]));
        names.into_iter().filter_map(found).collect()
    }

    /// `None` if the files are not what they should be. Those that are read once.
    fn header(&self, path: &Path) -> Option<Header> {
        let written = std::fs::metadata(path).and_then(|file| file.modified()).ok()?;
        let known = lock(&self.headers).get(path).filter(|known| known.0 == written).copied();
        if let Some((_, header)) = known {
            return Some(header);
        }
        let checkpoint = Checkpoint::open(path).ok()?;
        models::family(&checkpoint).ok()?;
        let header = Header { trained: models::context(checkpoint.config()).ok() };
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

/// What clients are told of a load that failed. Where the files lie on this machine is not for them.
fn refused(model: String, error: &LoadError) -> ApiError {
    let mut message = error.to_string();
    if let Some(path) = error.path()
        && let Some(file) = path.file_name()
    {
        message = message.replace(&path.display().to_string(), &file.to_string_lossy());
    }
    match error {
        LoadError::UnknownFamily { .. }
        | LoadError::Unsupported { .. }
        | LoadError::WrongPurpose { .. } => ApiError::ModelUnsuitable {
            message: format!("the model `{model}` cannot be used here: {message}"),
        },
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
