use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde_json::Value;

use super::TemplateError;
use super::python_json::{self, Style};

/// What `strftime_now` reads.
pub type Clock = Arc<dyn Fn() -> jiff::Zoned + Send + Sync>;

pub(super) fn wall_clock() -> Clock {
    Arc::new(jiff::Zoned::now)
}

/// The world a template sees: Jinja2's as the `transformers` library sets it up, which templates are written for.
pub(super) fn compile(
    sources: &BTreeMap<String, String>,
    clock: Clock,
) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(explain)?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_recursion_limit(MAX_RECURSION);
    environment.set_unknown_method_callback(python_method);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<(), Error> {
        let refusal = Error::new(ErrorKind::InvalidOperation, "raise_exception");
        Err(refusal.with_source(Refusal(message)))
    });
    environment.add_function("strftime_now", move |format: String| {
        jiff::fmt::strtime::format(format, &clock())
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    for (name, source) in sources {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::TooMuch);
        }
        environment
            .add_template_owned(name.clone(), without_generation_tags(source))
            .map_err(explain)?;
    }
    Ok(environment)
}

/// How much a template may do: plenty for a conversation of this size, little for an endless loop.
pub(super) struct Budget {
    pub(super) fuel: u64,
    output_bytes: usize,
}

impl Budget {
    pub(super) fn of(context: &Value) -> Self {
        let (values, bytes) = size(context);
        Self {
            // One unit pays for one instruction or 64 bytes.
            fuel: 1_000_000 + 256 * values as u64 + bytes as u64,
            output_bytes: (4 << 20) + 16 * bytes,
        }
    }

    pub(super) fn output(&self) -> Output {
        Output { bytes: Vec::new(), limit: self.output_bytes }
    }
}

/// How many values, and how many bytes in strings.
fn size(value: &Value) -> (usize, usize) {
    let sum = |a: (usize, usize), b: (usize, usize)| (a.0 + b.0, a.1 + b.1);
    match value {
        Value::String(text) => (1, text.len()),
        Value::Array(items) => items.iter().map(size).fold((1, 0), sum),
        Value::Object(entries) => {
            let entry = |(key, value): (&String, &Value)| sum((1, key.len()), size(value));
            entries.iter().map(entry).fold((1, 0), sum)
        }
        _ => (1, 0),
    }
}

/// Takes what a template writes, up to a limit.
pub(super) struct Output {
    bytes: Vec<u8>,
    limit: usize,
}

impl Output {
    pub(super) fn finish(self, rendered: Result<(), Error>) -> Result<String, TemplateError> {
        if self.bytes.len() >= self.limit {
            return Err(TemplateError::TooMuch);
        }
        rendered.map_err(explain)?;
        // Only whole strings were written, so this replaces nothing.
        Ok(String::from_utf8_lossy(&self.bytes).into_owned())
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() >= self.limit {
            self.bytes.clear();
            self.limit = 0;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `raise_exception` was given, at the end of an error's chain of sources.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

pub(super) fn explain(error: Error) -> TemplateError {
    let mut message = error.to_string();
    let mut source = error.source();
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooMuch;
    }
    while let Some(cause) = source {
        if let Some(Refusal(words)) = cause.downcast_ref() {
            return TemplateError::Refused(words.clone());
        }
        if let Some(inner) = cause.downcast_ref::<Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::TooMuch;
        }
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    TemplateError::Failed(message)
}

/// `json.dumps`, as `transformers` has it: nothing escaped for HTML, and four options that may be named or not.
fn tojson(
    state: &State,
    value: minijinja::Value,
    positional: Rest<minijinja::Value>,
    named: Kwargs,
) -> Result<minijinja::Value, Error> {
    let option = |index: usize, name: &str| -> Result<Option<minijinja::Value>, Error> {
        let value = match positional.get(index) {
            Some(value) => Some(value.clone()),
            None => named.get::<Option<minijinja::Value>>(name)?,
        };
        Ok(value.filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let mut style = Style {
        ensure_ascii: option(0, "ensure_ascii")?.is_some_and(|value| value.is_true()),
        sort_keys: option(3, "sort_keys")?.is_some_and(|value| value.is_true()),
        ..Style::default()
    };
    if let Some(indent) = option(1, "indent")? {
        style.indent_with(&indent)?;
    }
    if let Some(separators) = option(2, "separators")? {
        style.separate_with(&separators)?;
    }
    named.assert_all_used()?;
    let (_, fuel) = state.fuel_levels().unwrap_or((0, u64::MAX));
    let text = python_json::write(&value, &style, fuel.saturating_mul(BYTES_PER_FUEL))?;
    state.consume_fuel(text.len() as u64 / BYTES_PER_FUEL)?;
    Ok(minijinja::Value::from_safe_string(text))
}

/// Python's methods of strings, lists and dicts. They pay for what they read and, before they build it, for what
/// they build.
fn python_method(
    state: &mut State,
    value: &minijinja::Value,
    method: &str,
    args: &[minijinja::Value],
) -> Result<minijinja::Value, Error> {
    if let Some(text) = value.as_str() {
        let mut bytes = text.len();
        match (method, args) {
            ("replace", [old, new, ..]) => {
                let times = old.as_str().map_or(0, |old| text.matches(old).count());
                let each = new.as_str().map_or(0, str::len);
                bytes = bytes.saturating_add(times.saturating_mul(each));
            }
            ("join", [items]) => {
                for item in items.try_iter()?.checked() {
                    let item = item?;
                    // What is no string is printed, however long that gets.
                    if item.as_str().is_none() && item.len().is_some() {
                        return Err(Error::new(
                            ErrorKind::InvalidOperation,
                            format!("expected str to join, {} found", item.kind()),
                        ));
                    }
                    bytes = bytes.saturating_add(item.as_str().map_or(32, str::len) + text.len());
                    state.consume_fuel(1)?;
                }
            }
            // A width of a billion is four bytes to write.
            ("format", _) if text.split(|c: char| !c.is_ascii_digit()).any(|n| n.len() > 3) => {
                return Err(Error::new(ErrorKind::InvalidOperation, "the width is too large"));
            }
            _ => {}
        }
        state.consume_fuel(bytes as u64 / BYTES_PER_FUEL)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// `{% generation %}` marks what an assistant said, for training. Here it must only not be an error, and its
/// whitespace marks must count.
fn without_generation_tags(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        output.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let (left, inner) = match tag[..end].strip_prefix(['-', '+']) {
            Some(inner) => (&tag[..1], inner),
            None => ("", &tag[..end]),
        };
        let (inner, right) = match inner.strip_suffix(['-', '+']) {
            Some(word) => (word, &inner[word.len()..]),
            None => (inner, ""),
        };
        let replacement = match inner.trim() {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        output.push_str(&format!("{left} {replacement} {right}"));
        rest = &tag[end..];
    }
    output.push_str(rest);
    output
}

/// As many as the deepest template needs, many times over, and far fewer than a thread's stack holds.
const MAX_RECURSION: usize = 200;
const MAX_SOURCE_BYTES: usize = 1 << 20;
const BYTES_PER_FUEL: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_keep_their_whitespace_marks() {
        assert_eq!(
            without_generation_tags("a {%- generation -%} b {% endgeneration +%}{% if x %}"),
            "a {%- if true -%} b {% endif +%}{% if x %}"
        );
        assert_eq!(without_generation_tags("{% generation"), "{% generation");
        assert_eq!(without_generation_tags("{%%}{%-%}"), "{%%}{%-%}");
    }
}
