//! Memory for what stays: huge pages where the system has them, so that a stream through it stops at few page ends.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapMut, MmapRaw};

/// Hands out memory, zeros at first, from the front of big mappings, each of which goes back to the system with the last
/// piece of it. Clones share what is left.
#[derive(Clone, Default)]
pub struct Arena(Arc<Mutex<Option<Rest>>>);

/// What nobody has yet of the latest mapping.
struct Rest {
    mapping: Arc<MmapRaw>,
    /// Lines handed out.
    used: usize,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; LINE]);

pub(crate) const LINE: usize = 64;

/// Lines of an [`Arena`], nobody else's.
pub(crate) struct Lines {
    start: *mut Line,
    len: usize,
    /// Keeps the memory mapped.
    _mapping: Arc<MmapRaw>,
}

impl Arena {
    /// Fails if the system has no memory left to promise.
    pub(crate) fn lines(&self, len: usize) -> io::Result<Lines> {
        // A panic elsewhere cannot leave a rest half cut.
        let mut rest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |rest: &Rest| rest.mapping.len() / LINE - rest.used >= len;
        let from = match rest.take().filter(fits) {
            Some(from) => from,
            None => Rest { mapping: Arc::new(map((len * LINE).max(MAPPING))?), used: 0 },
        };
        let start = from.mapping.as_mut_ptr().wrapping_add(from.used * LINE).cast();
        let lines = Lines { start, len, _mapping: Arc::clone(&from.mapping) };
        *rest = Some(Rest { used: from.used + len, ..from });
        Ok(lines)
    }
}

fn map(bytes: usize) -> io::Result<MmapRaw> {
    let mapping = MmapMut::map_anon(bytes)?;
    // A wish: not every kernel has them.
    #[cfg(target_os = "linux")]
    let _ = mapping.advise(memmap2::Advice::HugePage);
    Ok(mapping.into())
}

// SAFETY: no two `Lines` overlap, so that each is as good as a boxed slice of plain bytes.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: the lines lie within the mapping, which `self` keeps; mappings begin at a page, so that they are aligned;
        // any bytes are a line, and nobody else has these.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Far more than a huge page, of which at most one is half used for each mapping. Untouched, it costs addresses only.
const MAPPING: usize = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_zeros_and_do_not_overlap() {
        let arena = Arena::default();
        let mut pieces = Vec::new();
        // Some from one mapping, one of its own, and some of the next.
        for (number, len) in [1, 0, 70_000, 1 << 21, 5, 900_000, 900_000].into_iter().enumerate() {
            let mut piece = arena.lines(len).unwrap();
            assert_eq!(piece.len(), len);
            assert!(piece.iter().all(|line| line.0 == [0; LINE]));
            piece.fill(Line([number as u8 + 1; LINE]));
            pieces.push(piece);
        }
        drop(arena);
        for (number, piece) in pieces.iter().enumerate() {
            assert!(piece.iter().all(|line| line.0 == [number as u8 + 1; LINE]), "{number}");
        }
    }
}
