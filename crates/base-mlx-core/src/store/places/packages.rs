use std::path::{Path, PathBuf};

use super::super::catalogue::Catalogue;
use super::super::name::Name;
use super::super::{StoreOptions, pip};
use super::{Found, Look, Place, Source};

/// Our own folder, with what came out of pip packages.
pub(super) struct Packages {
    home: PathBuf,
    folder: PathBuf,
    catalogue: Catalogue,
}

impl Packages {
    pub(super) fn new(options: &StoreOptions) -> Self {
        let (home, catalogue) = (options.home.clone(), options.catalogue.clone());
        Self { folder: pip::root(&home), home, catalogue }
    }
}

impl Place for Packages {
    fn source(&self) -> Source {
        Source::Pip
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn look(&self) -> Look {
        let mut look = Look::default();
        for (pip, path) in pip::installed(&self.home) {
            let full = format!("pip:{pip}");
            look.models.push(match self.catalogue.alias_of_pip(&pip) {
                Some((entry, _)) => Found { aliases: vec![full], ..Found::new(&entry.name, path) },
                None => Found::new(full, path),
            });
        }
        look
    }

    fn find(&self, text: &str, name: &Name) -> Option<Found> {
        let Name::Pip(pip) = name else { return None };
        Some(Found::new(text, pip::find(&self.home, pip)?))
    }
}
