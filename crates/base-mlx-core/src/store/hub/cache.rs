//! The cache folder of Hugging Face's tools: `models--owner--name/{blobs,refs,snapshots}` and `.locks`.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::super::StoreError;
use super::super::folders::{self, Demand};
use super::super::lock::Lock;
use super::super::name::{HubName, is_relative};

/// The model that a name means, if all of it is there.
pub(in super::super) fn find(hub_cache: &Path, name: &HubName) -> Option<PathBuf> {
    let repo = RepoCache::new(hub_cache, &name.repo);
    let snapshot = repo.snapshot(&repo.commit(name.revision())?);
    let files = folders::ggufs_in(&snapshot);
    match &name.file_tag {
        Some(tag) => {
            let files = files.iter().map(|(file, _)| file.as_str());
            let mut files = folders::with_tag(files, tag);
            let file = files.next()?;
            files.next().is_none().then(|| snapshot.join(file))
        }
        None if folders::is_model_folder(&snapshot, Demand::Complete) => Some(snapshot),
        None => match files.as_slice() {
            [(_, path)] => Some(path.clone()),
            _ => None,
        },
    }
}

/// One repository's place in the cache.
#[derive(Clone, Debug)]
pub(in super::super) struct RepoCache {
    root: PathBuf,
    folder_name: String,
}

impl RepoCache {
    pub(in super::super) fn new(hub_cache: &Path, repo: &str) -> Self {
        let folder_name = format!("models--{}", repo.replace('/', "--"));
        Self { root: hub_cache.to_owned(), folder_name }
    }

    pub(in super::super) fn folder(&self) -> PathBuf {
        self.root.join(&self.folder_name)
    }

    pub(in super::super) fn locks(&self) -> PathBuf {
        self.root.join(".locks").join(&self.folder_name)
    }

    pub(in super::super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// `etag` is a plain name.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// Whether a download into it has begun and not ended.
    pub(in super::super) fn has_incomplete(&self) -> bool {
        let blobs = folders::children(&self.folder().join("blobs"));
        blobs.iter().any(|(name, _)| name.ends_with(".incomplete") || name.ends_with(".ranges"))
    }

    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(format!("{etag}.incomplete"))
    }

    /// A file with holes, under a name that only we know.
    pub(super) fn ranges(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(format!("{etag}.ranges"))
    }

    /// Two pulls must not write one blob at once; Hugging Face's tools take the same lock. `None` if it was in vain
    /// before the other one was done.
    pub(super) fn lock(
        &self,
        etag: &str,
        is_in_vain: impl Fn() -> bool,
        on_wait: impl FnOnce(),
    ) -> Result<Option<Lock>, StoreError> {
        let path = self.locks().join(format!("{etag}.lock"));
        let lock = Lock::acquire_unless(&path, is_in_vain, on_wait);
        lock.map_err(StoreError::io("lock", &path))
    }

    /// What a revision was when it was pulled last.
    pub(in super::super) fn commit(&self, revision: &str) -> Option<String> {
        let mut text = String::new();
        let path = self.folder().join("refs").join(revision);
        match folders::open(&path) {
            Ok(file) => file.take(256).read_to_string(&mut text).ok().map(|_| ())?,
            Err(_) => text.push_str(revision),
        }
        let commit = text.trim();
        (is_relative(commit) && !commit.contains('/')).then(|| commit.to_owned())
    }

    pub(super) fn write_ref(&self, revision: &str, commit: &str) -> Result<(), StoreError> {
        if revision == commit {
            return Ok(());
        }
        let _lock = self.lock("refs", || false, || {})?;
        let path = self.folder().join("refs").join(revision);
        let write = || {
            let parent = path.parent().expect("a ref lies in a folder");
            fs::create_dir_all(parent)?;
            let new = parent.join(format!(".{commit}.new"));
            fs::write(&new, commit)?;
            fs::rename(&new, &path)
        };
        write().map_err(StoreError::io("write", &path))
    }

    /// Makes a blob visible as `file` of a commit. The link is relative, so that the cache may be moved.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf, StoreError> {
        let path = self.snapshot(commit).join(file);
        let up = "../".repeat(file.matches('/').count() + 2);
        let make = || {
            let parent = path.parent().expect("a file lies in a folder");
            fs::create_dir_all(parent)?;
            if fs::symlink_metadata(&path).is_ok_and(|_| !path.exists()) {
                fs::remove_file(&path)?; // it leads nowhere
            }
            match symlink(format!("{up}blobs/{etag}").as_ref(), &path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                Err(_) => copy(&self.blob(etag), &path),
                Ok(()) => Ok(()),
            }
        };
        make().map_err(StoreError::io("write", &path))?;
        Ok(path)
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// For file systems without links. Not visible under its name until it is whole.
fn copy(blob: &Path, path: &Path) -> io::Result<()> {
    if fs::hard_link(blob, path).is_ok() {
        return Ok(());
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".incomplete");
    let mut file = File::create(&new)?;
    io::copy(&mut File::open(blob)?, &mut file)?;
    file.flush()?;
    file.sync_all()?;
    fs::rename(&new, path)
}
