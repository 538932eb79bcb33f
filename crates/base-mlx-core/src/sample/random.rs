//! Random numbers without a state: each is a function of a seed and a counter, so that the number a token is drawn with
//! does not depend on what else was drawn, by whom and in which order. Philox 4x32 with ten rounds, of Salmon, Moraes,
//! Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

/// A number in [0, 1), uniform over multiples of 2⁻⁵³.
pub fn uniform(seed: u64, position: usize) -> f64 {
    let bits = philox(counter(Stream::Tokens, position), words(seed));
    (join(bits[0], bits[1]) >> 11) as f64 / (1u64 << 53) as f64
}

/// The seed of one of several answers to a request. The first keeps the request's own.
pub fn choice_seed(seed: u64, choice: usize) -> u64 {
    if choice == 0 {
        return seed;
    }
    let bits = philox(counter(Stream::Choices, choice), words(seed));
    join(bits[0], bits[1])
}

/// Numbers for different purposes differ, though seed and index be the same.
enum Stream {
    Tokens = 0,
    Choices = 1,
}

fn counter(stream: Stream, index: usize) -> [u32; 4] {
    let [low, high] = words(index as u64);
    [low, high, 0, stream as u32]
}

fn words(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [low_0, high_0] = words(u64::from(counter[0]) * 0xd251_1f53);
        let [low_1, high_1] = words(u64::from(counter[2]) * 0xcd9e_8d57);
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that the authors publish with their implementation.
    #[test]
    fn philox_gives_the_published_numbers() {
        let zeros = philox([0; 4], [0; 2]);
        assert_eq!(zeros, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = philox([u32::MAX; 4], [u32::MAX; 2]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = philox(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
        );
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    /// Users keep seeds; an answer must not change with a new version.
    #[test]
    fn seeds_keep_their_meaning() {
        assert_eq!(
            uniform(0, 0),
            (0xe169_c58d_6627_e8d5_u64 >> 11) as f64 / 9_007_199_254_740_992.0
        );
        assert_eq!(choice_seed(42, 0), 42);
        assert_eq!(
            [uniform(42, 7), uniform(43, 7), uniform(42, 1 << 33)],
            [0.4080856156904158, 0.1435507239084184, 0.9822341333164268]
        );
        assert_eq!(
            [choice_seed(42, 1), choice_seed(42, 2), choice_seed(u64::MAX, 1)],
            [6526683383576497442, 10929996121602175956, 17727335158988242331]
        );
    }

    #[test]
    fn numbers_are_uniform_over_positions_and_over_seeds() {
        let over_positions = |i: usize| uniform(1, i);
        let over_seeds = |i: usize| uniform(i as u64, 5);
        let of_choices = |i: usize| uniform(choice_seed(9, i + 1), 0);
        for stream in [&over_positions as &dyn Fn(usize) -> f64, &over_seeds, &of_choices] {
            const DRAWS: usize = 64_000;
            let mut bins = [0usize; 64];
            let mut neighbours = [0usize; 16];
            let mut last = 0.0;
            for i in 0..DRAWS {
                let x = stream(i);
                assert!((0.0..1.0).contains(&x));
                bins[(x * 64.0) as usize] += 1;
                neighbours[(last * 4.0) as usize * 4 + (x * 4.0) as usize] += 1;
                last = x;
            }
            // 63 and 15 degrees of freedom: beyond these once in 10 000 streams; these streams are fixed.
            assert!(chi_square(&bins) < 116.0, "{bins:?}");
            assert!(chi_square(&neighbours) < 44.0, "{neighbours:?}");
        }
    }

    fn chi_square(bins: &[usize]) -> f64 {
        let expected = bins.iter().sum::<usize>() as f64 / bins.len() as f64;
        bins.iter().map(|&bin| (bin as f64 - expected).powi(2) / expected).sum()
    }
}
