use super::grammar::Spacing;
use super::lark::{Lark, literal};
use super::mark::{Found, Marks};
use super::sink::Sink;
use super::syntax::{ThoughtMarks, Words};
use super::value::{Read, ValueReader, is_space};
use super::{GrammarSource, Output, Wanted};

/// gpt-oss: an answer is messages, each with a channel; those for a function are calls.
pub(super) const THOUGHTS: ThoughtMarks = ThoughtMarks {
    open: "<|channel|>analysis<|message|>",
    close: "<|end|>",
    forced: "<|end|><|start|>assistant",
};

pub(super) const MARKERS: [&str; 7] =
    [START, END, MESSAGE, CHANNEL, "<|constrain|>", "<|return|>", "<|call|>"];

/// The same without what is around them.
const MARKED: &str = "start|end|message|channel|constrain|return|call";

/// What the prompt ends with, and what another message begins with.
const START: &str = "<|start|>";
const ROLE: &str = "<|start|>assistant";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const END: &str = "<|end|>";
const FINAL: &str = "<|channel|>final<|message|>";
/// Text for the user before calls.
const PREAMBLE: &str = "<|channel|>commentary<|message|>";

pub(super) fn grammar(wanted: &Wanted) -> Option<GrammarSource> {
    let calls = &wanted.calls;
    if calls.tools.is_empty() && wanted.content.is_none() {
        return None;
    }
    let mut lark = Lark::default();
    let thoughts = if wanted.opened { "thought" } else { "" };
    let more = if wanted.may_think { "(analysis)*" } else { "" };
    let answer = match (calls.tools.is_empty(), calls.required) {
        (true, _) => "final",
        (false, true) => "call",
        (false, false) if wanted.content.is_some() => "(final | call)",
        (false, false) => "(final | preamble* call)",
    };
    lark.rule("start", &format!("{thoughts} {more} {answer}"));
    // One message to another, for the prompt has opened the first.
    let (end, role) = (literal(END), literal(ROLE));
    lark.rule("thought", &format!("said {role}"));
    lark.rule("analysis", &format!("{} said {role}", literal(THOUGHTS.open)));
    lark.rule("preamble", &format!("{} said {role}", literal(PREAMBLE)));
    lark.rule("said[lazy]", &format!("SAID {end}"));
    // What the reader takes for the beginning of something else is never said.
    lark.rule("SAID", &format!("TEXT & ~/(.|\\n)*<\\|({MARKED})\\|>(.|\\n)*/"));
    match &wanted.content {
        Some((origin, rule)) => {
            lark.part("content", origin, rule.clone());
            lark.rule("final", &format!("{} @content", literal(FINAL)));
        }
        None => lark.rule("final", &format!("{} SAID", literal(FINAL))),
    }
    let mut all = Vec::new();
    for (index, tool) in calls.tools.iter().enumerate() {
        lark.object(&format!("args{index}"), tool, Spacing::Compact);
        let name = &tool.name;
        let channel = call_to(name);
        let role = format!(" to=functions.{name}{CHANNEL}commentary json{MESSAGE}");
        all.push(format!("({} | {}) @args{index}", literal(&channel), literal(&role)));
    }
    if !all.is_empty() {
        lark.rule("call", &all.join(" | "));
    }
    Some(lark.finish())
}

/// How a message begins that calls this function.
pub(super) fn call_to(name: &str) -> String {
    format!("{CHANNEL}commentary to=functions.{name} <|constrain|>json{MESSAGE}")
}

/// Reads messages.
#[derive(Clone, Debug)]
pub(super) struct HarmonyReader {
    tools: Vec<String>,
    /// The answer's visible text is held to something.
    held: bool,
    marks: Marks,
    state: State,
    sink: Sink,
}

#[derive(Clone, Debug)]
enum State {
    /// At the answer's beginning, which is a header or else text: where it begins, and itself.
    Beginning(usize, String),
    Header(String),
    Thoughts,
    Text,
    /// What was wanted as the answer, in which nothing is a mark.
    Held,
    /// The arguments of the call of this tool.
    Call(String, ValueReader),
    /// Behind a call.
    Over,
}

impl HarmonyReader {
    pub(super) fn new(wanted: &Wanted) -> Self {
        let tools = wanted.calls.tools.iter().map(|tool| tool.name.clone()).collect();
        let state = match wanted.opened {
            true => State::Thoughts,
            false => State::Beginning(0, String::new()),
        };
        let held = wanted.content.is_some();
        Self { tools, held, marks: Marks::new(MARKERS), state, sink: Sink::new() }
    }

    pub(super) fn push(&mut self, text: &str, start: usize) -> Vec<Output> {
        for (at, c) in text.char_indices() {
            self.step(c, start + at);
        }
        self.sink.take()
    }

    pub(super) fn finish(&mut self, end: usize) -> Vec<Output> {
        let (state, sink) = (&mut self.state, &mut self.sink);
        self.marks.finish(end, |c, at| state.read(c, at, sink));
        if let State::Beginning(at, text) = &self.state
            && !" to=functions.".starts_with(text.as_str())
        {
            text.char_indices().for_each(|(offset, c)| self.sink.text(c, at + offset));
        }
        self.sink.finish();
        self.sink.take()
    }

    pub(super) fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Thoughts)
    }

    fn step(&mut self, c: char, at: usize) {
        let nothing_is_a_mark = match &self.state {
            State::Call(_, reader) => reader.has_begun(),
            State::Held => true,
            _ => false,
        };
        if nothing_is_a_mark {
            return self.state.read(c, at, &mut self.sink);
        }
        let (state, sink) = (&mut self.state, &mut self.sink);
        if let Found::Mark(mark) = self.marks.push(c, at, |c, at| state.read(c, at, sink)) {
            self.mark(MARKERS[mark]);
        }
    }

    fn mark(&mut self, mark: &str) {
        if self.is_reasoning() {
            // Models leave out the end of a message before the next.
            if mark == END || mark == START || mark == CHANNEL {
                self.sink.end_thoughts();
                self.state = State::Header(header_behind(mark));
            }
            return;
        }
        let state = std::mem::replace(&mut self.state, State::Over);
        self.state = match (state, mark) {
            (State::Header(header) | State::Beginning(_, header), MESSAGE) => self.open(&header),
            (State::Header(header) | State::Beginning(_, header), CHANNEL) => {
                State::Header(header + " channel=")
            }
            (State::Header(header) | State::Beginning(_, header), "<|constrain|>") => {
                State::Header(header + " ")
            }
            (
                State::Text | State::Over | State::Header(_) | State::Beginning(..),
                END | START | CHANNEL,
            ) => {
                self.sink.mark();
                State::Header(header_behind(mark))
            }
            (State::Beginning(_, header), _) => State::Header(header),
            (state, _) => state,
        };
    }

    /// What a message is by its header: `assistant to=functions.f channel=commentary json`.
    fn open(&mut self, header: &str) -> State {
        let word = |key: &str| {
            let behind = &header[header.find(key)? + key.len()..];
            behind.split(|c: char| is_space(c) || c == '<').next()
        };
        let recipient = word("to=").map(|to| to.strip_prefix("functions.").unwrap_or(to));
        if let Some(tool) = recipient.and_then(|to| self.tools.iter().find(|tool| *tool == to)) {
            return State::Call(tool.clone(), ValueReader::new(Words::Json));
        }
        match word("channel=") {
            Some("analysis") => {
                self.sink.end_thoughts();
                State::Thoughts
            }
            Some("final") if self.held => State::Held,
            _ => State::Text,
        }
    }
}

/// What is known of a message when this mark begins it.
fn header_behind(mark: &str) -> String {
    if mark == CHANNEL { " channel=".to_owned() } else { String::new() }
}

impl State {
    /// A character that is no mark.
    fn read(&mut self, c: char, at: usize, sink: &mut Sink) {
        match self {
            Self::Beginning(start, text) => {
                if text.is_empty() {
                    *start = at;
                }
                text.push(c);
                // Only a recipient may come before the first mark.
                let recipient = " to=";
                if !text.starts_with(recipient) && !recipient.starts_with(text.as_str()) {
                    text.char_indices().for_each(|(offset, c)| sink.text(c, *start + offset));
                    *self = Self::Text;
                }
            }
            Self::Header(header) => header.push(c),
            Self::Thoughts => sink.reasoning(c),
            Self::Text => sink.text(c, at),
            Self::Held => sink.free(c, at),
            Self::Call(tool, reader) => {
                if !reader.has_begun() {
                    if is_space(c) {
                        return;
                    }
                    if c != '{' {
                        sink.text(c, at);
                        *self = Self::Text;
                        return;
                    }
                    sink.start_call(tool);
                }
                let mut json = String::new();
                let read = reader.push(c, &mut json);
                sink.args(&json);
                if read == Read::Last {
                    sink.end_call();
                    *self = Self::Over;
                }
            }
            Self::Over if is_space(c) => {}
            Self::Over => {
                *self = Self::Text;
                sink.text(c, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::text::output::Wanted;
    use crate::text::output::cuts::{auto, read, table};

    #[test]
    fn channels_are_thoughts_text_and_calls() {
        table(
            "harmony",
            &[
                (
                    "<|channel|>analysis<|message|>Hm.\n<|end|><|start|>assistant<|channel|>final<|message|>Hello\n",
                    &["think Hm.", "text Hello\n"],
                ),
                (
                    "<|channel|>analysis<|message|>Hm<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"<|end|>\"}<|call|>",
                    &["think Hm", "call get_weather", "args {\"city\": \"<|end|>\"}", "end"],
                ),
                (
                    " to=functions.get<|channel|>commentary json<|message|>{}",
                    &["call get", "args {}", "end"],
                ),
                (
                    "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.get <|constrain|>json<|message|>{",
                    &["text I look.", "call get", "args {"],
                ),
                ("<|channel|>commentary to=functions.got json<|message|>{}", &["text {}"]),
                ("Hello", &["text Hello"]),
                (" Hello <", &["text  Hello <"]),
                ("<|channel|>final<|message|>a <|en", &["text a "]),
                ("<|channel|>final<|message|>use <think>", &["text use <think>"]),
                ("<|chan", &[]),
                ("<|channel|>fin", &[]),
                (
                    "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b",
                    &["think ab"],
                ),
                (
                    "<|channel|>analysis<|message|>a<|channel|>analysis<|message|>b<|channel|>final<|message|>c",
                    &["think ab", "text c"],
                ),
            ],
        );
        let opened = Wanted { opened: true, ..auto() };
        assert_eq!(
            read("harmony", &opened, "Hm<|end|><|start|>assistant<|channel|>final<|message|>x"),
            ["think Hm", "text x"]
        );
    }

    #[test]
    fn beside_text_that_is_held_to_something_nothing_in_it_is_a_mark() {
        use crate::text::output::{Rule, Spacing};
        let rule = Rule::Json { schema: json!({}), strict: false, spacing: Spacing::Flexible };
        let wanted = Wanted { content: Some(("response_format".to_owned(), rule)), ..auto() };
        let call = "<|channel|>commentary to=functions.get json<|message|>{}";
        assert_eq!(
            read("harmony", &wanted, &format!("<|channel|>final<|message|>[\"<|end|>{call}\"]")),
            [format!("text [\"<|end|>{call}\"]")]
        );
    }

    #[test]
    fn nothing_is_said_that_holds_a_mark() {
        let lark = super::grammar(&auto()).unwrap().lark;
        assert!(lark.contains("said[lazy]: SAID \"<|end|>\""), "{lark}");
        for mark in super::MARKERS {
            let name = mark.trim_matches(['<', '|', '>']);
            assert!(super::MARKED.split('|').any(|marked| marked == name), "{mark}");
        }
    }
}
