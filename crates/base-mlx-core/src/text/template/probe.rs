use std::cell::Cell;

use serde_json::{Map, Value, json};

use super::messages::Arguments;
use super::{ChatInput, Inner, TemplateError};

/// Which ways of saying things a template understands. It cannot be asked, so it is shown small conversations
/// once and judged by what it writes.
#[derive(Clone, Debug)]
pub(super) struct Capabilities {
    /// `content` as a string.
    pub(super) strings: bool,
    /// `content` as a list of parts.
    pub(super) parts: bool,
    pub(super) system: bool,
    /// `content: null` beside tool calls.
    pub(super) null_content: bool,
    pub(super) arguments: Arguments,
}

impl Capabilities {
    pub(super) fn probe(template: &Inner, name: &str) -> Self {
        let exhausted = Cell::new(false);
        let write = |messages: Value| -> Option<String> {
            if exhausted.get() {
                return None;
            }
            let input = ChatInput {
                messages: &messages,
                tools: None,
                add_generation_prompt: true,
                kwargs: &Map::new(),
            };
            let written = template.render(name, &input);
            // One that takes all it can get would do so every time.
            exhausted.set(written == Err(TemplateError::TooMuch));
            written.ok()
        };
        let says = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains(NEEDLE));

        let string = write(json!([{ "role": "user", "content": NEEDLE }]));
        let part = json!([{ "type": "text", "text": NEEDLE }]);
        let parts = write(json!([{ "role": "user", "content": part }]));
        let strings_work = says(&string);
        let system = write(json!([
            { "role": "system", "content": if strings_work { NEEDLE.into() } else { part } },
            { "role": "user", "content": "hello" },
        ]));
        let (null_content, arguments) = calls(write);
        Self {
            // A template that takes neither has troubles of its own; let it speak of them.
            strings: strings_work || !says(&parts),
            // A template that prints the list itself has the needle in it, but not the same text around it.
            parts: says(&parts) && (!strings_work || parts == string),
            system: says(&system),
            null_content,
            arguments,
        }
    }
}

/// The first way of showing a tool call that comes out whole.
fn calls(write: impl Fn(Value) -> Option<String>) -> (bool, Arguments) {
    let conversation = |content: Value, arguments: Value| {
        // Nine letters and digits: one family refuses other ids.
        let call = json!({
            "id": "call00001", "type": "function",
            "function": { "name": "look_up", "arguments": arguments },
        });
        write(json!([
            { "role": "user", "content": "hello" },
            { "role": "assistant", "content": content, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "call00001", "name": "look_up", "content": "nothing" },
        ]))
    };
    let object = || json!({ KEY: NEEDLE });
    let string = || Value::from(object().to_string());
    let nones = |text: &str| text.matches("None").count();

    for (wanted, arguments) in [(Arguments::Object, object()), (Arguments::String, string())] {
        let whole = |text: &String| {
            text.contains("look_up") && text.contains(NEEDLE) && !text.contains(PYTHON_KEY)
        };
        let null = conversation(Value::Null, arguments.clone()).filter(whole);
        let empty = conversation("".into(), arguments).filter(whole);
        match (null, empty) {
            (Some(null), Some(empty)) => return (nones(&null) <= nones(&empty), wanted),
            (Some(_), None) => return (true, wanted),
            (None, Some(_)) => return (false, wanted),
            (None, None) => {}
        }
    }
    (false, Arguments::Object)
}

/// Nothing that a template would write by itself.
const NEEDLE: &str = "zwölf Boxkämpfer";
const KEY: &str = "needle_key";
/// What a template writes that prints an object instead of turning it into JSON.
const PYTHON_KEY: &str = "'needle_key'";
