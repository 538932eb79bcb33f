use std::fmt::Write;

use super::{Constraint, GrammarError};
use crate::text::output::{GrammarSource, Rule};

/// What was compiled last: what was asked for longest ago goes first.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The last one was asked for last.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    made: Result<Constraint, GrammarError>,
    bytes: usize,
}

/// A source, spelled out. Unlike the source itself it tells schemas apart whose properties are in another order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key(String);

impl Key {
    pub fn of(source: &GrammarSource) -> Self {
        let mut key = format!("{:?}", source.lark);
        for part in &source.parts {
            let _ = write!(key, " {:?} {:?} ", part.name, part.origin);
            let _ = match &part.rule {
                Rule::Json { schema, strict, spacing } => {
                    write!(key, "{strict} {spacing:?} {schema}")
                }
                rule => write!(key, "{rule:?}"),
            };
        }
        Self(key)
    }
}

impl Kept {
    pub fn find(&mut self, key: &Key) -> Option<Result<Constraint, GrammarError>> {
        let index = self.entries.iter().rposition(|entry| &entry.key == key)?;
        let entry = self.entries.remove(index);
        let found = entry.made.clone();
        self.entries.push(entry);
        Some(found)
    }

    pub fn keep(&mut self, key: Key, made: &Result<Constraint, GrammarError>) {
        self.entries.retain(|entry| entry.key != key);
        let bytes = key.0.len() + made.as_ref().map_or(0, Constraint::bytes);
        if bytes > MAX_BYTES {
            return;
        }
        self.entries.push(Entry { key, made: made.clone(), bytes });
        while self.entries.len() > MAX_ENTRIES || self.bytes() > MAX_BYTES {
            self.entries.remove(0);
        }
    }

    fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }
}

const MAX_ENTRIES: usize = 64;
const MAX_BYTES: usize = 64 << 20;
