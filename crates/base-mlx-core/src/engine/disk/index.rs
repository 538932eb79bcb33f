use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use super::entries::Entry;
use super::{Key, KvDiskError, private_folder};

/// The entries of a folder, and the digests of models' files, in a database that survives a crash at any moment.
pub(super) struct Index {
    database: Database,
    path: PathBuf,
}

/// Bytes, depth and use of an [`Entry`].
const ENTRIES: TableDefinition<&[u8; 32], (u64, u32, u64)> = TableDefinition::new("entries_v1");
/// By path: a file's size, when it was written in nanoseconds, and the digest of what is in it.
const DIGESTS: TableDefinition<&str, (u64, u64, &[u8; 32])> = TableDefinition::new("digests_v1");

impl Index {
    /// Opens or creates the database of a folder. One that cannot be read is begun anew, as what it was about is a cache.
    pub(super) fn open(folder: &Path) -> Result<(Self, Vec<(Key, Entry)>), KvDiskError> {
        let path = folder.join("index.redb");
        let failed = |source| KvDiskError::Io { action: "open", path: path.clone(), source };
        private_folder(folder).map_err(|source| KvDiskError::Io {
            action: "create the folder",
            path: folder.to_owned(),
            source,
        })?;
        match Self::read(&path) {
            Ok(opened) => return Ok(opened),
            Err(redb::Error::DatabaseAlreadyOpen) => {
                return Err(KvDiskError::InUse { path: folder.to_owned() });
            }
            Err(redb::Error::Io(error)) if !is_about_content(&error) => return Err(failed(error)),
            Err(error) => {
                tracing::warn!("{} is begun anew: {error}", path.display());
            }
        }
        fs::remove_file(&path).map_err(failed)?;
        Self::read(&path).map_err(|error| failed(io::Error::other(error)))
    }

    fn read(path: &Path) -> Result<(Self, Vec<(Key, Entry)>), redb::Error> {
        let database = open(path)?;
        let index = Self { database, path: path.to_owned() };
        let rows = index.rows()?;
        Ok((index, rows))
    }

    fn rows(&self) -> Result<Vec<(Key, Entry)>, redb::Error> {
        let reading = self.database.begin_read()?;
        let table = match reading.open_table(ENTRIES) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table?,
        };
        let mut rows = Vec::new();
        for row in table.iter()? {
            let (key, entry) = row?;
            let (bytes, depth, used) = entry.value();
            rows.push((Key(*key.value()), Entry { bytes, depth, used }));
        }
        Ok(rows)
    }

    /// Of its file.
    pub(super) fn bytes(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    /// Removes and writes rows, all of them or none; they are on disk when it returns.
    pub(super) fn change(&self, remove: &[Key], write: &[(Key, Entry)]) -> Result<(), redb::Error> {
        if remove.is_empty() && write.is_empty() {
            return Ok(());
        }
        let writing = self.database.begin_write()?;
        {
            let mut table = writing.open_table(ENTRIES)?;
            for key in remove {
                table.remove(&key.0)?;
            }
            for (key, Entry { bytes, depth, used }) in write {
                table.insert(&key.0, (*bytes, *depth, *used))?;
            }
        }
        writing.commit()?;
        Ok(())
    }

    /// The digest of a file, if it was of this size and written at this time when it was entered.
    pub(super) fn digest(&self, path: &str, size: u64, written: u64) -> Option<[u8; 32]> {
        let table = self.database.begin_read().ok()?.open_table(DIGESTS).ok()?;
        let row = table.get(path).ok()??;
        let (of_size, of_time, digest) = row.value();
        (of_size == size && of_time == written).then_some(*digest)
    }

    pub(super) fn enter_digest(
        &self,
        path: &str,
        size: u64,
        written: u64,
        digest: &[u8; 32],
    ) -> Result<(), redb::Error> {
        let writing = self.database.begin_write()?;
        writing.open_table(DIGESTS)?.insert(path, (size, written, digest))?;
        writing.commit()?;
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database, DatabaseError> {
    // A page cache of a gigabyte is the default.
    // Damage in a database that was closed in order makes it panic later, unless it is looked for.
    Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create(path)
}

/// What is in the file is wrong, not how it was asked for.
fn is_about_content(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

const CACHE_BYTES: usize = 4 << 20;
