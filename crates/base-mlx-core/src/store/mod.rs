//! Model names and aliases, where models lie on disk, and pulling them from the hub or from a pip package.
//!
//! Whether a model is on disk is decided by exact names only. What other tools put on disk is used where it lies
//! (`places/`); the hub's cache folder is the one that Hugging Face's own tools use. Imports nothing else of this crate.

mod catalogue;
mod closest;
mod digest;
mod error;
mod folders;
mod found;
mod hub;
mod lock;
mod name;
mod options;
mod pip;
mod places;
mod progress;
mod remove;
mod space;

use std::path::{Path, PathBuf};

pub use catalogue::{Catalogue, CatalogueEntry, Fixed, ModelSource, PipSource, WheelFile};
pub use error::{Bytes, StoreError};
pub use found::{Entry, Extras, ModelDir, OwnTemplate, Parameters, Source, Survey, Unusable};
pub use options::{Host, StoreOptions, System};
pub use progress::{Progress, Silent};
pub use remove::Removed;

use folders::Demand;
use name::{HubName, Name};
use places::Found;

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

    /// A model on disk: by alias, hub id, `pip:PACKAGE==VERSION`, Ollama's name, its name in the models folder, or a
    /// path.
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
            // What a pull may mend counts as not there.
            None => match self.broken(name).filter(|_| !self.is_pullable(name)) {
                Some(broken) => Err(broken),
                None => Err(self.not_found(name)),
            },
        }
    }

    /// Like `find`, without paths: for names that come from others, who must not choose files of this machine, nor
    /// pull, so that what is not on disk is not suggested.
    pub fn find_installed(&self, name: &str) -> Result<ModelDir, StoreError> {
        let missing = || StoreError::NotFound {
            name: name.to_owned(),
            in_catalogue: self.options.catalogue.get(name).is_some(),
            closest: closest::closest(name, names(&self.list())),
        };
        self.installed(name).ok_or_else(|| self.broken(name).unwrap_or_else(missing))
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
            Name::Ollama(_) => {
                return Err(StoreError::Unknown {
                    name: name.to_owned(),
                    closest: self.closest(name),
                });
            }
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

    /// Every model on disk, in the order of names. Looks at names and sizes only.
    pub fn list(&self) -> Vec<Entry> {
        self.look().models
    }

    /// Everything on disk, with what cannot be used and why. `read` looks into a model's files; what it refuses is
    /// unusable.
    pub fn survey(&self, mut read: impl FnMut(&Entry) -> Result<(), String>) -> Survey {
        let Survey { models, mut unusable } = self.look();
        let mut usable = Vec::new();
        for entry in models {
            match read(&entry) {
                Ok(()) => usable.push(entry),
                Err(why) => {
                    let Entry { name, path, source, .. } = entry;
                    unusable.push(Unusable { name, path, source, why });
                }
            }
        }
        unusable.sort_by(|a, b| a.name.cmp(&b.name));
        Survey { models: usable, unusable }
    }

    /// The folders that are looked into, in the order in which names are looked for.
    pub fn folders(&self) -> Vec<(Source, PathBuf)> {
        let places = places::all(&self.options);
        places.iter().map(|place| (place.source(), place.folder().to_owned())).collect()
    }

    fn look(&self) -> Survey {
        let mut survey = Survey::default();
        for place in places::all(&self.options) {
            let source = place.source();
            let look = place.look();
            for Found { name, mut aliases, path, extras } in look.models {
                aliases.extend(self.aliases(source, &name));
                let bytes = folders::bytes(&path);
                survey.models.push(Entry { name, aliases, path, bytes, source, extras });
            }
            let unusable = look.broken.into_iter().map(|broken| Unusable {
                name: broken.name,
                path: broken.path,
                source,
                why: broken.why,
            });
            survey.unusable.extend(unusable);
        }
        // Of two with one name, `find` takes the first; the sort is stable.
        survey.models.sort_by(|a, b| a.name.cmp(&b.name));
        survey.models.dedup_by(|later, earlier| later.name == earlier.name);
        survey.unusable.sort_by(|a, b| a.name.cmp(&b.name));
        // Two places may be one folder.
        survey.unusable.dedup_by(|later, earlier| later.path == earlier.path);
        survey
    }

    fn aliases(&self, source: Source, name: &str) -> Vec<String> {
        match source {
            Source::HubCache | Source::LmStudio | Source::LlamaCpp => {
                self.options.catalogue.aliases_of_hub(name)
            }
            Source::Ollama => {
                // A word of the catalogue means the catalogue's model.
                let word = name.strip_suffix(":latest").filter(|word| {
                    !word.contains('/') && self.options.catalogue.get(word).is_none()
                });
                word.map(str::to_owned).into_iter().collect()
            }
            Source::ModelsDir | Source::Pip | Source::Path => Vec::new(),
        }
    }

    fn installed(&self, name: &str) -> Option<ModelDir> {
        let (found, source) = match Name::parse(name) {
            Ok(Name::Path(_)) | Err(_) => None,
            Ok(parsed) => self.look_up(name, &parsed),
        }?;
        Some(ModelDir { extras: found.extras, ..ModelDir::new(name, found.path, source) })
    }

    fn look_up(&self, text: &str, name: &Name) -> Option<(Found, Source)> {
        let places = places::all(&self.options);
        let first = |text: &str, name: &Name, skipped: Option<Source>| {
            let places = places.iter().filter(|place| Some(place.source()) != skipped);
            let mut found = places.map(|place| Some((place.find(text, name)?, place.source())));
            found.find_map(|found| found)
        };
        let Name::Word(word) = name else { return first(text, name, None) };
        let Some(entry) = self.options.catalogue.get(word) else { return first(text, name, None) };
        let own = places.iter().find(|place| place.source() == Source::ModelsDir);
        if let Some(found) = own.and_then(|place| place.find(text, name)) {
            return Some((found, Source::ModelsDir));
        }
        entry.sources.iter().find_map(|source| match source {
            ModelSource::Hub(text) => {
                first(text, &Name::Hub(source.hub()?), Some(Source::ModelsDir))
            }
            ModelSource::Pip(pip) => {
                let name = pip.name();
                first(&format!("pip:{name}"), &Name::Pip(name.clone()), Some(Source::ModelsDir))
            }
        })
    }

    /// Why the model of that name cannot be used, if it is there at all.
    fn broken(&self, name: &str) -> Option<StoreError> {
        let wanted = Name::parse(name).ok()?;
        // Ollama's models have names of several lengths, if the catalogue has none of them.
        let by_meaning = self.options.catalogue.get(name).is_none();
        let means = |broken: &Unusable| {
            Name::parse(&broken.name).is_ok_and(|is| is.means(&wanted))
                && broken.source == Source::Ollama
        };
        let unusable = self.look().unusable.into_iter();
        let mut unusable =
            unusable.filter(|broken| broken.name == name || by_meaning && means(broken));
        let Unusable { name: _, path, source: place, why } = unusable.next()?;
        Some(StoreError::Broken { name: name.to_owned(), path, place, why })
    }

    fn is_pullable(&self, name: &str) -> bool {
        match Name::parse(name) {
            Ok(Name::Hub(_) | Name::Pip(_)) => true,
            Ok(Name::Word(word)) => self.options.catalogue.get(&word).is_some(),
            Ok(Name::Path(_) | Name::Ollama(_)) | Err(_) => false,
        }
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
