use std::fmt::Write;
use std::sync::Arc;

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
pub(super) struct Key {
    text: Arc<str>,
    /// Of each part's rule.
    bytes: Arc<[usize]>,
}

impl Key {
    pub(super) fn of(source: &GrammarSource) -> Self {
        let mut key = format!("{:?}", source.lark);
        let mut bytes = Vec::new();
        for part in &source.parts {
            let _ = write!(key, " {:?} {:?} ", part.name, part.origin);
            let _ = match &part.rule {
                Rule::Json { strict, spacing, .. } => write!(key, "{strict} {spacing:?} "),
                rule => write!(key, "{rule:?}"),
            };
            bytes.push(match &part.rule {
                Rule::Json { schema, .. } => {
                    let begin = key.len();
                    let _ = write!(key, "{schema}");
                    key.len() - begin
                }
                Rule::Lark(text) | Rule::Regex(text) => text.len(),
                Rule::Choice(texts) => texts.iter().map(|text| text.len() + 8).sum(),
            });
        }
        Self { text: key.into(), bytes: bytes.into() }
    }

    /// How many bytes the rule of each part has, as it is spelled here.
    pub(super) fn bytes(&self) -> &[usize] {
        &self.bytes
    }
}

impl Kept {
    pub(super) fn find(&mut self, key: &Key) -> Option<Result<Constraint, GrammarError>> {
        let index = self.entries.iter().rposition(|entry| &entry.key == key)?;
        let entry = self.entries.remove(index);
        let found = entry.made.clone();
        self.entries.push(entry);
        Some(found)
    }

    pub(super) fn keep(&mut self, key: Key, made: &Result<Constraint, GrammarError>) {
        self.entries.retain(|entry| entry.key != key);
        let bytes = key.text.len() + made.as_ref().map_or(0, Constraint::bytes);
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
