//! What models write beside plain text: how they call tools, and how they think before they answer.
//!
//! A format is described once; its description makes both the grammar that an answer cannot leave and the parser that reads
//! it. Nothing here knows tokens: text comes in pieces, cut anywhere.

mod calls;
#[cfg(test)]
mod cuts;
mod deepseek;
mod example;
mod fields;
mod format;
mod gemma;
mod glm;
mod grammar;
mod harmony;
mod hermes;
mod lark;
mod lists;
mod literal;
mod llama3;
mod mark;
mod mistral;
mod parser;
mod plain;
mod qwen3_coder;
mod sink;
mod syntax;
mod value;

pub use format::{OutputFormat, Shape, UnknownFormat, Wanted};
pub use grammar::{GrammarSource, Part, Rule, Spacing};
pub(crate) use lark::literal as lark_literal;
pub use parser::{Output, OutputParser};

use serde_json::Value;

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    pub name: String,
    /// The schema of its arguments, an object.
    pub parameters: Value,
    /// A keyword of the schema that cannot be guaranteed is an error.
    pub strict: bool,
    /// What errors call `parameters`: `tools[0].function.parameters`.
    pub origin: String,
}

/// Which calls an answer may or must have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calls {
    /// None of them: no calls.
    pub tools: Vec<Tool>,
    /// At least one.
    pub required: bool,
    /// Several in one answer.
    pub parallel: bool,
}
