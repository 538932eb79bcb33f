//! What is a model on disk, and what the models in a folder are called. Reads names and sizes, and of files only
//! the index of a sharded checkpoint and the first bytes of a GGUF file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::name::is_relative;

/// How much must be there for a folder to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// A config.json: its owner says it is a model, and loading it says what is wrong.
    Config,
    /// All weights and a tokenizer, too: another tool may be in the midst of writing it.
    Complete,
}

/// The models in a folder that is laid out by hand, with their names: `x.gguf` and `x/config.json` are `x`,
/// `owner/x.gguf` and `owner/x/config.json` are `owner/x`, GGUF files in `owner/x/` are `owner/x` or `owner/x:TAG`.
pub(super) fn models_in(root: &Path, demand: Demand) -> Vec<(String, PathBuf)> {
    let mut models = Vec::new();
    for (name, path) in children(root) {
        if path.is_file() {
            let stem = gguf_stem(&name).filter(|_| has_tensors(&path));
            models.extend(stem.map(|stem| (stem.to_owned(), path.clone())));
        } else if is_model_folder(&path, demand) {
            models.push((name, path));
        } else {
            for (inner, path) in children(&path) {
                if path.is_file() {
                    let stem = gguf_stem(&inner).filter(|_| has_tensors(&path));
                    models.extend(stem.map(|stem| (format!("{name}/{stem}"), path)));
                } else if is_model_folder(&path, demand) {
                    models.push((format!("{name}/{inner}"), path));
                } else {
                    models.extend(ggufs_named(&format!("{name}/{inner}"), &path));
                }
            }
        }
    }
    models
}

pub(super) fn is_model_folder(path: &Path, demand: Demand) -> bool {
    path.join("config.json").is_file() && (demand == Demand::Config || is_complete(path))
}

fn is_complete(path: &Path) -> bool {
    let tokenizers = ["tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"];
    if !tokenizers.iter().any(|file| path.join(file).is_file()) {
        return false;
    }
    match shards(&path.join(INDEX)) {
        Some(shards) => shards.iter().all(|shard| path.join(shard).is_file()),
        None => {
            !path.join(INDEX).exists()
                && children(path)
                    .iter()
                    .any(|(name, file)| name.ends_with(".safetensors") && file.is_file())
        }
    }
}

/// The weight files that a `model.safetensors.index.json` names, or `None` if it is not there or not one.
pub(super) fn shards(index: &Path) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    const MAX_BYTES: u64 = 64 << 20;
    let mut text = Vec::new();
    File::open(index).ok()?.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    let index: Index = serde_json::from_slice(&text).ok()?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    (!shards.is_empty() && shards.iter().all(|shard| is_relative(shard))).then_some(shards)
}

/// The GGUF files of a folder as `base`, if there is one, or `base:TAG`.
fn ggufs_named(base: &str, folder: &Path) -> Vec<(String, PathBuf)> {
    let files = ggufs_in(folder);
    match files.as_slice() {
        [(_, path)] => vec![(base.to_owned(), path.clone())],
        _ => {
            files.into_iter().map(|(file, path)| (format!("{base}:{}", tag(&file)), path)).collect()
        }
    }
}

/// The GGUF files in a folder and one below it, by their relative paths.
pub(super) fn ggufs_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    for (name, path) in children(folder) {
        if path.is_dir() {
            let inner = children(&path).into_iter();
            files.extend(inner.map(|(inner, path)| (format!("{name}/{inner}"), path)));
        } else {
            files.push((name, path));
        }
    }
    files.retain(|(name, path)| is_gguf_model(name) && path.is_file() && has_tensors(path));
    files
}

/// A GGUF file without tensors is a vocabulary. What is not GGUF at all counts, so that loading it says what is wrong.
fn has_tensors(path: &Path) -> bool {
    // The magic, the version, the number of tensors.
    let mut head = [0; 16];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.is_err() || !head.starts_with(b"GGUF") || head[8..] != [0; 8]
}

/// Whether a file's name is that of a whole model: not of a vision projector, not of a part of a split model.
pub(super) fn is_gguf_model(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    gguf_stem(name)
        .is_some_and(|stem| !stem.to_lowercase().starts_with("mmproj") && !is_split(stem))
}

/// `x-00001-of-00003`.
fn is_split(stem: &str) -> bool {
    let digits = |part: &str| part.len() == 5 && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts = stem.rsplit('-');
    matches!((parts.next(), parts.next(), parts.next()),
        (Some(count), Some("of"), Some(number)) if digits(count) && digits(number))
}

/// What tells a GGUF file from its siblings: `Q4_K_M` of `Qwen3-8B-Q4_K_M.gguf`, or its whole name.
pub(super) fn tag(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    let Some(stem) = gguf_stem(name) else { return name };
    let last = stem.rsplit(['-', '.']).next().unwrap_or(stem);
    let upper = last.to_uppercase();
    let kind = upper.trim_start_matches('I');
    let is_quantisation = kind.starts_with('Q')
        && kind[1..].starts_with(|c: char| c.is_ascii_digit())
        || ["F16", "BF16", "F32", "MXFP4", "TQ1_0", "TQ2_0"].contains(&upper.as_str());
    if is_quantisation { last } else { stem }
}

/// The files that `wanted` means: by tag whatever its case, or by the file's whole name.
pub(super) fn with_tag<'a>(
    files: impl Iterator<Item = &'a str>,
    wanted: &str,
) -> impl Iterator<Item = &'a str> {
    files.filter(move |file| {
        let name = file.rsplit('/').next().unwrap_or(file);
        name == wanted || gguf_stem(name) == Some(wanted) || tag(file).eq_ignore_ascii_case(wanted)
    })
}

fn gguf_stem(name: &str) -> Option<&str> {
    let at = name.len().checked_sub(5).filter(|&at| at > 0 && name.is_char_boundary(at))?;
    name[at..].eq_ignore_ascii_case(".gguf").then(|| &name[..at])
}

/// The sizes of a model's own files.
pub(super) fn bytes(path: &Path) -> u64 {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => children(path)
            .iter()
            .filter_map(|(_, file)| fs::metadata(file).ok())
            .filter(|meta| meta.is_file())
            .map(|meta| meta.len())
            .sum(),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    }
}

/// What a folder holds, in the order of names. Hidden things and names that are not text are left out, and so
/// is everything if the folder cannot be read.
pub(super) fn children(folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut children: Vec<_> = entries
        .flatten()
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .filter(|(name, _)| !name.starts_with('.'))
        .collect();
    children.sort();
    children
}

pub(super) const INDEX: &str = "model.safetensors.index.json";

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, files: &[&str]) {
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }

    #[test]
    fn models_are_called_what_their_files_are_called() {
        let root = tempfile::tempdir().unwrap();
        touch(
            root.path(),
            &[
                "smollm2.gguf",
                "minilm/config.json",
                "notes.txt",
                "me/tiny/config.json",
                "me/other.GGUF",
                "you/one/one-Q4_0.gguf",
                "you/one/mmproj-one-F16.gguf",
                "you/two/two-Q4_0.gguf",
                "you/two/two-Q8_0.gguf",
                "you/split/split-Q8_0-00001-of-00002.gguf",
                ".hidden/config.json",
            ],
        );
        for vocabulary in ["vocab.gguf", "me/vocab.gguf", "you/one/vocab.gguf"] {
            let head = [&b"GGUF"[..], &3_u32.to_le_bytes(), &[0; 8], &[1; 8]].concat();
            fs::write(root.path().join(vocabulary), head).unwrap();
        }
        let names: Vec<_> =
            models_in(root.path(), Demand::Config).into_iter().map(|(name, _)| name).collect();
        let expected =
            ["me/other", "me/tiny", "minilm", "smollm2", "you/one", "you/two:Q4_0", "you/two:Q8_0"];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_folder_is_complete_when_its_last_shard_is_there() {
        let root = tempfile::tempdir().unwrap();
        let complete = || is_model_folder(root.path(), Demand::Complete);
        touch(root.path(), &["config.json", "model-1.safetensors"]);
        assert!(!complete(), "no tokenizer");
        touch(root.path(), &["tokenizer.json"]);
        assert!(complete());
        fs::write(root.path().join(INDEX), "{\"weight").unwrap();
        assert!(!complete(), "half an index");
        let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
        fs::write(root.path().join(INDEX), index).unwrap();
        assert!(!complete(), "a shard is missing");
        touch(root.path(), &["model-2.safetensors"]);
        assert!(complete());
        fs::write(root.path().join(INDEX), r#"{"weight_map":{"a":"../secret"}}"#).unwrap();
        assert!(!complete(), "an index that leads outside");
    }

    #[test]
    fn a_tag_is_the_quantisation_or_the_whole_name() {
        let cases = [
            ("Qwen3-8B-Q4_K_M.gguf", "Q4_K_M"),
            ("sub/SmolLM2-135M-Instruct.q4_1.gguf", "q4_1"),
            ("x-IQ4_NL.gguf", "IQ4_NL"),
            ("x-BF16.gguf", "BF16"),
            ("Qwen.gguf", "Qwen"),
            ("model-Q.gguf", "model-Q"),
        ];
        for (file, expected) in cases {
            assert_eq!(tag(file), expected);
        }
        let files = ["x-Q4_0.gguf", "x-Q8_0.gguf", "x-UD-Q4_0.gguf"];
        assert_eq!(with_tag(files.into_iter(), "q8_0").collect::<Vec<_>>(), ["x-Q8_0.gguf"]);
        let exact = with_tag(files.into_iter(), "x-UD-Q4_0.gguf").collect::<Vec<_>>();
        assert_eq!(exact, ["x-UD-Q4_0.gguf"]);
        assert_eq!(with_tag(files.into_iter(), "Q4").count(), 0);
    }
}
