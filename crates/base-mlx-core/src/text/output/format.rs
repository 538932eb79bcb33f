use super::calls::{AfterStart, CallReader};
use super::deepseek::{DEEPSEEK_V3, DEEPSEEK_V3_1};
use super::gemma::{GEMMA, GEMMA_FENCED, GEMMA4};
use super::glm::{GLM, GLM_CLOSE};
use super::harmony::{self, HarmonyReader};
use super::hermes::HERMES;
use super::lists::{APRIEL, GRANITE3, NEMOTRON, PHI4};
use super::literal::{Literals, Unmarked};
use super::llama3::{LFM2, LLAMA3_JSON, LLAMA3_PYTHONIC};
use super::mistral::{MISTRAL, MISTRAL_ARGS, MISTRAL_SPACE};
use super::plain::PLAIN;
use super::qwen3_coder::QWEN3_CODER;
use super::syntax::{BARE_KEYS, Syntax, ThoughtMarks};
use super::{Calls, GrammarSource, OutputParser, Rule, Tool, fields, lark};

/// How one model writes calls and thoughts.
#[derive(Clone, Debug)]
pub struct OutputFormat {
    pub(super) tools: ToolFormat,
    thoughts: Option<&'static ThoughtMarks>,
    /// Marks that are special tokens of the vocabulary: where they mean nothing they are not text either.
    special: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum ToolFormat {
    Syntax(&'static Syntax),
    Harmony,
}

/// What an answer is to be.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub calls: Calls,
    /// What its visible text is held to, and what errors call that; `None` is any text.
    pub content: Option<(String, Rule)>,
    /// The prompt ends within the model's thoughts.
    pub opened: bool,
    /// The model may think before it answers.
    pub may_think: bool,
}

/// How such an answer is made, and read.
#[derive(Clone, Debug)]
pub struct Shape {
    /// `None` if any text will do.
    pub grammar: Option<GrammarSource>,
    pub parser: OutputParser,
    /// What ends the model's thoughts, if it thinks.
    pub closes_thoughts: Option<String>,
}

/// There is no format of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no tool format {name:?}; there are {known}")]
pub struct UnknownFormat {
    pub name: String,
    pub known: String,
}

impl Default for OutputFormat {
    fn default() -> Self {
        Self { tools: ToolFormat::Syntax(&PLAIN), thoughts: None, special: Vec::new() }
    }
}

impl OutputFormat {
    /// What the chat template of a model shows of it.
    pub fn of_template(source: &str) -> Self {
        let shows = |evidence: &Evidence| evidence.is_in(source);
        let tools = TOOLS.iter().find(|(_, evidence)| shows(evidence)).map(|(tools, _)| *tools);
        let thoughts = match tools {
            Some(ToolFormat::Harmony) => Some(&harmony::THOUGHTS),
            _ => THOUGHTS.iter().find(|marks| {
                source.contains(marks.close) && source.contains(marks.open.trim_end())
            }),
        };
        let tools = tools.unwrap_or(ToolFormat::Syntax(&PLAIN));
        Self { tools, thoughts, special: Vec::new() }
    }

    /// With calls written as the format of this name has them.
    pub fn with_tools(self, name: &str) -> Result<Self, UnknownFormat> {
        if self.name() == name {
            return Ok(self);
        }
        let tools = TOOLS.iter().map(|(tools, _)| *tools).find(|tools| tools.name() == name);
        let Some(tools) = tools else {
            let known = Self::names().join(", ");
            return Err(UnknownFormat { name: name.to_owned(), known });
        };
        let thoughts = match (tools, self.tools) {
            (ToolFormat::Harmony, _) => Some(&harmony::THOUGHTS),
            (_, ToolFormat::Harmony) => None,
            _ => self.thoughts,
        };
        Ok(Self { tools, thoughts, special: Vec::new() })
    }

    /// What [`Self::with_tools`] knows.
    pub fn names() -> Vec<&'static str> {
        let mut names: Vec<&str> = Vec::new();
        for (tools, _) in &TOOLS {
            if !names.contains(&tools.name()) {
                names.push(tools.name());
            }
        }
        names
    }

    /// Those of [`Self::markers`] that the vocabulary has as special tokens.
    pub fn with_special(mut self, is_special: impl Fn(&str) -> bool) -> Self {
        self.special = self.markers();
        self.special.retain(|marker| is_special(marker));
        self
    }

    /// What [`Self::with_tools`] calls it.
    pub fn name(&self) -> &'static str {
        self.tools.name()
    }

    /// Whether the model thinks between marks that are known.
    pub fn thinks(&self) -> bool {
        self.thoughts.is_some()
    }

    /// Texts that may be special tokens of the vocabulary and must show for the parser.
    pub fn markers(&self) -> Vec<&'static str> {
        let marks =
            self.thoughts.map_or([""; 2], |thoughts| [thoughts.open.trim_end(), thoughts.close]);
        let mut markers = match self.tools {
            ToolFormat::Syntax(syntax) => {
                let trigger = syntax.trigger.into_iter();
                trigger.chain(syntax.markers.iter().copied()).chain(marks).collect()
            }
            ToolFormat::Harmony => harmony::MARKERS.to_vec(),
        };
        markers.retain(|marker| !marker.is_empty());
        markers
    }

    /// Whether a prompt that ends so leaves the model within its thoughts.
    pub fn opens_thoughts(&self, prompt: &str) -> bool {
        let opens = |marks: &ThoughtMarks| prompt.trim_end().ends_with(marks.open.trim_end());
        self.thoughts.is_some_and(opens)
    }

    /// Whether such a text, which an answer is to go on with, leaves the model within its thoughts.
    pub fn is_within_thoughts(&self, text: &str) -> bool {
        self.thoughts.is_some_and(|marks| {
            let open = text.rfind(marks.open.trim_end());
            open.is_some_and(|open| !text[open..].contains(marks.close))
        })
    }

    /// For texts that are no answers: nothing in them is a call or a thought.
    pub fn plain_parser(&self) -> OutputParser {
        match self.special.is_empty() {
            true => OutputParser::plain(),
            false => OutputParser::calls(CallReader::of_text(&self.special)),
        }
    }

    /// How calls are written beside what else the answer may be: text that is held to something could be read as a call
    /// without marks, whose arguments nothing had held to their schema.
    pub fn beside(&self, content: Option<&Rule>, calls: &Calls) -> Self {
        let needs_marks = content
            .filter(|_| !calls.tools.is_empty() && !calls.required)
            .is_some_and(|content| may_be_a_call(content) || cannot_be_nested(calls));
        match self.tools {
            ToolFormat::Syntax(syntax) if syntax.is_bare() && needs_marks => {
                Self { tools: ToolFormat::Syntax(&HERMES), ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    pub fn shape(&self, wanted: &Wanted) -> Shape {
        let content = wanted.content.as_ref().map(|(_, content)| content);
        let tools = self.beside(content, &wanted.calls).tools;
        let thoughts = self.thoughts.filter(|_| wanted.opened || wanted.may_think);
        let closes_thoughts = thoughts.map(|thoughts| thoughts.forced.to_owned());
        match tools {
            ToolFormat::Syntax(syntax) => Shape {
                grammar: lark::grammar(syntax, thoughts, wanted),
                parser: self.parser(syntax, thoughts, wanted),
                closes_thoughts,
            },
            ToolFormat::Harmony => Shape {
                grammar: harmony::grammar(wanted),
                parser: OutputParser::harmony(HarmonyReader::new(wanted)),
                closes_thoughts,
            },
        }
    }

    fn parser(
        &self,
        syntax: &'static Syntax,
        thoughts: Option<&'static ThoughtMarks>,
        wanted: &Wanted,
    ) -> OutputParser {
        let calls = &wanted.calls;
        if calls.tools.is_empty() && thoughts.is_none() {
            return match wanted.content {
                Some(_) => OutputParser::plain(),
                None => self.plain_parser(),
            };
        }
        let (unmarked, text) = match &wanted.content {
            Some(_) if !calls.required => (Unmarked::Never, AfterStart::Free),
            _ => (Unmarked::Json, AfterStart::Text),
        };
        let literals = (!calls.tools.is_empty()).then(|| Literals::new(syntax, calls, unmarked));
        let reader = CallReader::new(literals, thoughts, wanted.opened, text);
        OutputParser::calls(match wanted.content {
            Some(_) => reader,
            None => reader.hiding(&self.special),
        })
    }
}

impl ToolFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Syntax(syntax) => syntax.name,
            Self::Harmony => "harmony",
        }
    }
}

/// Whether text that is not a call could look like one without marks.
fn may_be_a_call(content: &Rule) -> bool {
    let Rule::Json { schema, .. } = content else { return true };
    let says_object = schema["type"] == "object" && schema["additionalProperties"] == false;
    let has = |key: &str| schema["properties"].get(key).is_some();
    let may_hold = has("name") && BARE_KEYS.iter().any(|key| has(key));
    !says_object || may_hold || schema.get("patternProperties").is_some()
}

/// Whether the schema of a tool means another within the one of a call: what is beside its references counts for nothing.
fn cannot_be_nested(calls: &Calls) -> bool {
    let is_old = |tool: &Tool| {
        let draft = tool.parameters["$schema"].as_str().unwrap_or_default();
        draft.contains("draft-0") && fields::has_reference(&tool.parameters)
    };
    calls.tools.iter().any(is_old)
}

/// Texts that a template must have.
enum Evidence {
    All(&'static [&'static str]),
    /// All of these, and one of those.
    AllAndOne(&'static [&'static str], &'static [&'static str]),
    /// Models are not asked this way by their templates.
    None,
}

impl Evidence {
    fn is_in(&self, source: &str) -> bool {
        let has = |text: &&str| source.contains(*text);
        match self {
            Self::All(all) => all.iter().all(has),
            Self::AllAndOne(all, any) => all.iter().all(has) && any.iter().any(has),
            Self::None => false,
        }
    }
}

const fn syntax(syntax: &'static Syntax) -> ToolFormat {
    ToolFormat::Syntax(syntax)
}

/// The first one that is found counts.
const TOOLS: [(ToolFormat, Evidence); 23] = [
    (ToolFormat::Harmony, Evidence::All(&["<|channel|>", "<|message|>"])),
    (syntax(&DEEPSEEK_V3), Evidence::All(&["<｜tool▁calls▁begin｜>", "```json"])),
    (syntax(&DEEPSEEK_V3_1), Evidence::All(&["<｜tool▁calls▁begin｜>"])),
    (syntax(&MISTRAL_ARGS), Evidence::All(&["[TOOL_CALLS]", "[ARGS]"])),
    (syntax(&MISTRAL), Evidence::All(&["[TOOL_CALLS]["])),
    (syntax(&MISTRAL_SPACE), Evidence::All(&["[TOOL_CALLS] ["])),
    (syntax(&MISTRAL), Evidence::All(&["[TOOL_CALLS]"])),
    (syntax(&GEMMA4), Evidence::All(&["<|tool_call>", "<tool_call|>"])),
    (syntax(&GEMMA), Evidence::All(&["<start_function_call>"])),
    (syntax(&GEMMA_FENCED), Evidence::All(&["```tool_code"])),
    (syntax(&PHI4), Evidence::All(&["<|/tool_call|>"])),
    // Told of tools in the system message, by templates that show no calls.
    (syntax(&PHI4), Evidence::All(&["<|tool|>", "<|/tool|>"])),
    (syntax(&GRANITE3), Evidence::All(&["<|tool_call|>"])),
    (syntax(&NEMOTRON), Evidence::All(&["<TOOLCALL>["])),
    (syntax(&APRIEL), Evidence::All(&["<tool_calls>["])),
    (syntax(&LFM2), Evidence::All(&["<|tool_call_start|>"])),
    (
        // A line end between key and value, as it is or as Jinja writes it.
        syntax(&GLM),
        Evidence::AllAndOne(
            &["<tool_call>", "<arg_key>"],
            &["</arg_key>\n<arg_value>", "</arg_key>\\n", "\\n<arg_value>"],
        ),
    ),
    (syntax(&GLM_CLOSE), Evidence::All(&["<tool_call>", "<arg_key>"])),
    (syntax(&QWEN3_CODER), Evidence::All(&["<tool_call>", "<function=", "<parameter="])),
    (
        // As it is, or as it stands in a string of Jinja's, or of Python's.
        syntax(&HERMES),
        Evidence::AllAndOne(&["<tool_call>"], &["\"name\": ", "\\\"name\\\": ", "'name': "]),
    ),
    (
        syntax(&LLAMA3_JSON),
        Evidence::All(&["<|start_header_id|>", "{\"name\": function name, \"parameters\": "]),
    ),
    (syntax(&LLAMA3_PYTHONIC), Evidence::All(&["[func_name1(params_name1"])),
    (syntax(&PLAIN), Evidence::None),
];

/// The first one that is found counts.
const THOUGHTS: [ThoughtMarks; 5] = [
    ThoughtMarks { open: "<think>", close: "</think>", forced: "\n</think>\n\n" },
    ThoughtMarks { open: "[THINK]", close: "[/THINK]", forced: "[/THINK]" },
    ThoughtMarks {
        open: "<|START_THINKING|>",
        close: "<|END_THINKING|>",
        forced: "<|END_THINKING|>",
    },
    ThoughtMarks { open: "<seed:think>", close: "</seed:think>", forced: "\n</seed:think>" },
    ThoughtMarks { open: "<|channel>thought\n", close: "<channel|>", forced: "\n<channel|>" },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_its_name() {
        let known = OutputFormat::default().with_tools("other").unwrap_err().known;
        for name in known.split(", ") {
            assert_eq!(OutputFormat::default().with_tools(name).unwrap().name(), name);
        }
        assert_eq!(
            OutputFormat::default().with_tools("other").unwrap_err().to_string(),
            "there is no tool format \"other\"; there are harmony, deepseek-v3, deepseek-v3.1, \
             mistral-args, mistral, gemma4, gemma, gemma-fenced, phi4, granite3, nemotron, apriel, lfm2, \
             glm, qwen3-coder, hermes, llama3-json, llama3-pythonic, plain"
        );
    }

    #[test]
    fn a_templates_own_way_is_not_given_up_for_its_name() {
        let format = OutputFormat::of_template("<tool_call><arg_key></arg_key><arg_value>");
        let ToolFormat::Syntax(syntax) = format.with_tools("glm").unwrap().tools else { panic!() };
        assert_eq!(syntax.named, "");
    }

    #[test]
    fn thoughts_are_open_if_the_prompt_ends_with_their_mark() {
        let format = OutputFormat::of_template("<think></think>");
        assert!(format.opens_thoughts("<|im_start|>assistant\n<think>\n"));
        assert!(!format.opens_thoughts("<think>\n\n</think>\n\n"));
        assert!(!OutputFormat::default().opens_thoughts("<think>"));
        let harmony = OutputFormat::default().with_tools("harmony").unwrap();
        assert!(!harmony.opens_thoughts("<|start|>assistant"));
        assert!(harmony.opens_thoughts("<|start|>assistant<|channel|>analysis<|message|>"));
        assert!(format.is_within_thoughts("<think>So far"));
        assert!(!format.is_within_thoughts("<think>So</think> far"));
        assert!(!format.is_within_thoughts("So far"));
    }

    #[test]
    fn nothing_wanted_needs_no_grammar() {
        let shape = OutputFormat::of_template("<think></think>").shape(&Wanted::default());
        assert_eq!((shape.grammar, shape.closes_thoughts), (None, None));
        let wanted = Wanted { opened: true, ..Wanted::default() };
        let shape = OutputFormat::of_template("<think></think>").shape(&wanted);
        assert_eq!(shape.grammar, None);
        assert_eq!(shape.closes_thoughts.as_deref(), Some("\n</think>\n\n"));
        assert!(shape.parser.is_reasoning());
    }

    #[test]
    fn text_that_could_be_read_as_a_call_has_calls_between_marks_beside_it() {
        let rule =
            |schema| Rule::Json { schema, strict: true, spacing: super::super::Spacing::Compact };
        let tool = super::super::Tool {
            name: "get".to_owned(),
            parameters: serde_json::json!({}),
            strict: true,
            origin: String::new(),
        };
        let calls = Calls { tools: vec![tool], required: false, parallel: true };
        let lark = |schema| {
            let content = Some((String::new(), rule(schema)));
            let wanted = Wanted { calls: calls.clone(), content, ..Wanted::default() };
            OutputFormat::default().shape(&wanted).grammar.unwrap().lark
        };
        assert!(lark(serde_json::json!({ "type": "object" })).contains("<tool_call>"));
        let closed = serde_json::json!({
            "type": "object", "properties": { "name": {} }, "additionalProperties": false,
        });
        assert!(!lark(closed).contains("<tool_call>"));
    }

    #[test]
    fn marks_may_be_special_tokens() {
        let format = OutputFormat::of_template("<think></think>[TOOL_CALLS][ARGS]");
        assert_eq!(
            format.markers(),
            ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<think>", "</think>"]
        );
    }

    #[test]
    fn point_38_special_marks_are_not_text_where_nothing_can_be_called() {
        let format = OutputFormat::of_template("<think></think>[TOOL_CALLS][ARGS]")
            .with_special(|marker| marker != "[ARGS]");
        let texts = |wanted: &Wanted| {
            let shape = format.shape(wanted);
            assert_eq!(shape.grammar, None);
            super::super::cuts::read_by(&shape.parser, "a\n[TOOL_CALLS]f[ARGS]{}\n[TOOL")
        };
        let text = ["text a\nf[ARGS]{}\n[TOOL"];
        assert_eq!(texts(&Wanted::default()), text);
        assert_eq!(texts(&Wanted { may_think: true, ..Wanted::default() }), text);
        let plain =
            super::super::cuts::read_by(&format.plain_parser(), "[TOOL_CALLS]<think>b[ARGS]");
        assert_eq!(plain, ["text b[ARGS]"]);
    }

    #[test]
    fn templates_that_tell_of_tools_between_marks_of_phi_have_its_calls() {
        let source = "{{ '<|tool|>' + message['tools'] + '<|/tool|>' }}";
        assert_eq!(OutputFormat::of_template(source).name(), "phi4");
    }
}
