//! Finding and opening the bridge, the shared library that brings MLX with it.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::table::{Table, VERSION};
use crate::version::MLX;
use crate::{Error, Result};

/// A process has one MLX, so this is the process's. Never unloaded: arrays may be dropped at any time.
static TABLE: OnceLock<&'static Table> = OnceLock::new();

pub(crate) const FILE_NAME: &str =
    if cfg!(target_os = "macos") { "libbase-mlx-bridge.dylib" } else { "libbase-mlx-bridge.so" };

/// Opens MLX: from the folder in `BASE_MLX_MLX_LIB`, or, if that names none, from `../lib` beside the program's folder,
/// from the program's folder, or from where the build left it, whichever has it first. Once is enough; more does no harm.
///
/// For CUDA's own libraries the loader looks in its usual places, and before that in the folders `nvidia/*/lib` of
/// the Python site-packages that `BASE_MLX_CUDA_LIBS` lists.
pub fn load() -> Result<()> {
    if TABLE.get().is_some() {
        return Ok(());
    }
    let named = std::env::var_os("BASE_MLX_MLX_LIB").filter(|value| !value.is_empty());
    let folders = folders(named.map(PathBuf::from));
    let Some(file) =
        folders.iter().map(|folder| folder.join(FILE_NAME)).find(|file| file.is_file())
    else {
        return Err(Error::NotFound { folders });
    };
    #[cfg(target_os = "linux")]
    crate::cuda_libraries::preload();
    let table = open(&file)?;
    // Another thread may have been first; the loader gave both the same library.
    TABLE.get_or_init(|| table);
    Ok(())
}

pub(crate) fn table() -> Result<&'static Table> {
    TABLE.get().copied().ok_or(Error::NotLoaded)
}

/// For what has a handle, which nothing makes before MLX is loaded.
pub(crate) fn loaded() -> &'static Table {
    TABLE.get().expect("there are handles only after MLX was loaded")
}

/// Who names a folder wants no other.
fn folders(named: Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(named) = named {
        return vec![named];
    }
    let program = std::env::current_exe().and_then(|program| program.canonicalize()).ok();
    let beside = program.as_deref().and_then(Path::parent);
    let lib = beside.and_then(|folder| Some(folder.parent()?.join("lib")));
    lib.into_iter()
        .chain(beside.map(Path::to_owned))
        .chain(option_env!("BASE_MLX_BRIDGE_DIR").map(PathBuf::from))
        .collect()
}

fn open(file: &Path) -> Result<&'static Table> {
    let failed = |reason: String| Error::Load { file: file.to_owned(), reason };
    // What libloading says itself is only that it failed.
    let loader = |error: libloading::Error| failed(error.source().unwrap_or(&error).to_string());
    // SAFETY: what runs on loading are the initialisers of the bridge, MLX and their libraries.
    let library = unsafe { Library::open(Some(file), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(loader)?;
    // SAFETY: the name is the bridge's own, and that is its type since its first version.
    let entry = unsafe { library.get::<extern "C" fn() -> *const Table>(b"base_mlx_bridge") };
    let table = match entry {
        Ok(entry) => entry(),
        Err(error) => return Err(loader(error)),
    };
    // SAFETY: the table is static and begins with its version, whatever else is in it.
    let version = unsafe { *table.cast::<u64>() };
    if version != VERSION {
        return Err(failed(format!("its version is {version:x}, expected {VERSION:x}")));
    }
    // SAFETY: static, and of this layout: the versions are hashes of both sides' declarations.
    let table = unsafe { &*table };
    // The bridge was compiled for one MLX, and may find another where that one was.
    let mlx = (table.mlx_version)().to_text();
    if !is_pinned(&mlx) {
        return Err(failed(format!(
            "it finds MLX {mlx}, expected {MLX}\nhint: build base-mlx again, which takes or fetches that version"
        )));
    }
    std::mem::forget(library);
    Ok(table)
}

/// An MLX that was built from its sources may add their day: `0.32.4.dev20260101+846d1762`.
fn is_pinned(mlx: &str) -> bool {
    mlx.strip_prefix(MLX).is_some_and(|rest| rest.is_empty() || rest.starts_with(".dev"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_library_is_named_with_the_loaders_reason() {
        let file = std::env::temp_dir().join(format!("{}-{FILE_NAME}", std::process::id()));
        std::fs::write(&file, "no library").unwrap();
        let opened = open(&file).err();
        std::fs::remove_file(&file).unwrap();
        let Some(Error::Load { file: named, reason }) = opened else { panic!("text was opened") };
        assert_eq!(named, file);
        assert!(reason.contains(FILE_NAME), "{reason}");
    }

    #[test]
    fn a_folder_that_is_named_is_the_only_one() {
        let named = PathBuf::from("/no such folder");
        assert_eq!(folders(Some(named.clone())), [named]);
    }

    #[test]
    fn another_mlx_is_not_the_pinned_one() {
        for mlx in [MLX, &format!("{MLX}.dev20260101+846d1762")] {
            assert!(is_pinned(mlx), "{mlx}");
        }
        for mlx in ["", "0.32", "0.33.0", &format!("{MLX}0"), &format!("{MLX}.1")] {
            assert!(!is_pinned(mlx), "{mlx}");
        }
    }

    #[test]
    fn the_build_left_the_bridge_in_the_last_folder() {
        if !crate::BUILT {
            assert_eq!(option_env!("BASE_MLX_BRIDGE_DIR"), None);
            return;
        }
        let file = folders(None).pop().unwrap().join(FILE_NAME);
        assert!(file.is_absolute() && file.is_file(), "{}", file.display());
        match open(&file) {
            // A machine without CUDA is told what is missing.
            Err(Error::Load { reason, .. }) if cfg!(feature = "cuda") => {
                assert!(reason.contains("cannot open shared object file"), "{reason}");
            }
            opened => assert_eq!(opened.err(), None),
        }
    }
}
