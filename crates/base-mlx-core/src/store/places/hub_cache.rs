use std::path::{Path, PathBuf};

use super::super::folders::{self, Demand};
use super::super::hub::cache::{self, RepoCache};
use super::super::name::Name;
use super::super::{Fault, StoreError};
use super::{Found, Look, Place, Source, delete};

/// The cache of Hugging Face's tools, which pulls go to as well.
pub(super) struct HubCache(pub(super) PathBuf);

impl Place for HubCache {
    fn source(&self) -> Source {
        Source::HubCache
    }

    fn folder(&self) -> &Path {
        &self.0
    }

    fn look(&self) -> Look {
        look(&self.0)
    }

    fn find(&self, text: &str, name: &Name) -> Option<Found> {
        find(&self.0, text, name)
    }
}

pub(super) fn find(hub_cache: &Path, text: &str, name: &Name) -> Option<Found> {
    let Name::Hub(hub) = name else { return None };
    Some(Found::new(text, cache::find(hub_cache, hub)?))
}

/// The folder of the repository in which `path` lies.
pub(super) fn repository_of(hub_cache: &Path, path: &Path) -> Option<PathBuf> {
    let first = path.strip_prefix(hub_cache).ok()?.components().next()?;
    let name = first.as_os_str();
    name.to_string_lossy().starts_with("models--").then(|| hub_cache.join(name))
}

/// Removes what `look` found at `path`: of a file its blob, too, else the whole repository.
pub(super) fn remove(repository: &Path, path: &Path) -> Result<u64, StoreError> {
    if path.is_dir() {
        return delete(repository);
    }
    let within = repository.canonicalize().ok();
    // Where there are no links the file is its own blob.
    let files = folders::files_of(path).into_iter().filter(|file| file.is_symlink());
    let blobs: Vec<PathBuf> = files.filter_map(|file| file.canonicalize().ok()).collect();
    let mut bytes = delete(path)?;
    for blob in blobs {
        // What a link leads to elsewhere is not the hub's.
        if within.as_ref().is_some_and(|within| blob.starts_with(within)) {
            bytes += delete(&blob)?;
        }
    }
    Ok(bytes)
}

/// Each repository at its `main`: `owner/name`, or `owner/name:TAG` for GGUF files. The hub's oldest models have no owner.
/// Data sets lie in other folders, and what is no language model has no config.json of its own.
pub(super) fn look(hub_cache: &Path) -> Look {
    let mut look = Look::default();
    for (folder, path) in folders::children(hub_cache) {
        let Some(rest) = folder.strip_prefix("models--") else { continue };
        let id = rest.replacen("--", "/", 1);
        if !look.children(&id, &path).is_empty() {
            look.extend(repository(&id, path, &RepoCache::new(hub_cache, &id)));
        }
    }
    look
}

fn repository(id: &str, folder: PathBuf, repo: &RepoCache) -> Look {
    let mut look = Look::default();
    let snapshot = repo.commit("main").map(|commit| repo.snapshot(&commit));
    let Some(snapshot) = snapshot.filter(|snapshot| snapshot.is_dir()) else {
        if repo.has_incomplete() {
            look.broken(id, folder, folders::HALF);
        } else if folder.join("refs/main").exists() {
            look.broken(id, folder, "its branch `main` leads to a version that is not there");
        }
        return look;
    };
    if folders::is_model_folder(&snapshot, Demand::Complete) {
        look.model(id, snapshot.clone());
    }
    look.extend(folders::tagged_ggufs(id, &snapshot));
    if look.models.is_empty()
        && look.broken.is_empty()
        && let Some(fault) = fault(&snapshot, repo)
    {
        look.broken(id, snapshot, fault);
    }
    look
}

/// What is wrong with a commit that holds no model, if it was to hold one. Who fetched a config and a tokenizer alone
/// wanted none, and what has no tokenizer is for images or sounds.
fn fault(snapshot: &Path, repo: &RepoCache) -> Option<Fault> {
    let files = folders::children(snapshot);
    let has = |wanted: &str| files.iter().any(|(name, _)| name == wanted);
    let is_weights = |name: &str| {
        name == folders::INDEX || name.ends_with(".safetensors") || name == "pytorch_model.bin"
    };
    if has("model_index.json") {
        // Of an image model, in parts.
        return None;
    }
    let of_text = has("config.json") && folders::TOKENIZERS.iter().any(|file| has(file));
    let why = match of_text && files.iter().any(|(name, _)| is_weights(name)) {
        true if folders::has_config(snapshot) => folders::lacks(snapshot),
        true => Some("its `config.json` is a link to a file that is not there".into()),
        false => None,
    };
    match (repo.has_incomplete(), why) {
        (true, Some(Fault { why, .. })) => Some(format!("{}: {why}", folders::HALF).into()),
        (true, None) => Some(folders::HALF.into()),
        (false, fault) => fault,
    }
}
