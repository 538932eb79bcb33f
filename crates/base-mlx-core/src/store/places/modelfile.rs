//! What one of Ollama's manifests says: the layers of a model, each a blob under its digest. Its Modelfile is the
//! user's side of the same.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::folders;
use super::super::found::{Extras, Fault, OwnTemplate, Parameters};
use super::wrong_size;

#[derive(Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    layers: Vec<Layer>,
    config: Option<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
}

impl Manifest {
    pub(super) fn read(path: &Path) -> Result<Self, Fault> {
        let text = read(path, "manifest")?;
        serde_json::from_slice(&text).map_err(|_| "its manifest is damaged".into())
    }

    /// The GGUF file, if all that a model needs is there.
    pub(super) fn weights(&self, blobs: &Path) -> Result<PathBuf, Fault> {
        let models: Vec<_> = self.of_kind("model").collect();
        if self.of_kind("adapter").next().is_some() {
            return Err(Fault::foreign("it has a LoRA adapter, which is not read"));
        }
        let [model] = models[..] else {
            return Err(Fault::foreign(match models.len() {
                0 if self.of_kind("tensor").next().is_some() => {
                    "its weights are single tensors in Ollama's own layout, which is not read"
                        .to_owned()
                }
                0 => "there are no weights in it: Ollama runs it elsewhere".to_owned(),
                count => format!("its weights are in {count} files, which are not read"),
            }));
        };
        model.whole(blobs, "weights")
    }

    pub(super) fn extras(&self, blobs: &Path) -> Result<Extras, Fault> {
        let mut extras = Extras::default();
        if let Some(layer) = self.of_kind("system").next() {
            let text = read(&layer.whole(blobs, "system text")?, "system text")?;
            let text = String::from_utf8_lossy(&text).into_owned();
            extras.system = Some(text).filter(|text| !text.trim().is_empty());
        }
        if let Some(layer) = self.of_kind("params").next() {
            let text = read(&layer.whole(blobs, "parameters")?, "parameters")?;
            extras.parameters = parameters(&text).ok_or("its parameters are damaged")?;
        }
        if self.of_kind("template").next().is_some() {
            extras.template = OwnTemplate::Go;
        }
        Ok(extras)
    }

    /// The blobs that it refers to.
    pub(super) fn digests(&self) -> impl Iterator<Item = &str> {
        self.layers.iter().chain(&self.config).map(|layer| layer.digest.as_str())
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Layer> {
        self.layers.iter().filter(move |layer| {
            // What follows a semicolon are parameters.
            let name = layer.media_type.split(';').next().unwrap_or_default();
            name.trim().strip_prefix("application/vnd.ollama.image.") == Some(kind)
        })
    }
}

impl Layer {
    /// Its blob, if that is there and of the size that was promised.
    fn whole(&self, blobs: &Path, what: &str) -> Result<PathBuf, Fault> {
        let path = blob(blobs, &self.digest).ok_or("its manifest is damaged")?;
        Err(match fs::metadata(&path) {
            Ok(meta) if !meta.is_file() => format!("the blob of its {what} is not a file").into(),
            Ok(meta) if meta.len() == self.size => return Ok(path),
            Ok(meta) => {
                let why = wrong_size(meta.len(), self.size);
                format!("the blob of its {what} is damaged: {why}").into()
            }
            Err(_) if is_coming(blobs, &path) => folders::HALF.into(),
            Err(_) if folders::is_dangling(&path) => {
                format!("the blob of its {what} is a link to a file that is not there").into()
            }
            Err(_) => format!("the blob of its {what} is missing").into(),
        })
    }
}

/// Where the blob of a digest lies; `None` if it is no digest. Old versions wrote a colon where newer ones have a dash.
pub(super) fn blob(blobs: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.strip_prefix("sha256:").or_else(|| digest.strip_prefix("sha256-"))?;
    if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let old = blobs.join(format!("sha256:{hex}"));
    Some(if old.exists() { old } else { blobs.join(format!("sha256-{hex}")) })
}

fn is_coming(blobs: &Path, blob: &Path) -> bool {
    let name = blob.file_name().unwrap_or_default();
    folders::children(blobs).iter().any(|(other, _)| half(other).is_some_and(|half| half == name))
}

/// The blob that a download with this name will become: `sha256-…-partial`, and pieces with numbers behind it.
pub(super) fn half(name: &str) -> Option<&str> {
    let (blob, rest) = name.rsplit_once("-partial")?;
    (rest.is_empty() || rest.starts_with('-')).then_some(blob)
}

/// Every value that is of its right kind counts: none is worth refusing a model for.
fn parameters(text: &[u8]) -> Option<Parameters> {
    let found: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(text).ok()?;
    fn value<T: DeserializeOwned>(
        found: &serde_json::Map<String, serde_json::Value>,
        key: &str,
    ) -> Option<T> {
        serde_json::from_value(found.get(key)?.clone()).ok()
    }
    let stop: Option<Vec<String>> = value(&found, "stop");
    let stop = stop.or_else(|| value(&found, "stop").map(|one| vec![one])).unwrap_or_default();
    Some(Parameters {
        temperature: value(&found, "temperature"),
        top_k: value(&found, "top_k"),
        top_p: value(&found, "top_p"),
        min_p: value(&found, "min_p"),
        repeat_penalty: value(&found, "repeat_penalty"),
        presence_penalty: value(&found, "presence_penalty"),
        frequency_penalty: value(&found, "frequency_penalty"),
        seed: value(&found, "seed"),
        num_predict: value(&found, "num_predict"),
        stop: stop.into_iter().filter(|text| !text.is_empty()).collect(),
    })
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, Fault> {
    const MOST_BYTES: u64 = 4 << 20;
    let text = folders::read_small(path, MOST_BYTES);
    text.map_err(|error| format!("its {what} cannot be read: {error}").into())
}
