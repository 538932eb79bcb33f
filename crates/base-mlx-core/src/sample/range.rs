//! The values that parameters may have, wherever they come from: requests, command lines, a model's own files.

use std::fmt;

/// From `least` to `most`; NaN lies in none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    least: f64,
    most: f64,
    /// Does it leave `least` out?
    above: bool,
}

pub const TEMPERATURE: Range = Range { least: 0.0, most: 2.0, above: false };
pub const TOP_P: Range = Range { least: 0.0, most: 1.0, above: true };
pub const MIN_P: Range = Range { least: 0.0, most: 1.0, above: false };
pub const REPETITION_PENALTY: Range = Range { least: 0.0, most: 10.0, above: true };
/// Presence and frequency.
pub const PENALTY: Range = Range { least: -2.0, most: 2.0, above: false };

impl Range {
    pub fn contains(&self, value: f64) -> bool {
        // Compared as the f32 that it becomes: what underflows to 0 is 0.
        let above = !self.above || f64::from(value as f32) > self.least;
        above && (self.least..=self.most).contains(&value)
    }
}

/// What is expected of a number: `0 to 2`, `more than 0 and at most 1`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { least, most, .. } = self;
        match self.above {
            true => write!(f, "more than {least} and at most {most}"),
            false => write!(f, "{least} to {most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_belong_to_a_range_unless_it_says_above() {
        assert!(TEMPERATURE.contains(0.0) && TEMPERATURE.contains(2.0) && PENALTY.contains(-2.0));
        assert!(TOP_P.contains(1.0) && TOP_P.contains(1e-30));
        for value in [0.0, -0.0, 1e-60, 1.0001, f64::NAN, f64::INFINITY] {
            assert!(!TOP_P.contains(value), "{value}");
        }
        assert!(!TEMPERATURE.contains(f64::NAN) && !TEMPERATURE.contains(-1e-60));
    }

    #[test]
    fn a_range_reads_well() {
        assert_eq!(PENALTY.to_string(), "-2 to 2");
        assert_eq!(REPETITION_PENALTY.to_string(), "more than 0 and at most 10");
    }
}
