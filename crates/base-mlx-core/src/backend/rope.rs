use std::sync::Arc;

/// Rotary position embedding: the angle of pair i at position p is `p * inv_freq[i]`. (Su et al. 2021,
/// arXiv:2104.09864; pairs are (i, i + head_dim / 2), as in the Hugging Face checkpoints.)
///
/// Every scaling scheme we know comes down to other frequencies and a factor, so a backend learns of none of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Radians per position, one for each pair: `[rotary_dim / 2]`. A head's values beyond `rotary_dim` pass
    /// through unrotated.
    pub inv_freq: Arc<[f32]>,
    /// Multiplies the rotated values; 1 but for schemes that temper attention.
    pub attention_factor: f32,
}
