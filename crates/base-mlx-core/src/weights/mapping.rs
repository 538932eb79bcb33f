use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

use super::LoadError;

/// A file in memory. Pages are read when they are first touched; pieces of it keep it mapped.
#[derive(Clone)]
pub(super) struct Mapping(Arc<Mmap>);

impl Mapping {
    pub(super) fn piece(&self, bytes: Range<usize>) -> Bytes {
        Bytes::from_owner(self.clone()).slice(bytes)
    }

    /// Gives the memory of a piece back, which is read again from the file if it is touched again.
    #[allow(unsafe_code)]
    pub(super) fn release(&self, bytes: Range<usize>) {
        // SAFETY: the pages are those of a file, and nobody has written to them: read again, they are the same.
        #[cfg(unix)]
        let _ = unsafe {
            self.0.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                bytes.start,
                bytes.len(),
            )
        };
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[allow(unsafe_code)]
pub(super) fn map(path: &Path) -> Result<Mapping, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    // Asked before opening: to open a pipe would wait for its writer.
    let metadata = fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(io(std::io::Error::other("it is not a file")));
    }
    if metadata.len() == 0 {
        return Err(LoadError::Damaged {
            path: path.to_owned(),
            what: "it is empty (0 bytes)".into(),
        });
    }
    let file = File::open(path).map_err(io)?;
    // SAFETY: the mapping is private and never written by us. Another process that changed the file's bytes under it
    // could change values that we read as plain numbers, none of which is trusted again after its check; one that cut
    // the file short would end this process by a signal, which every program that maps weights accepts: model files
    // are replaced by renaming, never rewritten in place.
    let mapped = unsafe { Mmap::map(&file) }.map_err(io)?;
    Ok(Mapping(Arc::new(mapped)))
}

/// Reads a small text file (a config, an index) whole; one beyond `max_bytes` is refused before it is read.
pub(super) fn read_text(path: &Path, max_bytes: u64) -> Result<String, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(io(std::io::Error::other("it is not a file")));
    }
    if metadata.len() > max_bytes {
        let what = format!("it has {} bytes, more than the {max_bytes} allowed", metadata.len());
        return Err(LoadError::Damaged { path: path.to_owned(), what });
    }
    fs::read_to_string(path).map_err(io)
}
