use std::path::{Path, PathBuf};

use base_mlx_core::text::Text;
use base_mlx_core::weights::gguf::Metadata;
use base_mlx_core::weights::{Config, LoadError, gguf};
use serde_json::{Value, json};

use crate::support::test_models::test_model;

pub(crate) fn golden(name: &str) -> Value {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text");
    serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
}

/// The text parts of one of llama.cpp's vocabularies, which are GGUF files without tensors.
pub(crate) fn vocabulary(name: &str) -> Text {
    let path = test_model(&format!("llama.cpp/models/ggml-vocab-{name}.gguf"));
    let file = gguf::parse(&std::fs::read(&path).unwrap()).unwrap();
    Text::from_gguf(&path, &file.metadata).unwrap()
}

pub(crate) fn template_sources() -> Vec<(String, String)> {
    let folder = test_model("llama.cpp/models/templates");
    let mut sources: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jinja"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    sources.sort();
    sources
}

/// A folder like a model's, with a tokenizer of four tokens and the special ones `<|stop|>`, `<|fin|>`,
/// `<|im_end|>` and `<|end|>`, numbered from 4.
pub(crate) struct Folder {
    folder: tempfile::TempDir,
    config: Value,
}

impl Folder {
    pub(crate) fn new() -> Self {
        let added = |(id, content): (usize, &str)| {
            json!({ "id": id + 4, "content": content, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false })
        };
        let special = ["<|stop|>", "<|fin|>", "<|im_end|>", "<|end|>"];
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false,
            "trim_offsets": true, "use_regex": false });
        let tokenizer = json!({
            "version": "1.0",
            "added_tokens": special.into_iter().enumerate().map(added).collect::<Vec<_>>(),
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2, "Ġ": 3 }, "merges": ["a b"] },
        });
        let folder = Self { folder: tempfile::tempdir().unwrap(), config: json!({}) };
        folder.with("tokenizer.json", &tokenizer.to_string())
    }

    pub(crate) fn with(self, name: &str, content: &str) -> Self {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.folder.path().join(name)).unwrap()).unwrap()
    }

    pub(crate) fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    pub(crate) fn load(&self) -> Result<Text, LoadError> {
        let values = self.config.as_object().unwrap().clone();
        Text::from_folder(self.folder.path(), &Config::new(self.folder.path(), values))
    }
}

/// A value of GGUF metadata, as far as vocabularies need it.
#[derive(Clone, Copy)]
pub(crate) enum Entry<'a> {
    U32(u32),
    Bool(bool),
    Str(&'a str),
    Strs(&'a [&'a str]),
    F32s(&'a [f32]),
    I32s(&'a [i32]),
}

/// Metadata written as a GGUF file and read back.
pub(crate) fn metadata(entries: &[(&str, Entry)]) -> Metadata {
    fn string(file: &mut Vec<u8>, text: &str) {
        file.extend((text.len() as u64).to_le_bytes());
        file.extend(text.bytes());
    }
    fn list(file: &mut Vec<u8>, kind: u32, len: usize) {
        file.extend(9u32.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend((len as u64).to_le_bytes());
    }
    let mut file = b"GGUF".to_vec();
    file.extend(3u32.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend((entries.len() as u64).to_le_bytes());
    for (key, entry) in entries {
        string(&mut file, key);
        match entry {
            Entry::U32(number) => {
                file.extend(4u32.to_le_bytes());
                file.extend(number.to_le_bytes());
            }
            Entry::Bool(value) => {
                file.extend(7u32.to_le_bytes());
                file.push(u8::from(*value));
            }
            Entry::Str(text) => {
                file.extend(8u32.to_le_bytes());
                string(&mut file, text);
            }
            Entry::Strs(texts) => {
                list(&mut file, 8, texts.len());
                texts.iter().for_each(|text| string(&mut file, text));
            }
            Entry::F32s(numbers) => {
                list(&mut file, 6, numbers.len());
                numbers.iter().for_each(|number| file.extend(number.to_le_bytes()));
            }
            Entry::I32s(numbers) => {
                list(&mut file, 5, numbers.len());
                numbers.iter().for_each(|number| file.extend(number.to_le_bytes()));
            }
        }
    }
    gguf::parse(&file).unwrap().metadata
}

pub(crate) fn from_gguf(entries: &[(&str, Entry)]) -> Result<Text, LoadError> {
    Text::from_gguf(Path::new("made-up.gguf"), &metadata(entries))
}
