//! Memory of activations. Every operation wants some for its result, and gives it back a few operations later; from the
//! system it would come as pages of zeros, one fault each.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Floats for a result, which go back to where they come from.
pub(super) struct Buffer {
    /// What there is; of a spare one it may be more than was asked for.
    memory: Vec<f32>,
    len: usize,
    from: Option<Spare>,
}

/// What was given back. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Spare(Arc<Mutex<Vec<Vec<f32>>>>);

impl Spare {
    /// Zeros, or what was last left there.
    pub(super) fn buffer(&self, len: usize) -> Buffer {
        let mut spare = self.lock();
        let fits = |memory: &Vec<f32>| memory.len() >= len && memory.len() / 2 <= len;
        let best = spare.iter().enumerate().filter(|(_, memory)| fits(memory));
        let best = best.min_by_key(|(_, memory)| memory.len()).map(|(index, _)| index);
        let memory = best.map(|index| spare.remove(index));
        drop(spare);
        let memory = memory.unwrap_or_else(|| vec![0.0; len]);
        Buffer { memory, len, from: Some(self.clone()) }
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().iter().map(|memory| memory.len() * size_of::<f32>()).sum()
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        // A panic elsewhere cannot leave the list half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(memory: Vec<f32>) -> Self {
        Self { len: memory.len(), memory, from: None }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(from) = &self.from {
            let mut spare = from.lock();
            // The oldest goes: sizes that no step asks for any more do not stay.
            if spare.len() == SPARE {
                spare.remove(0);
            }
            spare.push(std::mem::take(&mut self.memory));
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.memory[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[..self.len]
    }
}

/// More than a layer has at once.
const SPARE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again() {
        let spare = Spare::default();
        let mut first = spare.buffer(1000);
        first.fill(1.0);
        let place = first.as_ptr();
        drop(first);
        assert_eq!(spare.bytes(), 4000);
        assert_ne!(spare.buffer(499).as_ptr(), place, "far more than was asked for");
        let second = spare.buffer(900);
        assert_eq!((second.as_ptr(), second.len()), (place, 900));
        drop(second);
        let buffers: Vec<Buffer> = (1..=100).map(|len| spare.buffer(len)).collect();
        drop(buffers);
        assert_eq!(spare.lock().len(), SPARE);
        spare.clear();
        assert_eq!(spare.bytes(), 0);
    }

    #[test]
    fn the_oldest_goes() {
        let spare = Spare::default();
        let buffers: Vec<Buffer> = (1..=SPARE).map(|index| spare.buffer(1000 * index)).collect();
        drop(buffers);
        // One is used and comes back as the youngest, then two more come.
        drop(spare.buffer(3000));
        drop([spare.buffer(1), spare.buffer(2)]);
        let lens: Vec<usize> = spare.lock().iter().map(Vec::len).collect();
        let rest = (4..=SPARE).map(|index| 1000 * index);
        assert_eq!(lens, rest.chain([3000, 1, 2]).collect::<Vec<_>>());
    }
}
