use std::rc::Rc;

/// A hash for each position, in blocks that forks share until somebody writes.
#[derive(Clone)]
pub(super) struct Cache {
    block: usize,
    pub(super) blocks: Vec<Rc<Vec<u64>>>,
}

impl Cache {
    pub(super) fn new(block: Option<usize>) -> Self {
        Self { block: block.unwrap_or(usize::MAX), blocks: Vec::new() }
    }

    pub(super) fn positions(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.blocks.iter().flat_map(|block| block.iter().copied())
    }

    pub(super) fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.len()).sum()
    }

    pub(super) fn push(&mut self, hash: u64) {
        match self.blocks.last_mut().filter(|last| last.len() < self.block) {
            Some(last) => Rc::make_mut(last).push(hash),
            None => self.blocks.push(Rc::new(vec![hash])),
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        let all: Vec<u64> = self.positions().take(len).collect();
        self.blocks.truncate(len / self.block);
        all[self.blocks.len().saturating_mul(self.block).min(len)..]
            .iter()
            .for_each(|&hash| self.push(hash));
    }

    pub(super) fn share(&mut self, from: &Self, len: usize) {
        let blocks = len / self.block;
        self.blocks[..blocks].clone_from_slice(&from.blocks[..blocks]);
    }
}
