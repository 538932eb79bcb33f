use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use reqwest::StatusCode;

use super::super::StoreError;
use super::super::digest::Hasher;
use super::download::{Download, ENOUGH_BYTES};
use super::http::{Answer, Failure, Metadata, Retry, text};

/// Fetches a file from its beginning to its end, one connection after the other. What is at `incomplete` is always
/// a beginning of the content, and another tool may go on from there.
pub(super) fn run(download: &Download, incomplete: &Path) -> Result<(), StoreError> {
    let mut sink = Sink::open(incomplete, download.metadata)?;
    download.share.set(sink.len);
    let mut patience = download.pull.hub.patience();
    let mut renewed_at = sink.len;
    while sink.len < download.metadata.size {
        if let Err(failure) = attempt(download, &mut sink) {
            if let StoreError::Corrupt { .. } = failure.error {
                sink.delete();
                return Err(failure.error);
            }
            if sink.len >= renewed_at + ENOUGH_BYTES {
                renewed_at = sink.len;
                patience.renew();
            }
            patience.wait(failure, || false)?;
        }
    }
    sink.file.sync_all().map_err(StoreError::io("write", incomplete))?;
    match sink.hasher.take() {
        Some(hasher) => download.check_digest(incomplete, hasher.finish()),
        None => Ok(()),
    }
}

/// One request: from where the file ends to wherever it gets.
fn attempt(download: &Download, sink: &mut Sink) -> Result<(), Failure> {
    let (hub, size) = (download.pull.hub, download.metadata.size);
    let range = (sink.len > 0).then(|| format!("{}-", sink.len));
    let answer = download.request(range.as_deref())?;
    match answer.response.status() {
        StatusCode::PARTIAL_CONTENT if sink.len > 0 => {
            download.check_range(&answer, &(sink.len..size))?;
            if !answer.at_hub && download.metadata.digest.is_none() {
                // Nothing would tell whether the rest belongs to the beginning.
                sink.restart(download)?;
                let error = hub.nonsense("a rest that cannot be checked".to_owned());
                return Err(Failure { error, retry: Retry::Soon });
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE => {
            sink.restart(download)?;
            let error = hub.nonsense("it does not give the rest of a file".to_owned());
            return Err(Failure { error, retry: Retry::Soon });
        }
        StatusCode::OK => {
            if sink.len > 0 {
                sink.restart(download)?;
            }
            let length = text(answer.response.headers(), "content-length");
            let length = length.and_then(|length| length.parse::<u64>().ok());
            if let Some(length) = length.filter(|&length| length > size) {
                return Err(download
                    .corrupt("its size", size.to_string(), length.to_string())
                    .into());
            }
        }
        status => {
            let error = hub.nonsense(format!("an unexpected status {}", status.as_u16()));
            return Err(Failure { error, retry: Retry::Soon });
        }
    }
    copy(download, answer, sink)
}

fn copy(download: &Download, mut answer: Answer, sink: &mut Sink) -> Result<(), Failure> {
    let (hub, size) = (download.pull.hub, download.metadata.size);
    let mut buffer = vec![0; 1 << 18];
    while !hub.lanes.has_failed() {
        let count = hub.read(&mut answer, &mut buffer)?;
        match count {
            0 if sink.len == size => return Ok(()),
            0 => {
                let (file, len) = (&download.file.path, sink.len);
                let error = hub.nonsense(format!("{file} ends after {len} of {size} bytes"));
                return Err(Failure { error, retry: Retry::Soon });
            }
            _ if sink.len + count as u64 > size => {
                return Err(download
                    .corrupt("its size", size.to_string(), "more".to_owned())
                    .into());
            }
            _ => {}
        }
        sink.write(&buffer[..count])?;
        download.share.advance(count as u64);
    }
    Err(hub.in_vain())
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
            sink.empty(metadata)?;
        } else if let Some(hasher) = &mut sink.hasher {
            hasher.update_from(path).map_err(StoreError::io("read", path))?;
        }
        Ok(sink)
    }

    fn restart(&mut self, download: &Download) -> Result<(), StoreError> {
        self.empty(download.metadata)?;
        download.share.set(0);
        Ok(())
    }

    fn empty(&mut self, metadata: &Metadata) -> Result<(), StoreError> {
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
