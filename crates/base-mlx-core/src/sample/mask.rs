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

    /// Of a bit for each token, the lowest bit of the first word first.
    pub fn of_words(words: &[u32]) -> Self {
        let pairs = words.chunks(2);
        let wide = |pair: &[u32]| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32;
        Self { words: pairs.map(wide).collect() }
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// The token that is allowed, if it is the only one.
    pub fn only(&self) -> Option<TokenId> {
        let mut words = self.words.iter().enumerate().filter(|(_, word)| **word != 0);
        let (index, word) = words.next()?;
        let single = word.is_power_of_two() && words.next().is_none();
        single.then(|| (64 * index) as TokenId + word.trailing_zeros())
    }

    /// What is not allowed becomes −∞.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let mut words = self.words.iter();
        for chunk in logits.chunks_mut(64) {
            match words.next().copied().unwrap_or(0) {
                u64::MAX => {}
                0 => chunk.fill(f32::NEG_INFINITY),
                word => {
                    for (bit, logit) in chunk.iter_mut().enumerate() {
                        if word >> bit & 1 == 0 {
                            *logit = f32::NEG_INFINITY;
                        }
                    }
                }
            }
        }
    }

    pub fn allow(&mut self, token: TokenId) {
        self.words[token as usize / 64] |= 1 << (token % 64);
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
        mask.allow(63);
        mask.allow(64);
        assert!((0..200).all(|token| mask.allows(token) == [63, 64].contains(&token)));
    }
}
