use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::super::folders::{HALF, children};
use super::super::name::{Name, OllamaName};
use super::super::{Fault, StoreError};
use super::modelfile::{self, Manifest};
use super::{Broken, Found, Look, Place, Source, delete, prune};

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
        for (name, manifest) in self.manifests(&mut look) {
            match self.read(&name.to_string(), &manifest) {
                Ok(model) => {
                    let full = format!("ollama:{name}");
                    let latest = full.strip_suffix(":latest").map(str::to_owned);
                    look.models.push(Found {
                        aliases: latest.into_iter().chain([full]).collect(),
                        ..model
                    });
                }
                Err(fault) => look.broken(name.to_string(), manifest, fault),
            }
        }
        look.broken.extend(self.halves());
        look
    }

    fn find(&self, text: &str, name: &Name) -> Option<Found> {
        self.read(text, &self.manifest(name)?).ok()
    }

    /// The manifest, and the blobs that no other one needs; or what is left of a download.
    fn remove(&self, name: &Name, model: &Path) -> Result<u64, StoreError> {
        if let Some(blob) = half_at(model) {
            let halves = children(&self.blobs()).into_iter();
            let its = halves.filter(|(name, _)| modelfile::half(name) == Some(blob));
            return its.map(|(_, path)| delete(&path)).sum();
        }
        let Some(path) = self.manifest(name) else {
            // A folder that cannot be read is all that is listed without one.
            let error = fs::read_dir(model).err().unwrap_or(io::ErrorKind::NotFound.into());
            return Err(StoreError::io("read", model)(error));
        };
        let own = Manifest::read(&path);
        // A name of the catalogue may have been found under another one.
        let weights = own.as_ref().ok().and_then(|own| own.weights(&self.blobs()).ok());
        if let Some(weights) = weights.filter(|weights| weights != model) {
            let why = format!("that name is another model's here, {}", weights.display());
            return Err(StoreError::io("remove", model)(io::Error::other(why)));
        }
        let mut bytes = delete(&path)?;
        prune(&path, &self.0.join("manifests"));
        // Who cannot be read may need any of them, and so may a pull that is not done.
        let others = files_below(&self.0.join("manifests"), 4);
        let others = others.ok().and_then(|files| {
            files.iter().map(|other| Manifest::read(other).ok()).collect::<Option<Vec<_>>>()
        });
        let (Ok(own), Some(others)) = (own, others) else { return Ok(bytes) };
        if children(&self.blobs()).iter().any(|(name, _)| modelfile::half(name).is_some()) {
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

    fn read(&self, name: &str, manifest: &Path) -> Result<Found, Fault> {
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
            // What is no name on the hub may still be one here.
            Name::Path(path) => OllamaName::parse(path.to_str()?)?,
            Name::Pip(_) => return None,
        };
        let OllamaName { registry, namespace, model, tag } = name;
        let path = self.0.join("manifests").join(registry).join(namespace).join(model).join(tag);
        path.is_file().then_some(path)
    }

    /// Folders that cannot be read are told.
    fn manifests(&self, look: &mut Look) -> Vec<(OllamaName, PathBuf)> {
        let mut manifests = Vec::new();
        for (registry, path) in look.children("manifests", &self.0.join("manifests")) {
            for (namespace, path) in look.children(&registry, &path) {
                for (model, path) in look.children(&format!("{registry}/{namespace}"), &path) {
                    let name = format!("{registry}/{namespace}/{model}");
                    for (tag, path) in look.children(&name, &path) {
                        let name = OllamaName::new(&registry, &namespace, &model, &tag);
                        manifests.extend(name.map(|name| (name, path)));
                    }
                }
            }
        }
        manifests
    }

    /// Downloads that have not come to their manifest, which is written last: nothing tells which models they are of.
    fn halves(&self) -> Vec<Broken> {
        let blobs = children(&self.blobs());
        let halves: BTreeMap<&str, &PathBuf> = blobs
            .iter()
            .rev()
            .filter_map(|(name, path)| Some((modelfile::half(name)?, path)))
            .collect();
        let manifests = self.manifests(&mut Look::default());
        let read = manifests.iter().filter_map(|(_, path)| Manifest::read(path).ok());
        let named: BTreeSet<PathBuf> = read
            .flat_map(|manifest| {
                let blobs = |digest: &str| modelfile::blob(&self.blobs(), digest);
                manifest.digests().filter_map(blobs).collect::<Vec<_>>()
            })
            .collect();
        let nobodys =
            halves.into_iter().filter(|(blob, _)| !named.contains(&self.blobs().join(blob)));
        nobodys
            .map(|(blob, path)| {
                let name = blob.get(..SHORT_DIGEST).unwrap_or(blob).to_owned();
                Broken { name, path: path.clone(), fault: HALF.into() }
            })
            .collect()
    }
}

/// The blob of which a half lies at `path`.
fn half_at(path: &Path) -> Option<&str> {
    path.file_name()?.to_str().and_then(modelfile::half)
}

/// `sha256-` and twelve digits, which is what Ollama shows of one.
const SHORT_DIGEST: usize = 19;
