//! Asks the crate `tool-parser` what it reads in each of the streams, whole and in pieces: visible text, and calls with
//! their arguments.

use std::collections::BTreeMap;
use std::path::Path;

use openai_protocol::common::Tool;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tool_parser::{ParserFactory, ToolParser};

type Error = Box<dyn std::error::Error>;

#[derive(Deserialize)]
struct Streams {
    tools: Vec<Value>,
    streams: Vec<Stream>,
}

#[derive(Deserialize)]
struct Stream {
    format: String,
    name: String,
    text: String,
}

#[derive(Serialize)]
struct Answer {
    format: String,
    name: String,
    whole: Read,
    /// One for each of [`LENGTHS`]; none at all if they are all like `whole`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pieces: Vec<Read>,
}

#[derive(Serialize, PartialEq)]
struct Read {
    text: String,
    calls: Vec<(String, Value)>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let streams = std::fs::read_to_string(folder.join("streams.json"))?;
    let Streams { tools, streams } = serde_json::from_str(&streams)?;
    let tools: Vec<Tool> = tools
        .into_iter()
        .map(|function| json!({ "type": "function", "function": function }))
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()?;
    let factory = ParserFactory::new();
    let mut lines = Vec::new();
    for Stream { format, name, text } in streams {
        let theirs = of(&format).ok_or_else(|| format!("no parser reads {format}"))?;
        let parser = || factory.registry().create_parser(theirs).ok_or("no such parser");
        let whole = complete(&*parser()?, &text, &tools).await?;
        let mut pieces = Vec::new();
        for length in LENGTHS {
            pieces.push(incremental(&mut *parser()?, &text, length, &tools).await?);
        }
        if pieces.iter().all(|read| *read == whole) {
            pieces.clear();
        }
        lines.push(serde_json::to_string(&Answer { format, name, whole, pieces })?);
    }
    let answers = format!("[\n{}\n]\n", lines.join(",\n"));
    std::fs::write(folder.join("answers.json"), answers)?;
    Ok(())
}

/// What the crate calls a format of ours.
fn of(format: &str) -> Option<&'static str> {
    NAMES.iter().find(|(ours, _)| *ours == format).map(|(_, theirs)| *theirs)
}

async fn complete(parser: &dyn ToolParser, text: &str, tools: &[Tool]) -> Result<Read, Error> {
    let (text, calls) = parser.parse_complete_with_tools(text, tools).await?;
    let calls = calls.into_iter().map(|call| call.function);
    Ok(Read { text, calls: calls.map(|call| (call.name, value(call.arguments))).collect() })
}

async fn incremental(
    parser: &mut dyn ToolParser,
    text: &str,
    length: usize,
    tools: &[Tool],
) -> Result<Read, Error> {
    let (mut seen, mut calls) = (String::new(), BTreeMap::<usize, (String, String)>::new());
    for piece in pieces(text, length) {
        let read = parser.parse_incremental(piece, tools).await?;
        seen.push_str(&read.normal_text);
        for item in read.calls {
            let call = calls.entry(item.tool_index).or_default();
            call.0.push_str(item.name.as_deref().unwrap_or_default());
            call.1.push_str(&item.parameters);
        }
    }
    for item in parser.get_unstreamed_tool_args().into_iter().flatten() {
        calls.entry(item.tool_index).or_default().1.push_str(&item.parameters);
    }
    seen.push_str(&parser.take_unstreamed_normal_text());
    let calls = calls.into_values().map(|(name, arguments)| (name, value(arguments))).collect();
    Ok(Read { text: seen, calls })
}

/// Of so many characters each; marks come whole, as tokens of their own.
fn pieces(text: &str, length: usize) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut start, mut at, mut count) = (0, 0, 0);
    while at < text.len() {
        let rest = &text[at..];
        let mark = MARKS.iter().find(|mark| rest.starts_with(**mark)).map(|mark| mark.len());
        if start < at && (mark.is_some() || count == length) {
            pieces.push(&text[start..at]);
            (start, count) = (at, 0);
        }
        at += mark.or_else(|| rest.chars().next().map(char::len_utf8)).unwrap_or_default();
        count += 1;
        if mark.is_some() {
            pieces.push(&text[start..at]);
            (start, count) = (at, 0);
        }
    }
    pieces.extend((start < at).then(|| &text[start..]));
    pieces
}

/// A text if they are no JSON.
fn value(arguments: String) -> Value {
    serde_json::from_str(&arguments).unwrap_or(Value::String(arguments))
}

/// How many characters come at once.
const LENGTHS: [usize; 3] = [1, 4, 15];

/// Tokens of their own in the vocabularies of those who write them.
const MARKS: [&str; 16] = [
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<|python_tag|>",
    "[TOOL_CALLS]",
    "<|tool_call>",
    "<tool_call|>",
    "<|\"|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
];

const NAMES: [(&str, &str); 11] = [
    ("hermes", "qwen"),
    ("qwen3-coder", "qwen_xml"),
    ("llama3-json", "llama"),
    ("llama3-pythonic", "pythonic"),
    ("mistral", "mistral"),
    ("gemma4", "gemma4"),
    ("deepseek-v3", "deepseek"),
    ("deepseek-v3.1", "deepseek31"),
    ("glm", "glm45_moe"),
    ("glm-4.7", "glm47_moe"),
    ("plain", "json"),
];
