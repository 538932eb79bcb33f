//! For the tests of formats: what a text turns out to be must not depend on how it is cut.

use serde_json::{Value, json};

use super::{Calls, Output, OutputFormat, OutputParser, Tool, Wanted};

/// What a text turns out to be, a line for each event: `text`, `think`, `call`, `args` and `end`.
pub(super) fn read(format: &str, wanted: &Wanted, text: &str) -> Vec<String> {
    let format = OutputFormat::of_template("<think></think>").with_tools(format).unwrap();
    read_by(&format.shape(wanted).parser, text)
}

pub(super) fn read_by(parser: &OutputParser, text: &str) -> Vec<String> {
    let whole = lines(parser, [text]);
    for (cut, _) in text.char_indices() {
        assert_eq!(lines(parser, [&text[..cut], &text[cut..]]), whole, "cut at {cut}: {text:?}");
    }
    let chars: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(lines(parser, chars.iter().map(String::as_str)), whole, "in characters: {text:?}");
    let mut all = String::new();
    let events = events(parser, [text]);
    for event in &events {
        match event {
            Output::Content { text: piece, start } => {
                assert_eq!(&text[*start..][..piece.len()], piece, "{text:?}");
            }
            Output::ToolStart { .. } => all.clear(),
            Output::ToolArgs(args) => all.push_str(args),
            Output::ToolEnd => {
                let args: Value = serde_json::from_str(&all).expect(&all);
                assert!(args.is_object(), "{all}");
            }
            Output::Reasoning(_) => {}
        }
    }
    whole
}

fn events<'a>(parser: &OutputParser, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Output> {
    let mut parser = parser.clone();
    let mut events: Vec<Output> = Vec::new();
    for piece in pieces {
        events.extend(parser.push(piece));
    }
    events.extend(parser.finish());
    events
}

fn lines<'a>(parser: &OutputParser, pieces: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for event in events(parser, pieces) {
        let (kind, text) = match event {
            Output::Content { text, .. } => ("text", text),
            Output::Reasoning(text) => ("think", text),
            Output::ToolStart { name } => ("call", name),
            Output::ToolArgs(text) => ("args", text),
            Output::ToolEnd => {
                lines.push("end".to_owned());
                continue;
            }
        };
        match lines.last_mut() {
            Some(last) if last.starts_with(kind) && matches!(kind, "text" | "think" | "args") => {
                last.push_str(&text);
            }
            _ => lines.push(format!("{kind} {text}")),
        }
    }
    lines
}

/// Of the two tools of the tables, `get_weather` and `get`.
pub(super) fn auto() -> Wanted {
    let tool = |name: &str, parameters: Value| Tool {
        name: name.to_owned(),
        parameters,
        strict: true,
        origin: "tools[0].function.parameters".to_owned(),
    };
    let weather = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string" },
            "days": { "type": "integer" },
            "unit": { "type": "string", "enum": ["C", "F"] },
            "rain": { "type": "boolean" },
            "note": { "type": ["string", "null"] },
        },
        "required": ["city"],
        "additionalProperties": false,
    });
    let nothing = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    let tools = vec![tool("get_weather", weather), tool("get", nothing)];
    let calls = Calls { tools, required: false, parallel: true };
    Wanted { calls, may_think: true, ..Wanted::default() }
}

/// Reads a table: a text and the lines it turns out to be.
pub(super) fn table(format: &str, rows: &[(&str, &[&str])]) {
    for (text, lines) in rows {
        assert_eq!(read(format, &auto(), text), *lines, "{text:?}");
    }
}
