//! Memory for what stays: huge pages where the system has them, so that a stream through it stops at few page ends.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// Hands out pieces of one size that come and go. What is free lies in mappings that are in use elsewhere, or in one more.
#[derive(Clone)]
pub(crate) struct Shelf(Arc<Slabs>);

struct Slabs {
    /// Lines of a piece.
    len: usize,
    /// The oldest first, from which pieces are taken first, so that the youngest empty themselves.
    slabs: Mutex<Vec<Slab>>,
}

/// A mapping cut into pieces.
struct Slab {
    mapping: MmapRaw,
    pieces: usize,
    /// Which are free.
    free: Vec<usize>,
}

/// Lines of a [`Shelf`], nobody else's: zeros, or what was last left in them.
pub(crate) struct Piece {
    start: *mut Line,
    shelf: Shelf,
}

impl Shelf {
    pub(crate) fn new(len: usize) -> Self {
        Self(Arc::new(Slabs { len, slabs: Mutex::default() }))
    }

    /// Fails if the system has no memory left to promise.
    pub(crate) fn piece(&self) -> io::Result<Piece> {
        let len = self.0.len;
        let mut slabs = self.slabs();
        let slab = match slabs.iter().position(|slab| !slab.free.is_empty()) {
            Some(slab) => slab,
            None => {
                let bytes = (len * LINE).max(SLAB);
                let pieces = bytes / (len * LINE).max(1);
                let free = (0..pieces).rev().collect();
                slabs.push(Slab { mapping: map(bytes)?, pieces, free });
                slabs.len() - 1
            }
        };
        let slab = &mut slabs[slab];
        let number = slab.free.pop().expect("it was chosen for having some");
        let start = slab.mapping.as_mut_ptr().wrapping_add(number * len * LINE).cast();
        Ok(Piece { start, shelf: self.clone() })
    }

    fn slabs(&self) -> MutexGuard<'_, Vec<Slab>> {
        // A panic elsewhere cannot leave a slab half changed.
        self.0.slabs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut slabs = self.shelf.slabs();
        let offset = |slab: &Slab| {
            let offset = (self.start as usize).checked_sub(slab.mapping.as_ptr() as usize);
            offset.filter(|offset| *offset < slab.mapping.len())
        };
        let found = slabs.iter().enumerate().find_map(|(i, slab)| Some((i, offset(slab)?)));
        let (i, offset) = found.expect("a slab stays as long as its pieces");
        slabs[i].free.push(offset / (self.shelf.0.len * LINE).max(1));
        let empty = |slab: &Slab| slab.free.len() == slab.pieces;
        // One empty slab is kept, so that a piece which comes and goes does not map memory each time.
        if empty(&slabs[i]) && slabs.iter().filter(|slab| empty(slab)).count() > 1 {
            slabs.remove(i);
        }
    }
}

// SAFETY: no two pieces overlap, so that each is as good as a boxed slice of plain bytes.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

impl Deref for Piece {
    type Target = [Line];

    #[inline(always)]
    fn deref(&self) -> &[Line] {
        // SAFETY: the lines lie within a slab, which stays as long as its pieces; mappings begin at a page, so that they are
        // aligned; any bytes are a line, and nobody else has these.
        unsafe { std::slice::from_raw_parts(self.start, self.shelf.0.len) }
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.shelf.0.len) }
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
/// Some huge pages, which go back together.
const SLAB: usize = 16 << 20;

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

    #[test]
    fn pieces_come_and_go_and_so_does_their_memory() {
        let len = (SLAB / LINE) / 3;
        let shelf = Shelf::new(len);
        let mut pieces: Vec<Piece> = (0..10).map(|_| shelf.piece().unwrap()).collect();
        for (number, piece) in pieces.iter_mut().enumerate() {
            assert_eq!(piece.len(), len);
            piece.fill(Line([number as u8 + 1; LINE]));
        }
        for (number, piece) in pieces.iter().enumerate() {
            assert!(piece.iter().all(|line| line.0 == [number as u8 + 1; LINE]), "{number}");
        }
        assert_eq!(shelf.slabs().len(), 4);
        pieces.truncate(2);
        assert_eq!(shelf.slabs().len(), 2, "one in use, one kept");
        // What is free in the first comes before what is free in the second.
        pieces.extend((0..4).map(|_| shelf.piece().unwrap()));
        assert_eq!(shelf.slabs().len(), 2);
        drop(pieces);
        assert_eq!(shelf.slabs().len(), 1);
    }
}
