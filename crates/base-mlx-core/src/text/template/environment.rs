use std::collections::BTreeMap;
use std::error::Error as _;
use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde_json::Value;

use super::python_json::{self, Style};
use super::{TemplateError, namespace};

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
    environment.add_test("iterable", is_iterable);
    environment.add_function("raise_exception", |message: String| -> Result<(), Error> {
        let refusal = Error::new(ErrorKind::InvalidOperation, "raise_exception");
        Err(refusal.with_source(Refusal(message)))
    });
    environment.add_function("namespace", namespace::namespace);
    environment.add_function("strftime_now", move |format: String| {
        jiff::fmt::strtime::format(format, &clock())
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    for (name, source) in sources {
        if source.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::TooMuch);
        }
        environment.add_template_owned(name.clone(), rewrite_tags(source)).map_err(explain)?;
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
    let text = python_json::write(&value, &style, fuel.saturating_mul(JSON_BYTES_PER_FUEL))?;
    state.consume_fuel(text.len() as u64 / JSON_BYTES_PER_FUEL)?;
    Ok(minijinja::Value::from_safe_string(text))
}

/// Python iterates over text, over undefined values (there is nothing in them), but not over `none`.
fn is_iterable(value: &minijinja::Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
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

/// The same template without two kinds of tags: `{% generation %}` marks what an assistant said, for training, and
/// must only not be an error here; assignments to namespaces go to ours. Whitespace marks stay.
fn rewrite_tags(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (text, tag) = rest.split_at(start);
        output.push_str(text);
        let length = match tag.as_bytes().get(1) {
            Some(b'#') => tag.find("#}").map(|end| end + 2),
            Some(b'{') => closing(tag, "}}"),
            Some(b'%') => closing(tag, "%}"),
            _ => Some(1),
        };
        let (tag, behind) = tag.split_at(length.unwrap_or(tag.len()));
        match rewrite_tag(tag) {
            Some(rewritten) => output.push_str(&rewritten),
            None => output.push_str(tag),
        }
        rest = behind;
    }
    output.push_str(rest);
    output
}

fn rewrite_tag(tag: &str) -> Option<String> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let start = inner.len() - inner.trim_start_matches(['-', '+']).len();
    let end = inner.trim_end_matches(['-', '+']).len().max(start);
    let word = inner[start..end].trim();
    let new = match word {
        "generation" => "if true".to_owned(),
        "endgeneration" => "endif".to_owned(),
        _ => namespace::rewrite(word)?,
    };
    Some(format!("{{%{} {new} {}%}}", &inner[..start], &inner[end..]))
}

/// Where a tag ends: behind the first `mark` outside of quotes.
fn closing(tag: &str, mark: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in tag.char_indices().skip(2) {
        match quote {
            _ if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if tag[at..].starts_with(mark) => return Some(at + mark.len()),
            None => {}
        }
    }
    None
}

/// Runs foreign code where even the deepest value that a template of [`MAX_SOURCE_BYTES`] can build, one level a
/// tag, can be printed and dropped.
pub(super) fn on_a_deep_stack<T: Send>(
    work: impl FnOnce() -> Result<T, TemplateError> + Send,
) -> Result<T, TemplateError> {
    let failed = |what: &str| TemplateError::Failed(what.to_owned());
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| failed(&format!("no thread could be started: {error}")))?;
        thread.join().unwrap_or_else(|_| Err(failed("it broke the template engine")))
    })
}

/// As many as the deepest template needs, many times over, and far fewer than a thread's stack holds.
const MAX_RECURSION: usize = 200;
const MAX_SOURCE_BYTES: usize = 128 << 10;
/// Reserved, not used: only a hostile template ever touches more than a little of it.
const STACK_BYTES: usize = 64 << 20;
const BYTES_PER_FUEL: u64 = 64;
/// Walking a value is slower than copying bytes.
const JSON_BYTES_PER_FUEL: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_rewritten_with_their_whitespace_marks() {
        let cases = [
            (
                "a {%- generation -%} b {% endgeneration +%}{% if x %}",
                "a {%- if true -%} b {% endif +%}{% if x %}",
            ),
            ("{%- set n.x = '%}' -%}", "{%- set __set = n.set_attribute('x', ( '%}')) -%}"),
            ("{# {% generation %} don't #}{{ '{% generation %}' }}{", ""),
            ("{% generation", ""),
            ("{%%}{%-%}{%--%}{{}}{##}", ""),
        ];
        for (source, expected) in cases {
            let expected = if expected.is_empty() { source } else { expected };
            assert_eq!(rewrite_tags(source), expected);
        }
    }
}
