//! Sums of exponentials, the same on every machine: plain additions and multiplications in a fixed order, wide enough
//! for the compiler to use vectors, where the system's `exp` would differ between platforms and go number by number.
//!
//! All logits here are finite or −∞; `chain` sees to that.

/// Largest logit; −∞ for none.
pub(super) fn maximum(logits: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// A token's share of the probability, before division by the sum of all: the most probable token's is 1.
#[inline(always)]
pub(super) fn weight(logit: f32, maximum: f32, temperature: f32) -> f32 {
    exp((logit - maximum) / temperature)
}

/// Sum of the weights of at most `BLOCK` logits, partly taken in single precision.
pub(super) fn block_mass(logits: &[f32], maximum: f32, temperature: f32) -> f64 {
    // First a loop without sums, then one without exponentials: the compiler makes vectors of either, not of both.
    let mut weights = [0.0; BLOCK];
    let weights = &mut weights[..logits.len()];
    for (slot, &logit) in weights.iter_mut().zip(logits) {
        *slot = weight(logit, maximum, temperature);
    }
    let mut lanes = [0.0; LANES];
    let chunks = weights.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += weight;
        }
    }
    lanes.iter().chain(rest).map(|&weight| f64::from(weight)).sum()
}

/// Sum of the weights of all logits.
pub(super) fn mass(logits: &[f32], maximum: f32, temperature: f32) -> f64 {
    logits.chunks(BLOCK).map(|block| block_mass(block, maximum, temperature)).sum()
}

pub(super) const BLOCK: usize = 256;

const LANES: usize = 8;

/// eˣ for x ≤ 0, to 2 units in the last place; 0 below −87, where single precision ends, and for NaN.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let inside = x.max(-87.0);
    // Adding 1.5·2²³ leaves the nearest whole number in the low bits.
    let shifted = inside * std::f32::consts::LOG2_E + 12_582_912.0;
    let whole = shifted - 12_582_912.0;
    // ln 2 in two parts, so that the product with a whole number is exact in the first.
    let r = inside - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    // Taylor's series is good to 2⁻²⁶ over |r| ≤ ln 2 / 2.
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    // The low bits of `shifted` count in ones; moved up, they are an exponent.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    if x >= -87.0 { series * power } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_the_exponential() {
        let mut worst: f64 = 0.0;
        for i in 0..=870_000 {
            let x = -(i as f32) / 10_000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 2.4e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::NAN), 0.0);
        // The same everywhere, to the last bit.
        assert_eq!(exp(-1.5).to_bits(), 1_046_772_796);
    }

    #[test]
    fn sums_take_every_logit_once() {
        let logits: Vec<f32> = (0..1003).map(|i| -(i as f32) / 100.0).collect();
        let exact: f64 = logits.iter().map(|&x| (f64::from(x) / 0.7).exp()).sum();
        assert!((mass(&logits, 0.0, 0.7) / exact - 1.0).abs() < 1e-6);
        for at in [0, 5, 1002] {
            let mut logits = logits.clone();
            logits[at] = 3.0;
            assert_eq!(maximum(&logits), 3.0);
        }
        assert_eq!(maximum(&[]), f32::NEG_INFINITY);
    }
}
