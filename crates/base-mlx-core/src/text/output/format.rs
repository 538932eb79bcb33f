use super::calls::{AfterStart, CallReader};
use super::deepseek::{DEEPSEEK_V3, DEEPSEEK_V3_1};
use super::gemma::{GEMMA, GEMMA_FENCED, GEMMA4};
use super::glm::{GLM, GLM_CLOSE};
use super::harmony::{self, HarmonyReader};
use super::hermes::HERMES;
use super::literal::{Literals, Unmarked};
use super::llama3::{LFM2, LLAMA3_JSON, LLAMA3_PYTHONIC};
use super::mistral::{MISTRAL, MISTRAL_ARGS};
use super::phi4::{GRANITE3, PHI4};
use super::plain::PLAIN;
use super::qwen3_coder::QWEN3_CODER;
use super::syntax::{Syntax, Thoughts};
use super::{Calls, GrammarSource, OutputParser, Rule, lark};

/// How one model writes calls and thoughts.
#[derive(Clone, Debug)]
pub struct OutputFormat {
    tools: ToolFormat,
    thoughts: Option<&'static Thoughts>,
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
        Self { tools: ToolFormat::Syntax(&PLAIN), thoughts: None }
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
        Self { tools: tools.unwrap_or(ToolFormat::Syntax(&PLAIN)), thoughts }
    }

    /// With calls written as the format of this name has them.
    pub fn with_tools(self, name: &str) -> Result<Self, UnknownFormat> {
        if self.name() == name {
            return Ok(self);
        }
        let tools = TOOLS.iter().map(|(tools, _)| *tools).find(|tools| tools.name() == name);
        let Some(tools) = tools else {
            let mut known: Vec<&str> = TOOLS.iter().map(|(tools, _)| tools.name()).collect();
            known.dedup();
            return Err(UnknownFormat { name: name.to_owned(), known: known.join(", ") });
        };
        let thoughts = match (tools, self.tools) {
            (ToolFormat::Harmony, _) => Some(&harmony::THOUGHTS),
            (_, ToolFormat::Harmony) => None,
            _ => self.thoughts,
        };
        Ok(Self { tools, thoughts })
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
        let opens = |marks: &Thoughts| prompt.trim_end().ends_with(marks.open.trim_end());
        self.thoughts.is_some_and(opens)
    }

    pub fn shape(&self, wanted: &Wanted) -> Shape {
        let thoughts = self.thoughts.filter(|_| wanted.opened || wanted.may_think);
        let closes_thoughts = thoughts.map(|thoughts| thoughts.forced.to_owned());
        match self.tools {
            ToolFormat::Syntax(syntax) => Shape {
                grammar: lark::grammar(syntax, thoughts, wanted),
                parser: parser(syntax, thoughts, wanted),
                closes_thoughts,
            },
            ToolFormat::Harmony => Shape {
                grammar: harmony::grammar(wanted),
                parser: OutputParser::harmony(HarmonyReader::new(wanted)),
                closes_thoughts,
            },
        }
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

fn parser(
    syntax: &'static Syntax,
    thoughts: Option<&'static Thoughts>,
    wanted: &Wanted,
) -> OutputParser {
    let calls = &wanted.calls;
    if calls.tools.is_empty() && thoughts.is_none() {
        return OutputParser::plain();
    }
    let (unmarked, text) = match &wanted.content {
        Some(_) if !calls.required => (Unmarked::Never, AfterStart::Free),
        _ => (Unmarked::Json, AfterStart::Text),
    };
    let literals = (!calls.tools.is_empty()).then(|| Literals::new(syntax, calls, unmarked));
    OutputParser::calls(CallReader::new(literals, thoughts, wanted.opened, text))
}

/// What a template must have, each of them; what of some it must have one; and what it must not have.
struct Evidence(&'static [&'static str], &'static [&'static str], &'static [&'static str]);

impl Evidence {
    fn is_in(&self, source: &str) -> bool {
        let Self(all, any, none) = self;
        let has = |text: &&str| source.contains(*text);
        all.iter().all(has) && (any.is_empty() || any.iter().any(has)) && !none.iter().any(has)
    }
}

const fn syntax(syntax: &'static Syntax) -> ToolFormat {
    ToolFormat::Syntax(syntax)
}

/// The first one that is found counts; the last one never is.
const TOOLS: [(ToolFormat, Evidence); 18] = [
    (ToolFormat::Harmony, Evidence(&["<|channel|>", "<|message|>"], &[], &[])),
    (syntax(&DEEPSEEK_V3), Evidence(&["<｜tool▁calls▁begin｜>", "```json"], &[], &[])),
    (syntax(&DEEPSEEK_V3_1), Evidence(&["<｜tool▁calls▁begin｜>"], &[], &[])),
    (syntax(&MISTRAL_ARGS), Evidence(&["[TOOL_CALLS]", "[ARGS]"], &[], &[])),
    (syntax(&MISTRAL), Evidence(&["[TOOL_CALLS]"], &[], &[])),
    (syntax(&GEMMA4), Evidence(&["<|tool_call>", "<tool_call|>"], &[], &[])),
    (syntax(&GEMMA), Evidence(&["<start_function_call>"], &[], &[])),
    (syntax(&GEMMA_FENCED), Evidence(&["```tool_code"], &[], &[])),
    (syntax(&PHI4), Evidence(&["<|/tool_call|>"], &[], &[])),
    (syntax(&GRANITE3), Evidence(&["<|tool_call|>"], &[], &[])),
    (syntax(&LFM2), Evidence(&["<|tool_call_start|>"], &[], &[])),
    (
        syntax(&GLM),
        Evidence(
            &["<tool_call>", "<arg_key>"],
            &[
                "</arg_key>\n<arg_value>",
                "</arg_key>\\n",
                "</arg_key>{{ '\\n<arg_value>'",
                "\\n<arg_value>",
            ],
            &[],
        ),
    ),
    (syntax(&GLM_CLOSE), Evidence(&["<tool_call>", "<arg_key>"], &[], &[])),
    (syntax(&QWEN3_CODER), Evidence(&["<tool_call>", "<function=", "<parameter="], &[], &[])),
    (
        syntax(&HERMES),
        Evidence(
            &["<tool_call>"],
            &["\"name\": ", "\\\"name\\\": ", "'name': "],
            &["<tool_calls>"],
        ),
    ),
    (
        syntax(&LLAMA3_JSON),
        Evidence(
            &["{\"name\": \"' + tool_call.name", "\"parameters\": "],
            &["<|start_header_id|>"],
            &[],
        ),
    ),
    (
        syntax(&LLAMA3_PYTHONIC),
        Evidence(&[], &["<|python_start|>", "[func_name1(params_name1"], &[]),
    ),
    (syntax(&PLAIN), Evidence(&[], &[], &[""])),
];

/// The first one that is found counts.
const THOUGHTS: [Thoughts; 5] = [
    Thoughts { open: "<think>", close: "</think>", forced: "\n</think>\n\n" },
    Thoughts { open: "[THINK]", close: "[/THINK]", forced: "[/THINK]" },
    Thoughts { open: "<|START_THINKING|>", close: "<|END_THINKING|>", forced: "<|END_THINKING|>" },
    Thoughts { open: "<seed:think>", close: "</seed:think>", forced: "\n</seed:think>" },
    Thoughts { open: "<|channel>thought\n", close: "<channel|>", forced: "\n<channel|>" },
];
