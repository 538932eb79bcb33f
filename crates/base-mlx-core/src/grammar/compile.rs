use std::collections::HashSet;
use std::fmt::Display;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use llguidance::api::{GrammarInit, GrammarWithLexer, TopLevelGrammar};
use llguidance::{ParserFactory, TokenParser, panic_utils, regex_to_lark};
use serde_json::Value;

use super::kept::Key;
use super::schema::{self, Prepared};
use super::{Constraint, GrammarError, finite};
use crate::text::output::{GrammarSource, Part, Rule, Spacing, lark_literal};

/// Refuses what is too large to look at, and what would go past the checks of schemas.
pub(super) fn check(source: &GrammarSource, key: &Key) -> Result<(), GrammarError> {
    let too_complex = |origin: &str, message: String| {
        Err(GrammarError::TooComplex { origin: origin.to_owned(), message })
    };
    for (part, &bytes) in source.parts.iter().zip(key.bytes()) {
        let most = match &part.rule {
            Rule::Json { .. } | Rule::Choice(_) => MAX_SCHEMA_BYTES,
            Rule::Lark(_) | Rule::Regex(_) => MAX_TEXT_BYTES,
        };
        if bytes > most {
            return too_complex(&part.origin, format!("it has {bytes} bytes, {most} are possible"));
        }
        if let Rule::Lark(text) | Rule::Regex(text) = &part.rule
            && nesting(text) > MAX_NESTING
        {
            let message = format!("more than {MAX_NESTING} brackets in one another");
            return too_complex(&part.origin, message);
        }
        // In a string it would do no harm; that is not worth telling apart.
        if let Rule::Lark(text) = &part.rule
            && text.contains("%json")
        {
            return Err(GrammarError::Invalid {
                origin: part.origin.clone(),
                message: "`%json` is not supported; a schema goes into `response_format`"
                    .to_owned(),
            });
        }
    }
    if source.parts.len() > MAX_PARTS {
        let message = format!("there are more than {MAX_PARTS} grammars in one");
        return too_complex(largest(source, key), message);
    }
    Ok(())
}

/// At most so many brackets are open at once; those in strings count as well.
fn nesting(text: &str) -> usize {
    let mut open = 0_usize;
    let mut most = 0;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' | b'~' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            b'\n' => open = 0,
            _ => {}
        }
        most = most.max(open);
    }
    most
}

/// The origin of the largest part.
pub(super) fn largest<'a>(source: &'a GrammarSource, key: &Key) -> &'a str {
    let parts = source.parts.iter().zip(key.bytes());
    let largest = parts.max_by_key(|(_, bytes)| **bytes);
    largest.map_or("the answer's form", |(part, _)| &part.origin)
}

/// The grammar's beginning. An error names the part that it is about, or else the `largest`; finding it takes a part of `time`
/// at most.
pub(super) fn compile(
    factory: &ParserFactory,
    source: &GrammarSource,
    largest: &str,
    time: Duration,
) -> Result<Constraint, GrammarError> {
    let compiler = Compiler { factory, largest, until: Instant::now() + time / 2 };
    let mut parts =
        source.parts.iter().map(|part| compiler.prepare(part)).collect::<Result<Vec<_>, _>>()?;
    let parser = match compiler.parser(Some(&source.lark), &parts) {
        Ok(parser) => parser,
        Err(_) if compiler.loosen(&mut parts)? => compiler
            .parser(Some(&source.lark), &parts)
            .map_err(|error| compiler.blame(&parts, error))?,
        Err(error) => return Err(compiler.blame(&parts, error)),
    };
    if !parser.parser.grammar().lexer_spec().can_rollback() {
        return Err(GrammarError::Invalid {
            origin: largest.to_owned(),
            message: "`max_tokens` and `stop` are not supported in grammars".to_owned(),
        });
    }
    // A tool may be there twice, as a call and as what looks like one.
    let mut told = HashSet::new();
    let warnings = parts.into_iter().flat_map(|part| part.warnings);
    let warnings = warnings.filter(|warning| told.insert(warning.clone())).collect();
    let constraint = Constraint::new(parser, warnings);
    // Some grammars end before they began.
    match constraint.clone().allowed() {
        Ok(_) => Ok(constraint),
        Err(broken) => {
            let origin = largest.to_owned();
            let message = broken.to_string();
            Err(match is_about_size(&message) {
                true => GrammarError::TooComplex { origin, message },
                false => {
                    GrammarError::Invalid { origin, message: "nothing satisfies it".to_owned() }
                }
            })
        }
    }
}

struct Compiler<'a> {
    factory: &'a ParserFactory,
    largest: &'a str,
    /// When to give up finding the place of an error.
    until: Instant,
}

/// A part as the compiler gets it.
struct Ready<'a> {
    part: &'a Part,
    grammar: GrammarWithLexer,
    schema: Option<(Prepared, Spacing)>,
    warnings: Vec<String>,
}

impl Compiler<'_> {
    fn prepare<'a>(&self, part: &'a Part) -> Result<Ready<'a>, GrammarError> {
        let invalid = |message: &str| GrammarError::Invalid {
            origin: part.origin.clone(),
            message: message.to_owned(),
        };
        let mut schema = None;
        let mut warnings = Vec::new();
        let mut grammar = GrammarWithLexer { name: Some(part.name.clone()), ..Default::default() };
        match &part.rule {
            Rule::Json { schema: given, strict, spacing } => {
                let mut prepared = schema::prepare(given, *strict, &part.origin)?;
                warnings = std::mem::take(&mut prepared.warnings);
                grammar.json_schema = Some(prepared.with_options(false, *spacing));
                schema = Some((prepared, *spacing));
            }
            Rule::Lark(lark) => grammar.lark_grammar = Some(lark.clone()),
            Rule::Regex(regex) => grammar.lark_grammar = Some(lark_of_regex(regex)),
            Rule::Choice(texts) if texts.iter().all(String::is_empty) => {
                return Err(invalid("there is nothing to choose from"));
            }
            Rule::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| lark_literal(text)).collect();
                grammar.lark_grammar = Some(format!("start: TEXT\nTEXT: {}", texts.join(" | ")));
            }
        }
        Ok(Ready { part, grammar, schema, warnings })
    }

    fn parser(&self, lark: Option<&str>, parts: &[Ready<'_>]) -> Result<TokenParser, String> {
        let main = lark.map(|lark| GrammarWithLexer {
            lark_grammar: Some(lark.to_owned()),
            ..Default::default()
        });
        let parts = parts.iter().map(|part| part.grammar.clone());
        self.parser_of(main.into_iter().chain(parts).collect())
    }

    fn parser_of(&self, grammars: Vec<GrammarWithLexer>) -> Result<TokenParser, String> {
        let has_json = grammars.iter().any(|grammar| grammar.json_schema.is_some());
        let init = GrammarInit::Serialized(TopLevelGrammar { grammars, max_tokens: None });
        let limits = self.factory.limits();
        let environment = Some(self.factory.tok_env().clone());
        let internal = AssertUnwindSafe(|| init.to_internal(environment, limits.clone()));
        let (grammar, mut lexer) = panic_utils::catch_unwind(internal).map_err(first_line)?;
        if has_json {
            let bound = || Ok(finite::bound_numbers(&mut lexer, limits));
            panic_utils::catch_unwind(AssertUnwindSafe(bound)).map_err(first_line)??;
        }
        let init = GrammarInit::Internal(grammar, lexer);
        self.factory.create_parser_from_init(init, 0, 0).map_err(first_line)
    }

    /// Lets the compiler leave out what it cannot guarantee where that is wanted; whether there was anything to leave out.
    fn loosen(&self, parts: &mut [Ready<'_>]) -> Result<bool, GrammarError> {
        let mut any = false;
        for ready in parts {
            let Rule::Json { strict: false, .. } = ready.part.rule else { continue };
            let Some((prepared, spacing)) = &ready.schema else { continue };
            let alone = GrammarWithLexer { name: None, ..ready.grammar.clone() };
            let Err(error) = self.parser_of(vec![alone]) else { continue };
            let (pointer, message) =
                self.place(prepared, *spacing).unwrap_or((String::new(), error));
            ready
                .warnings
                .push(format!("{}: {pointer} is not guaranteed: {message}", ready.part.origin,));
            ready.grammar.json_schema = Some(prepared.with_options(true, *spacing));
            any = true;
        }
        Ok(any)
    }

    /// The error of the first part that does not compile by itself.
    fn blame(&self, parts: &[Ready<'_>], error: String) -> GrammarError {
        for ready in parts {
            if Instant::now() > self.until {
                break;
            }
            let alone = GrammarWithLexer { name: None, ..ready.grammar.clone() };
            let Err(message) = self.parser_of(vec![alone]) else { continue };
            let origin = ready.part.origin.clone();
            if message.starts_with("unknown grammar") {
                // Of another part; alone it is not there.
                continue;
            }
            let place = ready
                .schema
                .as_ref()
                .and_then(|(prepared, spacing)| self.place(prepared, *spacing));
            return match (place, ready.schema.is_some()) {
                (Some((pointer, message)), _) if is_about_size(&message) => {
                    GrammarError::TooComplex { origin, message: place_first(&pointer, &message) }
                }
                (Some((pointer, message)), _) => {
                    GrammarError::Unsupported { origin, pointer, message }
                }
                _ if is_about_size(&message) => GrammarError::TooComplex { origin, message },
                (None, true) => {
                    GrammarError::Unsupported { origin, pointer: String::new(), message }
                }
                _ => GrammarError::Invalid { origin, message },
            };
        }
        let origin = self.largest.to_owned();
        match is_about_size(&error) {
            true => GrammarError::TooComplex { origin, message: error },
            false => GrammarError::Invalid { origin, message: error },
        }
    }

    /// The innermost subschema that does not compile by itself, by its pointer, and why.
    fn place(&self, prepared: &Prepared, spacing: Spacing) -> Option<(String, String)> {
        let mut found = None;
        // Outer ones come first.
        let mut within = None::<&str>;
        for place in &prepared.places {
            if Instant::now() > self.until {
                break;
            }
            let is_below = |outer: &str| {
                place.prepared.strip_prefix(outer).is_some_and(|rest| rest.starts_with('/'))
            };
            if within.is_some_and(|outer| !is_below(outer)) {
                continue;
            }
            let Some(alone) = prepared.alone(place, spacing) else { continue };
            let grammar = GrammarWithLexer { json_schema: Some(alone), ..Default::default() };
            if let Err(message) = self.parser_of(vec![grammar]) {
                within = Some(&place.prepared);
                found = Some((place, message));
            }
        }
        found.map(|(place, message)| {
            (format!("{}{}", place.given, keyword(prepared, &place.prepared, &message)), message)
        })
    }
}

fn place_first(pointer: &str, message: &str) -> String {
    if pointer.is_empty() { message.to_owned() } else { format!("{pointer}: {message}") }
}

/// The keyword that a message is about, as the end of a pointer.
fn keyword(prepared: &Prepared, place: &str, message: &str) -> String {
    let Some(Value::Object(schema)) = prepared.schema.pointer(place) else { return String::new() };
    let named =
        ABOUT.iter().filter(|(part, _)| message.contains(part)).flat_map(|(_, keywords)| *keywords);
    named
        .copied()
        .find(|keyword| schema.contains_key(*keyword))
        .map_or(String::new(), |keyword| format!("/{keyword}"))
}

/// A regex all of which a text must match. What begins and ends it in the words of searches says the same, also where it belongs
/// to the first and the last of several choices.
fn lark_of_regex(regex: &str) -> String {
    let whole = regex.strip_prefix('^').unwrap_or(regex);
    let inner = whole.strip_suffix('$').filter(|inner| {
        let escapes = inner.bytes().rev().take_while(|&byte| byte == b'\\').count();
        escapes % 2 == 0
    });
    format!("start: /{}/", regex_to_lark(inner.unwrap_or(whole), ""))
}

/// Without the picture of the source and the state of the compiler that follow it.
fn first_line(error: impl Display) -> String {
    let message = error.to_string();
    let line = message.lines().next().unwrap_or_default();
    if line.starts_with("panic: ") {
        return "the compiler cannot go on with it".to_owned();
    }
    if line.contains("oneOf constraints are not supported") {
        return "a value may satisfy several of the schemas".to_owned();
    }
    // A list of all the special tokens.
    let line = line.split("; following").next().unwrap_or_default();
    // What a regex's error is comes after a picture of the regex.
    let why = message.lines().find_map(|line| line.strip_prefix("error: ")).unwrap_or_default();
    let line = if why.is_empty() { line.to_owned() } else { format!("{line} {why}") };
    line.chars().take(MAX_MESSAGE_CHARS).collect()
}

/// By whole phrases of the compiler's, as names of users may be in its messages as well.
fn is_about_size(message: &str) -> bool {
    ABOUT_SIZE.iter().any(|words| message.contains(words))
}

const ABOUT_SIZE: &[&str] = &[
    "the compiler cannot go on with it",
    "schema too large",
    "Schema intersection stack level exceeded",
    "lark grammar too deeply nested",
    " is too large; must be <= ",
    "' is too large",
    "initial lexer configuration (grammar) too big",
    "grammar size (number of symbols) too big",
    "lexer precomputation failed",
    "too many expressions constructed",
    "too many states: ",
    "fuel exhausted when checking relevance of lexemes",
    "maximum relevance check fuel ",
    "DNF too large, fuel exhausted",
    "Too many items (limit ",
    "max items exceeded",
    // Of `regex-syntax`.
    "exceeded the maximum number of nested",
    "exceeds size limit",
];

/// The keywords that messages of the compiler are about.
const ABOUT: &[(&str, &[&str])] = &[
    ("several of the schemas", &["oneOf"]),
    ("min/maxProperties", &["minProperties", "maxProperties"]),
    ("minProperties", &["minProperties", "maxProperties", "required"]),
    ("patternProperty", &["patternProperties"]),
    ("multipleOf", &["multipleOf"]),
    ("egex", &["pattern", "patternProperties"]),
    ("circular references", &["$ref"]),
    ("maxItems", &["maxItems", "minItems"]),
    ("maxLength", &["maxLength", "minLength"]),
    ("minimum", &["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"]),
    ("range", &["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"]),
    ("required property", &["required"]),
    ("anyOf", &["anyOf", "enum"]),
    ("incompatible", &["enum", "const", "allOf", "anyOf", "oneOf", "$ref"]),
    ("schema is false", &["allOf", "anyOf", "oneOf"]),
];

const MAX_SCHEMA_BYTES: usize = 2 << 20;
/// Of a regex, or of a grammar of the user's.
const MAX_TEXT_BYTES: usize = 128 << 10;
const MAX_NESTING: usize = 100;
const MAX_PARTS: usize = 1024;
const MAX_MESSAGE_CHARS: usize = 300;
