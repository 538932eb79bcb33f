use std::path::{Path, PathBuf};

use super::super::folders::{self, Demand};
use super::{Look, Place, Source};

/// A folder of LM Studio's: `owner/name/…`, as on the hub, but without revisions.
pub(super) struct LmStudio(pub(super) PathBuf);

impl Place for LmStudio {
    fn source(&self) -> Source {
        Source::LmStudio
    }

    fn folder(&self) -> &Path {
        &self.0
    }

    fn look(&self) -> Look {
        let mut look = folders::look(&self.0, Demand::Complete);
        // LM Studio itself sees nothing that lies higher; a folder that cannot be read may hide something.
        let is_owner = |path: &Path| path.is_dir() && !folders::has_config(path);
        look.models.retain(|model| model.name.contains('/'));
        look.broken.retain(|broken| broken.name.contains('/') || is_owner(&broken.path));
        look
    }
}
