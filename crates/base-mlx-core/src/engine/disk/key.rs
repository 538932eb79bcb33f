use std::fmt;

use crate::TokenId;

/// Names a chunk: the model, and all tokens up to the chunk's end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::engine) struct Key(pub(super) [u8; 32]);

impl Key {
    /// Of no tokens yet. Whatever keys and values depend on is in `files` or in `how`, or is this engine's version.
    pub(super) fn of_model(files: &[u8; 32], how: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("base-mlx keys and values");
        for part in [env!("CARGO_PKG_VERSION").as_bytes(), how.as_bytes(), files] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Of the chunk after this one.
    pub(super) fn then(&self, tokens: &[TokenId]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    pub(super) fn from_hex(hex: &str) -> Option<Self> {
        blake3::Hash::from_hex(hex).ok().map(|hash| Self(*hash.as_bytes()))
    }
}

/// As in file names.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
