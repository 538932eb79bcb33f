//! Pulling from the Hugging Face hub into the cache folder of its own tools, so that nothing is fetched twice.

pub(super) mod cache;
mod download;
mod http;
pub(super) mod select;

use std::fs;
use std::path::PathBuf;

use super::name::HubName;
use super::{Progress, StoreError, StoreOptions, folders, space};
use cache::RepoCache;
use http::{Hub, Listing, RemoteFile};
use select::Weights;

/// Fetches what is missing of a model, and returns its folder or its GGUF file.
pub(super) fn pull(
    options: &StoreOptions,
    name: &HubName,
    progress: &dyn Progress,
) -> Result<PathBuf, StoreError> {
    let hub = Hub::new(options, name)?;
    let listing = hub.listing()?;
    let selection = select::select(&listing.files, name)?;
    let cache = RepoCache::new(&options.hub_cache, &name.repo);
    let pull = Pull { options, hub: &hub, cache: &cache, listing: &listing, progress };
    let snapshot = cache.snapshot(&listing.commit);
    pull.fetch(&selection.small)?;
    let path = match selection.weights {
        Weights::Gguf(file) => {
            pull.fetch(&[file])?;
            snapshot.join(&file.path)
        }
        Weights::Safetensors(files) => {
            pull.fetch(&files)?;
            snapshot
        }
        Weights::Indexed => {
            pull.fetch(&pull.shards(&name.repo)?)?;
            snapshot
        }
    };
    // The last step: until here, the name means what it meant before.
    cache.write_ref(name.revision(), &listing.commit)?;
    Ok(path)
}

struct Pull<'a> {
    options: &'a StoreOptions,
    hub: &'a Hub<'a>,
    cache: &'a RepoCache,
    listing: &'a Listing,
    progress: &'a dyn Progress,
}

impl Pull<'_> {
    fn fetch(&self, files: &[&RemoteFile]) -> Result<(), StoreError> {
        let snapshot = self.cache.snapshot(&self.listing.commit);
        let missing: Vec<_> =
            files.iter().filter(|file| !snapshot.join(&file.path).exists()).collect();
        let needed: u64 = missing.iter().map(|file| self.bytes_to_come(file)).sum();
        space::check(self.options, &self.cache.folder(), needed)?;
        missing.iter().try_for_each(|file| {
            download::fetch(self.hub, self.cache, &self.listing.commit, file, self.progress)
        })
    }

    /// Less than the file's size if a part of it is here.
    fn bytes_to_come(&self, file: &RemoteFile) -> u64 {
        let here = file.etag().and_then(|etag| {
            let paths = [self.cache.blob(etag), self.cache.incomplete(etag)];
            paths.iter().find_map(|path| fs::metadata(path).ok()).map(|meta| meta.len())
        });
        file.size.unwrap_or(0).saturating_sub(here.unwrap_or(0))
    }

    /// The weight files that the index names.
    fn shards(&self, repo: &str) -> Result<Vec<&RemoteFile>, StoreError> {
        let unusable = |why: String| StoreError::Unusable { repo: repo.to_owned(), why };
        let index = self.cache.snapshot(&self.listing.commit).join(folders::INDEX);
        let shards = folders::shards(&index)
            .ok_or_else(|| unusable(format!("{} names no files", folders::INDEX)))?;
        let find = |shard: &String| {
            let mut files = self.listing.files.iter();
            files.find(|file| file.path == *shard).ok_or_else(|| {
                unusable(format!("{} names `{shard}`, which is missing", folders::INDEX))
            })
        };
        shards.iter().map(find).collect()
    }
}
