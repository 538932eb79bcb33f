//! One chunk in one file: a magic number, its key, how many bytes follow, their checksum, the bytes.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{Key, KvDiskError, private_folder};

const MAGIC: &[u8; 8] = b"BMLXKV01";
const HEADER: usize = MAGIC.len() + 32 + 8 + 32;

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotTaken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no file of keys and values")]
    Foreign,
    #[error("it is another chunk's")]
    Other,
    #[error("it has {there} bytes of {expected}")]
    Size { there: u64, expected: u64 },
    #[error("its checksum is not right")]
    Checksum,
}

impl NotTaken {
    /// It is the file that is wrong, not that it could not be read just now.
    pub(super) fn is_about_content(&self) -> bool {
        match self {
            Self::Io(error) => error.kind() == io::ErrorKind::NotFound,
            _ => true,
        }
    }
}

/// Of the file for so many bytes.
pub(super) fn size(bytes: &[u8]) -> u64 {
    (HEADER + bytes.len()) as u64
}

pub(super) fn path(folder: &Path, key: &Key) -> PathBuf {
    let name = key.to_string();
    folder.join(FOLDER).join(&name[..2]).join(name + ENDING)
}

/// Under another name first, so that no half file ever has the right one. Not waiting for the disk: what a power cut makes
/// of it, its checksum will tell.
pub(super) fn write(folder: &Path, key: &Key, bytes: &[u8]) -> io::Result<()> {
    let path = path(folder, key);
    let half = path.with_extension(HALF);
    if let Some(folder) = path.parent() {
        private_folder(folder)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&half)?;
    let written = (|| {
        file.write_all(MAGIC)?;
        file.write_all(&key.0)?;
        file.write_all(&(bytes.len() as u64).to_le_bytes())?;
        file.write_all(blake3::hash(bytes).as_bytes())?;
        file.write_all(bytes)?;
        fs::rename(&half, &path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&half);
    }
    written
}

/// The bytes of a chunk whose file has this size.
pub(super) fn read(folder: &Path, key: &Key, size: u64) -> Result<Vec<u8>, NotTaken> {
    let mut file = File::open(path(folder, key))?;
    let there = file.metadata()?.len();
    // Before memory is taken for what is there.
    if there != size {
        return Err(NotTaken::Size { there, expected: size });
    }
    let mut header = [0; HEADER];
    file.read_exact(&mut header).map_err(|_| NotTaken::Foreign)?;
    let (magic, rest) = header.split_at(MAGIC.len());
    let (named, rest) = rest.split_at(32);
    let (said, checksum) = rest.split_at(8);
    if magic != MAGIC {
        return Err(NotTaken::Foreign);
    }
    if named != key.0 {
        return Err(NotTaken::Other);
    }
    let said = u64::from_le_bytes(said.try_into().expect("it was cut to 8 bytes"));
    let (there, expected) = (there - HEADER as u64, said);
    if there != expected {
        return Err(NotTaken::Size { there, expected });
    }
    let mut bytes = Vec::with_capacity(said as usize);
    file.read_to_end(&mut bytes)?;
    if blake3::hash(&bytes).as_bytes() != checksum {
        return Err(NotTaken::Checksum);
    }
    Ok(bytes)
}

/// It may be gone already.
pub(super) fn remove(folder: &Path, key: &Key) {
    let _ = fs::remove_file(path(folder, key));
}

/// Our files and their sizes. Halves of files are removed; what has a name that is none of ours is left alone.
pub(super) fn list(folder: &Path) -> Result<HashMap<Key, u64>, KvDiskError> {
    let folder = folder.join(FOLDER);
    let mut found = HashMap::new();
    let mut foreign = 0;
    for shelf in entries(&folder)? {
        if !shelf.is_dir() {
            foreign += 1;
            continue;
        }
        for path in entries(&shelf)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let hex = name.strip_suffix(ENDING);
            let half = name.strip_suffix(HALF).and_then(|name| name.strip_suffix('.'));
            if half.and_then(Key::from_hex).is_some() {
                let _ = fs::remove_file(&path);
                continue;
            }
            let size = fs::metadata(&path).ok().filter(fs::Metadata::is_file);
            match (hex.and_then(Key::from_hex), size) {
                (Some(key), Some(size)) => {
                    found.insert(key, size.len());
                }
                _ => foreign += 1,
            }
        }
    }
    if foreign > 0 {
        tracing::warn!("{} holds {foreign} files of others, left alone", folder.display());
    }
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, KvDiskError> {
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.and_then(|all| all.map(|entry| Ok(entry?.path())).collect()),
    };
    let path = folder.to_owned();
    listed.map_err(|source| KvDiskError::Io { action: "list", path, source })
}

const FOLDER: &str = "kv";
const ENDING: &str = ".kv";
const HALF: &str = "half";

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key([7; 32]);

    #[test]
    fn what_was_written_is_read_and_what_is_broken_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..1000_u32).flat_map(u32::to_le_bytes).collect();
        write(folder.path(), &KEY, &bytes).unwrap();
        let size = size(&bytes);
        assert_eq!(read(folder.path(), &KEY, size).unwrap(), bytes);
        assert_eq!(list(folder.path()).unwrap(), HashMap::from([(KEY, size)]));

        let path = path(folder.path(), &KEY);
        let whole = fs::read(&path).unwrap();
        let told = |file: &[u8]| {
            fs::write(&path, file).unwrap();
            read(folder.path(), &KEY, file.len() as u64).unwrap_err().to_string()
        };
        // Every place of the header, and some beyond.
        for place in (0..HEADER).chain([HEADER, HEADER + 999, whole.len() - 1]) {
            let mut broken = whole.clone();
            broken[place] ^= 1;
            told(&broken);
        }
        assert_eq!(told(b"short"), "it is no file of keys and values");
        assert_eq!(told(&[0; 500]), "it is no file of keys and values");
        let cut = &whole[..whole.len() - 1];
        assert_eq!(told(cut), "it has 3999 bytes of 4000");
        let error = read(folder.path(), &KEY, size).unwrap_err();
        assert_eq!(error.to_string(), format!("it has {} bytes of {size}", size - 1));
        fs::write(&path, &whole).unwrap();
        let other = Key([8; 32]);
        let place = super::path(folder.path(), &other);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::rename(&path, place).unwrap();
        let error = read(folder.path(), &other, size).unwrap_err();
        assert_eq!(error.to_string(), "it is another chunk's");
    }

    #[test]
    fn halves_go_and_what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &KEY, b"1").unwrap();
        let path = path(folder.path(), &KEY);
        let half = path.with_extension(HALF);
        let foreign = path.with_file_name("notes.txt");
        fs::write(&half, "").unwrap();
        fs::write(&foreign, "").unwrap();
        assert_eq!(list(folder.path()).unwrap().len(), 1);
        assert!(!half.exists() && foreign.exists());
    }
}
