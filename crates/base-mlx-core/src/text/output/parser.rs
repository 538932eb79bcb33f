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
}

impl OutputParser {
    /// For text that is nothing but text.
    pub fn plain() -> Self {
        Self::default()
    }

    /// The next piece of text, whole characters.
    pub fn push(&mut self, text: &str) -> Vec<Output> {
        let start = self.read;
        self.read += text.len();
        if text.is_empty() {
            Vec::new()
        } else {
            vec![Output::Content { text: text.to_owned(), start }]
        }
    }

    /// The text has ended.
    pub fn finish(&mut self) -> Vec<Output> {
        Vec::new()
    }

    /// Whether what comes next is a part of the model's thoughts.
    pub fn is_reasoning(&self) -> bool {
        false
    }
}
