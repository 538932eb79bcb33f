use super::{Calls, GrammarSource, OutputParser, Rule};

/// How one model writes calls and thoughts.
#[derive(Clone, Debug, Default)]
pub struct OutputFormat {}

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

impl OutputFormat {
    /// What the chat template of a model shows of it.
    pub fn of_template(_source: &str) -> Self {
        Self {}
    }

    /// With calls written as the format of this name has them.
    pub fn with_tools(self, name: &str) -> Result<Self, UnknownFormat> {
        Err(UnknownFormat { name: name.to_owned(), known: String::new() })
    }

    /// Texts that may be special tokens of the vocabulary and must show for the parser.
    pub fn markers(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// Whether a prompt that ends so leaves the model within its thoughts.
    pub fn opens_thoughts(&self, _prompt: &str) -> bool {
        false
    }

    pub fn shape(&self, _wanted: &Wanted) -> Shape {
        Shape { grammar: None, parser: OutputParser::plain(), closes_thoughts: None }
    }
}
