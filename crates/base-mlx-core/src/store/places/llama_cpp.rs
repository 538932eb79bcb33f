use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::StoreError;
use super::super::folders::{self, Gguf};
use super::super::name::Name;
use super::{Found, Look, Place, Source, delete, hub_cache, wrong_size};

/// llama.cpp's own cache: `owner_name_file.gguf`, with notes beside it. Newer versions use the hub's cache, or lay out
/// the folder that `LLAMA_CACHE` names as that.
pub(super) struct LlamaCpp(pub(super) PathBuf);

impl Place for LlamaCpp {
    fn source(&self) -> Source {
        Source::LlamaCpp
    }

    fn folder(&self) -> &Path {
        &self.0
    }

    fn look(&self) -> Look {
        let mut look = hub_cache::look(&self.0);
        look.extend(self.files());
        look
    }

    fn find(&self, text: &str, name: &Name) -> Option<Found> {
        hub_cache::find(&self.0, text, name)
    }

    fn remove(&self, _: &Name, path: &Path) -> Result<u64, StoreError> {
        if let Some(repository) = hub_cache::repository_of(&self.0, path) {
            return hub_cache::remove(&repository, path);
        }
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let manifests = manifests(&self.0).into_iter();
        let of_it = manifests.filter(|(_, name, _)| Some(name) == file.as_ref());
        let files = folders::files_of(path);
        let mut bytes = delete(path)?;
        let beside = files.iter().flat_map(|file| ["etag", "json"].map(|end| note(file, end)));
        for note in of_it.map(|(path, ..)| path).chain(beside).filter(|note| note.is_file()) {
            bytes += delete(&note)?;
        }
        Ok(bytes)
    }
}

impl LlamaCpp {
    /// What lies in the folder itself.
    fn files(&self) -> Look {
        let mut look = Look::default();
        let mut notes = notes(&self.0);
        for (file, path) in folders::children(&self.0) {
            let whole = folders::unfinished(&file).unwrap_or(&file);
            let gguf = folders::gguf_at(&file, &path).filter(|_| !whole.contains("_mmproj"));
            let mut note = || {
                let noted = notes.remove(whole);
                noted.unwrap_or_else(|| Note::beside(&path.with_file_name(whole), whole))
            };
            match gguf {
                None => {}
                Some(Gguf::Broken(stem, why)) => {
                    look.broken(note().name.unwrap_or_else(|| stem.to_owned()), path, why);
                }
                Some(Gguf::Whole(stem)) => {
                    let Note { name, bytes: expected } = note();
                    let base = name.as_ref().and_then(|name| name.split_once(':'));
                    let base = base.map(|(repo, _)| repo.to_owned());
                    let name = name.unwrap_or_else(|| stem.to_owned());
                    // Of several parts the note is about the first.
                    let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
                    match expected.filter(|&expected| expected != bytes) {
                        Some(expected) => look.broken(name, path, wrong_size(bytes, expected)),
                        None => look.models.push(Found { base, ..Found::new(name, path) }),
                    }
                }
            }
        }
        look
    }
}

/// What is written down about a file.
#[derive(Default)]
struct Note {
    /// `owner/name:TAG`: the file's name alone does not tell where the owner ends.
    name: Option<String>,
    bytes: Option<u64>,
}

impl Note {
    /// Of older versions, which kept the address in a file beside it.
    fn beside(path: &Path, file: &str) -> Self {
        #[derive(Deserialize)]
        struct Beside {
            url: String,
        }
        let text = folders::read_small(&note(path, "json"), MOST_BYTES).unwrap_or_default();
        let name = serde_json::from_slice::<Beside>(&text).ok().and_then(|beside| {
            // https://host/owner/name/resolve/revision/file.gguf
            let (_, path) = beside.url.split_once("://")?;
            let (repo, rest) = path.split_once('/')?.1.split_once("/resolve/")?;
            let remote = rest.rsplit('/').next()?;
            let is_its = file.ends_with(remote) && repo.matches('/').count() == 1;
            is_its.then(|| format!("{repo}:{}", folders::tag(remote)))
        });
        Self { name, bytes: None }
    }
}

/// Where a note about a file lies beside it.
fn note(file: &Path, end: &str) -> PathBuf {
    let mut note = file.as_os_str().to_owned();
    note.push(".");
    note.push(end);
    note.into()
}

/// What the manifests say of files, by their names here.
fn notes(folder: &Path) -> BTreeMap<String, Note> {
    manifests(folder).into_iter().map(|(_, file, note)| (file, note)).collect()
}

/// `manifest=owner=name=TAG.json`, with the file that it is about.
fn manifests(folder: &Path) -> Vec<(PathBuf, String, Note)> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Manifest {
        gguf_file: File,
    }
    #[derive(Deserialize)]
    struct File {
        rfilename: String,
        size: Option<u64>,
    }
    let mut manifests = Vec::new();
    for (name, path) in folders::children(folder) {
        let Some(rest) = name.strip_prefix("manifest=").and_then(|rest| rest.strip_suffix(".json"))
        else {
            continue;
        };
        let [owner, repo, _] = rest.split('=').collect::<Vec<_>>()[..] else { continue };
        let text = folders::read_small(&path, MOST_BYTES).unwrap_or_default();
        let Ok(Manifest { gguf_file: file }) = serde_json::from_slice(&text) else { continue };
        let local = format!("{owner}_{repo}_{}", file.rfilename.replace('/', "_"));
        let name = Some(format!("{owner}/{repo}:{}", folders::tag(&file.rfilename)));
        manifests.push((path, local, Note { name, bytes: file.size }));
    }
    manifests
}

/// A note is a few lines, or the answer of the hub about one repository.
const MOST_BYTES: u64 = 4 << 20;
