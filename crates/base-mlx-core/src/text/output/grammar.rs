use serde_json::Value;

/// A grammar before it is compiled: Lark (in the words of llguidance), whose rules name further grammars as `@name`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GrammarSource {
    pub lark: String,
    pub parts: Vec<Part>,
}

/// A grammar with a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    pub name: String,
    /// What errors call it: the path of the request's field that it came from.
    pub origin: String,
    pub rule: Rule,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// JSON that satisfies the schema.
    Json {
        schema: Value,
        /// A keyword that cannot be guaranteed is an error; else it is left out, with a warning.
        strict: bool,
        spacing: Spacing,
    },
    /// A whole grammar with a rule `start`.
    Lark(String),
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}

/// White space between the tokens of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// A space after each comma and colon, as Python writes it.
    Compact,
    /// As the model likes, in runs of a bounded length.
    Flexible,
}
