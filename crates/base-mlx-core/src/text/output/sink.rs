use super::Output;

/// Gathers what a piece of text turns out to be.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    events: Vec<Output>,
    /// White space that is content if content follows: where it begins, and itself.
    blank: Vec<(usize, String)>,
    before: Before,
    /// Line ends of a thought that are a part of it if it goes on.
    lines: usize,
    thought: bool,
}

/// What is before the next visible character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// White space alone, or nothing: it is nothing if a call follows.
    Blank,
    /// Marks of thoughts: line ends are no content.
    Thoughts,
    Content,
    /// A call: white space is nothing if no content follows.
    Call,
}

impl Sink {
    pub(super) fn new() -> Self {
        let (events, blank) = (Vec::new(), Vec::new());
        Self { events, blank, before: Before::Blank, lines: 0, thought: false }
    }

    pub(super) fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.events)
    }

    /// Text, before which a call may still take white space away.
    pub(super) fn text(&mut self, c: char, at: usize) {
        let waits = match self.before {
            Before::Blank | Before::Call => c.is_whitespace(),
            Before::Content => c == '\n',
            Before::Thoughts if c == '\n' => return,
            Before::Thoughts => {
                self.before = Before::Blank;
                return self.text(c, at);
            }
        };
        if !waits {
            self.flush();
            self.before = Before::Content;
            return self.content(c, at);
        }
        match self.blank.last_mut() {
            Some((start, blank)) if *start + blank.len() == at => blank.push(c),
            _ => self.blank.push((at, c.into())),
        }
    }

    /// Text that no call follows.
    pub(super) fn free(&mut self, c: char, at: usize) {
        if self.before == Before::Thoughts && c == '\n' {
            return;
        }
        self.flush();
        self.before = Before::Content;
        self.content(c, at);
    }

    pub(super) fn reasoning(&mut self, c: char) {
        if c == '\n' {
            self.lines += usize::from(self.thought);
            return;
        }
        let lines = std::mem::take(&mut self.lines);
        self.thought = true;
        if !matches!(self.events.last(), Some(Output::Reasoning(_))) {
            self.events.push(Output::Reasoning(String::new()));
        }
        if let Some(Output::Reasoning(text)) = self.events.last_mut() {
            text.extend(std::iter::repeat_n('\n', lines));
            text.push(c);
        }
    }

    pub(super) fn end_thoughts(&mut self) {
        self.lines = 0;
        self.thought = false;
        self.blank.clear();
        self.before = Before::Thoughts;
    }

    pub(super) fn start_call(&mut self, name: &str) {
        self.blank.clear();
        self.before = Before::Call;
        self.events.push(Output::ToolStart { name: name.to_owned() });
    }

    pub(super) fn args(&mut self, json: &str) {
        match self.events.last_mut() {
            _ if json.is_empty() => {}
            Some(Output::ToolArgs(text)) => text.push_str(json),
            _ => self.events.push(Output::ToolArgs(json.to_owned())),
        }
    }

    pub(super) fn end_call(&mut self) {
        self.events.push(Output::ToolEnd);
    }

    /// A mark of calls came: the line ends before it, or the white space if there was nothing else, are not content.
    pub(super) fn mark(&mut self) {
        self.blank.clear();
    }

    /// The text has ended.
    pub(super) fn finish(&mut self) {
        if self.before != Before::Call {
            self.flush();
        }
        self.blank.clear();
    }

    fn flush(&mut self) {
        for (start, blank) in std::mem::take(&mut self.blank) {
            self.slice(&blank, start);
        }
    }

    fn content(&mut self, c: char, at: usize) {
        self.slice(c.encode_utf8(&mut [0; 4]), at);
    }

    fn slice(&mut self, piece: &str, at: usize) {
        match self.events.last_mut() {
            Some(Output::Content { text, start }) if *start + text.len() == at => {
                text.push_str(piece);
            }
            _ => self.events.push(Output::Content { text: piece.to_owned(), start: at }),
        }
    }
}
