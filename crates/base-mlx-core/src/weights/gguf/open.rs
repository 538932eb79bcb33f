use std::path::{Path, PathBuf};

use super::architecture::config_spelling;
use super::{Architecture, Gguf, Metadata, config, parse};
use crate::weights::checkpoint::Stored;
use crate::weights::mapping::{Mapping, map};
use crate::weights::{Config, LoadError};

/// Opens a GGUF file, and its other parts if it is one of several.
pub(in crate::weights) fn open(path: &Path) -> Result<(Config, Metadata, Vec<Stored>), LoadError> {
    let mut parts = Vec::new();
    for path in part_paths(path) {
        let bytes = map(&path)?;
        let gguf = parse(&bytes).map_err(|error| error.at(&path))?;
        parts.push((path, bytes, gguf));
    }
    check_split(&parts)?;

    // Only the first part has the metadata; the tensors of all parts together are the model's.
    let architecture = Architecture::of(&parts[0].2.metadata);
    for entry in parts.iter_mut().flat_map(|(_, _, part)| &mut part.tensors) {
        architecture.restore_shape(entry);
    }
    let (first, _, gguf) = &parts[0];
    let tensors = parts.iter().flat_map(|(_, _, part)| part.tensors.clone()).collect();
    let whole = Gguf { version: gguf.version, metadata: gguf.metadata.clone(), tensors };
    let values = config(&whole).map_err(|error| error.at(first))?;
    let config = Config::new(first, values).spelled(config_spelling(&whole.metadata));

    let mut stored = Vec::with_capacity(whole.tensors.len());
    for (path, bytes, part) in &parts {
        for entry in &part.tensors {
            let mut tensor = Stored::new(path, bytes, entry);
            tensor.name = architecture.tensor_name(&entry.name);
            if architecture.interleaved_rope {
                tensor.interleaved_heads = interleaved_heads(&tensor, &config)?;
            }
            stored.push(tensor);
        }
    }
    Ok((config, whole.metadata, stored))
}

/// How many heads share the rows of q and k, whose order has to be undone.
fn interleaved_heads(tensor: &Stored, config: &Config) -> Result<Option<usize>, LoadError> {
    let key = match tensor.name.rsplit_once('.') {
        Some((stem, _)) if stem.ends_with(".q_proj") => "num_attention_heads",
        Some((stem, _)) if stem.ends_with(".k_proj") => "num_key_value_heads",
        _ => return Ok(None),
    };
    let heads = config.count(key)?;
    let rows = tensor.shape[0];
    if rows.is_multiple_of(2 * heads) {
        return Ok(Some(heads));
    }
    let what =
        format!("tensor `{}` has {rows} rows, which {heads} heads cannot share", tensor.name);
    Err(LoadError::Damaged { path: tensor.path.to_path_buf(), what })
}

/// `name-00001-of-00003.gguf` is one of three parts beside each other; any other name is a whole file.
fn part_paths(path: &Path) -> Vec<PathBuf> {
    match path.file_name().and_then(|name| name.to_str()).and_then(split_name) {
        Some((stem, count)) => (1..=count)
            .map(|part| path.with_file_name(format!("{stem}-{part:05}-of-{count:05}.gguf")))
            .collect(),
        None => vec![path.to_owned()],
    }
}

fn split_name(name: &str) -> Option<(&str, usize)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let number = |text: &str| {
        let digits = text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<usize>().ok()).flatten()
    };
    let (part, count) = (number(part)?, number(count)?);
    (1..=count).contains(&part).then_some((stem, count))
}

/// Compares what the parts say of themselves with what was found.
fn check_split(parts: &[(PathBuf, Mapping, Gguf)]) -> Result<(), LoadError> {
    for (index, (path, _, gguf)) in parts.iter().enumerate() {
        let says = |key| {
            let damaged = |what| LoadError::Damaged { path: path.clone(), what };
            gguf.metadata.told_u64(key).map_err(damaged)
        };
        let (number, count) = (says("split.no")?.unwrap_or(0), says("split.count")?.unwrap_or(1));
        if (number, count.max(1)) != (index as u64, parts.len() as u64) {
            return Err(LoadError::Damaged {
                path: path.clone(),
                what: format!(
                    "it says that it is part {} of {count}, but its name makes it part {} of {} \
                     (were the files renamed?)",
                    number.saturating_add(1),
                    index + 1,
                    parts.len()
                ),
            });
        }
    }
    let (path, _, first) = &parts[0];
    let found: usize = parts.iter().map(|(_, _, part)| part.tensors.len()).sum();
    match first.metadata.get("split.tensors.count").and_then(|count| count.integer()) {
        Some(count) if count != found as i128 => Err(LoadError::Damaged {
            path: path.clone(),
            what: format!("its parts should have {count} tensors together, but have {found}"),
        }),
        _ => Ok(()),
    }
}
