use std::sync::OnceLock;

use base_mlx_core::TokenId;
use base_mlx_core::grammar::{Constraint, Grammars};
use base_mlx_core::text::Text;
use base_mlx_core::text::output::{
    Calls, Output, OutputFormat, Rule, Shape, Spacing, Tool, Wanted,
};
use base_mlx_core::weights::Checkpoint;
use serde_json::{Value, json};

use crate::files::template_sources;
use crate::support::dice::Dice;
use crate::support::test_models::test_model;

#[test]
fn every_template_shows_its_format_and_its_thoughts() {
    let sources = template_sources();
    assert_eq!(sources.len(), TEMPLATES.len());
    for (name, source) in &sources {
        let format = OutputFormat::of_template(source);
        let (_, tools, thoughts) =
            TEMPLATES.iter().find(|(known, ..)| known == name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(format.name(), *tools, "{name}");
        assert_eq!(format.thinks(), !thoughts.is_empty(), "{name}");
        assert!(thoughts.is_empty() || format.opens_thoughts(thoughts), "{name}");
    }
}

#[test]
fn line_ends_of_glm_are_those_of_its_template() {
    for (name, source) in template_sources() {
        let format = OutputFormat::of_template(&source);
        if format.name() != "glm" {
            continue;
        }
        let lark = format.shape(&wanted(weather(), Mode::default())).grammar.unwrap().lark;
        let closed = ["GLM-4.7-Flash", "Spark2.5", "poolside-Laguna-S-2.1"].contains(&&*name);
        let line_end = if closed { "" } else { "\\n" };
        assert!(lark.contains(&format!("</arg_key>{line_end}<arg_value>")), "{name}: {lark}");
    }
}

#[test]
fn what_models_were_trained_to_write_is_allowed_and_read() {
    for example in &EXAMPLES {
        for mode in Mode::all() {
            let shape = shape(example.format, weather(), mode);
            let one = example.calls(false);
            assert_eq!(written(&shape, &one), [WEATHER_CALL], "{one:?}");
            let both = example.calls(true);
            assert_eq!(written(&shape, &both), [WEATHER_CALL, "get {}"], "{both:?}");
            assert_eq!(allows(&shape, &one), Allowed::Whole, "{one:?}");
            // Some models end their answer with each call.
            let ends = example.format == "harmony";
            let several = if mode.parallel && !ends { Allowed::Whole } else { Allowed::No };
            assert_eq!(allows(&shape, &both), several, "{both:?}");
            assert_eq!(allows(&shape, &format!("{one}x")), Allowed::No, "{one:?}");
            let cut = &one[..one.len() - 1];
            // A cut may leave another spelling of a text that has but one.
            assert_ne!(allows(&shape, cut), Allowed::Whole, "{cut:?}");
            let text = if mode.required { Allowed::No } else { Allowed::Whole };
            let hello = if example.format == "harmony" { FINAL } else { "" };
            assert_eq!(allows(&shape, &format!("{hello}Hello")), text, "{}", example.format);
        }
    }
}

#[test]
fn what_no_schema_allows_cannot_be_written() {
    for example in &EXAMPLES {
        for mode in Mode::all() {
            let shape = shape(example.format, weather(), mode);
            let one = example.calls(false);
            let days = one.replace('3', "\"3\"");
            assert_eq!(allows(&shape, &days), Allowed::No, "{days:?}");
            let whole = one.replace('3', "3.0");
            assert_eq!(allows(&shape, &whole), Allowed::No, "{whole:?}");
            // Where a call needs no mark, other names are text.
            let other = one.replace(WEATHER, "get_whatever");
            let is_text = !mode.required && !example.has_mark;
            let allowed = if is_text { Allowed::Whole } else { Allowed::No };
            assert_eq!(allows(&shape, &other), allowed, "{other:?}");
        }
    }
}

#[test]
fn thoughts_may_come_first_and_nowhere_else() {
    for example in EXAMPLES.iter().filter(|example| example.format != "harmony") {
        let one = example.calls(false);
        for mode in Mode::all() {
            let thinking = |opened| {
                let wanted = Wanted { opened, may_think: true, ..wanted(weather(), mode) };
                format(example.format).shape(&wanted)
            };
            let (closed, opened) = (thinking(false), thinking(true));
            for (shape, text) in [
                (&closed, format!("<think>\n{one}\n</think>\n\n{one}")),
                (&opened, format!("{one}\n</think>\n\n{one}")),
                (&closed, one.clone()),
            ] {
                assert_eq!(allows(shape, &text), Allowed::Whole, "{text:?}");
                assert_eq!(written(shape, &text), [WEATHER_CALL], "{text:?}");
            }
            assert_eq!(allows(&opened, &one), Allowed::Beginning, "{one:?}");
            let unclosed = format!("<think>\n{one}");
            assert_eq!(allows(&closed, &unclosed), Allowed::Beginning, "{unclosed:?}");
        }
    }
}

#[test]
fn json_that_names_a_tool_is_held_to_its_schema() {
    for example in EXAMPLES.iter().filter(|example| example.format != "harmony") {
        let shape = shape(example.format, weather(), Mode::default());
        for (text, allowed) in [
            (
                "```json\n{\n  \"name\": \"get_weather\",\n  \"arguments\": {\n    \"city\": \"x\"\n  }\n}\n```",
                Allowed::Whole,
            ),
            ("{\"name\":\"get_weather\",\"parameters\":{\"city\":\"x\"}}", Allowed::Whole),
            ("{\"name\":\"get_weather\",\"parameters\":{\"city\":\"x\"}", Allowed::Beginning),
            ("{\"name\":\"get_weather\",\"parameters\":{\"town\"", Allowed::No),
            ("{\"name\":\"get_whatever\",\"parameters\":{\"town\"", Allowed::Whole),
        ] {
            assert_eq!(allows(&shape, text), allowed, "{} {text:?}", example.format);
        }
    }
}

#[test]
fn wanted_text_is_all_there_may_be_beside_calls() {
    let schema = json!({ "type": "object", "properties": { "a": { "type": "string" } },
        "required": ["a"], "additionalProperties": false });
    let rule = Rule::Json { schema, strict: true, spacing: Spacing::Flexible };
    let content = Some(("response_format.json_schema.schema".to_owned(), rule));
    for example in &EXAMPLES {
        let wanted = Wanted { content: content.clone(), ..wanted(weather(), Mode::default()) };
        let shape = format(example.format).shape(&wanted);
        let before = if example.format == "harmony" { FINAL } else { "" };
        let text = format!("{before}{{\"a\": \"<tool_call>[TOOL_CALLS]<|python_tag|>\"}}");
        assert_eq!(allows(&shape, &text), Allowed::Whole, "{text:?}");
        assert_eq!(content_of(&shape, &text), text[before.len()..]);
        let one = example.calls(false);
        assert_eq!(allows(&shape, &one), Allowed::Whole, "{one:?}");
        assert_eq!(written(&shape, &one), [WEATHER_CALL], "{one:?}");
        assert_eq!(allows(&shape, &format!("{before}Hello")), Allowed::No);
    }
}

#[test]
fn whatever_is_allowed_makes_calls_that_their_schemas_allow() {
    let mut dice = Dice(7);
    for example in &EXAMPLES {
        for (schema_index, parameters) in schemas().into_iter().enumerate() {
            let validator = jsonschema::validator_for(&parameters).unwrap();
            let mut ended = 0;
            for mode in Mode::all() {
                let tool = tool("get_weather", parameters.clone());
                let shape = shape(example.format, vec![tool], mode);
                let start = example.start();
                for _ in 0..3 {
                    let Some(text) = walk(&shape, start, &mut dice) else { continue };
                    ended += 1;
                    let calls = calls(&shape, &text);
                    assert!(!calls.is_empty(), "{text:?}");
                    assert!(mode.parallel || calls.len() == 1, "{text:?}");
                    for (name, args) in calls {
                        assert_eq!(name, "get_weather");
                        let value = match serde_json::from_str(&args) {
                            Ok(value) => value,
                            // An exponent that no number of ours has.
                            Err(error) if error.to_string().contains("out of range") => continue,
                            Err(error) => panic!("{error}: {args:?} of {text:?}"),
                        };
                        if let Err(error) = validator.validate(&value) {
                            panic!("{error}: {args:?} of {text:?}");
                        }
                    }
                }
            }
            assert!(ended > 0, "{} never ends with schema {schema_index}", example.format);
        }
    }
}

/// A text that ends, of tokens that are allowed; strings and numbers tend to be short.
fn walk(shape: &Shape, start: &str, dice: &mut Dice) -> Option<String> {
    let text = smollm2();
    let mut constraint = compile(shape);
    for token in text.tokenizer.encode_inside(start) {
        constraint.accept(token).unwrap();
    }
    let mut tokens = text.tokenizer.encode_inside(start);
    for step in 0..160 {
        let mask = constraint.allowed().unwrap();
        let mut allowed: Vec<TokenId> =
            (0..text.tokenizer.vocab_size() as TokenId).filter(|&t| mask.allows(t)).collect();
        let ends = allowed.iter().any(|token| text.end_tokens.contains(token));
        if ends && (allowed.len() == text.end_tokens.len() || dice.below(3) == 0) {
            return Some(text.tokenizer.decode(&tokens));
        }
        // Text that stands for itself ends with a mark that chance does not write.
        let ending = text.tokenizer.encode_inside(dice.one_of(&ENDINGS));
        if (step > 20 || dice.below(4) == 0) && constraint.follows(&ending) == ending.len() {
            ending.iter().for_each(|&token| constraint.accept(token).unwrap());
            tokens.extend(ending);
            continue;
        }
        allowed.retain(|token| !text.end_tokens.contains(token));
        let closes = |token: &TokenId| {
            text.tokenizer.token_bytes(*token).iter().any(|byte| b"\"}]>)\n`".contains(byte))
        };
        if dice.below(3) == 0 || step > 40 {
            let closing: Vec<TokenId> = allowed.iter().copied().filter(closes).collect();
            allowed = if closing.is_empty() { allowed } else { closing };
        }
        let token = dice.one_of(&allowed);
        constraint.accept(token).unwrap();
        tokens.push(token);
    }
    None
}

const ENDINGS: [&str; 5] = ["\n</parameter>", "</arg_value>", "<escape>", "<|\"|>", "\""];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    No,
    /// More must follow.
    Beginning,
    Whole,
}

pub(crate) fn allows(shape: &Shape, text: &str) -> Allowed {
    let mut constraint = compile(shape);
    for token in smollm2().tokenizer.encode_inside(text) {
        if !constraint.allowed().unwrap().allows(token) {
            return Allowed::No;
        }
        constraint.accept(token).unwrap();
    }
    if constraint.may_stop() { Allowed::Whole } else { Allowed::Beginning }
}

fn events(shape: &Shape, text: &str) -> Vec<Output> {
    let mut parser = shape.parser.clone();
    let mut events = parser.push(text);
    events.extend(parser.finish());
    events
}

fn content_of(shape: &Shape, text: &str) -> String {
    let content = |event| match event {
        Output::Content { text, .. } => Some(text),
        _ => None,
    };
    events(shape, text).into_iter().filter_map(content).collect()
}

/// The complete calls.
fn calls(shape: &Shape, text: &str) -> Vec<(String, String)> {
    let (mut calls, mut open) = (Vec::new(), None);
    for event in events(shape, text) {
        match event {
            Output::ToolStart { name } => open = Some((name, String::new())),
            Output::ToolArgs(piece) => open.as_mut().unwrap().1.push_str(&piece),
            Output::ToolEnd => calls.push(open.take().unwrap()),
            Output::Content { .. } | Output::Reasoning(_) => {}
        }
    }
    assert!(open.is_none(), "a call is not complete: {text:?}");
    calls
}

fn written(shape: &Shape, text: &str) -> Vec<String> {
    calls(shape, text).into_iter().map(|(name, args)| format!("{name} {args}")).collect()
}

fn smollm2() -> &'static Text {
    static TEXT: OnceLock<Text> = OnceLock::new();
    TEXT.get_or_init(|| {
        Text::load(&Checkpoint::open(&test_model("smollm2.gguf")).unwrap()).unwrap()
    })
}

fn compile(shape: &Shape) -> Constraint {
    static GRAMMARS: OnceLock<Grammars> = OnceLock::new();
    let grammars = GRAMMARS.get_or_init(|| {
        let text = smollm2();
        Grammars::new(&text.tokenizer, text.tokenizer.vocab_size(), &text.end_tokens).unwrap()
    });
    let source = shape.grammar.as_ref().unwrap();
    grammars.compile(source).unwrap_or_else(|error| panic!("{error}\n{}", source.lark))
}

#[derive(Clone, Copy, Debug, Default)]
struct Mode {
    required: bool,
    parallel: bool,
}

impl Mode {
    fn all() -> [Self; 4] {
        [(false, false), (false, true), (true, false), (true, true)]
            .map(|(required, parallel)| Self { required, parallel })
    }
}

fn format(name: &str) -> OutputFormat {
    OutputFormat::of_template("<think></think>").with_tools(name).unwrap()
}

fn wanted(tools: Vec<Tool>, mode: Mode) -> Wanted {
    let Mode { required, parallel } = mode;
    Wanted { calls: Calls { tools, required, parallel }, ..Wanted::default() }
}

fn shape(name: &str, tools: Vec<Tool>, mode: Mode) -> Shape {
    format(name).shape(&wanted(tools, mode))
}

fn tool(name: &str, parameters: Value) -> Tool {
    let origin = "tools[0].function.parameters".to_owned();
    Tool { name: name.to_owned(), parameters, strict: true, origin }
}

fn weather() -> Vec<Tool> {
    let city = json!({ "type": "string" });
    let properties = json!({ "city": city, "days": { "type": "integer" } });
    let parameters = json!({ "type": "object", "properties": properties, "required": ["city"],
        "additionalProperties": false });
    let nothing = json!({ "type": "object", "properties": {}, "additionalProperties": false });
    vec![tool(WEATHER, parameters), tool(NOW, nothing)]
}

const WEATHER: &str = "get_weather";
/// A name that another begins with.
const NOW: &str = "get";
const WEATHER_CALL: &str = "get_weather {\"city\": \"Köln\", \"days\": 3}";

fn schemas() -> Vec<Value> {
    vec![
        json!({
            "type": "object",
            "properties": {
                "city": { "type": "string" },
                "unit": { "type": "string", "enum": ["C", "F"] },
                "rain": { "type": "boolean" },
                "days": { "type": "integer", "minimum": 1, "maximum": 9 },
            },
            "required": ["city", "rain"],
            "additionalProperties": false,
        }),
        json!({
            "type": "object",
            "properties": {
                "places": { "type": "array", "items": { "$ref": "#/$defs/Place" }, "maxItems": 2 },
                "code": { "type": "string", "pattern": "^[A-Z]{3}$" },
                "note": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
            },
            "required": ["places"],
            "additionalProperties": false,
            "$defs": { "Place": {
                "type": "object",
                "properties": { "lat": { "type": "number" }, "far": { "type": ["boolean", "null"] } },
                "required": ["lat", "far"],
                "additionalProperties": false,
            } },
        }),
        json!({
            "type": "object",
            "anyOf": [
                { "properties": { "a": { "const": 1 } }, "required": ["a"], "additionalProperties": false },
                { "properties": { "b": { "type": "null" } }, "required": ["b"], "additionalProperties": false },
            ],
        }),
        json!({ "type": "object", "properties": {}, "additionalProperties": false }),
    ]
}

/// How a model writes `get_weather(city="Köln", days=3)`, and `get()` behind it.
struct Example {
    format: &'static str,
    first: &'static str,
    second: &'static str,
    close: &'static str,
    /// Nothing else begins as a call does.
    has_mark: bool,
}

impl Example {
    fn calls(&self, both: bool) -> String {
        [self.first, if both { self.second } else { "" }, self.close].concat()
    }

    /// What makes sure that a call follows.
    fn start(&self) -> &'static str {
        let name = self.first.find(WEATHER).unwrap();
        let end = match (self.has_mark, self.first.starts_with('{')) {
            (true, _) => name,
            (false, true) => self.first.find("\": {").unwrap() + 2,
            (false, false) => name + WEATHER.len() + 1,
        };
        &self.first[..end]
    }
}

const fn marked(
    format: &'static str,
    first: &'static str,
    second: &'static str,
    close: &'static str,
) -> Example {
    Example { format, first, second, close, has_mark: true }
}

const fn unmarked(
    format: &'static str,
    first: &'static str,
    second: &'static str,
    close: &'static str,
) -> Example {
    Example { format, first, second, close, has_mark: false }
}

const FINAL: &str = "<|channel|>final<|message|>";

const EXAMPLES: [Example; 17] = [
    marked(
        "hermes",
        "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n</tool_call>",
        "\n<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>",
        "",
    ),
    marked(
        "qwen3-coder",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
        "\n<tool_call>\n<function=get>\n</function>\n</tool_call>",
        "",
    ),
    unmarked(
        "llama3-json",
        "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\", \"days\": 3}}",
        "; {\"name\": \"get\", \"parameters\": {}}",
        "",
    ),
    unmarked("llama3-pythonic", "[get_weather(city=\"Köln\", days=3)", ", get()", "]"),
    marked(
        "lfm2",
        "<|tool_call_start|>[get_weather(city=\"Köln\", days=3)",
        ", get()",
        "]<|tool_call_end|>",
    ),
    marked(
        "mistral",
        "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}, \"id\": \"abcdefghi\"}",
        ", {\"name\": \"get\", \"arguments\": {}}",
        "]",
    ),
    marked(
        "mistral-args",
        "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Köln\", \"days\": 3}",
        "[TOOL_CALLS]get[CALL_ID]abcdefghi[ARGS]{}",
        "",
    ),
    marked(
        "gemma",
        "<start_function_call>call:get_weather{city:<escape>Köln<escape>,days:3}<end_function_call>",
        "<start_function_call>call:get{}<end_function_call>",
        "",
    ),
    marked(
        "gemma4",
        "<|tool_call>call:get_weather{city:<|\"|>Köln<|\"|>,days:3}<tool_call|>",
        "<|tool_call>call:get{}<tool_call|>",
        "",
    ),
    marked("gemma-fenced", "```tool_code\nget_weather(city=\"Köln\", days=3)", "\nget()", "\n```"),
    marked(
        "deepseek-v3",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Köln\", \"days\": 3}\n```<｜tool▁call▁end｜>",
        "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n{}\n```<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    marked(
        "deepseek-v3.1",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Köln\", \"days\": 3}<｜tool▁call▁end｜>",
        "<｜tool▁call▁begin｜>get<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    marked(
        "glm",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
        "\n<tool_call>get\n</tool_call>",
        "",
    ),
    marked(
        "phi4",
        "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}",
        ", {\"name\": \"get\", \"arguments\": {}}",
        "]<|/tool_call|>",
    ),
    marked(
        "nemotron",
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}",
        ", {\"name\": \"get\", \"arguments\": {}}",
        "]</TOOLCALL>",
    ),
    unmarked(
        "plain",
        "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}",
        "\n{\"name\": \"get\", \"arguments\": {}}",
        "",
    ),
    marked(
        "harmony",
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Köln\", \"days\": 3}",
        "<|start|>assistant<|channel|>commentary to=functions.get <|constrain|>json<|message|>{}",
        "",
    ),
];

/// Name, format, and what opens the model's thoughts if its template shows that. What is `plain` here has a way to write
/// calls that is not known, or none.
const TEMPLATES: [(&str, &str, &str); 70] = [
    ("Apertus-8B-Instruct", "plain", ""),
    ("Apriel-1.6-15b-Thinker-fixed", "apriel", ""),
    ("Bielik-11B-v3.0-Instruct", "hermes", "<think>"),
    ("ByteDance-Seed-OSS", "plain", "<seed:think>"),
    ("Cohere2MoE", "plain", "<|START_THINKING|>"),
    ("CohereForAI-c4ai-command-r-plus-tool_use", "plain", ""),
    ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "plain", "<|START_THINKING|>"),
    ("GLM-4.6", "glm", "<think>"),
    ("GLM-4.7-Flash", "glm", "<think>"),
    ("GigaChat3-10B-A1.8B", "plain", ""),
    ("GigaChat3.1-10B-A1.8B", "plain", ""),
    ("HuggingFaceTB-SmolLM3-3B", "plain", "<think>"),
    ("Kimi-K2-Instruct", "plain", ""),
    ("Kimi-K2-Thinking", "plain", "<think>"),
    ("Kimi-K3", "plain", ""),
    ("LFM2-8B-A1B", "plain", ""),
    ("LFM2.5-8B-A1B", "lfm2", "<think>"),
    ("LFM2.5-Instruct", "plain", ""),
    ("MiMo-VL", "hermes", ""),
    ("MiniMax-M1", "plain", ""),
    ("MiniMax-M2", "plain", "<think>"),
    ("MiniMax-M3", "plain", ""),
    ("Mistral-Small-3.2-24B-Instruct-2506", "mistral-args", ""),
    ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "qwen3-coder", "<think>"),
    ("NVIDIA-Nemotron-Nano-v2", "nemotron", "<think>"),
    ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "hermes", ""),
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "hermes", ""),
    ("Qwen-QwQ-32B", "hermes", "<think>"),
    ("Qwen-Qwen2.5-7B-Instruct", "hermes", ""),
    ("Qwen-Qwen3-0.6B", "hermes", "<think>"),
    ("Qwen3-Coder", "qwen3-coder", ""),
    ("Qwen3.5-4B", "qwen3-coder", "<think>"),
    ("Reka-Edge", "hermes", "<think>"),
    ("Spark2.5", "glm", "<think>"),
    ("StepFun3.5-Flash", "qwen3-coder", "<think>"),
    ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "deepseek-v3", "<think>"),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-v3", "<think>"),
    ("deepseek-ai-DeepSeek-V3.1", "deepseek-v3.1", "<think>"),
    ("deepseek-ai-DeepSeek-V3.2", "plain", "<think>"),
    ("deepseek-ai-DeepSeek-V4-Flash-0731", "plain", "<think>"),
    ("deepseek-ai-DeepSeek-V4", "plain", "<think>"),
    ("fireworks-ai-llama-3-firefunction-v2", "plain", ""),
    ("google-gemma-2-2b-it", "plain", ""),
    ("google-gemma-4-31B-it-interleaved", "gemma4", "<|channel>thought"),
    ("google-gemma-4-31B-it", "gemma4", "<|channel>thought"),
    ("ibm-granite-granite-3.3-2B-Instruct", "granite3", "<think>"),
    ("ibm-granite-granite-4.0", "hermes", ""),
    ("ibm-granite-granite-4.1", "hermes", ""),
    ("inclusionai-ling-3.0-flash", "glm", "<think>"),
    ("llama-cpp-deepseek-r1", "deepseek-v3", "<think>"),
    ("llama-cpp-rwkv-world", "plain", "<think>"),
    ("meetkai-functionary-medium-v3.1", "plain", ""),
    ("meetkai-functionary-medium-v3.2", "plain", ""),
    ("meta-llama-Llama-3.1-8B-Instruct", "llama3-json", ""),
    ("meta-llama-Llama-3.2-3B-Instruct", "llama3-json", ""),
    ("meta-llama-Llama-3.3-70B-Instruct", "llama3-json", ""),
    ("microsoft-Phi-3.5-mini-instruct", "plain", ""),
    ("mistralai-Ministral-3-14B-Reasoning-2512", "mistral-args", "[THINK]"),
    ("mistralai-Mistral-Nemo-Instruct-2407", "mistral", ""),
    ("moonshotai-Kimi-K2", "plain", ""),
    ("muse-glimmer", "plain", ""),
    ("openai-gpt-oss-120b", "harmony", "<|channel|>analysis<|message|>"),
    ("openbmb-MiniCPM5-1B", "plain", "<think>"),
    ("poolside-Laguna-S-2.1", "glm", "<think>"),
    ("poolside-Laguna-XS-2.1", "glm", "<think>"),
    ("poolside-Laguna-XS.2", "glm", "<think>"),
    ("tencent-Hy3", "plain", ""),
    ("unsloth-Apriel-1.5", "apriel", ""),
    ("unsloth-mistral-Devstral-Small-2507", "mistral-args", ""),
    ("upstage-Solar-Open-100B", "plain", ""),
];
