//! Calls in answers, beside what the crate `tool-parser` reads in the same streams (`tests/golden/tool_parser`).
//!
//! It reads each stream whole and, with other code, in pieces, and not always alike: ours is to be what it reads whole, or
//! else what it reads in pieces of any length. What ours reads where it differs on purpose is written down, too
//! (`ours.json`); `BASE_MLX_RECORD=1` writes it anew.

use std::collections::BTreeMap;

use base_mlx_core::text::output::{Calls, Output, OutputFormat, OutputParser, Shape, Tool, Wanted};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::output::{Allowed, allows};

#[test]
fn calls_are_those_that_tool_parser_finds() {
    let Streams { tools, streams } = golden("streams.json");
    let answers: Vec<Answer> = golden("answers.json");
    assert_eq!(streams.len(), answers.len());
    let tools: Vec<Tool> = tools.into_iter().map(Function::tool).collect();
    let mut faults = Vec::new();
    let mut differ = Vec::new();
    let mut read = BTreeMap::new();
    for (stream, theirs) in streams.iter().zip(&answers) {
        let Stream { format, name, text } = stream;
        assert_eq!((format, name), (&theirs.format, &theirs.name));
        let shape = shape(format, &tools);
        let ours = Read::new(&shape.parser, [text.as_str()]);
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let in_chars = Read::new(&shape.parser, chars.iter().map(String::as_str));
        assert_eq!(ours, in_chars, "{text:?}");
        if theirs.agree_with(&ours) {
            continue;
        }
        differ.push((format.as_str(), name.as_str()));
        read.insert(format!("{format}: {name}"), ours.clone());
        match difference(format, name) {
            None => faults.push(format!("{format}: {name}: {text:?}\n  {ours:?}\n  {theirs:?}")),
            Some(NEVER_WRITTEN) => {
                assert_eq!(allows(&shape, text), Allowed::No, "{format}: {name}");
            }
            Some(_) => {}
        }
    }
    for (name, formats, _) in &DIFFERENCES {
        let agree = formats.iter().filter(|format| !differ.contains(&(**format, *name)));
        faults.extend(agree.map(|format| format!("{format}: {name}: there is no difference")));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    if std::env::var_os("BASE_MLX_RECORD").is_some() {
        let text = serde_json::to_string_pretty(&read).unwrap();
        std::fs::write(place("ours.json"), text + "\n").unwrap();
    }
    let expected: BTreeMap<String, Read> = golden("ours.json");
    assert_eq!(read, expected);
}

fn place(name: &str) -> String {
    format!("{}/tests/golden/tool_parser/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn golden<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(place(name)).unwrap()).unwrap()
}

fn shape(format: &str, tools: &[Tool]) -> Shape {
    let format = match format {
        // The same format without line ends goes by the same name.
        "glm-4.7" => OutputFormat::of_template("<tool_call><arg_key></arg_key><arg_value>"),
        name => OutputFormat::default().with_tools(name).unwrap(),
    };
    let calls = Calls { tools: tools.to_vec(), required: false, parallel: true };
    format.shape(&Wanted { calls, ..Wanted::default() })
}

fn difference(format: &str, name: &str) -> Option<&'static str> {
    let fits = |row: &&Difference| row.0 == name && row.1.contains(&format);
    DIFFERENCES.iter().find(fits).map(|row| row.2)
}

#[derive(Deserialize)]
struct Streams {
    tools: Vec<Function>,
    streams: Vec<Stream>,
}

#[derive(Deserialize)]
struct Function {
    name: String,
    parameters: Value,
}

#[derive(Deserialize)]
struct Stream {
    format: String,
    name: String,
    text: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    format: String,
    name: String,
    whole: Read,
    /// In pieces of several lengths; none if they are all like `whole`.
    #[serde(default)]
    pieces: Vec<Read>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
struct Read {
    text: String,
    /// The arguments of a call that is not complete, or that are no JSON, are a text.
    calls: Vec<(String, Value)>,
}

impl Function {
    fn tool(self) -> Tool {
        let Self { name, parameters } = self;
        Tool { name, parameters, strict: true, origin: "parameters".to_owned() }
    }
}

impl Answer {
    fn agree_with(&self, ours: &Read) -> bool {
        let in_pieces = !self.pieces.is_empty() && self.pieces.iter().all(|read| read.is(ours));
        self.whole.is(ours) || in_pieces
    }
}

impl Read {
    fn new<'a>(parser: &OutputParser, pieces: impl IntoIterator<Item = &'a str>) -> Self {
        let mut parser = parser.clone();
        let mut events: Vec<Output> =
            pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
        events.extend(parser.finish());
        let (mut text, mut calls) = (String::new(), Vec::new());
        let mut open: Option<(String, String)> = None;
        for event in events {
            match event {
                Output::Content { text: piece, .. } => text.push_str(&piece),
                Output::ToolStart { name } => open = Some((name, String::new())),
                Output::ToolArgs(piece) => open.as_mut().unwrap().1.push_str(&piece),
                Output::ToolEnd => {
                    let (name, arguments) = open.take().unwrap();
                    let value = serde_json::from_str(&arguments);
                    calls.push((name, value.unwrap_or(Value::String(arguments))));
                }
                Output::Reasoning(thought) => panic!("{thought:?}"),
            }
        }
        calls.extend(open.map(|(name, arguments)| (name, Value::String(arguments))));
        Self { text, calls }
    }

    /// Up to white space around the text.
    fn is(&self, other: &Self) -> bool {
        self.calls == other.calls && self.text.trim() == other.text.trim()
    }
}

/// A stream's name, its formats, and why ours is right.
type Difference = (&'static str, &'static [&'static str], &'static str);

const NEVER_WRITTEN: &str = "the grammar does not let a model write it";

const DIFFERENCES: [Difference; 26] = [
    (
        "a function nobody declared",
        &[
            "hermes",
            "qwen3-coder",
            "llama3-pythonic",
            "mistral",
            "gemma4",
            "deepseek-v3",
            "deepseek-v3.1",
            "glm",
            "glm-4.7",
        ],
        "a call that nothing can carry out is text",
    ),
    (
        "one of two that nobody declared",
        &[
            "hermes",
            "qwen3-coder",
            "llama3-pythonic",
            "mistral",
            "gemma4",
            "deepseek-v3",
            "deepseek-v3.1",
            "glm",
            "glm-4.7",
        ],
        "a call that nothing can carry out is text",
    ),
    (
        "cut off in a value",
        &[
            "hermes",
            "qwen3-coder",
            "llama3-json",
            "llama3-pythonic",
            "mistral",
            "gemma4",
            "glm",
            "glm-4.7",
            "plain",
        ],
        "a call is told as it comes, so its arguments end where the text does, with nothing made up",
    ),
    ("cut off before the end mark", &["hermes"], "a call without its end is not complete"),
    ("cut off in the mark", &["hermes", "mistral"], "so much of a mark is nothing else"),
    (
        "text behind",
        &["hermes", "deepseek-v3", "glm", "glm-4.7"],
        "what the model says behind its calls is said",
    ),
    ("text between calls", &["hermes"], "what the model says between its calls is said"),
    (
        "its own mark in a string",
        &["qwen3-coder", "llama3-pythonic", "deepseek-v3", "deepseek-v3.1", "glm", "glm-4.7"],
        "nothing within a value is a mark",
    ),
    (
        "an end mark of a parameter in text",
        &["qwen3-coder"],
        "a parameter ends on a line of its own",
    ),
    ("text with spaces around", &["qwen3-coder"], "only line ends beside marks belong to them"),
    (
        "an empty line at the end of text",
        &["qwen3-coder"],
        "only line ends beside marks belong to them",
    ),
    (
        "text in quotes",
        &["qwen3-coder", "glm", "glm-4.7"],
        "text stands for itself, with its quotes",
    ),
    ("no line ends", &["hermes", "glm"], "white space between marks means nothing"),
    ("no space behind the mark", &["mistral"], "white space between marks means nothing"),
    ("no line ends", &["qwen3-coder"], NEVER_WRITTEN),
    ("arguments first", &["hermes"], NEVER_WRITTEN),
    ("arguments that are no object", &["hermes"], NEVER_WRITTEN),
    ("a parameter nobody declared", &["qwen3-coder"], NEVER_WRITTEN),
    ("arrays and objects", &["gemma4"], NEVER_WRITTEN),
    ("nothing in place of text", &["gemma4"], NEVER_WRITTEN),
    ("nested as JSON", &["gemma4"], "the grammar has JSON within arrays and objects"),
    ("code behind the mark", &["llama3-json"], "a special token is no text"),
    (
        "text before",
        &["llama3-pythonic", "plain"],
        "without a mark only an answer's beginning can be a call",
    ),
    ("a list", &["plain"], "calls are objects, one behind the other"),
    ("in a fence", &["plain"], "the fence belongs to the call"),
    ("no arguments at all", &["plain"], "an object with a name may be an answer"),
];
