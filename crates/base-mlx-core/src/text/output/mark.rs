/// Looks for marks in text, and holds back what may be the beginning of one.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    marks: Vec<String>,
    held: String,
}

/// What came of a character.
pub(super) enum Found {
    /// Nothing so far.
    Waiting,
    /// This mark.
    Mark(usize),
}

impl Marks {
    pub(super) fn new<S: Into<String>>(marks: impl IntoIterator<Item = S>) -> Self {
        let marks = marks.into_iter().map(Into::into).filter(|mark: &String| !mark.is_empty());
        Self { marks: marks.collect(), held: String::new() }
    }

    /// `text` gets what is no mark, with the place of each character. `at` is the place of `c`.
    pub(super) fn push(&mut self, c: char, at: usize, mut text: impl FnMut(char, usize)) -> Found {
        self.held.push(c);
        let end = at + c.len_utf8();
        while let Some(first) = self.held.chars().next() {
            if let Some(index) = self.marks.iter().position(|mark| *mark == self.held) {
                self.held.clear();
                return Found::Mark(index);
            }
            if self.marks.iter().any(|mark| mark.starts_with(&self.held)) {
                break;
            }
            text(first, end - self.held.len());
            self.held.drain(..first.len_utf8());
        }
        Found::Waiting
    }

    /// What is held at the text's end is text: no mark of these comes in pieces.
    pub(super) fn give_up(&mut self, end: usize, mut text: impl FnMut(char, usize)) {
        let held = std::mem::take(&mut self.held);
        let start = end - held.len();
        held.char_indices().for_each(|(at, c)| text(c, start + at));
    }

    /// What is held at the text's end is a mark that was cut off, or text if it shows too little of one. `end` is where
    /// the text ends.
    pub(super) fn finish(&mut self, end: usize, text: impl FnMut(char, usize)) {
        let held = &self.held;
        let shows = held.chars().nth(1).is_some() && !held.chars().all(|c| c == '`' || c == '\n');
        if shows {
            self.held.clear();
        }
        self.give_up(end, text);
    }
}
