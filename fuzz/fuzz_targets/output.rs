//! What an answer turns out to be does not depend on how it is cut, and marks are never a part of it.

#![no_main]

use base_mlx_core::text::output::{
    Calls, Output, OutputFormat, OutputParser, Rule, Spacing, Tool, Wanted,
};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|input: (u8, u8, String)| {
    let (format, dice, text) = input;
    let [opened, may_think, required, held] = [1, 2, 4, 8].map(|bit| dice & bit != 0);
    let formats = OutputFormat::names();
    let format = formats[usize::from(format) % formats.len()];
    let format = OutputFormat::of_template("<think></think>").with_tools(format).unwrap();
    // Few control characters would come by themselves; here each stands for a piece of the format.
    let mut pieces: Vec<&str> = format.markers();
    pieces.extend(["{\"name\": \"f\", \"arguments\": ", "{\"a\": \"x\"}", "f(", "f", "a", "```json\n"]);
    let mut spelled = String::new();
    for c in text.chars() {
        match pieces.get((c as usize).wrapping_sub(1)) {
            Some(piece) if c.is_control() && c != '\n' => spelled.push_str(piece),
            _ => spelled.push(c),
        }
    }
    let schema = json!({ "type": "object", "properties": {
        "a": { "type": "string" }, "b": { "type": "integer" } } });
    let tool = Tool { name: "f".into(), parameters: schema, strict: true, origin: String::new() };
    let calls = Calls { tools: vec![tool], required, parallel: true };
    let rule = Rule::Json { schema: json!({}), strict: false, spacing: Spacing::Flexible };
    let content = held.then(|| ("response_format".to_owned(), rule));
    let wanted = Wanted { calls, content, opened, may_think };
    let parser = format.shape(&wanted).parser;

    let whole = read(&parser, [spelled.as_str()]);
    let chars: Vec<String> = spelled.chars().map(String::from).collect();
    assert_eq!(read(&parser, chars.iter().map(String::as_str)), whole);
    let thoughts = ["<think>", "</think>"];
    for event in &whole {
        if let Output::Content { text, start } = event {
            assert_eq!(&spelled[*start..][..text.len()], text);
            let marks = format.markers();
            let mut marks = marks.iter().filter(|mark| !thoughts.contains(mark));
            // What is held to a schema has none but those in its own texts.
            assert!(held || !marks.any(|mark| text.contains(*mark)), "{text:?} has a mark");
        }
    }
});

/// What comes in one piece is one event.
fn read<'a>(parser: &OutputParser, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Output> {
    let mut parser = parser.clone();
    let mut events = Vec::new();
    for piece in pieces {
        for event in parser.push(piece) {
            join(&mut events, event);
        }
    }
    for event in parser.finish() {
        join(&mut events, event);
    }
    events
}

fn join(events: &mut Vec<Output>, event: Output) {
    match (events.last_mut(), event) {
        (Some(Output::Content { text, start }), Output::Content { text: next, start: at })
            if *start + text.len() == at =>
        {
            text.push_str(&next);
        }
        (Some(Output::Reasoning(text)), Output::Reasoning(next))
        | (Some(Output::ToolArgs(text)), Output::ToolArgs(next)) => text.push_str(&next),
        (_, event) => events.push(event),
    }
}
