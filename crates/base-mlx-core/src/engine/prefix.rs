use std::collections::BTreeMap;
use std::ops::Bound;

use crate::TokenId;

/// Names a cache that has outlived its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeptId(pub u64);

/// Which tokens the kept caches are of. Pure: the caches themselves are the runner's.
///
/// In the order of their tokens, sequences are the leaves of a tree from left to right: what two of them share at their
/// beginning all between them share too. So the longest beginning that a prompt shares with any is the one that it
/// shares with a neighbour, and what neighbours do not share is what is in memory.
#[derive(Debug)]
pub struct PrefixIndex {
    /// None is the beginning of another.
    entries: BTreeMap<Vec<TokenId>, Entry>,
    /// Caches share memory in blocks of so many positions; `None` if each has all of its own.
    block: Option<usize>,
    /// Of all entries together.
    positions: usize,
    clock: u64,
    next_id: u64,
}

#[derive(Debug)]
struct Entry {
    id: KeptId,
    used: u64,
    /// Running sequences that began with it. What they share with it stays in memory for as long as they run.
    users: usize,
}

/// The kept cache that begins most like some tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub id: KeptId,
    /// How many tokens are the same.
    pub len: usize,
    /// It goes on after these, with another token.
    pub differs: bool,
}

/// An entry that was taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evicted {
    pub id: KeptId,
    pub tokens: Vec<TokenId>,
}

/// What to do with the cache of a sequence that is gone: keep its first `len` positions under this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    pub id: KeptId,
    pub len: usize,
    /// The kept cache that begins most like it, perhaps the one that had this name until now, and how many positions are
    /// the same: they are not to be held twice.
    pub shares: Option<(KeptId, usize)>,
}

impl PrefixIndex {
    pub fn new(block: Option<usize>) -> Self {
        Self { entries: BTreeMap::new(), block, positions: 0, clock: 0, next_id: 0 }
    }

    /// Positions in memory for all entries together, whole blocks counted.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// The entry that begins most like `tokens`, if any begins like them at all. The one used last among equals.
    pub fn find(&self, tokens: &[TokenId]) -> Option<Found> {
        let neighbours = [self.before(tokens), self.from(tokens)].into_iter().flatten();
        let shared = neighbours.map(|(kept, entry)| (shared_len(kept, tokens), kept, entry));
        let best = shared.max_by_key(|(len, _, entry)| (*len, entry.used));
        best.filter(|(len, ..)| *len > 0).map(|(len, kept, entry)| Found {
            id: entry.id,
            len,
            differs: len < kept.len().min(tokens.len()),
        })
    }

    /// A sequence begins with this entry, which counts as used, and stays while others can go.
    pub fn begin(&mut self, id: KeptId) {
        self.clock += 1;
        let used = self.clock;
        if let Some(entry) = self.entry(id) {
            entry.used = used;
            entry.users += 1;
        }
    }

    /// A sequence that began with this entry is gone.
    pub fn end(&mut self, id: KeptId) {
        if let Some(entry) = self.entry(id) {
            entry.users -= 1;
        }
    }

    pub fn contains(&self, id: KeptId) -> bool {
        self.tokens(id).is_some()
    }

    /// The tokens of an entry.
    pub fn tokens(&self, id: KeptId) -> Option<&[TokenId]> {
        self.entries.iter().find(|(_, entry)| entry.id == id).map(|(tokens, _)| &tokens[..])
    }

    /// Enters the tokens of a cache. `None` if an entry begins with all of them, so that it need not be kept. An entry that
    /// is the beginning of these tokens grows to be theirs, under its own name.
    pub fn insert(&mut self, tokens: &[TokenId]) -> Option<Keep> {
        if tokens.is_empty() {
            return None;
        }
        self.clock += 1;
        let used = self.clock;
        if let Some((kept, _)) = self.from(tokens)
            && kept.starts_with(tokens)
        {
            let kept = kept.to_vec();
            self.entries.get_mut(&kept).expect("it was found there").used = used;
            return None;
        }
        let shares = self.find(tokens).map(|found| (found.id, found.len));
        let beginning = self.before(tokens).filter(|(kept, _)| tokens.starts_with(kept));
        let beginning = beginning.map(|(kept, _)| kept.to_vec());
        let entry = match beginning.and_then(|kept| self.remove(&kept)) {
            Some(beginning) => Entry { used, ..beginning },
            None => {
                self.next_id += 1;
                Entry { id: KeptId(self.next_id), used, users: 0 }
            }
        };
        self.positions += self.own(tokens);
        let id = entry.id;
        self.entries.insert(tokens.to_vec(), entry);
        Some(Keep { id, len: tokens.len(), shares })
    }

    /// Takes out the entry that was not used for longest, one that no running sequence began with.
    pub fn evict(&mut self) -> Option<Evicted> {
        self.evict_where(|entry| entry.users == 0)
    }

    /// The same whoever began with it.
    pub fn evict_used(&mut self) -> Option<Evicted> {
        self.evict_where(|_| true)
    }

    fn evict_where(&mut self, may_go: impl Fn(&Entry) -> bool) -> Option<Evicted> {
        let candidates = self.entries.iter().filter(|(_, entry)| may_go(entry));
        let (tokens, entry) = candidates.min_by_key(|(_, entry)| entry.used)?;
        let (tokens, id) = (tokens.clone(), entry.id);
        self.remove(&tokens);
        Some(Evicted { id, tokens })
    }

    fn remove(&mut self, tokens: &[TokenId]) -> Option<Entry> {
        let entry = self.entries.remove(tokens)?;
        self.positions -= self.own(tokens);
        Some(entry)
    }

    /// What these tokens, which are no entry, add to the positions in memory.
    fn own(&self, tokens: &[TokenId]) -> usize {
        let with = |a: Option<&[TokenId]>, b: &[TokenId]| {
            let Some(block) = self.block else { return b.len() };
            let shared = a.map_or(0, |a| shared_len(a, b) / block * block);
            b.len().next_multiple_of(block) - shared
        };
        let before = self.before(tokens).map(|(kept, _)| kept);
        let Some((after, _)) = self.from(tokens) else { return with(before, tokens) };
        with(before, tokens) + with(Some(tokens), after) - with(before, after)
    }

    fn before(&self, tokens: &[TokenId]) -> Option<(&[TokenId], &Entry)> {
        let range = (Bound::Unbounded, Bound::Excluded(tokens));
        self.entries
            .range::<[TokenId], _>(range)
            .next_back()
            .map(|(kept, entry)| (&kept[..], entry))
    }

    fn from(&self, tokens: &[TokenId]) -> Option<(&[TokenId], &Entry)> {
        let range = (Bound::Included(tokens), Bound::Unbounded);
        self.entries.range::<[TokenId], _>(range).next().map(|(kept, entry)| (&kept[..], entry))
    }

    fn entry(&mut self, id: KeptId) -> Option<&mut Entry> {
        self.entries.values_mut().find(|entry| entry.id == id)
    }

    /// Panics if the books are wrong. For tests: it walks over everything.
    pub fn check_integrity(&self) {
        let mut positions = 0;
        let mut before: &[TokenId] = &[];
        for tokens in self.entries.keys() {
            assert!(before.is_empty() || !tokens.starts_with(before), "one begins another");
            positions += self.block.map_or(tokens.len(), |block| {
                tokens.len().next_multiple_of(block) - shared_len(before, tokens) / block * block
            });
            before = tokens;
        }
        assert_eq!(self.positions, positions, "positions of kept caches");
    }
}

/// How many tokens are the same at the beginning.
pub(super) fn shared_len(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(index: &PrefixIndex, tokens: &[TokenId]) -> Option<(KeptId, usize, bool)> {
        index.find(tokens).map(|found| (found.id, found.len, found.differs))
    }

    fn insert(index: &mut PrefixIndex, tokens: &[TokenId]) -> KeptId {
        let keep = index.insert(tokens).unwrap();
        index.check_integrity();
        keep.id
    }

    #[test]
    fn the_longest_shared_beginning_is_found_at_any_token() {
        let mut index = PrefixIndex::new(Some(4));
        assert_eq!(index.find(&[1, 2]), None);
        let a = insert(&mut index, &[1, 2, 3, 4, 5, 6]);
        let b = insert(&mut index, &[1, 2, 3, 9]);
        assert_eq!(found(&index, &[1, 2, 3, 4, 7, 7]), Some((a, 4, true)));
        assert_eq!(found(&index, &[1, 2, 3, 9, 7]), Some((b, 4, false)));
        assert_eq!(found(&index, &[1, 2, 3, 8]), Some((b, 3, true)), "the last used of equals");
        assert_eq!(
            found(&index, &[1, 2]).map(|(_, len, differs)| (len, differs)),
            Some((2, false))
        );
        assert_eq!(index.find(&[2]), None);
    }

    #[test]
    fn what_begins_another_is_not_kept_beside_it() {
        let mut index = PrefixIndex::new(None);
        let id = insert(&mut index, &[1, 2]);
        index.begin(id);
        assert_eq!(index.insert(&[1, 2, 3]), Some(Keep { id, len: 3, shares: Some((id, 2)) }));
        assert_eq!(index.evict(), None, "who began with the old one began with this one");
        assert_eq!(index.insert(&[1]), None);
        assert_eq!((index.count(), index.positions()), (1, 3));
    }

    #[test]
    fn shared_blocks_count_once() {
        let mut index = PrefixIndex::new(Some(4));
        insert(&mut index, &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(index.positions(), 12);
        insert(&mut index, &[1, 2, 3, 4, 5, 0]);
        assert_eq!(index.positions(), 16);
        insert(&mut index, &[2]);
        assert_eq!(index.positions(), 20);
        index.evict();
        index.check_integrity();
        assert_eq!(index.positions(), 12, "the one that is left pays for what was shared");
    }

    #[test]
    fn the_longest_unused_goes_first_and_what_is_in_use_last() {
        let mut index = PrefixIndex::new(Some(4));
        let a = insert(&mut index, &[1]);
        let b = insert(&mut index, &[2]);
        let c = insert(&mut index, &[3]);
        index.begin(a);
        index.begin(b);
        index.end(b);
        let id = |evicted: Option<Evicted>| evicted.map(|evicted| evicted.id);
        let mut evict = || id(index.evict());
        assert_eq!([evict(), evict(), evict()], [Some(c), Some(b), None]);
        let mut evict = || id(index.evict_used());
        assert_eq!([evict(), evict()], [Some(a), None]);
        assert_eq!(index.positions(), 0);
    }
}
