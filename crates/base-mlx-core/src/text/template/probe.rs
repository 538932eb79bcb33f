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
    pub(super) tools: ToolsPlace,
    /// Calls and what they gave.
    pub(super) calls: bool,
}

/// Where a template looks for tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToolsPlace {
    Variable,
    /// `tools` of the system message, as JSON text.
    SystemMessage,
    Nowhere,
}

impl Capabilities {
    pub(super) fn probe(template: &Inner, name: &str) -> Self {
        let exhausted = Cell::new(false);
        let write_with = |messages: Value, tools: Option<&Value>| -> Option<String> {
            if exhausted.get() {
                return None;
            }
            let input = ChatInput {
                messages: &messages,
                tools,
                add_generation_prompt: true,
                kwargs: &Map::new(),
            };
            let written = template.render(name, &input);
            // One that takes all it can get would do so every time.
            exhausted.set(written == Err(TemplateError::TooMuch));
            written.ok()
        };
        let write = |messages: Value| write_with(messages, None);
        let says = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains(NEEDLE));

        let string = write(json!([{ "role": "user", "content": NEEDLE }]));
        let part = json!([{ "type": "text", "text": NEEDLE }]);
        let parts = write(json!([{ "role": "user", "content": part }]));
        let strings_work = says(&string);
        let system = write(json!([
            { "role": "system", "content": if strings_work { NEEDLE.into() } else { part } },
            { "role": "user", "content": "hello" },
        ]));
        let as_content = |text: &str| match strings_work || !says(&parts) {
            true => Value::from(text),
            false => json!([{ "type": "text", "text": text }]),
        };
        let tools = tools_place(write_with, as_content);
        let found = calls(write, as_content);
        let (null_content, arguments) = found.unwrap_or((false, Arguments::Object));
        Self {
            // A template that takes neither has troubles of its own; let it speak of them.
            strings: strings_work || !says(&parts),
            // A template that prints the list itself has the needle in it, but not the same text around it.
            parts: says(&parts) && (!strings_work || parts == string),
            system: says(&system),
            null_content,
            arguments,
            tools,
            calls: found.is_some(),
        }
    }
}

fn tools_place(
    write: impl Fn(Value, Option<&Value>) -> Option<String>,
    as_content: impl Fn(&str) -> Value,
) -> ToolsPlace {
    let property = json!({ "type": "string", "description": "nothing" });
    let parameters =
        json!({ "type": "object", "properties": { KEY: property }, "required": [KEY] });
    let function = json!({ "name": "look_up", "description": "nothing", "parameters": parameters });
    let tools = json!([{ "type": "function", "function": function }]);
    let shows = |text: Option<String>| text.is_some_and(|text| text.contains("look_up"));
    let user = || json!({ "role": "user", "content": as_content("hello") });
    let system = || json!({ "role": "system", "content": as_content("hello") });
    if shows(write(json!([user()]), Some(&tools)))
        || shows(write(json!([system(), user()]), Some(&tools)))
    {
        return ToolsPlace::Variable;
    }
    let mut told = system();
    told["tools"] = super::messages::told_tools(&tools);
    match shows(write(json!([told, user()]), None)) {
        true => ToolsPlace::SystemMessage,
        false => ToolsPlace::Nowhere,
    }
}

/// The first way of showing a tool call that comes out whole.
fn calls(
    write: impl Fn(Value) -> Option<String>,
    as_content: impl Fn(&str) -> Value,
) -> Option<(bool, Arguments)> {
    let conversation = |content: Value, arguments: Value| {
        // Nine letters and digits: one family refuses other ids.
        let call = json!({
            "id": "call00001", "type": "function",
            "function": { "name": "look_up", "arguments": arguments },
        });
        write(json!([
            { "role": "user", "content": as_content("hello") },
            { "role": "assistant", "content": content, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "call00001", "name": "look_up", "content": as_content("nothing") },
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
        let empty = conversation(as_content(""), arguments).filter(whole);
        match (null, empty) {
            (Some(null), Some(empty)) => return Some((nones(&null) <= nones(&empty), wanted)),
            (Some(_), None) => return Some((true, wanted)),
            (None, Some(_)) => return Some((false, wanted)),
            (None, None) => {}
        }
    }
    None
}

/// Nothing that a template would write by itself.
const NEEDLE: &str = "zwölf Boxkämpfer";
const KEY: &str = "needle_key";
/// What a template writes that prints an object instead of turning it into JSON.
const PYTHON_KEY: &str = "'needle_key'";
