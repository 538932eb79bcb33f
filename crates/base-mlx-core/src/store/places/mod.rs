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

use std::fs;
use std::path::{Path, PathBuf};

use super::found::{Extras, Source};
use super::name::Name;
use super::{Bytes, StoreError, StoreOptions};

/// A folder in which one tool keeps models.
pub(super) trait Place {
    fn source(&self) -> Source;

    fn folder(&self) -> &Path;

    /// Everything that is, or was to be, a model.
    fn look(&self) -> Look;

    /// The model of exactly this name. `text` is the name as it was written.
    fn find(&self, text: &str, _: &Name) -> Option<Found> {
        let mut models = self.look().models.into_iter();
        models.find(|model| model.name == text)
    }

    /// Deletes what lies at a path that `look` or `find` gave for the name; says how many bytes that frees.
    fn remove(&self, _: &Name, path: &Path) -> Result<u64, StoreError> {
        let bytes = delete(path)?;
        prune(path, self.folder());
        Ok(bytes)
    }
}

/// What a place holds.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) models: Vec<Found>,
    pub(super) broken: Vec<Broken>,
}

#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: String,
    /// Other names, which `find` knows too.
    pub(super) aliases: Vec<String>,
    pub(super) path: PathBuf,
    pub(super) extras: Extras,
}

/// What was to be a model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Half a sentence, without paths: clients are told, too.
    pub(super) why: String,
}

impl Found {
    pub(super) fn new(name: impl Into<String>, path: PathBuf) -> Self {
        Self { name: name.into(), aliases: Vec::new(), path, extras: Extras::default() }
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
        why: impl Into<String>,
    ) {
        self.broken.push(Broken { name: name.into(), path, why: why.into() });
    }

    pub(super) fn extend(&mut self, other: Look) {
        self.models.extend(other.models);
        self.broken.extend(other.broken);
    }
}

/// All of them, in the order in which a name is looked for: the user's own folder first.
pub(super) fn all(options: &StoreOptions) -> Vec<Box<dyn Place>> {
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
    places
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

/// Of a link the link alone.
pub(super) fn delete(path: &Path) -> Result<u64, StoreError> {
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
