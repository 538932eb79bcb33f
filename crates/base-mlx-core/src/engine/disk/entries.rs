use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::Key;

/// Which chunks there are, how large they are, and when they were used last. Pure: files and the index are others' work.
#[derive(Debug, Default)]
pub(super) struct Entries {
    all: HashMap<Key, Entry>,
    /// Of all together.
    bytes: u64,
    clock: u64,
    /// Used since somebody asked.
    touched: HashSet<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Of its file.
    pub(super) bytes: u64,
    /// How many chunks are before it in its sequence.
    pub(super) depth: u32,
    /// By a clock that goes on from process to process.
    pub(super) used: u64,
}

impl Entries {
    pub(super) fn contains(&self, key: &Key) -> bool {
        self.all.contains_key(key)
    }

    /// Bytes of its file, if it is there.
    pub(super) fn size(&self, key: &Key) -> Option<u64> {
        self.all.get(key).map(|entry| entry.bytes)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes up an entry of an earlier process.
    pub(super) fn restore(&mut self, key: Key, entry: Entry) {
        self.clock = self.clock.max(entry.used);
        self.bytes += entry.bytes;
        self.all.insert(key, entry);
    }

    /// A new entry, used now.
    pub(super) fn insert(&mut self, key: Key, bytes: u64, depth: u32) {
        self.clock += 1;
        let entry = Entry { bytes, depth, used: self.clock };
        self.remove(&key);
        self.bytes += bytes;
        self.all.insert(key, entry);
        self.touched.insert(key);
    }

    pub(super) fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.all.remove(key) {
            self.bytes -= entry.bytes;
        }
        self.touched.remove(key);
    }

    /// These are used, together.
    pub(super) fn touch(&mut self, keys: &[Key]) {
        self.clock += 1;
        for key in keys {
            if let Some(entry) = self.all.get_mut(key) {
                entry.used = self.clock;
                self.touched.insert(*key);
            }
        }
    }

    /// The entries that are new or were touched since this was last asked.
    pub(super) fn take_touched(&mut self) -> Vec<(Key, Entry)> {
        let touched = std::mem::take(&mut self.touched);
        touched.into_iter().filter_map(|key| Some((key, *self.all.get(&key)?))).collect()
    }

    /// Takes out what was not used for longest until no more than so many bytes are left. Of those used together the deepest
    /// goes first: without the chunks before it a chunk is of no use.
    pub(super) fn evict_down_to(&mut self, bytes: u64) -> Vec<Key> {
        if self.bytes <= bytes {
            return Vec::new();
        }
        let mut oldest: Vec<(u64, Reverse<u32>, Key)> =
            self.all.iter().map(|(key, entry)| (entry.used, Reverse(entry.depth), *key)).collect();
        oldest.sort_unstable();
        let mut dropped = Vec::new();
        for (.., key) in oldest {
            if self.bytes <= bytes {
                break;
            }
            self.remove(&key);
            dropped.push(key);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> Key {
        Key([number; 32])
    }

    #[test]
    fn the_longest_unused_goes_first_and_the_deepest_of_those_used_together() {
        let mut entries = Entries::default();
        for (number, depth) in [(1, 0), (2, 1), (3, 0), (4, 1), (5, 2)] {
            entries.insert(key(number), 10, depth);
        }
        entries.touch(&[key(1), key(2)]);
        assert_eq!(entries.evict_down_to(50), []);
        assert_eq!(entries.evict_down_to(31), [key(3), key(4)]);
        assert_eq!(entries.evict_down_to(10), [key(5), key(2)]);
        assert_eq!((entries.bytes(), entries.contains(&key(1))), (10, true));
    }

    #[test]
    fn the_clock_goes_on_after_a_restart() {
        let mut entries = Entries::default();
        entries.restore(key(1), Entry { bytes: 1, depth: 0, used: 41 });
        entries.insert(key(2), 1, 0);
        let new = Entry { bytes: 1, depth: 0, used: 42 };
        assert_eq!(entries.take_touched(), [(key(2), new)]);
        entries.touch(&[key(1), key(9)]);
        assert_eq!(entries.take_touched(), [(key(1), Entry { bytes: 1, depth: 0, used: 43 })]);
        assert_eq!(entries.take_touched(), []);
    }

    #[test]
    fn what_is_written_again_counts_once() {
        let mut entries = Entries::default();
        entries.insert(key(1), 10, 0);
        entries.insert(key(1), 30, 0);
        entries.remove(&key(2));
        assert_eq!(entries.bytes(), 30);
    }
}
