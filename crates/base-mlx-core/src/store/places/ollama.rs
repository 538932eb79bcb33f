use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::super::StoreError;
use super::super::folders::children;
use super::super::name::{Name, OllamaName};
use super::modelfile::{self, Manifest};
use super::{Found, Look, Place, Source, delete, prune};

/// A folder of Ollama's: `manifests/registry/namespace/model/tag`, and `blobs/` with what they name.
pub(super) struct Ollama(pub(super) PathBuf);

impl Place for Ollama {
    fn source(&self) -> Source {
        Source::Ollama
    }

    fn folder(&self) -> &Path {
        &self.0
    }

    fn look(&self) -> Look {
        let mut look = Look::default();
        for (name, manifest) in self.manifests() {
            match self.read(&name.to_string(), &manifest) {
                Ok(model) => {
                    let full = format!("ollama:{name}");
                    let latest = full.strip_suffix(":latest").map(str::to_owned);
                    look.models.push(Found {
                        aliases: latest.into_iter().chain([full]).collect(),
                        ..model
                    });
                }
                Err(why) => look.broken(name.to_string(), manifest, why),
            }
        }
        look
    }

    fn find(&self, text: &str, name: &Name) -> Option<Found> {
        self.read(text, &self.manifest(name)?).ok()
    }

    /// The manifest, and the blobs that no other one needs.
    fn remove(&self, name: &Name, _: &Path) -> Result<u64, StoreError> {
        let Some(path) = self.manifest(name) else { return Ok(0) };
        let own = Manifest::read(&path);
        let mut bytes = delete(&path)?;
        prune(&path, &self.0.join("manifests"));
        // Who cannot be read may need any of them, and so may a pull that is not done.
        let others = files_below(&self.0.join("manifests"), 4).map_err(|error| error.to_string());
        let others = others.and_then(|files| {
            files.iter().map(|other| Manifest::read(other)).collect::<Result<Vec<_>, _>>()
        });
        let (Ok(own), Ok(others)) = (own, others) else { return Ok(bytes) };
        if children(&self.blobs()).iter().any(|(name, _)| name.contains("-partial")) {
            return Ok(bytes);
        }
        let blobs = |manifest: &Manifest| -> BTreeSet<PathBuf> {
            manifest.digests().filter_map(|digest| modelfile::blob(&self.blobs(), digest)).collect()
        };
        let needed: BTreeSet<PathBuf> = others.iter().flat_map(blobs).collect();
        for blob in blobs(&own).difference(&needed) {
            if blob.is_symlink() || blob.is_file() {
                bytes += delete(blob)?;
            }
        }
        Ok(bytes)
    }
}

/// Every file so many folders below. What cannot be read is an error.
fn files_below(folder: &Path, depth: usize) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.is_dir() {
            files.push(path);
        } else if depth > 0 {
            files.extend(files_below(&path, depth - 1)?);
        }
    }
    Ok(files)
}

impl Ollama {
    fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }

    fn read(&self, name: &str, manifest: &Path) -> Result<Found, String> {
        let manifest = Manifest::read(manifest)?;
        let weights = manifest.weights(&self.blobs())?;
        let extras = manifest.extras(&self.blobs())?;
        Ok(Found { extras, ..Found::new(name, weights) })
    }

    /// Where the manifest of a name lies, if it is there.
    fn manifest(&self, name: &Name) -> Option<PathBuf> {
        let name = match name {
            Name::Ollama(name) => name.clone(),
            Name::Hub(hub) => OllamaName::of_hub(hub)?,
            Name::Word(word) => OllamaName::parse(word)?,
            Name::Path(_) | Name::Pip(_) => return None,
        };
        let OllamaName { registry, namespace, model, tag } = name;
        let path = self.0.join("manifests").join(registry).join(namespace).join(model).join(tag);
        path.is_file().then_some(path)
    }

    fn manifests(&self) -> Vec<(OllamaName, PathBuf)> {
        let mut manifests = Vec::new();
        for (registry, path) in children(&self.0.join("manifests")) {
            for (namespace, path) in children(&path) {
                for (model, path) in children(&path) {
                    for (tag, path) in children(&path) {
                        let name = OllamaName::new(&registry, &namespace, &model, &tag);
                        manifests.extend(name.map(|name| (name, path)));
                    }
                }
            }
        }
        manifests
    }
}
