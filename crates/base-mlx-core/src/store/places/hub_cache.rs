use std::path::{Path, PathBuf};

use super::super::folders::{self, Demand};
use super::super::hub::cache::{self, RepoCache};
use super::super::name::Name;
use super::{Found, Look, Place, Source};

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

/// Each repository at its `main`: `owner/name`, or `owner/name:TAG` for GGUF files. Data sets lie in other folders, and
/// what is no language model has no config.json of its own.
pub(super) fn look(hub_cache: &Path) -> Look {
    let mut look = Look::default();
    for (folder, path) in folders::children(hub_cache) {
        let parts = folder.strip_prefix("models--").and_then(|rest| rest.split_once("--"));
        if let Some((owner, name)) = parts {
            let id = format!("{owner}/{name}");
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
        && let Some(why) = fault(&snapshot, repo)
    {
        look.broken(id, snapshot, why);
    }
    look
}

/// What is wrong with a commit that holds no model, if it was to hold one. Who fetched a config and a tokenizer alone
/// wanted none.
fn fault(snapshot: &Path, repo: &RepoCache) -> Option<String> {
    let files = folders::children(snapshot);
    let has = |wanted: &str| files.iter().any(|(name, _)| name == wanted);
    let is_weights = |name: &str| {
        name == folders::INDEX || name.ends_with(".safetensors") || name == "pytorch_model.bin"
    };
    if has("model_index.json") {
        // Of an image model, in parts.
        return None;
    }
    let coming = repo.has_incomplete();
    if !has("config.json") || !files.iter().any(|(name, _)| is_weights(name)) {
        return coming.then(|| folders::HALF.to_owned());
    }
    let why = match folders::has_config(snapshot) {
        true => folders::lacks(snapshot)?,
        false => "its `config.json` is a link to a file that is not there".to_owned(),
    };
    Some(if coming { format!("{}: {why}", folders::HALF) } else { why })
}
