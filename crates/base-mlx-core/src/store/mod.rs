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

use std::path::Path;

pub use catalogue::{Catalogue, CatalogueEntry, Fixed, ModelSource, PipSource, WheelFile};
pub use error::{Bytes, StoreError};
pub use found::{
    Entry, Extras, Fault, Folder, ModelDir, Nameless, OwnTemplate, Parameters, Source, Survey,
    Unusable,
};
pub use options::{Host, StoreOptions, System};
pub use progress::{Progress, Silent};
pub use remove::Removed;

use folders::Demand;
use name::{HubName, Name};
use places::{Broken, Found, Looked};

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
        let parsed = Name::parse(name)?;
        if name::says_where(name) {
            return self.at_path(name.as_ref());
        }
        match (self.installed(name), parsed) {
            (Some(found), _) => Ok(found),
            (None, Name::Path(path)) => {
                let found = self.at_path(&path);
                found.map_err(|error| self.broken(name).unwrap_or(error))
            }
            // A folder below the current one may have a name of the form `owner/name`.
            (None, _) if folders::is_model_folder(name.as_ref(), Demand::Config) => {
                self.at_path(name.as_ref())
            }
            // What a pull may mend counts as not there.
            (None, _) => match self.broken(name).filter(|_| !self.is_pullable(name)) {
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
    pub fn survey(&self, mut read: impl FnMut(&Entry) -> Result<(), Fault>) -> Survey {
        let Survey { mut models, mut nameless, mut unusable } = self.look();
        let mut is_usable = |entry: &Entry| {
            let Err(fault) = read(entry) else { return true };
            let Entry { name, path, source, .. } = entry.clone();
            unusable.push(Unusable { name, path, source, fault });
            false
        };
        models.retain(&mut is_usable);
        nameless.retain(|one| is_usable(&one.entry));
        unusable.sort_by(|a, b| a.name.cmp(&b.name));
        Survey { models, nameless, unusable }
    }

    /// The folders that are looked into, in the order in which names are looked for.
    pub fn folders(&self) -> Vec<Folder> {
        let folder = |place: Looked| {
            let (source, path) = (place.place.source(), place.place.folder().to_owned());
            let named_by = self.options.named.get(&path).copied();
            Folder { trouble: std::fs::read_dir(&path).err(), source, path, named_by }
        };
        places::all(&self.options).into_iter().map(folder).collect()
    }

    fn look(&self) -> Survey {
        let places = places::all(&self.options);
        let mut survey = Survey::default();
        for looked in &places {
            let source = looked.place.source();
            for found in &looked.look().models {
                self.enter(self.entry(found, source), &places, &mut survey);
            }
            let broken = looked.look().broken.iter();
            survey.unusable.extend(broken.map(|Broken { name, path, fault }| Unusable {
                name: name.clone(),
                path: path.clone(),
                source,
                fault: fault.clone(),
            }));
        }
        survey.models.sort_by(|a, b| a.name.cmp(&b.name));
        survey.nameless.sort_by(|a, b| a.entry.name.cmp(&b.entry.name));
        survey.unusable.sort_by(|a, b| a.name.cmp(&b.name));
        // Two places may be one folder.
        survey.models.dedup_by(|later, earlier| later.name == earlier.name);
        survey.unusable.dedup_by(|later, earlier| later.path == earlier.path);
        survey
    }

    fn entry(&self, found: &Found, source: Source) -> Entry {
        let Found { name, aliases, path, extras, .. } = found.clone();
        let aliases = aliases.into_iter().chain(self.aliases(source, &name)).collect();
        let (real, bytes) = (folders::real(&path), folders::bytes(&path));
        Entry { name, aliases, path, real, bytes, source, extras }
    }

    /// Lists a model under only those names that mean it, of which the first is its name.
    fn enter(&self, entry: Entry, places: &[Looked], survey: &mut Survey) {
        let means_it = |name: &String| {
            let found = self.look_up(places, name);
            found.is_ok_and(|(found, _)| {
                let same = found.path == entry.path || folders::real(&found.path) == entry.real;
                same && found.extras == entry.extras
            })
        };
        let names = std::iter::once(&entry.name).chain(&entry.aliases);
        let mut names = names.filter(|name| means_it(name)).cloned();
        if let Some(name) = names.next() {
            let aliases = names.collect();
            survey.models.push(Entry { name, aliases, ..entry });
            return;
        }
        let name = &entry.name;
        let why = match self.look_up(places, name) {
            Ok((other, source)) => {
                format!("`{name}` means the one of {source} in {}", other.path.display())
            }
            Err(StoreError::NotFound { in_catalogue: true, .. }) => {
                format!("`{name}` means a model of the catalogue")
            }
            Err(StoreError::Name { why, .. }) => format!("its name cannot be asked for: {why}"),
            Err(_) => "its name cannot be asked for: it reads as a path".to_owned(),
        };
        drop(names);
        survey.nameless.push(Nameless { entry, why });
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
        let (found, source) = self.look_up(&places::all(&self.options), name).ok()?;
        Some(ModelDir { extras: found.extras, ..ModelDir::new(name, found.path, source) })
    }

    /// What a name means, among what the places hold. What says where it lies is no name.
    fn look_up(&self, places: &[Looked], text: &str) -> Result<(Found, Source), StoreError> {
        let name = Name::parse(text)?;
        let missing = |in_catalogue| StoreError::NotFound {
            name: text.to_owned(),
            in_catalogue,
            closest: Vec::new(),
        };
        if name::says_where(text) {
            return Err(missing(false));
        }
        let first = |text: &str, name: &Name, skipped: Option<Source>| {
            let all = places.iter().map(|looked| (looked, looked.place.source()));
            let mut asked = all.filter(|(_, source)| Some(*source) != skipped);
            asked.find_map(|(looked, source)| Some((looked.find(text, name)?, source)))
        };
        let entry = match &name {
            Name::Word(word) => self.options.catalogue.get(word),
            _ => None,
        };
        let Some(entry) = entry else {
            return first(text, &name, None).ok_or_else(|| missing(false));
        };
        let own = places.iter().find(|looked| looked.place.source() == Source::ModelsDir);
        if let Some(found) = own.and_then(|looked| looked.find(text, &name)) {
            return Ok((found, Source::ModelsDir));
        }
        let found = entry.sources.iter().find_map(|source| match source {
            ModelSource::Hub(text) => {
                first(text, &Name::Hub(source.hub()?), Some(Source::ModelsDir))
            }
            ModelSource::Pip(pip) => {
                let name = pip.name();
                first(&format!("pip:{name}"), &Name::Pip(name.clone()), Some(Source::ModelsDir))
            }
        });
        found.ok_or_else(|| missing(true))
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
        let Unusable { name: _, path, source: place, fault } = unusable.next()?;
        Some(StoreError::Broken { name: name.to_owned(), path, place, why: fault.why })
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
        std::fs::metadata(&path).map_err(|source| StoreError::NoModel {
            path: path.clone(),
            why: source.to_string(),
        })?;
        let path = folders::real(&path);
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
