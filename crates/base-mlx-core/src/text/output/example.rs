use serde_json::{Map, Value};

use super::OutputFormat;
use super::format::ToolFormat;
use super::harmony;
use super::syntax::{Args, Fields, Syntax, Words};

impl OutputFormat {
    /// Calls as the model is to write them: for models that are told in words, and for their own calls of before.
    pub fn written(&self, calls: &[(&str, Map<String, Value>)]) -> String {
        match self.tools {
            ToolFormat::Syntax(syntax) => {
                let one = |(name, arguments): &(&str, Map<String, Value>)| {
                    let name = syntax.written(name);
                    let arguments = written_arguments(syntax, arguments);
                    [syntax.call, &name, syntax.named, &arguments, syntax.end].concat()
                };
                let calls: Vec<String> = calls.iter().map(one).collect();
                [syntax.open, &calls.join(syntax.between), syntax.close].concat()
            }
            ToolFormat::Harmony => {
                let one = |(name, arguments): &(&str, Map<String, Value>)| {
                    format!("{}{}", harmony::call_to(name), spaced(&arguments.clone().into()))
                };
                calls.iter().map(one).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

fn written_arguments(syntax: &Syntax, arguments: &Map<String, Value>) -> String {
    let Args::Fields(fields) = &syntax.args else { return spaced(&arguments.clone().into()) };
    let Fields { open, key, keyed, value_end, between, close, .. } = fields;
    let one = |(name, value): (&String, &Value)| {
        let value = match (value, fields.text) {
            (Value::String(text), Some((open, close))) => [open, text, close].concat(),
            (Value::Bool(truth), _) if fields.words == Words::Python => {
                if *truth {
                    "True".to_owned()
                } else {
                    "False".to_owned()
                }
            }
            (Value::Null, _) if fields.words == Words::Python => "None".to_owned(),
            (value, _) => spaced(value),
        };
        [key, name.as_str(), keyed, &value, value_end].concat()
    };
    let written: Vec<String> = arguments.iter().map(one).collect();
    [open, &*written.join(between), close].concat()
}

/// JSON with a space after each comma and colon, as the grammar of arguments has it.
fn spaced(value: &Value) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    match value {
        Value::Array(values) => {
            format!("[{}]", values.iter().map(spaced).collect::<Vec<_>>().join(", "))
        }
        Value::Object(fields) => {
            let field =
                |(key, value): (&String, &Value)| format!("{}: {}", quoted(key), spaced(value));
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::output::cuts::{auto, read};

    #[test]
    fn what_is_written_is_read_as_the_same_calls() {
        let arguments = json!({ "city": "a b", "days": 3, "unit": "C", "rain": true });
        let arguments = arguments.as_object().unwrap().clone();
        let calls = [("get_weather", arguments), ("get", Map::new())];
        for name in OutputFormat::names().into_iter().filter(|name| *name != "harmony") {
            let format = OutputFormat::default().with_tools(name).unwrap();
            assert_eq!(
                read(name, &auto(), &format.written(&calls)),
                [
                    "call get_weather",
                    "args {\"city\": \"a b\", \"days\": 3, \"unit\": \"C\", \"rain\": true}",
                    "end",
                    "call get",
                    "args {}",
                    "end",
                ],
                "{name}"
            );
        }
        let harmony = OutputFormat::default().with_tools("harmony").unwrap();
        assert_eq!(
            read("harmony", &auto(), &harmony.written(&calls[1..])),
            ["call get", "args {}", "end"]
        );
    }
}
