use super::syntax::Thoughts;
use super::{GrammarSource, Output, Wanted};

pub(super) const THOUGHTS: Thoughts = Thoughts {
    open: "<|channel|>analysis<|message|>",
    close: "<|end|>",
    forced: "<|end|><|start|>assistant",
};
pub(super) const MARKERS: [&str; 1] = ["<|channel|>"];

#[derive(Clone, Debug)]
pub(super) struct HarmonyReader {}

impl HarmonyReader {
    pub fn new(_wanted: &Wanted) -> Self {
        Self {}
    }
    pub fn push(&mut self, text: &str, start: usize) -> Vec<Output> {
        vec![Output::Content { text: text.to_owned(), start }]
    }
    pub fn finish(&mut self, _end: usize) -> Vec<Output> {
        Vec::new()
    }
    pub fn is_reasoning(&self) -> bool {
        false
    }
}

pub(super) fn grammar(_wanted: &Wanted) -> Option<GrammarSource> {
    None
}
