use std::collections::HashSet;

use base_mlx_core::text::output::{Calls, Tool};
use serde_json::{Map, Value, json};

use crate::dialects::message::CallsAs;
use crate::error::ApiError;
use crate::request::{Field, JsonObject, Object};

/// The functions that a chat request offers, and which of them its answer may or must call.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    /// All of them, for the chat template: whatever may be called, a conversation begins with the same bytes. `None` if
    /// there are none.
    pub shown: Option<Value>,
    pub calls: Calls,
    /// The request names the one function to call.
    pub named: bool,
    pub calls_as: CallsAs,
}

/// A function as it was given.
struct Function {
    tool: Tool,
    shown: Value,
    /// Where its name stands.
    path: String,
}

/// What `tool_choice` says.
enum Choice {
    None,
    Auto,
    Required,
    /// Exactly this one, once.
    Named(String),
    /// Only some of them.
    Allowed {
        names: Vec<String>,
        required: bool,
    },
}

impl Tools {
    pub(crate) fn parse(body: &JsonObject) -> Result<Self, ApiError> {
        let fields = body.fields();
        let tools = fields.list("tools")?.unwrap_or_default();
        let functions = fields.list("functions")?.unwrap_or_default();
        if !tools.is_empty() && !functions.is_empty() {
            let message = "`functions` is the old name of `tools`, and both are given";
            return Err(ApiError::invalid("functions", message));
        }
        let legacy = !functions.is_empty();
        let known = tools.iter().map(function_of_tool);
        let known = known.chain(functions.iter().map(|function| Function::parse(function)));
        let known = known.collect::<Result<Vec<_>, _>>()?;
        check_names(&known)?;
        let asked = fields.get("tool_choice").or_else(|| fields.get("function_call"));
        let choice = asked.as_ref().map(Choice::parse).transpose()?;
        if known.is_empty() {
            return match (asked, choice) {
                (Some(asked), Some(choice)) if !matches!(choice, Choice::None) => {
                    let message = format!(
                        "`{}` is only allowed with `tools`, and there are none",
                        asked.path()
                    );
                    Err(ApiError::invalid(asked.path(), message))
                }
                _ => Ok(Self::default()),
            };
        }
        let (tools, shown): (Vec<Tool>, Vec<Value>) =
            known.into_iter().map(|known| (known.tool, known.shown)).unzip();
        let choice = choice.unwrap_or(Choice::Auto);
        if let (Some(asked), Some(unknown)) = (asked, choice.unknown(&tools)) {
            let message =
                format!("`{}` names {unknown:?}, which is none of the tools", asked.path());
            return Err(ApiError::invalid(asked.path(), message));
        }
        // An answer to `functions` has room for one.
        let several = fields.flag("parallel_tool_calls")?.unwrap_or(true) && !legacy;
        let named = matches!(choice, Choice::Named(_));
        let calls = choice.calls(tools, several);
        let calls_as = if legacy { CallsAs::FunctionCall } else { CallsAs::ToolCalls };
        Ok(Self { shown: Some(shown.into()), calls, named, calls_as })
    }
}

impl Function {
    /// `{"name", "description", "parameters", "strict"}`
    fn parse(given: &Field) -> Result<Self, ApiError> {
        let fields = given.object()?;
        let name = fields.need("name", "a string")?;
        check_name(&name)?;
        if let Some(description) = fields.get("description") {
            description.text()?;
        }
        let strict = fields.flag("strict")?.unwrap_or(false);
        let mut shown = fields.to_map();
        shown.retain(|key, value| !value.is_null() && key != "strict");
        let (parameters, origin) = match fields.object("parameters")? {
            Some(parameters) => {
                let origin = fields.path_of("parameters");
                (arguments_schema(&parameters, &origin)?, origin)
            }
            None => {
                let none = json!({ "type": "object", "properties": {} });
                // Templates go through them without asking whether they are there.
                shown.insert("parameters".to_owned(), none.clone());
                let mut schema = none;
                schema["additionalProperties"] = false.into();
                (schema, fields.path_of("parameters"))
            }
        };
        let tool = Tool { name: name.text()?.to_owned(), parameters, strict, origin };
        let shown = json!({ "type": "function", "function": shown });
        Ok(Self { tool, shown, path: name.path().to_owned() })
    }
}

fn function_of_tool(tool: &Field) -> Result<Function, ApiError> {
    let fields = tool.object()?;
    let kind = fields.need("type", "`function`")?;
    match kind.text()? {
        "function" => Function::parse(&fields.need("function", "an object")?),
        "custom" => {
            let message =
                format!("`{}` is `custom`, and only functions are supported", kind.path());
            Err(ApiError::unsupported(kind.path(), message))
        }
        other => {
            let message = format!("`{}` is {other:?}, expected `function`", kind.path());
            Err(ApiError::invalid(kind.path(), message))
        }
    }
}

/// Arguments are an object, even where the schema forgets to say so.
fn arguments_schema(parameters: &Object, origin: &str) -> Result<Value, ApiError> {
    let mut schema: Map<String, Value> = parameters.to_map();
    let object = Value::from("object");
    match schema.get("type") {
        None => {}
        Some(kind) if *kind == object => return Ok(schema.into()),
        Some(Value::Array(kinds)) if kinds.contains(&object) => {}
        Some(_) => {
            let message =
                format!("`{origin}.type` is not `object`, and a function's arguments are one");
            return Err(ApiError::invalid(origin, message));
        }
    }
    schema.insert("type".to_owned(), object);
    Ok(schema.into())
}

/// Letters, digits, `_` and `-` as OpenAI has it, and the dots of names that come from elsewhere.
fn check_name(name: &Field) -> Result<(), ApiError> {
    let text = name.text()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    let message = format!(
        "`{}` is {text:?}, expected 1 to {LONGEST_NAME} letters, digits, `_`, `-` or `.`",
        name.path()
    );
    Err(ApiError::invalid(name.path(), message))
}

fn check_names(functions: &[Function]) -> Result<(), ApiError> {
    let mut names = HashSet::new();
    match functions.iter().find(|function| !names.insert(&function.tool.name)) {
        None => Ok(()),
        Some(again) => {
            let message = format!("`{}` is {:?}, as that of another", again.path, again.tool.name);
            Err(ApiError::invalid(&*again.path, message))
        }
    }
}

impl Choice {
    fn parse(asked: &Field) -> Result<Self, ApiError> {
        let expected = "`none`, `auto`, `required`, or an object that names a function";
        match asked.value() {
            Value::String(choice) => match &choice[..] {
                "none" => Ok(Self::None),
                "auto" => Ok(Self::Auto),
                "required" => Ok(Self::Required),
                other => {
                    let message = format!("`{}` is {other:?}, expected {expected}", asked.path());
                    Err(ApiError::invalid(asked.path(), message))
                }
            },
            Value::Object(_) => Self::of_object(&asked.object()?),
            _ => Err(asked.wrong(expected)),
        }
    }

    fn of_object(fields: &Object) -> Result<Self, ApiError> {
        // `function_call` says no type.
        let kind = fields.text("type")?.unwrap_or("function");
        match kind {
            "function" => {
                let function = fields.object("function")?.unwrap_or_else(|| fields.clone());
                Ok(Self::Named(function.need("name", "a function's name")?.text()?.to_owned()))
            }
            "allowed_tools" => {
                let allowed = fields.need("allowed_tools", "an object")?.object()?;
                let mode = allowed.need("mode", "`auto` or `required`")?;
                let required = match mode.text()? {
                    "auto" => false,
                    "required" => true,
                    _ => return Err(mode.wrong("`auto` or `required`")),
                };
                let tools = allowed.need("tools", "an array of tools")?;
                let names =
                    tools.list()?.iter().map(allowed_name).collect::<Result<Vec<_>, _>>()?;
                if names.is_empty() {
                    return Err(ApiError::invalid(tools.path(), "no tool is allowed"));
                }
                Ok(Self::Allowed { names, required })
            }
            other => {
                let param = fields.path_of("type");
                let message =
                    format!("`{param}` is {other:?}, expected `function` or `allowed_tools`");
                Err(ApiError::invalid(param, message))
            }
        }
    }

    /// A name that is none of the tools'.
    fn unknown(&self, tools: &[Tool]) -> Option<&str> {
        let names = match self {
            Self::None | Self::Auto | Self::Required => &[],
            Self::Named(name) => std::slice::from_ref(name),
            Self::Allowed { names, .. } => &names[..],
        };
        names
            .iter()
            .find(|name| !tools.iter().any(|tool| tool.name == **name))
            .map(|name| &name[..])
    }

    fn calls(self, mut tools: Vec<Tool>, several: bool) -> Calls {
        match self {
            Self::None => Calls::default(),
            Self::Auto => Calls { tools, required: false, parallel: several },
            Self::Required => Calls { tools, required: true, parallel: several },
            Self::Named(name) => {
                tools.retain(|tool| tool.name == name);
                Calls { tools, required: true, parallel: false }
            }
            Self::Allowed { names, required } => {
                tools.retain(|tool| names.contains(&tool.name));
                Calls { tools, required, parallel: several }
            }
        }
    }
}

fn allowed_name(tool: &Field) -> Result<String, ApiError> {
    let fields = tool.object()?;
    let function = fields.object("function")?.unwrap_or_else(|| fields.clone());
    Ok(function.need("name", "a function's name")?.text()?.to_owned())
}

const LONGEST_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<Tools, ApiError> {
        Tools::parse(&JsonObject::parse(body.to_string().as_bytes()).unwrap())
    }

    fn wrong(body: &Value) -> String {
        let error = parse(body).expect_err(&body.to_string());
        assert_eq!(error.status(), 400, "{body}");
        error.envelope()["error"]["param"].as_str().unwrap().to_owned()
    }

    fn function(name: &str) -> Value {
        json!({ "type": "function", "function": { "name": name, "parameters": { "type": "object" } } })
    }

    fn two(choice: Value) -> Value {
        json!({ "tools": [function("a"), function("b.c")], "tool_choice": choice })
    }

    fn names(tools: &Tools) -> Vec<&str> {
        tools.calls.tools.iter().map(|tool| &tool.name[..]).collect()
    }

    #[test]
    fn point_34_a_choice_restricts_the_calls_and_not_what_the_template_shows() {
        let named = json!({ "type": "function", "function": { "name": "b.c" } });
        let allowed = |mode: &str| {
            let tools = [json!({ "type": "function", "function": { "name": "a" } })];
            json!({ "type": "allowed_tools", "allowed_tools": { "mode": mode, "tools": tools } })
        };
        let cases = [
            (json!(null), vec!["a", "b.c"], false, true),
            (json!("auto"), vec!["a", "b.c"], false, true),
            (json!("required"), vec!["a", "b.c"], true, true),
            (json!("none"), vec![], false, false),
            (named, vec!["b.c"], true, false),
            (allowed("auto"), vec!["a"], false, true),
            (allowed("required"), vec!["a"], true, true),
        ];
        let shown = parse(&two(json!("auto"))).unwrap().shown;
        for (choice, expected, required, parallel) in cases {
            let tools = parse(&two(choice.clone())).unwrap();
            assert_eq!(names(&tools), expected, "{choice}");
            let calls = &tools.calls;
            assert_eq!((calls.required, calls.parallel), (required, parallel), "{choice}");
            assert_eq!(tools.shown, shown, "{choice}");
            assert_eq!(tools.named, choice["function"].is_object(), "{choice}");
        }
    }

    #[test]
    fn point_34_a_choice_of_what_is_not_there_is_refused() {
        let unknown = json!({ "type": "function", "function": { "name": "z" } });
        assert_eq!(wrong(&two(unknown)), "tool_choice");
        let allowed = |tools: Value, mode: &str| json!({ "type": "allowed_tools", "allowed_tools": { "mode": mode, "tools": tools } });
        let z = json!([{ "type": "function", "function": { "name": "z" } }]);
        assert_eq!(wrong(&two(allowed(z, "auto"))), "tool_choice");
        assert_eq!(wrong(&two(allowed(json!([]), "auto"))), "tool_choice.allowed_tools.tools");
        let a = json!([{ "type": "function", "function": { "name": "a" } }]);
        assert_eq!(wrong(&two(allowed(a, "none"))), "tool_choice.allowed_tools.mode");
        assert_eq!(wrong(&two(json!("any"))), "tool_choice");
        assert_eq!(wrong(&two(json!(5))), "tool_choice");
        assert_eq!(wrong(&two(json!({ "type": "mcp" }))), "tool_choice.type");
        assert_eq!(wrong(&two(json!({ "type": "function" }))), "tool_choice.name");
        for choice in [json!("auto"), json!("required"), json!({ "name": "a" })] {
            assert_eq!(wrong(&json!({ "tool_choice": choice })), "tool_choice");
            assert_eq!(wrong(&json!({ "tools": [], "tool_choice": choice })), "tool_choice");
            assert_eq!(wrong(&json!({ "function_call": choice })), "function_call");
        }
        // Asks for nothing, without tools too.
        assert!(parse(&json!({ "tool_choice": "none" })).unwrap().shown.is_none());
    }

    #[test]
    fn point_35_parallel_calls_can_be_turned_off() {
        let mut body = two(json!("auto"));
        body["parallel_tool_calls"] = false.into();
        assert!(!parse(&body).unwrap().calls.parallel);
    }

    #[test]
    fn point_37_names_are_checked_and_dots_are_fine() {
        let long = "x".repeat(65);
        for name in ["", "a b", "ä", "a/b", "a\n", &long] {
            let body = json!({ "tools": [function("ok"), function(name)] });
            assert_eq!(wrong(&body), "tools[1].function.name", "{name:?}");
        }
        for name in ["a", "A-b_9", "server.tool", &long[..64]] {
            assert_eq!(names(&parse(&json!({ "tools": [function(name)] })).unwrap()), [name]);
        }
        let twice = json!({ "tools": [function("a"), function("b"), function("a")] });
        assert_eq!(wrong(&twice), "tools[2].function.name");
        let legacy = json!({ "functions": [{ "name": "a" }, { "name": "a" }] });
        assert_eq!(wrong(&legacy), "functions[1].name");
    }

    #[test]
    fn what_is_no_function_is_named() {
        let with = |tool: Value| json!({ "tools": [tool] });
        assert_eq!(wrong(&json!({ "tools": {} })), "tools");
        assert_eq!(wrong(&with(json!("f"))), "tools[0]");
        assert_eq!(wrong(&with(json!({ "type": "web_search" }))), "tools[0].type");
        assert_eq!(wrong(&with(json!({ "type": "custom" }))), "tools[0].type");
        assert_eq!(wrong(&with(json!({ "function": { "name": "f" } }))), "tools[0].type");
        assert_eq!(wrong(&with(json!({ "type": "function" }))), "tools[0].function");
        let of = |function: Value| with(json!({ "type": "function", "function": function }));
        assert_eq!(wrong(&of(json!({}))), "tools[0].function.name");
        assert_eq!(
            wrong(&of(json!({ "name": "f", "parameters": [] }))),
            "tools[0].function.parameters"
        );
        assert_eq!(
            wrong(&of(json!({ "name": "f", "parameters": { "type": "string" } }))),
            "tools[0].function.parameters"
        );
        assert_eq!(wrong(&of(json!({ "name": "f", "strict": "yes" }))), "tools[0].function.strict");
        let both = json!({ "tools": [function("a")], "functions": [{ "name": "b" }] });
        assert_eq!(wrong(&both), "functions");
    }

    #[test]
    fn functions_of_old_are_the_same_tools() {
        let schema = json!({ "type": "object", "properties": { "z": {}, "a": {} } });
        let function = json!({ "name": "f", "description": "d", "parameters": schema });
        let new = json!({ "tools": [{ "type": "function", "function": function }] });
        let old = json!({ "functions": [function], "function_call": { "name": "f" } });
        let (new, old) = (parse(&new).unwrap(), parse(&old).unwrap());
        assert_eq!(new.shown.as_ref().unwrap().to_string(), old.shown.unwrap().to_string());
        assert_eq!((new.calls_as, old.calls_as), (CallsAs::ToolCalls, CallsAs::FunctionCall));
        assert!(old.named && old.calls.required && !old.calls.parallel);
        assert!(!new.named);
        let several = json!({ "functions": [function], "parallel_tool_calls": true });
        assert!(!parse(&several).unwrap().calls.parallel);
        assert_eq!(old.calls.tools[0].origin, "functions[0].parameters");
        assert_eq!(new.calls.tools[0].origin, "tools[0].function.parameters");
    }

    #[test]
    fn what_the_template_shows_has_one_form() {
        let shown = |function: Value| {
            let body = json!({ "tools": [{ "function": function, "type": "function", "x": 1 }] });
            parse(&body).unwrap().shown.unwrap().to_string()
        };
        let plain = shown(json!({ "name": "f", "description": "d" }));
        assert_eq!(
            plain,
            r#"[{"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object","properties":{}}}}]"#
        );
        assert_eq!(
            shown(json!({ "name": "f", "strict": true, "description": "d", "parameters": null })),
            plain
        );
    }

    #[test]
    fn point_36_arguments_are_an_object_whatever_the_schema_forgets() {
        let schema = |parameters: Value| {
            let function = json!({ "name": "f", "parameters": parameters, "strict": true });
            let body = json!({ "tools": [{ "type": "function", "function": function }] });
            let tool = parse(&body).unwrap().calls.tools.remove(0);
            assert!(tool.strict);
            tool.parameters
        };
        assert_eq!(schema(json!({})), json!({ "type": "object" }));
        assert_eq!(schema(json!({ "type": ["null", "object"] })), json!({ "type": "object" }));
        assert_eq!(
            schema(json!(null)),
            json!({ "type": "object", "properties": {}, "additionalProperties": false })
        );
    }
}
