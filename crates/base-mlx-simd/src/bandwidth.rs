//! How fast memory can be read: the limit of whatever reads all of its weights for a few rows.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use crate::pool::Pool;
use crate::shared::SharedMut;

/// Bytes a second that the threads of `pool` read together from `bytes` of memory, the best of some tries. It tells of
/// memory only if `bytes` is far more than the caches hold. They are given back at once.
pub fn read_bandwidth(pool: &Pool, bytes: usize) -> io::Result<f64> {
    let pieces = bytes.div_ceil(PIECE).max(1);
    let mut memory = MmapMut::map_anon(pieces * PIECE)?;
    // With small pages the walks through the page tables would be measured too. It is a wish: not every kernel has them.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    touch(pool, pieces, &mut memory);
    let best = (0..TRIES).map(|_| read(pool, &memory)).min().expect("more than one try");
    Ok(memory.len() as f64 / best.as_secs_f64())
}

/// Memory that was never written to is one page of zeros, which lies in the cache.
fn touch(pool: &Pool, pieces: usize, memory: &mut [u8]) {
    let memory = SharedMut::new(memory);
    pool.run(pieces, |piece, _| {
        // SAFETY: each piece has its own bytes.
        unsafe { memory.part(piece * PIECE..(piece + 1) * PIECE) }.fill(1);
    });
}

fn read(pool: &Pool, memory: &[u8]) -> Duration {
    let begun = Instant::now();
    pool.run(memory.len() / PIECE, |piece, _| {
        // SAFETY: any eight bytes are a number.
        let (_, words, _) = unsafe { memory[piece * PIECE..(piece + 1) * PIECE].align_to() };
        black_box(all_bits(words));
    });
    begun.elapsed()
}

/// Two cache lines at a time. Every CPU's plainest vectors keep up with memory here, while the longer chains of float
/// instructions do not.
fn all_bits(words: &[u64]) -> u64 {
    let (lines, rest) = words.as_chunks::<16>();
    let mut bits = [0; 16];
    for line in lines {
        for (bits, word) in bits.iter_mut().zip(line) {
            *bits |= word;
        }
    }
    bits.iter().chain(rest).fold(0, |all, bits| all | bits)
}

/// Long enough for a stream of its own, short enough that no thread waits long for another's last one.
const PIECE: usize = 4 << 20;

/// Neighbours on the machine take some of them away.
const TRIES: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        for len in [0, 1, 15, 16, 100] {
            for place in 0..len {
                let mut words = vec![1; len];
                words[place] |= 1 << 40;
                assert_eq!(all_bits(&words), (1 << 40) | 1, "word {place} of {len}");
            }
        }
    }

    #[test]
    fn a_machine_reads_more_than_nothing() {
        let bandwidth = read_bandwidth(&Pool::new(2), 1).unwrap();
        assert!(bandwidth > 1e6 && bandwidth.is_finite(), "{bandwidth}");
    }
}
