use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::checkpoint::Stored;
use super::mapping::{map, read_text};
use super::{Config, LoadError, safetensors};

/// Opens a folder in the Hugging Face layout: config.json and safetensors files.
pub(super) fn open(folder: &Path) -> Result<(Config, Vec<Stored>), LoadError> {
    let config = Config::read(&folder.join("config.json"))?;
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    let tensors = if single.is_file() {
        read_file(&single)?
    } else if index.is_file() {
        read_shards(folder, &index)?
    } else {
        read_file(&only_file(folder)?)?
    };
    Ok((config, with_scope(tensors)))
}

/// A decoder that was saved without its head has lost the name that stands before all others.
fn with_scope(mut tensors: Vec<Stored>) -> Vec<Stored> {
    if tensors.iter().any(|tensor| tensor.name == "embed_tokens.weight") {
        for tensor in &mut tensors {
            tensor.name.insert_str(0, "model.");
        }
    }
    tensors
}

fn read_file(path: &Path) -> Result<Vec<Stored>, LoadError> {
    let bytes = map(path)?;
    let entries = safetensors::parse(&bytes).map_err(|error| error.at(path))?;
    Ok(entries.iter().map(|entry| Stored::new(path, &bytes, entry)).collect())
}

/// Every tensor must lie in the shard that the index names, and every shard must be there.
fn read_shards(folder: &Path, index: &Path) -> Result<Vec<Stored>, LoadError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let damaged = |what| LoadError::Damaged { path: index.to_owned(), what };
    let Index { weight_map } = serde_json::from_str(&read_text(index, MAX_JSON_BYTES)?)
        .map_err(|error| damaged(format!("it cannot be read: {error}")))?;

    let mut tensors = Vec::new();
    for shard in weight_map.values().collect::<BTreeSet<_>>() {
        // A name with folders in it could point anywhere.
        let plain = Path::new(shard).components().collect::<Vec<_>>();
        if !matches!(plain[..], [Component::Normal(name)] if name == shard.as_str()) {
            return Err(damaged(format!("shard `{shard}` is not the name of a file beside it")));
        }
        tensors.extend(read_file(&folder.join(shard))?);
    }

    let places: BTreeSet<(&str, &Path)> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), &*tensor.path)).collect();
    for (tensor, shard) in &weight_map {
        let path = folder.join(shard);
        if !places.contains(&(tensor.as_str(), path.as_path())) {
            return Err(LoadError::MissingTensor { path, tensor: tensor.clone() });
        }
    }
    Ok(tensors)
}

/// The folder's only safetensors file, whatever its name.
fn only_file(folder: &Path) -> Result<PathBuf, LoadError> {
    let io = |source| LoadError::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(path);
        }
    }
    match <[PathBuf; 1]>::try_from(found) {
        Ok([path]) => Ok(path),
        Err(found) => Err(LoadError::Unsupported {
            path: folder.to_owned(),
            what: match found.len() {
                0 => "a folder without safetensors files".into(),
                count => format!("a folder of {count} safetensors files without an index"),
            },
            hint: "a model folder has model.safetensors, or model.safetensors.index.json and its \
                   shards; name a GGUF file itself, not its folder"
                .into(),
        }),
    }
}

/// No honest config or index comes near; a hostile one must not fill the memory.
pub(super) const MAX_JSON_BYTES: u64 = 64 << 20;
