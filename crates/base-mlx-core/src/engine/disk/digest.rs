use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::index::Index;

/// Of everything that a model is loaded from: weights, config, tokenizer, templates. What the index knows of a file that was
/// not written since need not be read again.
pub(super) fn of_model(path: &Path, index: &Index) -> io::Result<[u8; 32]> {
    let path = path.canonicalize()?;
    let mut hasher = blake3::Hasher::new();
    for file in files(&path)? {
        let name = file.strip_prefix(&path).unwrap_or(&file);
        hasher.update(name.as_os_str().as_encoded_bytes());
        hasher.update(&[0]);
        hasher.update(&of_file(&file, index)?);
    }
    Ok(*hasher.finalize().as_bytes())
}

/// A file, or those of a folder that loading a model may read, in a fixed order.
fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        let kind = entry.extension().and_then(|kind| kind.to_str());
        let templates = entry.file_name().is_some_and(|name| name == "additional_chat_templates");
        if templates && entry.is_dir() {
            found.extend(files(&entry)?);
        } else if kind.is_some_and(|kind| ["json", "jinja", "safetensors"].contains(&kind)) {
            found.push(entry);
        }
    }
    found.sort();
    Ok(found)
}

fn of_file(path: &Path, index: &Index) -> io::Result<[u8; 32]> {
    let about = fs::metadata(path)?;
    let written = about.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (size, written) = (about.len(), written.as_nanos() as u64);
    // Links lead to files that may be replaced under the same name, which their own times do not tell.
    let real = path.canonicalize()?;
    let name = real.to_string_lossy();
    if let Some(digest) = index.digest(&name, size, written) {
        return Ok(digest);
    }
    let mut hasher = blake3::Hasher::new();
    let read = hasher.update_reader(File::open(&real)?)?.count();
    if read != size {
        let message = format!("{} has changed while it was read", path.display());
        return Err(io::Error::new(ErrorKind::InvalidData, message));
    }
    let digest = *hasher.finalize().as_bytes();
    // Without the entry it is read again the next time.
    if let Err(error) = index.enter_digest(&name, size, written, &digest) {
        tracing::debug!("a digest is not entered: {error}");
    }
    Ok(digest)
}
