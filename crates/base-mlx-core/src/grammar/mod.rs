//! Grammars that answers cannot leave: llguidance behind our own words. [`Grammars`] compiles for one vocabulary, a
//! [`Constraint`] is one answer's place in a grammar.
//!
//! May import `text` and `sample`.

mod constraint;
mod error;
mod vocabulary;

pub use constraint::{Broken, Constraint};
pub use error::GrammarError;

use std::fmt;

use llguidance::ParserFactory;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use serde_json::{Value, json};

use crate::TokenId;
use crate::text::Tokenizer;
use crate::text::output::{GrammarSource, Part, Rule, Spacing};

/// Compiles grammars for one vocabulary.
pub struct Grammars {
    factory: ParserFactory,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// For the first `vocab_size` tokens. `end_tokens` may come where a grammar may end; other special tokens come if they show
    /// in texts. Takes a few hundred milliseconds.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        end_tokens: &[TokenId],
    ) -> Result<Self, GrammarError> {
        let environment = vocabulary::environment(tokenizer, vocab_size, end_tokens)
            .ok_or_else(|| GrammarError::Vocabulary("no token ends an answer".to_owned()))?;
        let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| GrammarError::Vocabulary(error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory })
    }

    /// Blocks for as long as it takes, which the size of what is compiled bounds.
    pub fn compile(&self, source: &GrammarSource) -> Result<Constraint, GrammarError> {
        let main =
            GrammarWithLexer { lark_grammar: Some(source.lark.clone()), ..Default::default() };
        let parts = source.parts.iter().map(grammar);
        let grammar = TopLevelGrammar {
            grammars: std::iter::once(main).chain(parts).collect(),
            max_tokens: None,
        };
        let parser = self.factory.create_parser(grammar);
        Constraint::new(parser.map_err(|error| GrammarError::Invalid {
            origin: String::new(),
            message: error.to_string(),
        })?)
    }
}

fn grammar(part: &Part) -> GrammarWithLexer {
    let name = Some(part.name.clone());
    match &part.rule {
        Rule::Json { schema, strict, spacing } => {
            let schema = with_options(schema, *strict, *spacing);
            GrammarWithLexer { name, json_schema: Some(schema), ..Default::default() }
        }
        Rule::Lark(lark) => {
            GrammarWithLexer { name, lark_grammar: Some(lark.clone()), ..Default::default() }
        }
        Rule::Regex(regex) => {
            let lark = format!("start: /{}/", regex.replace('/', "\\/"));
            GrammarWithLexer { name, lark_grammar: Some(lark), ..Default::default() }
        }
        Rule::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| json!(text).to_string()).collect();
            let lark = format!("start: {}", texts.join(" | "));
            GrammarWithLexer { name, lark_grammar: Some(lark), ..Default::default() }
        }
    }
}

fn with_options(schema: &Value, strict: bool, spacing: Spacing) -> Value {
    let mut options = match spacing {
        Spacing::Compact => {
            json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " })
        }
        Spacing::Flexible => json!({ "whitespace_pattern": WHITE_SPACE }),
    };
    options["lenient"] = (!strict).into();
    let mut schema = match schema {
        Value::Object(schema) => schema.clone(),
        Value::Bool(true) => serde_json::Map::new(),
        other => serde_json::Map::from_iter([("allOf".to_owned(), json!([other]))]),
    };
    schema.insert("x-guidance".to_owned(), options);
    Value::Object(schema)
}

/// As much of it as pretty-printed JSON of some depth wants.
const WHITE_SPACE: &str = r"[ \n\t]{0,24}";
