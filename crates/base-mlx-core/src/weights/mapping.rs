use std::fs::{self, File};
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use super::LoadError;

/// Maps a file into memory. Pages are read when they are first touched, and pieces of the result keep it mapped.
#[allow(unsafe_code)]
pub(super) fn map(path: &Path) -> Result<Bytes, LoadError> {
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
    Ok(Bytes::from_owner(mapped))
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
