//! The places where models lie: one file for each tool that puts them there. A place says what is in it and what is
//! wrong with the rest; it reads names, sizes and the tools' own notes, never weights, and writes nothing unless a
//! model of it is to be removed.

mod hub_cache;
mod llama_cpp;
mod lm_studio;
mod modelfile;
mod models_dir;
mod ollama;
mod packages;

use std::cell::OnceCell;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::found::{Extras, Fault, Source};
use super::name::Name;
use super::{Bytes, StoreError, StoreOptions, folders};

/// A folder in which one tool keeps models.
pub(super) trait Place {
    fn source(&self) -> Source;

    fn folder(&self) -> &Path;

    /// Everything that is, or was to be, a model.
    fn look(&self) -> Look;

    /// The model of exactly this name, if that can be told without looking at all of them. `text` is the name as it
    /// was written.
    fn find(&self, _text: &str, _: &Name) -> Option<Found> {
        None
    }

    /// Deletes what lies at a path that `look` or `find` gave for the name; says how many bytes that frees.
    fn remove(&self, _: &Name, path: &Path) -> Result<u64, StoreError> {
        let bytes = delete(path)?;
        prune(path, self.folder());
        Ok(bytes)
    }
}

/// A place that is looked at once.
pub(super) struct Looked {
    pub(super) place: Box<dyn Place>,
    look: OnceCell<Look>,
}

impl Looked {
    /// Of a place that cannot be read nothing is told but that, by `Store::folders`.
    pub(super) fn look(&self) -> &Look {
        self.look.get_or_init(|| match fs::read_dir(self.place.folder()) {
            Ok(_) => self.place.look(),
            Err(_) => Look::default(),
        })
    }

    /// The model of exactly this name: whatever `look` calls so is found.
    pub(super) fn find(&self, text: &str, name: &Name) -> Option<Found> {
        self.place.find(text, name).or_else(|| self.look().named(text).cloned())
    }
}

/// What a place holds.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) models: Vec<Found>,
    pub(super) broken: Vec<Broken>,
}

#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) name: String,
    /// Other names.
    pub(super) aliases: Vec<String>,
    /// Of a GGUF file, the name of what holds it and perhaps others.
    pub(super) base: Option<String>,
    pub(super) path: PathBuf,
    pub(super) extras: Extras,
}

/// What was to be a model. Clients are told why it is none, so that has no paths in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) fault: Fault,
}

impl Found {
    pub(super) fn new(name: impl Into<String>, path: PathBuf) -> Self {
        let (name, extras) = (name.into(), Extras::default());
        Self { name, aliases: Vec::new(), base: None, path, extras }
    }
}

impl Look {
    pub(super) fn model(&mut self, name: impl Into<String>, path: PathBuf) {
        self.models.push(Found::new(name, path));
    }

    pub(super) fn broken(
        &mut self,
        name: impl Into<String>,
        path: PathBuf,
        fault: impl Into<Fault>,
    ) {
        self.broken.push(Broken { name: name.into(), path, fault: fault.into() });
    }

    /// What is in a folder that may hold models. One that cannot be read is told under `name`.
    pub(super) fn children(&mut self, name: &str, folder: &Path) -> Vec<(String, PathBuf)> {
        folders::try_children(folder).unwrap_or_else(|error| {
            // Files lie in between, and what is gone has nothing to tell.
            if !matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::NotFound) {
                self.broken(name, folder.to_owned(), format!("its folder cannot be read: {error}"));
            }
            Vec::new()
        })
    }

    /// By its exact name, or else like a repository on the hub: with a file's tag in any case, and without one if there
    /// is but one file.
    fn named(&self, text: &str) -> Option<&Found> {
        let exact = |model: &&Found| model.name == text || model.aliases.iter().any(|a| a == text);
        self.models.iter().find(exact).or_else(|| {
            let (base, tag) = text.split_once(':').unzip();
            let mut files = self.models.iter().filter(|model| {
                let file = model.path.file_name().and_then(|file| file.to_str());
                let is_meant = |file| tag.is_none_or(|tag| folders::is_tagged(file, tag));
                model.base.as_deref() == base.or(Some(text)) && file.is_some_and(is_meant)
            });
            files.next().filter(|_| files.next().is_none())
        })
    }

    pub(super) fn extend(&mut self, other: Look) {
        self.models.extend(other.models);
        self.broken.extend(other.broken);
    }
}

/// All of them, in the order in which a name is looked for: the user's own folder first.
pub(super) fn all(options: &StoreOptions) -> Vec<Looked> {
    let mut places: Vec<Box<dyn Place>> = Vec::new();
    if let Some(folder) = &options.models_dir {
        places.push(Box::new(models_dir::ModelsDir(folder.clone())));
    }
    places.push(Box::new(packages::Packages::new(options)));
    places.push(Box::new(hub_cache::HubCache(options.hub_cache.clone())));
    for folder in options.lm_studio.iter().chain(&options.lm_studio_others) {
        places.push(Box::new(lm_studio::LmStudio(folder.clone())));
    }
    // It may be told to use that very folder.
    if let Some(folder) = options.llama_cpp.as_ref().filter(|own| **own != options.hub_cache) {
        places.push(Box::new(llama_cpp::LlamaCpp(folder.clone())));
    }
    for folder in &options.ollama {
        places.push(Box::new(ollama::Ollama(folder.clone())));
    }
    places.into_iter().map(|place| Looked { place, look: OnceCell::new() }).collect()
}

/// Half a sentence.
fn wrong_size(bytes: u64, expected: u64) -> String {
    let (found, wanted) = (Bytes(bytes).to_string(), Bytes(expected).to_string());
    if found == wanted {
        format!("it has {bytes} bytes, not {expected}")
    } else {
        format!("it has {found} of {wanted}")
    }
}

/// Deletes a file or a folder, of a model in several parts all of them; of a link the link alone.
pub(super) fn delete(path: &Path) -> Result<u64, StoreError> {
    let files = folders::files_of(path);
    let there = |file: &&PathBuf| file.exists() || file.is_symlink();
    // Of what is gone the error tells.
    match files.iter().filter(there).collect::<Vec<_>>().as_slice() {
        [] => delete_one(path),
        files => files.iter().map(|file| delete_one(file)).sum(),
    }
}

fn delete_one(path: &Path) -> Result<u64, StoreError> {
    let meta = fs::symlink_metadata(path).map_err(StoreError::io("read", path))?;
    let bytes = if meta.is_dir() { bytes_below(path) } else { meta.len() };
    let removed = if meta.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(StoreError::io("remove", path))?;
    Ok(bytes)
}

/// Removes the folders above `path` that have become empty, up to `root`, which stays.
fn prune(path: &Path, root: &Path) {
    for folder in path.ancestors().skip(1) {
        // A folder that is not empty cannot be removed, and ends it.
        if folder == root || !folder.starts_with(root) || fs::remove_dir(folder).is_err() {
            return;
        }
    }
}

/// What deleting a folder frees: links are not followed.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) if meta.is_file() => meta.len(),
        _ => 0,
    };
    entries.flatten().map(size).sum()
}
