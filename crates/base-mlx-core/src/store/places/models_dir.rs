use std::path::{Path, PathBuf};

use super::super::folders::{self, Demand};
use super::{Look, Place, Source};

/// The folder that the user named, with models under their own file and folder names.
pub(super) struct ModelsDir(pub(super) PathBuf);

impl Place for ModelsDir {
    fn source(&self) -> Source {
        Source::ModelsDir
    }

    fn folder(&self) -> &Path {
        &self.0
    }

    fn look(&self) -> Look {
        folders::look(&self.0, Demand::Config)
    }
}
