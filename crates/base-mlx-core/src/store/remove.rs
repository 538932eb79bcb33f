use std::fs;
use std::path::{Path, PathBuf};

use super::hub::cache::RepoCache;
use super::lock::Lock;
use super::name::{HubName, Name, PipName};
use super::{ModelSource, Source, Store, StoreError, folders, pip};

/// What `Store::remove` deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
}

impl Store {
    /// Deletes a model that a pull brought: a pip package's from our own cache, or a whole repository, half
    /// pulled ones included, from the hub's. Of a repository with several GGUF files, `owner/name:TAG` is one.
    /// What belongs to another tool or to the user stays.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let parsed = Name::parse(name)?;
        let found = match self.find(name) {
            Ok(found) => Some(found),
            Err(StoreError::NotFound { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(found) = &found {
            let owner = match found.source {
                Source::ModelsDir => "the models folder",
                Source::LmStudio => "LM Studio",
                Source::Path => "you, as a path was given",
                Source::Pip | Source::HubCache => "",
            };
            if !owner.is_empty() {
                let (name, path) = (name.to_owned(), found.path.clone());
                return Err(StoreError::NotOurs { name, path, owner });
            }
        }
        let wanted = found.map(|found| found.source);
        match &parsed {
            Name::Pip(pip) => self.remove_pip(name, pip),
            Name::Hub(hub) => self.remove_hub(name, hub),
            Name::Path(_) => Err(self.not_found(name)),
            Name::Word(word) => {
                let sources = self.options.catalogue.get(word).map(|entry| &entry.sources);
                for source in sources.into_iter().flatten() {
                    match (source, source.hub(), wanted) {
                        (_, Some(hub), Some(Source::HubCache) | None) if self.has_repo(&hub) => {
                            return self.remove_hub(name, &hub);
                        }
                        (ModelSource::Pip(pip), _, Some(Source::Pip)) => {
                            return self.remove_pip(name, &pip.name());
                        }
                        _ => {}
                    }
                }
                Err(self.not_found(name))
            }
        }
    }

    fn has_repo(&self, hub: &HubName) -> bool {
        RepoCache::new(&self.options.hub_cache, &hub.repo).folder().is_dir()
    }

    fn remove_pip(&self, name: &str, pip: &PipName) -> Result<Removed, StoreError> {
        let path = pip::folder(&self.options.home, pip);
        if !path.is_dir() {
            return Err(self.not_found(name));
        }
        let lock = pip::lock_path(&self.options.home, pip);
        let _held = hold(name, &lock)?;
        delete(name, &path)
    }

    fn remove_hub(&self, name: &str, hub: &HubName) -> Result<Removed, StoreError> {
        if let Some(revision) = &hub.revision {
            let why = format!("without `@{revision}` it can be removed, with all its revisions");
            return Err(StoreError::Name { name: name.to_owned(), why });
        }
        let repo = RepoCache::new(&self.options.hub_cache, &hub.repo);
        let path = repo.folder();
        if !path.is_dir() {
            return Err(self.not_found(name));
        }
        let held: Result<Vec<_>, _> =
            folders::children(&repo.locks()).iter().map(|(_, lock)| hold(name, lock)).collect();
        let _held = held?;
        if hub.file_tag.is_none() {
            return delete(name, &path);
        }
        let file = super::hub::cache::find(&self.options.hub_cache, hub);
        let file = file.ok_or_else(|| self.not_found(name))?;
        let bytes = folders::bytes(&file);
        // The blob goes, and with it every commit's view of it.
        let blob = file.canonicalize().map_err(StoreError::io("read", &file))?;
        for path in [&file, &blob] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::io("remove", path)(error));
                }
                _ => {}
            }
        }
        Ok(Removed { name: name.to_owned(), path: file, bytes })
    }
}

fn hold(name: &str, lock: &Path) -> Result<Lock, StoreError> {
    Lock::try_acquire(lock)
        .map_err(StoreError::io("lock", lock))?
        .ok_or_else(|| StoreError::Busy { name: name.to_owned() })
}

fn delete(name: &str, path: &Path) -> Result<Removed, StoreError> {
    let bytes = bytes_below(path);
    fs::remove_dir_all(path).map_err(StoreError::io("remove", path))?;
    Ok(Removed { name: name.to_owned(), path: path.to_owned(), bytes })
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
