use crate::TokenId;

/// Which tokens are allowed: one bit for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    words: Vec<u64>,
}

impl Mask {
    /// Allows nothing.
    pub fn new(vocab_size: usize) -> Self {
        Self { words: vec![0; vocab_size.div_ceil(64)] }
    }

    pub fn allow(&mut self, token: TokenId) {
        self.words[token as usize / 64] |= 1 << (token % 64);
    }

    pub fn forbid(&mut self, token: TokenId) {
        self.words[token as usize / 64] &= !(1 << (token % 64));
    }

    /// Tokens beyond the vocabulary are not.
    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 64).is_some_and(|word| word >> (token % 64) & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_allows_what_it_was_told_to() {
        let mut mask = Mask::new(70);
        assert!((0..200).all(|token| !mask.allows(token)));
        mask.allow(0);
        mask.allow(63);
        mask.allow(64);
        mask.forbid(0);
        assert!((0..200).all(|token| mask.allows(token) == [63, 64].contains(&token)));
    }
}
