use std::sync::Arc;

use serde::Deserialize;

use super::name::{HubName, PipName};

/// The models that have a short name, and where each can be had.
#[derive(Clone, Debug)]
pub struct Catalogue {
    models: Arc<Vec<CatalogueEntry>>,
}

impl Catalogue {
    pub fn built_in() -> Self {
        Self::from_json(include_str!("catalogue.json"))
            .expect("a test reads the built-in catalogue")
    }

    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Document {
            models: Vec<CatalogueEntry>,
        }
        let document: Document = serde_json::from_str(json)?;
        Ok(Self { models: Arc::new(document.models) })
    }

    pub fn get(&self, alias: &str) -> Option<&CatalogueEntry> {
        self.models.iter().find(|entry| entry.name == alias)
    }

    pub fn iter(&self) -> impl Iterator<Item = &CatalogueEntry> {
        self.models.iter()
    }

    /// The short names of a hub repository.
    pub(super) fn aliases_of_hub(&self, repo: &str) -> Vec<String> {
        let has = |entry: &&CatalogueEntry| {
            entry
                .sources
                .iter()
                .any(|source| matches!(source, ModelSource::Hub(hub) if hub == repo))
        };
        self.iter().filter(has).map(|entry| entry.name.clone()).collect()
    }

    /// The short name of a pip package in one version.
    pub(super) fn alias_of_pip(&self, name: &PipName) -> Option<(&CatalogueEntry, &PipSource)> {
        self.iter().find_map(|entry| {
            entry.sources.iter().find_map(|source| match source {
                ModelSource::Pip(pip) if pip.name() == *name => Some((entry, pip)),
                _ => None,
            })
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogueEntry {
    pub name: String,
    /// One line for people.
    pub about: String,
    /// Where to get it, the first that works.
    pub sources: Vec<ModelSource>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelSource {
    /// `owner/name`, `owner/name@revision`, or `owner/name:TAG` for one of several GGUF files.
    Hub(String),
    Pip(PipSource),
}

impl ModelSource {
    pub(super) fn hub(&self) -> Option<HubName> {
        match self {
            Self::Hub(text) => HubName::parse(text).ok(),
            Self::Pip(_) => None,
        }
    }

    /// How messages call it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Hub(text) => format!("`{text}` on the hub"),
            Self::Pip(pip) => format!("pip package `{}`", pip.name()),
        }
    }
}

/// A model inside a wheel that is known beforehand.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipSource {
    pub package: String,
    pub version: String,
    pub wheel: Fixed,
    /// The model's one file; `None` if it is the wheel's one folder of a model.
    pub file: Option<WheelFile>,
}

/// A file in a wheel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WheelFile {
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
}

impl PipSource {
    pub(super) fn name(&self) -> PipName {
        PipName { package: self.package.clone(), version: self.version.clone() }
    }
}

impl WheelFile {
    /// Its name in the cache.
    pub(super) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }
}

/// A file whose content is known beforehand.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fixed {
    pub bytes: u64,
    pub sha256: String,
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_built_in_catalogue_is_sound() {
        let catalogue = Catalogue::built_in();
        let mut names = HashSet::new();
        for entry in catalogue.iter() {
            assert!(names.insert(&entry.name), "`{}` is there twice", entry.name);
            assert!(!entry.sources.is_empty());
            for source in &entry.sources {
                match source {
                    ModelSource::Hub(text) => assert!(HubName::parse(text).is_ok(), "{text}"),
                    ModelSource::Pip(pip) => {
                        let text = format!("{}=={}", pip.package, pip.version);
                        assert_eq!(PipName::parse(&text).unwrap(), pip.name());
                        let files = pip.file.iter().map(|file| &file.sha256);
                        let mut digests = files.chain([&pip.wheel.sha256]);
                        assert!(digests.all(|sha256| sha256.len() == 64));
                    }
                }
            }
        }
        for default in [super::super::DEFAULT_MODEL, super::super::DEFAULT_ENCODER] {
            assert!(catalogue.get(default).is_some());
        }
    }
}
