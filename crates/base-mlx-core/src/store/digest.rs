use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A content hash as the hub and the catalogue state it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256(String),
    /// Git's name of a file: SHA-1 over a header with the size, then the content.
    GitSha1(String),
}

impl Digest {
    /// By its length: 64 hexadecimal digits are SHA-256, 40 are Git's. Anything else says nothing about content.
    pub(super) fn of_etag(etag: &str) -> Option<Self> {
        if !etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        match etag.len() {
            64 => Some(Self::Sha256(etag.to_lowercase())),
            40 => Some(Self::GitSha1(etag.to_lowercase())),
            _ => None,
        }
    }

    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitSha1(hex) => hex,
        }
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "its SHA-256",
            Self::GitSha1(_) => "its Git hash",
        }
    }

    /// A hasher that will know whether content of `size` bytes has this digest.
    pub(super) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::GitSha1(_) => {
                let mut sha1 = Sha1::new();
                sha1.update(format!("blob {size}\0"));
                Hasher::Sha1(sha1)
            }
        }
    }
}

pub(super) enum Hasher {
    Sha256(Sha256),
    Sha1(Sha1),
}

impl Hasher {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(sha256) => sha256.update(bytes),
            Self::Sha1(sha1) => sha1.update(bytes),
        }
    }

    pub(super) fn finish(self) -> String {
        match self {
            Self::Sha256(sha256) => hex(&sha256.finalize()),
            Self::Sha1(sha1) => hex(&sha1.finalize()),
        }
    }

    /// Takes in what a file holds.
    pub(super) fn update_from(&mut self, path: &Path) -> io::Result<()> {
        self.read(File::open(path)?)
    }

    pub(super) fn read(&mut self, mut from: impl Read) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 18];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(()),
                count => self.update(&buffer[..count]),
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_sha256sum() {
        let git = Digest::of_etag("CE013625030ba8dba906f756967f9e9ca394464a").unwrap();
        let mut hasher = git.hasher(6);
        hasher.update(b"hello\n");
        assert_eq!(hasher.finish(), git.hex());

        let text = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        let sha256 = Digest::of_etag(text).unwrap();
        let mut hasher = sha256.hasher(6);
        hasher.update(b"hello\n");
        assert_eq!(hasher.finish(), text);
        assert_eq!(Digest::of_etag("d41d8cd98f00b204e9800998ecf8427e"), None);
        assert_eq!(Digest::of_etag(&"g".repeat(64)), None);
    }
}
