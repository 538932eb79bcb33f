//! From a name to a model on disk, pulled if it must be.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result};
use base_mlx_core::engine::Purpose;
use base_mlx_core::models::FAMILIES;
use base_mlx_core::store::{Fault, Folder, ModelDir, Source, Store, StoreError, StoreOptions};
use base_mlx_core::weights::{Checkpoint, LoadError};

use crate::config::{ConfigFile, Place};
use crate::progress::Bars;

/// A folder of models that was named must be there: without it another model would answer.
pub(crate) fn store(place: &Place, file: &ConfigFile) -> Result<Store> {
    let mut options = StoreOptions::from_env();
    if let Some(folder) = place.models_dir.clone().or_else(|| file.models_dir.clone()) {
        options.models_dir = Some(folder);
    }
    let store = Store::open(options);
    if let Some(folder) = &store.options().models_dir {
        std::fs::read_dir(folder)
            .with_context(|| format!("cannot read the models folder {}", folder.display()))?;
    }
    Ok(store)
}

pub(crate) fn find_or_pull(store: &Store, name: &str) -> Result<ModelDir> {
    match store.find(name) {
        Ok(model) => Ok(model),
        Err(StoreError::NotFound { .. }) => pull(store, name),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn pull(store: &Store, name: &str) -> Result<ModelDir> {
    let bars = Bars::new();
    let pulled = store.pull(name, &bars);
    bars.clear();
    Ok(pulled?)
}

/// Why a model's files are of no use, as their headers say.
pub(crate) fn fault(error: &LoadError) -> Fault {
    match error {
        LoadError::Unsupported { .. } | LoadError::UnknownFamily { .. } => {
            Fault::foreign(error.to_string())
        }
        _ => Fault::broken(error.to_string()),
    }
}

/// Why nothing is found in a folder.
pub(crate) struct Unread {
    pub(crate) told: String,
    /// Its tool may never have been here, or its service has it for itself.
    pub(crate) is_usual: bool,
}

impl Unread {
    pub(crate) fn of(folder: &Folder) -> Option<Self> {
        let Folder { source, path, named_by, trouble } = folder;
        let (error, path) = (trouble.as_ref()?, path.display());
        let told = match (error.kind(), named_by) {
            (ErrorKind::NotFound, Some(by)) => {
                format!("{source}: {by} names {path}, which is not there")
            }
            (ErrorKind::NotFound, None) => format!("{source}: {path} is not there"),
            _ => format!("{source}: cannot read {path}: {error}"),
        };
        let is_usual = named_by.is_none()
            && match error.kind() {
                ErrorKind::NotFound => true,
                ErrorKind::PermissionDenied => *source == Source::Ollama,
                _ => false,
            };
        Some(Self { told, is_usual })
    }
}

/// Whether the model can write, as far as its files' headers say: some on the disk are of other families, are for
/// embeddings, or hold a vocabulary alone.
pub(crate) fn can_write(path: &Path) -> bool {
    Checkpoint::open(path).is_ok_and(|checkpoint| {
        let family = checkpoint.config().model_type();
        family.is_ok_and(|family| FAMILIES.contains(&family))
            && Purpose::of_checkpoint(&checkpoint).is_ok_and(|its| its == Purpose::Generate)
            && checkpoint.tensors().next().is_some()
    })
}
