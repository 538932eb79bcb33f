//! From a name to a model on disk, pulled if it must be.

use std::path::Path;

use anyhow::{Context, Result};
use base_mlx_core::engine::Purpose;
use base_mlx_core::models::FAMILIES;
use base_mlx_core::store::{ModelDir, Store, StoreError, StoreOptions};
use base_mlx_core::weights::Checkpoint;

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
