use std::sync::Arc;

use super::Output;
use super::fields::{Arguments, Kind};
use super::literal::{Fence, Literals, Match, Matcher, Meaning};
use super::mark::{Found, Marks};
use super::sink::Sink;
use super::syntax::{Args, Fields, ThoughtMarks, Words, quoted};
use super::value::{Read, ValueReader, is_space, push_quoted};

/// Reads answers with thoughts between marks and calls as a [`super::syntax::Syntax`] has them.
#[derive(Clone, Debug)]
pub(super) struct CallReader {
    literals: Option<Arc<Literals>>,
    thoughts: Option<&'static ThoughtMarks>,
    text: AfterStart,
    /// Marks that are no text where no call can be.
    hidden: Vec<&'static str>,
    state: State,
    sink: Sink,
    /// What is content if it turns out to be no call, and where it begins.
    held: String,
    held_at: usize,
    /// A mark is before what is held.
    behind_mark: bool,
    /// The call that is being read.
    tool: usize,
    fence: Option<Fence>,
    fields: usize,
    /// Text so far that is nothing if no more of it comes than `null`.
    nothing: Option<String>,
}

/// What an answer is that does not begin with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterStart {
    /// Text with calls behind it.
    Text,
    /// Text or whatever else was wanted, in which nothing is a mark.
    Free,
}

#[derive(Clone, Debug)]
enum State {
    /// At the answer's beginning: so much of the mark that opens thoughts has come.
    Opening(usize),
    Thoughts(Marks),
    /// Where a call begins, if it is one.
    Head(Matcher),
    Text(Marks),
    /// With marks that are left out.
    Free(Marks),
    /// Before arguments that are one JSON object.
    Whole(Matcher),
    Json(ValueReader),
    /// Behind arguments that are one JSON object.
    WholeEnd(Matcher),
    Field(Matcher),
    /// White space that belongs to the mark before text that stands for itself.
    Tail(&'static str),
    Raw(Marks),
    Value(ValueReader),
    ValueEnd(Matcher),
    End(Matcher),
    Id(Matcher, Then),
    /// Where another call may begin, or the end of all.
    Next(Matcher),
}

/// What follows an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Arguments,
    CallEnd,
}

impl CallReader {
    pub(super) fn new(
        literals: Option<Literals>,
        thoughts: Option<&'static ThoughtMarks>,
        opened: bool,
        text: AfterStart,
    ) -> Self {
        let mut reader = Self {
            literals: literals.map(Arc::new),
            thoughts,
            text,
            hidden: Vec::new(),
            state: free(&[]),
            sink: Sink::new(),
            held: String::new(),
            held_at: 0,
            behind_mark: false,
            tool: 0,
            fence: None,
            fields: 0,
            nothing: None,
        };
        reader.state = match thoughts {
            Some(thoughts) if opened => State::Thoughts(Marks::new([thoughts.close])),
            Some(_) => State::Opening(0),
            None => reader.start(),
        };
        reader
    }

    /// Reads text that has neither thoughts nor calls.
    pub(super) fn of_text(hidden: &[&'static str]) -> Self {
        Self::new(None, None, false, AfterStart::Free).hiding(hidden)
    }

    /// With these marks left out of text that no call can follow.
    pub(super) fn hiding(mut self, marks: &[&'static str]) -> Self {
        self.hidden = marks.to_vec();
        if matches!(self.state, State::Free(_)) {
            self.state = free(marks);
        }
        self
    }

    pub(super) fn push(&mut self, text: &str, start: usize) -> Vec<Output> {
        for (at, c) in text.char_indices() {
            self.step(c, start + at);
        }
        self.sink.take()
    }

    pub(super) fn finish(&mut self, end: usize) -> Vec<Output> {
        if let State::Opening(read) = self.state {
            // More than one character of the mark is a mark that was cut off.
            if self.held.trim_start().chars().count() > 1 && read > 0 {
                self.held.clear();
            }
            self.fall_back();
        }
        if matches!(self.state, State::Head(_) | State::Whole(_) | State::Json(_)) && !self.marked()
        {
            self.fall_back();
        }
        let sink = &mut self.sink;
        match &mut self.state {
            State::Thoughts(marks) => marks.finish(end, |c, _| sink.reasoning(c)),
            State::Text(marks) => marks.finish(end, |c, at| sink.text(c, at)),
            State::Free(marks) => marks.give_up(end, |c, at| sink.free(c, at)),
            _ => {}
        }
        sink.finish();
        sink.take()
    }

    pub(super) fn may_think(&self) -> bool {
        matches!(self.state, State::Opening(_) | State::Thoughts(_))
    }

    pub(super) fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Thoughts(_))
    }

    fn step(&mut self, c: char, at: usize) {
        let sink = &mut self.sink;
        match &mut self.state {
            State::Opening(read) => {
                let open = self.thoughts.map_or("", |thoughts| thoughts.open);
                if open[*read..].starts_with(c) {
                    *read += c.len_utf8();
                    if *read < open.len() {
                        return self.hold(c, at);
                    }
                    self.held.clear();
                    let close = self.thoughts.map_or("", |thoughts| thoughts.close);
                    self.state = State::Thoughts(Marks::new([close]));
                } else {
                    let still_blank = *read == 0 && is_space(c);
                    self.hold(c, at);
                    if !still_blank {
                        self.fall_back();
                    }
                }
            }
            State::Thoughts(marks) => {
                if let Found::Mark(_) = marks.push(c, at, |c, _| sink.reasoning(c)) {
                    sink.end_thoughts();
                    self.state = self.start();
                }
            }
            State::Text(marks) => {
                if let Found::Mark(index) = marks.push(c, at, |c, at| sink.text(c, at)) {
                    sink.mark();
                    if let (0, Some(literals)) = (index, &self.literals)
                        && literals.syntax.trigger.is_some()
                    {
                        self.behind_mark = true;
                        self.state = State::Head(Matcher::new(&literals.first));
                    }
                }
            }
            State::Free(marks) => {
                marks.push(c, at, |c, at| sink.free(c, at));
            }
            State::Head(matcher) | State::Next(matcher) => {
                let found = matcher.push(c);
                if let Match::Behind(meaning, _) = found {
                    self.head(meaning);
                    return self.step(c, at);
                }
                self.hold(c, at);
                match found {
                    Match::Done(meaning, _) => self.head(meaning),
                    Match::Failed => self.fall_back(),
                    _ => {}
                }
            }
            State::Whole(matcher) => {
                let found = matcher.push(c);
                self.hold(c, at);
                match found {
                    Match::Done(..) => self.state = State::Json(ValueReader::new(Words::Json)),
                    Match::Failed => self.fall_back(),
                    _ => {}
                }
            }
            State::Json(reader) => {
                if !reader.has_begun() && c != '{' {
                    self.hold(c, at);
                    if !is_space(c) {
                        self.fall_back();
                    }
                    return;
                }
                if !reader.has_begun() {
                    self.start_call();
                }
                self.json(c);
            }
            State::WholeEnd(matcher) => match matcher.push(c) {
                Match::Done(..) => self.end_arguments(),
                Match::Failed => self.broken(c, at),
                _ => {}
            },
            State::Field(matcher) => match matcher.push(c) {
                Match::Done(Meaning::Field(index), tail) => self.field(index, tail),
                Match::Done(..) => {
                    self.sink.args(if self.fields == 0 { "{}" } else { "}" });
                    self.end_arguments();
                }
                Match::Failed => self.broken(c, at),
                _ => {}
            },
            State::Tail(tail) => match tail.strip_prefix(c) {
                Some("") => self.state = self.raw(),
                Some(rest) => self.state = State::Tail(rest),
                None => {
                    self.state = self.raw();
                    self.step(c, at);
                }
            },
            State::Raw(marks) => {
                let mut text = String::new();
                let found = marks.push(c, at, |c, _| text.push(c));
                self.raw_text(text);
                if let Found::Mark(_) = found {
                    self.end_text();
                }
            }
            State::Value(reader) => {
                let mut json = String::new();
                let read = reader.push(c, &mut json);
                sink.args(&json);
                match read {
                    Read::Within => {}
                    Read::Last => self.end_value(),
                    Read::Behind => {
                        self.end_value();
                        self.step(c, at);
                    }
                    Read::Never => self.broken(c, at),
                }
            }
            State::ValueEnd(matcher) => match matcher.push(c) {
                Match::Done(..) => self.state = self.next_field(),
                Match::Failed => self.broken(c, at),
                _ => {}
            },
            State::End(matcher) => match matcher.push(c) {
                Match::Done(Meaning::IdAtEnd, _) => self.id(Then::CallEnd),
                Match::Done(..) => self.end_call(),
                Match::Failed => {
                    self.end_call();
                    self.broken(c, at);
                }
                _ => {}
            },
            State::Id(matcher, _) if !matcher.has_begun() && c.is_ascii_alphanumeric() => {}
            State::Id(matcher, then) => match (matcher.push(c), *then) {
                (Match::Done(..), Then::Arguments) => self.arguments(),
                (Match::Done(..), Then::CallEnd) => self.end_call(),
                (Match::Failed, _) => self.broken(c, at),
                _ => {}
            },
        }
    }

    /// What follows thoughts, or none.
    fn start(&self) -> State {
        match &self.literals {
            Some(literals) if literals.start.is_empty() => self.text(),
            Some(literals) => State::Head(Matcher::new(&literals.start)),
            None => free(&self.hidden),
        }
    }

    fn text(&self) -> State {
        match (&self.literals, self.text) {
            (Some(literals), AfterStart::Text) => {
                let syntax = literals.syntax;
                State::Text(Marks::new(syntax.trigger.iter().chain(syntax.markers).copied()))
            }
            _ => free(&self.hidden),
        }
    }

    fn head(&mut self, meaning: Meaning) {
        match meaning {
            Meaning::Call(tool) => {
                (self.tool, self.fence) = (tool, None);
                self.arguments();
            }
            Meaning::Bare(tool, fence) => {
                (self.tool, self.fence) = (tool, Some(fence));
                self.state = State::Json(ValueReader::new(Words::Json));
            }
            Meaning::IdOf(tool) => {
                (self.tool, self.fence) = (tool, None);
                self.id(Then::Arguments);
            }
            _ => {
                self.held.clear();
                self.sink.mark();
                self.state = self.over();
            }
        }
    }

    fn id(&mut self, then: Then) {
        if let Some(literals) = &self.literals {
            self.state = State::Id(Matcher::new(&literals.id_end), then);
        }
    }

    /// The arguments come next.
    fn arguments(&mut self) {
        let Some(literals) = self.literals.clone() else { return };
        let tool = &literals.tools[self.tool];
        self.fields = 0;
        match tool.arguments {
            Arguments::Whole { open: "", .. } => {
                self.state = State::Json(ValueReader::new(Words::Json));
            }
            Arguments::Whole { .. } => self.state = State::Whole(Matcher::new(&tool.whole[0])),
            Arguments::Fields(_) => {
                self.start_call();
                self.state = State::Field(Matcher::new(&tool.fields[0]));
            }
        }
    }

    fn start_call(&mut self) {
        self.held.clear();
        if let Some(literals) = &self.literals {
            self.sink.start_call(&literals.tools[self.tool].name);
        }
    }

    fn json(&mut self, c: char) {
        let State::Json(reader) = &mut self.state else { return };
        let mut json = String::new();
        let read = reader.push(c, &mut json);
        self.sink.args(&json);
        let Some(literals) = self.literals.clone() else { return };
        if read == Read::Last {
            let end = Matcher::new(&literals.tools[self.tool].whole[1]);
            match end.at_once() {
                None if self.fence.is_none() => self.state = State::WholeEnd(end),
                _ => self.end_arguments(),
            }
        }
    }

    fn field(&mut self, index: usize, tail: &'static str) {
        let Some(literals) = self.literals.clone() else { return };
        let Arguments::Fields(fields) = &literals.tools[self.tool].arguments else { return };
        let field = &fields[index];
        let opening = if self.fields == 0 { "{\"" } else { ", \"" };
        self.fields += 1;
        self.sink.args(&[opening, &quoted(&field.name), "\": "].concat());
        self.state = match (&field.kind, &literals.syntax.args) {
            (kind, _) if kind.is_raw() => {
                self.nothing = (*kind == Kind::TextOrNull).then(String::new);
                if self.nothing.is_none() {
                    self.sink.args("\"");
                }
                if tail.is_empty() { self.raw() } else { State::Tail(tail) }
            }
            (_, Args::Fields(Fields { words, .. })) => State::Value(ValueReader::new(*words)),
            (_, Args::Json) => return,
        };
    }

    fn raw(&self) -> State {
        let end = self.literals.as_ref().and_then(|literals| match &literals.syntax.args {
            Args::Fields(Fields { text: Some((_, close)), value_end, .. }) => {
                Some([close, *value_end].concat().trim_end().to_owned())
            }
            _ => None,
        });
        State::Raw(Marks::new(end))
    }

    /// A piece of text that stands for itself.
    fn raw_text(&mut self, mut text: String) {
        if let Some(before) = self.nothing.take() {
            text.insert_str(0, &before);
            if NULL.starts_with(&text) {
                self.nothing = Some(text);
                return;
            }
            self.sink.args("\"");
        }
        let mut json = String::new();
        text.chars().for_each(|c| push_quoted(c, &mut json));
        self.sink.args(&json);
    }

    fn end_text(&mut self) {
        match self.nothing.take() {
            Some(text) if text == NULL => self.sink.args(NULL),
            Some(text) => self.sink.args(&["\"", &text, "\""].concat()),
            None => self.sink.args("\""),
        }
        self.state = self.next_field();
    }

    fn end_value(&mut self) {
        let Some(literals) = &self.literals else { return };
        let end = Matcher::new(&literals.value_end);
        self.state = match end.at_once() {
            Some(_) => self.next_field(),
            None => State::ValueEnd(end),
        };
    }

    fn next_field(&self) -> State {
        match &self.literals {
            Some(literals) => State::Field(Matcher::new(&literals.tools[self.tool].fields[1])),
            None => free(&self.hidden),
        }
    }

    fn end_arguments(&mut self) {
        let Some(literals) = &self.literals else { return };
        let end = match self.fence {
            None => Matcher::new(&literals.end),
            Some(Fence::None) => Matcher::new(&literals.fence_end[0]),
            Some(Fence::Open) => Matcher::new(&literals.fence_end[1]),
        };
        match end.at_once() {
            Some(_) => self.end_call(),
            None => self.state = State::End(end),
        }
    }

    fn end_call(&mut self) {
        self.sink.end_call();
        self.state = match (&self.literals, self.fence) {
            (Some(literals), None) => State::Next(Matcher::new(&literals.next)),
            (Some(literals), Some(Fence::None)) if literals.syntax.is_bare() => {
                State::Next(Matcher::new(&literals.next))
            }
            _ => self.over(),
        };
    }

    /// Behind all calls.
    fn over(&self) -> State {
        match &self.literals {
            Some(literals) => State::Next(Matcher::new(&literals.nothing)),
            None => free(&self.hidden),
        }
    }

    fn hold(&mut self, c: char, at: usize) {
        if self.held.is_empty() {
            self.held_at = at;
        }
        self.held.push(c);
    }

    /// Whether a mark is before what is held, or it shows so much of one that it is nothing else.
    fn marked(&self) -> bool {
        let trigger = self.literals.as_ref().and_then(|literals| literals.syntax.trigger);
        let shows = |trigger: &str| {
            let held = self.held.trim_start_matches(is_space);
            let is_its_own = held.starts_with(trigger) || trigger.starts_with(held);
            is_its_own && held.chars().nth(1).is_some() && !held.chars().all(|c| c == '`')
        };
        self.behind_mark || trigger.is_some_and(shows)
    }

    /// What is held is not what it seemed.
    fn fall_back(&mut self) {
        self.state = match self.state {
            State::Opening(_) => self.start(),
            _ => self.text(),
        };
        let held = std::mem::take(&mut self.held);
        let start = self.held_at;
        held.char_indices().for_each(|(at, c)| self.step(c, start + at));
    }

    /// No grammar held the model to the format: what is left is text.
    fn broken(&mut self, c: char, at: usize) {
        self.held.clear();
        self.state = self.text();
        self.step(c, at);
    }
}

fn free(hidden: &[&'static str]) -> State {
    State::Free(Marks::new(hidden.iter().copied()))
}

const NULL: &str = "null";
