use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::hub::cache::RepoCache;
use super::lock::Lock;
use super::name::{HubName, Name, PipName};
use super::{ModelSource, Source, Store, StoreError, folders, pip, places};

/// What `Store::remove` deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
}

/// What becomes of models that no pull has brought.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Others {
    Stay,
    Go,
}

impl Store {
    /// Deletes a model that a pull brought: a pip package's from our own cache, or a whole repository, half
    /// pulled ones included, from the hub's. Of a repository with several GGUF files, `owner/name:TAG` is one.
    /// What belongs to another tool or to the user stays.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        self.remove_with(name, Others::Stay)
    }

    /// The same, of whatever tool it is, broken ones included. What a path names stays all the same.
    pub fn remove_forced(&self, name: &str) -> Result<Removed, StoreError> {
        self.remove_with(name, Others::Go)
    }

    fn remove_with(&self, name: &str, others: Others) -> Result<Removed, StoreError> {
        let parsed = Name::parse(name)?;
        if others == Others::Go {
            self.check_one_place(name, &parsed)?;
        }
        let found = match self.find(name) {
            Ok(found) => Some((found.path, found.source)),
            Err(StoreError::Broken { path, place, .. }) => Some((path, place)),
            // A pull could bring it, so it may be half there: in the hub's cache, or in another tool's.
            Err(StoreError::NotFound { .. }) => match self.broken(name) {
                _ if matches!(&parsed, Name::Hub(hub) if self.has_repo(hub)) => None,
                Some(StoreError::Broken { path, place, .. }) if others == Others::Go => {
                    Some((path, place)).filter(|_| place.owner().is_some())
                }
                _ => None,
            },
            Err(error) => return Err(error),
        };
        if let Some((path, source)) = &found
            && let Some(owner) = source.owner()
        {
            if others == Others::Stay || *source == Source::Path {
                let (name, path) = (name.to_owned(), path.clone());
                return Err(StoreError::NotOurs { name, path, owner });
            }
            return self.remove_from_place(name, &parsed, path, *source);
        }
        let wanted = found.map(|(_, source)| source);
        match &parsed {
            Name::Pip(pip) => self.remove_pip(name, pip),
            Name::Hub(hub) => self.remove_hub(name, hub),
            _ if wanted == Some(Source::HubCache) && self.options.catalogue.get(name).is_none() => {
                self.remove_hub(name, &HubName::in_cache(name))
            }
            Name::Path(_) | Name::Ollama(_) => Err(self.not_found(name)),
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

    /// Fails if the name means one thing and something broken elsewhere has it too: which of both is to go?
    fn check_one_place(&self, name: &str, parsed: &Name) -> Result<(), StoreError> {
        let Some(StoreError::Broken { path: broken, place, .. }) = self.broken(name) else {
            return Ok(());
        };
        let other = match self.find(name) {
            Ok(found) => Some(found.path).filter(|path| *path != broken),
            Err(_) => match parsed {
                Name::Hub(hub) if place != Source::HubCache && self.has_repo(hub) => {
                    Some(RepoCache::new(&self.options.hub_cache, &hub.repo).folder())
                }
                _ => None,
            },
        };
        match other {
            None => Ok(()),
            Some(other) => Err(StoreError::TwoPlaces { name: name.to_owned(), other, broken }),
        }
    }

    /// Deletes what another tool has.
    fn remove_from_place(
        &self,
        text: &str,
        name: &Name,
        path: &Path,
        source: Source,
    ) -> Result<Removed, StoreError> {
        let all = places::all(&self.options);
        let mut places = all.iter().map(|looked| &looked.place).filter(|it| it.source() == source);
        let place = places.find(|place| path.starts_with(place.folder()));
        let place = place.ok_or_else(|| self.not_found(text))?;
        check_within(path, place.folder())?;
        let bytes = place.remove(name, path)?;
        Ok(Removed { name: text.to_owned(), path: path.to_owned(), bytes })
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
        self.delete(name, path)
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
            return self.delete(name, path);
        }
        let file = super::hub::cache::find(&self.options.hub_cache, hub);
        let file = file.or_else(|| match self.broken(name)? {
            StoreError::Broken { path, place: Source::HubCache, .. } => Some(path),
            _ => None,
        });
        let file = file.ok_or_else(|| self.not_found(name))?;
        // The blob goes, and with it every commit's view of it. A broken link has none, and what a link leads to elsewhere
        // is not the hub's.
        let within = path.canonicalize().ok();
        let mut bytes = 0;
        for file in folders::files_of(&file) {
            let blob = file.canonicalize().ok();
            let blob =
                blob.filter(|blob| within.as_ref().is_some_and(|root| blob.starts_with(root)));
            bytes +=
                blob.as_ref().map_or(0, |blob| fs::metadata(blob).map_or(0, |meta| meta.len()));
            for path in [Some(&file), blob.as_ref()].into_iter().flatten() {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(StoreError::io("remove", path)(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(Removed { name: name.to_owned(), path: file, bytes })
    }

    fn delete(&self, name: &str, path: PathBuf) -> Result<Removed, StoreError> {
        let bytes = places::delete(&path)?;
        Ok(Removed { name: name.to_owned(), path, bytes })
    }
}

/// Fails if what lies there is somewhere else, behind a link to a folder: that is not the place's own.
fn check_within(path: &Path, folder: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(path);
    let (Ok(parent), Ok(folder)) = (parent.canonicalize(), folder.canonicalize()) else {
        // What is not there is told by whoever is to remove it.
        return Ok(());
    };
    if parent.starts_with(&folder) {
        return Ok(());
    }
    let (parent, folder) = (parent.display(), folder.display());
    let why = format!("a link leads from {folder} to {parent}; remove the file there, or the link");
    Err(StoreError::io("remove", path)(io::Error::other(why)))
}

fn hold(name: &str, lock: &Path) -> Result<Lock, StoreError> {
    Lock::try_acquire(lock)
        .map_err(StoreError::io("lock", lock))?
        .ok_or_else(|| StoreError::Busy { name: name.to_owned() })
}
