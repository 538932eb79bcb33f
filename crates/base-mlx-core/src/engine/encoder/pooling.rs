//! From the states of a text's tokens to one vector.

/// What becomes of the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    First,
    Last,
    Mean,
    Max,
}

/// What is known of a text's vector after some of its tokens.
pub(super) struct Pooled {
    pooling: Pooling,
    /// How many.
    pub(super) tokens: usize,
    values: Vec<f64>,
}

impl Pooling {
    /// Of the next `count` rows from `row` on, those that count.
    pub(super) fn rows(self, row: u32, count: usize) -> std::ops::Range<u32> {
        let end = row + count as u32;
        match self {
            Self::First => row..end.min(row + 1),
            Self::Last => end.saturating_sub(1).max(row)..end,
            Self::Mean | Self::Max => row..end,
        }
    }
}

impl Pooled {
    pub(super) fn new(pooling: Pooling) -> Self {
        Self { pooling, tokens: 0, values: Vec::new() }
    }

    /// The next `count` tokens of the text; `rows` are the states of those that count, `[rows, width]`.
    pub(super) fn add(&mut self, rows: &[f32], width: usize, count: usize) {
        for row in rows.chunks_exact(width) {
            let values = row.iter().map(|value| f64::from(*value));
            match self.pooling {
                _ if self.values.is_empty() => self.values = values.collect(),
                Pooling::First => {}
                Pooling::Last => self.values = values.collect(),
                Pooling::Mean => self.values.iter_mut().zip(values).for_each(|(sum, x)| *sum += x),
                Pooling::Max => {
                    self.values.iter_mut().zip(values).for_each(|(most, x)| *most = most.max(x));
                }
            }
        }
        self.tokens += count;
    }

    /// The text's vector.
    pub(super) fn finish(self, normalize: bool) -> Vec<f32> {
        let mut values = self.values;
        if self.pooling == Pooling::Mean {
            values.iter_mut().for_each(|sum| *sum /= self.tokens as f64);
        }
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        if normalize { normalized(values) } else { values }
    }
}

/// Brought to length 1; one of zeros stays as it is.
pub(super) fn normalized(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four tokens of width 2, in two parts.
    fn pooled(pooling: Pooling) -> Vec<f32> {
        let all: [f32; 8] = [1.0, -2.0, 3.0, 0.0, 5.0, 2.0, 3.0, -8.0];
        let mut pooled = Pooled::new(pooling);
        for (start, count) in [(0, 3), (3, 1)] {
            let rows = pooling.rows(start as u32, count);
            let rows = &all[rows.start as usize * 2..rows.end as usize * 2];
            pooled.add(rows, 2, count);
        }
        assert_eq!(pooled.tokens, 4);
        pooled.finish(false)
    }

    #[test]
    fn parts_of_a_text_pool_like_the_whole() {
        assert_eq!(pooled(Pooling::First), [1.0, -2.0]);
        assert_eq!(pooled(Pooling::Last), [3.0, -8.0]);
        assert_eq!(pooled(Pooling::Mean), [3.0, -2.0]);
        assert_eq!(pooled(Pooling::Max), [5.0, 2.0]);
    }

    #[test]
    fn a_vector_of_zeros_has_no_length_to_bring_to_one() {
        assert_eq!(normalized(vec![3.0, 4.0]), [0.6, 0.8]);
        assert_eq!(normalized(vec![0.0, 0.0]), [0.0, 0.0]);
    }
}
