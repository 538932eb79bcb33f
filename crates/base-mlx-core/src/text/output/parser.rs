use super::calls::CallReader;
use super::harmony::HarmonyReader;

/// What an answer's text turns out to be, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Visible text: exactly the bytes of the text that was pushed from byte `start` on.
    Content { text: String, start: usize },
    /// What the model thinks, without its marks.
    Reasoning(String),
    /// A call begins.
    ToolStart { name: String },
    /// The next piece of the arguments of the call that began last: together one JSON object.
    ToolArgs(String),
    /// The call is complete.
    ToolEnd,
}

/// Reads the text of one answer as it comes.
#[derive(Clone, Debug, Default)]
pub struct OutputParser {
    read: usize,
    reader: Reader,
}

#[derive(Clone, Debug, Default)]
enum Reader {
    #[default]
    Plain,
    Calls(Box<CallReader>),
    Harmony(Box<HarmonyReader>),
}

impl OutputParser {
    /// For text that is nothing but text.
    pub fn plain() -> Self {
        Self::default()
    }

    pub(super) fn calls(reader: CallReader) -> Self {
        Self { read: 0, reader: Reader::Calls(Box::new(reader)) }
    }

    pub(super) fn harmony(reader: HarmonyReader) -> Self {
        Self { read: 0, reader: Reader::Harmony(Box::new(reader)) }
    }

    /// The next piece of text, whole characters.
    pub fn push(&mut self, text: &str) -> Vec<Output> {
        let start = self.read;
        self.read += text.len();
        match &mut self.reader {
            Reader::Plain if text.is_empty() => Vec::new(),
            Reader::Plain => vec![Output::Content { text: text.to_owned(), start }],
            Reader::Calls(reader) => reader.push(text, start),
            Reader::Harmony(reader) => reader.push(text, start),
        }
    }

    /// The text has ended.
    pub fn finish(&mut self) -> Vec<Output> {
        match &mut self.reader {
            Reader::Plain => Vec::new(),
            Reader::Calls(reader) => reader.finish(self.read),
            Reader::Harmony(reader) => reader.finish(self.read),
        }
    }

    /// Whether thoughts may still come, or come at the moment.
    pub fn may_think(&self) -> bool {
        match &self.reader {
            Reader::Plain => false,
            Reader::Calls(reader) => reader.may_think(),
            Reader::Harmony(_) => true,
        }
    }

    /// Whether what comes next is a part of the model's thoughts.
    pub fn is_reasoning(&self) -> bool {
        match &self.reader {
            Reader::Plain => false,
            Reader::Calls(reader) => reader.is_reasoning(),
            Reader::Harmony(reader) => reader.is_reasoning(),
        }
    }
}
