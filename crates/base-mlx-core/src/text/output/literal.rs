use std::sync::Arc;

use super::fields::Arguments;
use super::syntax::{self, Args, BARE_KEYS, Id, Syntax};
use super::value::is_space;
use super::{Calls, Tool};

/// A text that the parser waits for, and what it means.
#[derive(Clone, Debug)]
pub(super) struct Literal {
    text: String,
    gaps: Gaps,
    /// White space at its end, which text that stands for itself begins behind.
    tail: &'static str,
    meaning: Meaning,
}

/// Where white space may come that is no part of a text.
#[derive(Clone, Debug)]
enum Gaps {
    /// Everywhere: the grammar holds the model to the text as it is, and the text has none of its own.
    Anywhere,
    /// Behind so many bytes of it: beside it any text may come, so what is read is what the grammar says and no more.
    At(Vec<usize>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The arguments of this tool's call come next.
    Call(usize),
    /// The same without marks, as JSON; in a fence or not.
    Bare(usize, Fence),
    /// An identifier comes next, then the arguments of this tool's call.
    IdOf(usize),
    /// An identifier comes next, then the end of the call.
    IdAtEnd,
    /// The value of this field comes next.
    Field(usize),
    /// The end of what is being read.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fence {
    None,
    /// Three backquotes.
    Open,
}

/// All texts that calls of these tools are made of.
#[derive(Debug)]
pub(super) struct Literals {
    pub(super) syntax: &'static Syntax,
    pub(super) tools: Vec<ToolLiterals>,
    /// At the answer's beginning.
    pub(super) start: Arc<[Literal]>,
    /// Behind the trigger.
    pub(super) first: Arc<[Literal]>,
    /// Behind a call.
    pub(super) next: Arc<[Literal]>,
    /// Behind a call without marks.
    pub(super) nothing: Arc<[Literal]>,
    /// Behind the arguments.
    pub(super) end: Arc<[Literal]>,
    pub(super) fence_end: [Arc<[Literal]>; 2],
    /// Behind an identifier.
    pub(super) id_end: Arc<[Literal]>,
    /// Behind the value of a field that is not plain text.
    pub(super) value_end: Arc<[Literal]>,
}

#[derive(Debug)]
pub(super) struct ToolLiterals {
    pub(super) name: String,
    pub(super) arguments: Arguments,
    /// Before and behind arguments that are one JSON object.
    pub(super) whole: [Arc<[Literal]>; 2],
    /// The first field or none at all, any further field or the end.
    pub(super) fields: [Arc<[Literal]>; 2],
}

/// What a call may look like where it has no marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unmarked {
    /// JSON that names a tool is a call.
    Json,
    /// Calls are as the format has them, from the answer's beginning on.
    Never,
}

impl Literals {
    pub(super) fn new(syntax: &'static Syntax, calls: &Calls, unmarked: Unmarked) -> Self {
        let tools = &calls.tools;
        let heads = |before: String| -> Vec<Literal> {
            let of_tool = |(index, tool): (usize, &Tool)| {
                let name = [&before, &*syntax.written(&tool.name)].concat();
                let call = literal(&[&name, syntax.named].concat(), Meaning::Call(index));
                let id = match syntax.id {
                    Some(Id::AfterName(open)) => {
                        Some(literal(&[&name, open].concat(), Meaning::IdOf(index)))
                    }
                    _ => None,
                };
                std::iter::once(call).chain(id)
            };
            tools.iter().enumerate().flat_map(of_tool).collect()
        };
        let mut start = Vec::new();
        for (index, tool) in tools.iter().enumerate() {
            let call = Meaning::Call(index);
            match unmarked {
                Unmarked::Never if syntax.is_bare() => {
                    start.push(spaced(&syntax::bare_head(&tool.name, syntax.bare_key), call));
                }
                Unmarked::Never => {
                    let name = [syntax.open, syntax.call, &syntax.written(&tool.name)].concat();
                    start.push(spaced(&[[&name, syntax.named].concat()], call));
                    if let Some(Id::AfterName(open)) = syntax.id {
                        start.push(spaced(&[[&name, open].concat()], Meaning::IdOf(index)));
                    }
                }
                Unmarked::Json => {
                    if syntax.trigger.is_none() && !syntax.is_bare() {
                        start.push(spaced(&syntax.unmarked_head(&tool.name), call));
                    }
                    start.extend(bare(index, &tool.name));
                }
            }
        }
        let mut next = heads(syntax.next());
        next.extend((!syntax.close.is_empty()).then(|| literal(syntax.close, Meaning::End)));
        let mut end = vec![literal(syntax.end, Meaning::End)];
        let mut id_end = vec![literal(syntax.named, Meaning::End)];
        if let Some(Id::AfterArgs(open, close)) = syntax.id {
            end.push(literal(open, Meaning::IdAtEnd));
            id_end = vec![literal(&[close, syntax.end].concat(), Meaning::End)];
        }
        let value_end = match &syntax.args {
            Args::Json => "",
            Args::Fields(fields) => fields.value_end,
        };
        let one = |text: &str| -> Arc<[Literal]> { [literal(text, Meaning::End)].into() };
        Self {
            syntax,
            tools: tools.iter().map(|tool| ToolLiterals::new(syntax, tool)).collect(),
            start: start.into(),
            first: heads(syntax.behind_trigger()).into(),
            next: next.into(),
            nothing: Arc::new([]),
            end: end.into(),
            fence_end: [one("}"), one("}```")],
            id_end: id_end.into(),
            value_end: one(value_end),
        }
    }
}

impl ToolLiterals {
    fn new(syntax: &'static Syntax, tool: &Tool) -> Self {
        let arguments = Arguments::of(syntax, tool);
        let one = |text: &str| -> Arc<[Literal]> { [literal(text, Meaning::End)].into() };
        let whole = match &arguments {
            Arguments::Whole { open, close, .. } => [one(open), one(close)],
            Arguments::Fields(_) => [one(""), one("")],
        };
        let mut lists = [Vec::new(), Vec::new()];
        if let (Args::Fields(marks), Arguments::Fields(fields)) = (&syntax.args, &arguments) {
            for (list, before) in lists.iter_mut().zip([marks.open, marks.between]) {
                for (index, field) in fields.iter().enumerate() {
                    let is_raw = field.kind.is_raw();
                    let text = marks.text.filter(|_| is_raw).map_or("", |(open, _)| open);
                    let key = [before, marks.key, &field.name, marks.keyed, text].concat();
                    let tail = if text.is_empty() { marks.keyed } else { text };
                    let literal = literal(&key, Meaning::Field(index));
                    list.push(Literal { tail: &tail[tail.trim_end().len()..], ..literal });
                }
            }
            lists[0].push(literal(&[marks.open, marks.close].concat(), Meaning::End));
            lists[1].push(literal(marks.close, Meaning::End));
        }
        let fields = lists.map(Arc::from);
        Self { name: tool.name.clone(), arguments, whole, fields }
    }
}

fn bare(index: usize, name: &str) -> impl Iterator<Item = Literal> {
    let fences = [("", Fence::None), ("```json", Fence::Open), ("```", Fence::Open)];
    let all = fences.into_iter().flat_map(|fence| BARE_KEYS.map(|key| (fence, key)));
    all.map(move |((text, fence), key)| {
        let mut pieces = syntax::bare_head(name, key);
        if fence == Fence::Open {
            pieces.insert(0, text.to_owned());
        }
        spaced(&pieces, Meaning::Bare(index, fence))
    })
}

/// As it is, with white space before each of the pieces.
fn spaced(pieces: &[String], meaning: Meaning) -> Literal {
    let lengths = pieces.iter().map(String::len);
    let starts = lengths.scan(0, |end, length| Some(std::mem::replace(end, *end + length)));
    Literal { text: pieces.concat(), gaps: Gaps::At(starts.collect()), tail: "", meaning }
}

fn literal(text: &str, meaning: Meaning) -> Literal {
    let text = text.chars().filter(|&c| !is_space(c)).collect();
    Literal { text, gaps: Gaps::Anywhere, tail: "", meaning }
}

impl Literal {
    /// How much of it has come with this character behind so much of it; `None` if it is another text.
    fn step(&self, read: usize, c: char) -> Option<usize> {
        let is_gap = match &self.gaps {
            Gaps::Anywhere => true,
            Gaps::At(gaps) => gaps.contains(&read),
        };
        if is_gap && is_space(c) {
            return Some(read);
        }
        self.text[read..].starts_with(c).then(|| read + c.len_utf8())
    }
}

/// Which of some texts comes.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    list: Arc<[Literal]>,
    /// Those that it may be, and how much of each has come.
    alive: Vec<(usize, usize)>,
    begun: bool,
    /// One that has come whole, though more letters would make it another.
    whole: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    Open,
    Done(Meaning, &'static str),
    /// It was done before this character.
    Behind(Meaning, &'static str),
    /// None of them.
    Failed,
}

impl Matcher {
    pub(super) fn new(list: &Arc<[Literal]>) -> Self {
        let alive = (0..list.len()).map(|index| (index, 0)).collect();
        Self { list: Arc::clone(list), alive, begun: false, whole: None }
    }

    /// What an empty text means.
    pub(super) fn at_once(&self) -> Option<(Meaning, &'static str)> {
        let empty = |literal: &&Literal| literal.text.is_empty();
        self.list.iter().find(empty).map(|literal| (literal.meaning, literal.tail))
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    pub(super) fn push(&mut self, c: char) -> Match {
        let list = &self.list;
        let step =
            |&(index, read): &(usize, usize)| list[index].step(read, c).map(|read| (index, read));
        let alive: Vec<(usize, usize)> = self.alive.iter().filter_map(step).collect();
        if is_space(c) && alive == self.alive {
            return Match::Open;
        }
        self.alive = alive;
        self.begun = true;
        let whole = self.whole.take().map(|index| &list[index]);
        if self.alive.is_empty() {
            return match whole {
                Some(literal) if !is_letter(c) => Match::Behind(literal.meaning, literal.tail),
                _ => Match::Failed,
            };
        }
        let done = |&&(index, read): &&(usize, usize)| list[index].text.len() == read;
        match self.alive.iter().find(done) {
            Some(&(index, _)) if is_letter(c) => {
                self.whole = Some(index);
                Match::Open
            }
            Some(&(index, _)) => Match::Done(list[index].meaning, list[index].tail),
            None => Match::Open,
        }
    }
}

/// Whether a name may go on with it.
fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || "_-.".contains(c)
}
