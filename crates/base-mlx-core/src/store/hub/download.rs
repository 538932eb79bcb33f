use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use reqwest::header::{self, HeaderValue};

use super::super::{StoreError, space};
use super::http::{Answer, Failure, Header, Metadata, RemoteFile, To, text};
use super::tally::Share;
use super::{Pull, ranges, stream};

/// Brings one file of a commit into the cache, if it is not there.
pub(super) fn fetch(pull: &Pull, file: &RemoteFile) -> Result<(), StoreError> {
    let (hub, cache, commit) = (pull.hub, pull.cache, &pull.listing.commit);
    let share = Share::new(pull.tally, pull.bytes_here(file));
    let mut metadata = hub.metadata(commit, file)?;
    let mut is_first = true;
    loop {
        let on_wait = || share.message(&format!("waiting for another pull of {}", file.path));
        let lock = cache.lock(&metadata.etag, || hub.lanes.has_failed(), on_wait)?;
        let Some(_lock) = lock else { return Err(hub.in_vain().error) };
        let blob = cache.blob(&metadata.etag);
        if blob.is_file() {
            share.set(metadata.size);
        } else {
            let download = Download { pull, file, metadata: &metadata, share: &share };
            match download.run() {
                Ok(whole) => {
                    fs::rename(&whole, &blob).map_err(StoreError::io("write", &blob))?;
                    blob.parent().into_iter().for_each(space::sync_folder);
                }
                // The piece of an earlier pull may be at fault, or the file may have changed.
                Err(error @ StoreError::Corrupt { .. }) if is_first => {
                    is_first = false;
                    share.message(&format!("{error}; trying again from its beginning"));
                    metadata = hub.metadata(commit, file)?;
                    continue;
                }
                Err(error) => return Err(error),
            }
        }
        // What other ways to the same content have begun.
        for left in [cache.incomplete(&metadata.etag), cache.ranges(&metadata.etag)] {
            let _ = fs::remove_file(left);
        }
        return cache.link(commit, &file.path, &metadata.etag).map(|_| ());
    }
}

/// A file that is not here, and what it must become.
pub(super) struct Download<'a> {
    pub(super) pull: &'a Pull<'a>,
    pub(super) file: &'a RemoteFile,
    pub(super) metadata: &'a Metadata,
    pub(super) share: &'a Share<'a>,
}

impl Download<'_> {
    /// Fills a file until it is what the metadata says, or deletes it.
    fn run(&self) -> Result<PathBuf, StoreError> {
        let incomplete = self.pull.cache.incomplete(&self.metadata.etag);
        if let Some(folder) = incomplete.parent() {
            fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
        }
        let size = self.metadata.size;
        let is_divided = size > self.pull.options.hub_range_bytes && !self.metadata.is_indivisible;
        // Without a hash nothing would tell whether the pieces fit.
        if let Some(digest) = self.metadata.digest.as_ref().filter(|_| is_divided)
            && let Some(whole) = ranges::run(self, digest.hasher(size), &incomplete)?
        {
            return Ok(whole);
        }
        stream::run(self, &incomplete)?;
        Ok(incomplete)
    }

    /// Asks for the whole content, or for `range` of it, which is written as in HTTP.
    pub(super) fn request(&self, range: Option<&str>) -> Result<Answer<'_>, Failure> {
        let mut headers: Vec<Header> = Vec::new();
        if let Some(range) = range {
            let range = HeaderValue::try_from(format!("bytes={range}")).expect("digits and a dash");
            headers.push((header::RANGE, range, To::Anybody));
            // The storage has ETags of its own; there the hash decides whether the pieces fit.
            if let Ok(etag) = HeaderValue::try_from(format!("\"{}\"", self.metadata.etag)) {
                headers.push((header::IF_RANGE, etag, To::Hub));
            }
        }
        let hub = self.pull.hub;
        let url = hub.file_url(&self.pull.listing.commit, &self.file.path);
        let answer = hub.get(&url, &headers)?;
        self.check_etag(&answer)?;
        Ok(answer)
    }

    /// The hub must still be speaking of the same content. An ETag of the mere answer counts only where no hash
    /// will tell: mirrors have their own.
    fn check_etag(&self, answer: &Answer) -> Result<(), StoreError> {
        let has_hash = self.metadata.digest.is_some();
        let plain =
            || text(answer.response.headers(), "etag").filter(|_| answer.at_hub && !has_hash);
        let etag = answer.linked_etag.as_deref().or_else(plain);
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        match etag.filter(|etag| *etag != self.metadata.etag) {
            None => Ok(()),
            Some(found) => {
                let expected = self.metadata.etag.clone();
                Err(self.corrupt("its ETag", expected, found.to_owned()))
            }
        }
    }

    /// Whether the part that came is the one that was asked for. Its end may be nearer; its beginning and the whole
    /// may not differ.
    pub(super) fn check_range(
        &self,
        answer: &Answer,
        wanted: &Range<u64>,
    ) -> Result<(), StoreError> {
        let found = text(answer.response.headers(), "content-range").unwrap_or("missing");
        let parse = |text: &str| {
            let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
            let (start, end) = range.split_once('-')?;
            Some((start.parse().ok()?, end.parse::<u64>().ok()?, total.parse().ok()?))
        };
        match parse(found) {
            Some((start, end, total))
                if (start, total) == (wanted.start, self.metadata.size) && end < wanted.end =>
            {
                Ok(())
            }
            _ => {
                let Range { start, end } = wanted;
                let expected = format!("bytes {start}-{}/{}", end - 1, self.metadata.size);
                Err(self.corrupt("its range", expected, found.to_owned()))
            }
        }
    }

    /// Deletes what turned out not to be the content.
    pub(super) fn check_digest(&self, path: &Path, found: String) -> Result<(), StoreError> {
        match &self.metadata.digest {
            Some(digest) if found != digest.hex() => {
                let _ = fs::remove_file(path);
                Err(self.corrupt(digest.kind(), digest.hex().to_owned(), found))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn corrupt(
        &self,
        what: &'static str,
        expected: String,
        found: String,
    ) -> StoreError {
        StoreError::Corrupt { file: self.file.path.clone(), what, expected, found }
    }
}

/// Enough to call the next failure the first one: a connection that drops now and then will do for a large file; one
/// that gives a byte each time will not.
pub(super) const ENOUGH_BYTES: u64 = 1 << 20;
