//! Pulling from the Hugging Face hub into the cache folder of its own tools, so that nothing is fetched twice.

pub(super) mod cache;
mod client;
mod download;
mod http;
mod lanes;
mod pieces;
mod ranges;
pub(super) mod select;
mod stream;
mod tally;

use std::fs;
use std::path::PathBuf;

use super::name::HubName;
use super::{Progress, StoreError, StoreOptions, folders, space};
use cache::RepoCache;
use http::{Hub, Listing, RemoteFile};
use pieces::Pieces;
use select::Weights;
use tally::Tally;

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
    let tally = Tally::new(progress, name.to_string());
    let pull = Pull { options, hub: &hub, cache: &cache, listing: &listing, tally: &tally };
    let snapshot = cache.snapshot(&listing.commit);
    pull.count(&selection.small, selection.weights.files());
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
        Weights::Indexed(likely) => {
            let shards = pull.shards(&name.repo)?;
            if shards.iter().map(|file| &file.path).ne(likely.iter().map(|file| &file.path)) {
                pull.count(&selection.small, &shards);
            }
            pull.fetch(&shards)?;
            snapshot
        }
    };
    // The last step: until here, the name means what it meant before.
    cache.write_ref(name.revision(), &listing.commit)?;
    tally.finish();
    Ok(path)
}

struct Pull<'a> {
    options: &'a StoreOptions,
    hub: &'a Hub<'a>,
    cache: &'a RepoCache,
    listing: &'a Listing,
    tally: &'a Tally<'a>,
}

impl Pull<'_> {
    /// Begins to tell of the progress, if there is any to be made.
    fn count(&self, small: &[&RemoteFile], weights: &[&RemoteFile]) {
        let files = || small.iter().chain(weights).copied();
        if files().any(|file| self.is_missing(file)) {
            let here = files().map(|file| self.bytes_here(file)).sum();
            self.tally.begin(files().map(|file| file.size).sum(), here);
        }
    }

    /// Several at once.
    fn fetch(&self, files: &[&RemoteFile]) -> Result<(), StoreError> {
        let missing: Vec<_> = files.iter().filter(|file| self.is_missing(file)).collect();
        let needed: u64 = missing
            .iter()
            .map(|file| file.size.unwrap_or(0).saturating_sub(self.bytes_here(file)))
            .sum();
        space::check(self.options, &self.cache.folder(), needed)?;
        self.hub.lanes.each(FILES_AT_ONCE, missing, |file| download::fetch(self, file))
    }

    fn is_missing(&self, file: &RemoteFile) -> bool {
        !self.cache.snapshot(&self.listing.commit).join(&file.path).exists()
    }

    /// What need not be fetched any more, as far as can be told from the list.
    fn bytes_here(&self, file: &RemoteFile) -> u64 {
        let Some(size) = file.size else { return 0 };
        if !self.is_missing(file) {
            return size;
        }
        let here = file.etag().map_or(0, |etag| {
            let paths = [self.cache.blob(etag), self.cache.incomplete(etag)];
            let lens = paths.iter().filter_map(|path| fs::metadata(path).ok());
            let longest = lens.map(|meta| meta.len()).max().unwrap_or(0);
            longest.max(Pieces::bytes_here(&self.cache.ranges(etag), size))
        });
        here.min(size)
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

/// What a large file does not use of the connections is for others.
const FILES_AT_ONCE: usize = 4;
