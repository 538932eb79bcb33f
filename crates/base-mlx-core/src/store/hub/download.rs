use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use reqwest::StatusCode;
use reqwest::header::{self, HeaderValue};

use super::super::digest::Hasher;
use super::super::{Progress, StoreError, space};
use super::cache::RepoCache;
use super::http::{Answer, Failure, Hub, Metadata, RemoteFile, Retry, To, text};

/// Brings one file of a commit into the cache, if it is not there.
pub(super) fn fetch(
    hub: &Hub,
    cache: &RepoCache,
    commit: &str,
    file: &RemoteFile,
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    let mut metadata = hub.metadata(commit, file)?;
    let mut is_first = true;
    loop {
        let _lock = cache.lock(&metadata.etag, || {
            progress.message(&format!("waiting for another pull of {}", file.path));
        })?;
        let blob = cache.blob(&metadata.etag);
        let link = || cache.link(commit, &file.path, &metadata.etag).map(|_| ());
        if blob.is_file() {
            return link();
        }
        let incomplete = cache.incomplete(&metadata.etag);
        let download = Download { hub, commit, file, metadata: &metadata, progress };
        match download.run(&incomplete) {
            Ok(()) => {
                fs::rename(&incomplete, &blob).map_err(StoreError::io("write", &blob))?;
                blob.parent().into_iter().for_each(space::sync_folder);
                return link();
            }
            // The piece of an earlier pull may be at fault, or the file may have changed.
            Err(error @ StoreError::Corrupt { .. }) if is_first => {
                is_first = false;
                progress.message(&format!("{error}; trying again from its beginning"));
            }
            Err(error) => return Err(error),
        }
        metadata = hub.metadata(commit, file)?;
    }
}

struct Download<'a> {
    hub: &'a Hub<'a>,
    commit: &'a str,
    file: &'a RemoteFile,
    metadata: &'a Metadata,
    progress: &'a dyn Progress,
}

impl Download<'_> {
    /// Fills `incomplete` until it is what the metadata says, or deletes it.
    fn run(&self, incomplete: &Path) -> Result<(), StoreError> {
        let io = StoreError::io;
        if let Some(folder) = incomplete.parent() {
            fs::create_dir_all(folder).map_err(io("create", folder))?;
        }
        let mut sink = Sink::open(incomplete, self.metadata)?;
        self.progress.start(&self.file.path, Some(self.metadata.size), sink.len);
        let mut patience = self.hub.patience();
        let mut renewed_at = sink.len;
        while sink.len < self.metadata.size {
            if let Err(failure) = self.attempt(&mut sink) {
                if let StoreError::Corrupt { .. } = failure.error {
                    sink.delete();
                    return Err(failure.error);
                }
                // A connection that drops now and then is enough for a large file; one that gives
                // a byte each time is not.
                if sink.len >= renewed_at + ENOUGH_BYTES {
                    renewed_at = sink.len;
                    patience.renew();
                }
                patience.wait(failure)?;
            }
        }
        sink.file.sync_all().map_err(io("write", incomplete))?;
        if let (Some(hasher), Some(digest)) = (sink.hasher.take(), &self.metadata.digest) {
            let found = hasher.finish();
            if found != digest.hex() {
                sink.delete();
                return Err(self.corrupt(digest.kind(), digest.hex().to_owned(), found));
            }
        }
        self.progress.finish();
        Ok(())
    }

    /// One request: from where the file ends to wherever it gets.
    fn attempt(&self, sink: &mut Sink) -> Result<(), Failure> {
        let mut headers = Vec::new();
        if sink.len > 0 {
            let number = |text: String| HeaderValue::try_from(text).expect("digits and words");
            headers.push((header::RANGE, number(format!("bytes={}-", sink.len)), To::Anybody));
            // The storage has ETags of its own; there the hash decides whether the pieces fit.
            if let Ok(etag) = HeaderValue::try_from(format!("\"{}\"", self.metadata.etag)) {
                headers.push((header::IF_RANGE, etag, To::Hub));
            }
        }
        let url = self.hub.file_url(self.commit, &self.file.path);
        let answer = self.hub.get(&url, &headers)?;
        self.check_etag(&answer)?;
        match answer.response.status() {
            StatusCode::PARTIAL_CONTENT if sink.len > 0 => {
                self.check_range(&answer, sink.len)?;
                if !answer.at_hub && self.metadata.digest.is_none() {
                    // Nothing would tell whether the rest belongs to the beginning.
                    self.restart(sink)?;
                    let error = self.hub.nonsense("a rest that cannot be checked".to_owned());
                    return Err(Failure { error, retry: Retry::Soon });
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.restart(sink)?;
                let error = self.hub.nonsense("it does not give the rest of a file".to_owned());
                return Err(Failure { error, retry: Retry::Soon });
            }
            StatusCode::OK => {
                if sink.len > 0 {
                    self.restart(sink)?;
                }
                let length = text(answer.response.headers(), "content-length");
                let length = length.and_then(|length| length.parse::<u64>().ok());
                if let Some(length) = length.filter(|&length| length > self.metadata.size) {
                    let expected = self.metadata.size.to_string();
                    return Err(self.corrupt("its size", expected, length.to_string()).into());
                }
            }
            status => {
                let error = self.hub.nonsense(format!("an unexpected status {}", status.as_u16()));
                return Err(Failure { error, retry: Retry::Soon });
            }
        }
        self.copy(answer, sink)
    }

    fn copy(&self, mut answer: Answer, sink: &mut Sink) -> Result<(), Failure> {
        let mut buffer = vec![0; 1 << 18];
        loop {
            let count = match answer.response.read(&mut buffer) {
                Ok(0) if sink.len == self.metadata.size => return Ok(()),
                Ok(0) => {
                    let what = format!(
                        "{} ends after {} of {} bytes",
                        self.file.path, sink.len, self.metadata.size
                    );
                    return Err(Failure { error: self.hub.nonsense(what), retry: Retry::Soon });
                }
                Ok(count) => count,
                Err(error) => return Err(self.hub.broken(&error)),
            };
            if sink.len + count as u64 > self.metadata.size {
                let expected = self.metadata.size.to_string();
                return Err(self.corrupt("its size", expected, "more".to_owned()).into());
            }
            sink.write(&buffer[..count])?;
            self.progress.advance(count as u64);
        }
    }

    /// The hub must still be speaking of the same content. An ETag of the mere answer counts only where no hash
    /// will tell: mirrors have their own.
    fn check_etag(&self, answer: &Answer) -> Result<(), Failure> {
        let headers = answer.response.headers();
        let plain = || text(headers, "etag").filter(|_| self.metadata.digest.is_none());
        let etag = text(headers, "x-linked-etag").or_else(plain);
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        match etag.filter(|etag| answer.at_hub && *etag != self.metadata.etag) {
            None => Ok(()),
            Some(found) => {
                let expected = self.metadata.etag.clone();
                Err(self.corrupt("its ETag", expected, found.to_owned()).into())
            }
        }
    }

    fn check_range(&self, answer: &Answer, from: u64) -> Result<(), Failure> {
        let expected = format!("bytes {from}-{}/{}", self.metadata.size - 1, self.metadata.size);
        let found = text(answer.response.headers(), "content-range").unwrap_or("missing");
        // The end may be nearer than asked for; the beginning and the whole may not differ.
        let parse = |text: &str| {
            let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
            let (start, _) = range.split_once('-')?;
            Some((start.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
        };
        if parse(found) == Some((from, self.metadata.size)) {
            return Ok(());
        }
        Err(self.corrupt("its range", expected, found.to_owned()).into())
    }

    fn restart(&self, sink: &mut Sink) -> Result<(), StoreError> {
        sink.restart(self.metadata)?;
        self.progress.start(&self.file.path, Some(self.metadata.size), 0);
        Ok(())
    }

    fn corrupt(&self, what: &'static str, expected: String, found: String) -> StoreError {
        StoreError::Corrupt { file: self.file.path.clone(), what, expected, found }
    }
}

/// The file that is being filled, and the hash of what is in it.
struct Sink<'a> {
    path: &'a Path,
    file: File,
    len: u64,
    hasher: Option<Hasher>,
}

impl<'a> Sink<'a> {
    /// Goes on where another pull stopped.
    fn open(path: &'a Path, metadata: &Metadata) -> Result<Self, StoreError> {
        let file = File::options().create(true).append(true).open(path);
        let file = file.map_err(StoreError::io("write", path))?;
        let len = file.metadata().map_err(StoreError::io("read", path))?.len();
        let hasher = metadata.digest.as_ref().map(|digest| digest.hasher(metadata.size));
        let mut sink = Self { path, file, len, hasher };
        // Without a hash, nothing says that the piece belongs to the content of today.
        if len > metadata.size || sink.hasher.is_none() {
            sink.restart(metadata)?;
        } else if let Some(hasher) = &mut sink.hasher {
            hasher.update_from(path).map_err(StoreError::io("read", path))?;
        }
        Ok(sink)
    }

    fn restart(&mut self, metadata: &Metadata) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(StoreError::io("write", self.path))?;
        self.len = 0;
        self.hasher = metadata.digest.as_ref().map(|digest| digest.hasher(metadata.size));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(StoreError::io("write", self.path))?;
        self.len += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        Ok(())
    }

    fn delete(&self) {
        let _ = fs::remove_file(self.path);
    }
}

const ENOUGH_BYTES: u64 = 1 << 20;
