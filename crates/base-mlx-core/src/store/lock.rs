use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use super::options::GLANCE;

/// A lock between processes, held until dropped, or until the process dies. It is `flock` on a file that stays
/// behind: what Hugging Face's tools take around a download.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

impl Lock {
    /// `on_wait` is called if another one holds it.
    pub(super) fn acquire(path: &Path, on_wait: impl FnOnce()) -> io::Result<Lock> {
        if let Some(lock) = Self::try_acquire(path)? {
            return Ok(lock);
        }
        on_wait();
        loop {
            let file = open(path)?;
            file.lock()?;
            if is_still_at(&file, path) {
                return Ok(Lock(file));
            }
        }
    }

    /// The same until it is in vain, for which `None` stands.
    pub(super) fn acquire_unless(
        path: &Path,
        is_in_vain: impl Fn() -> bool,
        on_wait: impl FnOnce(),
    ) -> io::Result<Option<Lock>> {
        let mut on_wait = Some(on_wait);
        while !is_in_vain() {
            if let Some(lock) = Self::try_acquire(path)? {
                return Ok(Some(lock));
            }
            if let Some(on_wait) = on_wait.take() {
                on_wait();
            }
            std::thread::sleep(GLANCE);
        }
        Ok(None)
    }

    pub(super) fn try_acquire(path: &Path) -> io::Result<Option<Lock>> {
        loop {
            let file = open(path)?;
            match file.try_lock() {
                Ok(()) if is_still_at(&file, path) => return Ok(Some(Lock(file))),
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Some tools delete the file when they are done; then a lock on it keeps nobody out.
#[cfg(unix)]
fn is_still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |meta: fs::Metadata| (meta.dev(), meta.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => id(held) == id(there),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_still_at(_: &File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_a_deleted_file_locks_nobody_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks").join("x.lock");
        let held = Lock::try_acquire(&path).unwrap().unwrap();
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        fs::remove_file(&path).unwrap();
        let fresh = Lock::try_acquire(&path).unwrap();
        assert!(fresh.is_some());
        drop(held);
        assert!(Lock::try_acquire(&path).unwrap().is_none());
        drop(fresh);
        assert!(Lock::acquire(&path, || panic!("nobody holds it")).is_ok());
    }
}
