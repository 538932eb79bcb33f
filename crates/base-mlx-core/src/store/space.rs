use std::fs::{self, File};
use std::path::Path;

use super::{StoreError, StoreOptions};

/// Refuses to begin what cannot end. Creates the folder.
pub(super) fn check(
    options: &StoreOptions,
    folder: &Path,
    needed_bytes: u64,
) -> Result<(), StoreError> {
    fs::create_dir_all(folder).map_err(StoreError::io("create", folder))?;
    let free = options.host.free_bytes(folder);
    let free_bytes = free.map_err(StoreError::io("ask for the free space of", folder))?;
    if needed_bytes > free_bytes {
        return Err(StoreError::DiskFull { path: folder.to_owned(), needed_bytes, free_bytes });
    }
    Ok(())
}

/// Makes a rename last through a power cut, where the system can.
pub(super) fn sync_folder(folder: &Path) {
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
}
