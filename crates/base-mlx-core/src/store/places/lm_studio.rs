use std::path::{Path, PathBuf};

use super::super::folders::{self, Demand};
use super::super::name::Name;
use super::{Found, Look, Place, Source};

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
        // LM Studio itself sees nothing that lies higher.
        look.models.retain(|model| model.name.contains('/'));
        look.broken.retain(|broken| broken.name.contains('/'));
        look
    }

    fn find(&self, text: &str, name: &Name) -> Option<Found> {
        // All others would be looked for in vain, in many folders.
        let Name::Hub(_) = name else { return None };
        self.look().models.into_iter().find(|model| model.name == text)
    }
}
