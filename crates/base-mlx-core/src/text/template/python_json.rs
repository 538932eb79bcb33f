use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// The options of Python's `json.dumps`.
pub(super) struct Style {
    pub(super) ensure_ascii: bool,
    pub(super) sort_keys: bool,
    /// One level of indentation; None writes a single line.
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            sort_keys: false,
            indent: None,
            item_separator: ", ".to_owned(),
            key_separator: ": ".to_owned(),
        }
    }
}

impl Style {
    /// A number of spaces, or a string.
    pub(super) fn indent_with(&mut self, indent: &Value) -> Result<(), Error> {
        self.indent = Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(spaces @ ..=64)) => " ".repeat(usize::try_from(spaces).unwrap_or(0)),
            _ => return Err(invalid(format!("tojson cannot indent by {indent}"))),
        });
        self.item_separator = ",".to_owned();
        Ok(())
    }

    pub(super) fn separate_with(&mut self, separators: &Value) -> Result<(), Error> {
        let mut both = Vec::new();
        for separator in separators.try_iter()?.checked().take(3) {
            both.push(separator?);
        }
        let [item, key] = both.as_slice() else {
            return Err(invalid("tojson takes two separators".to_owned()));
        };
        let (Some(item), Some(key)) = (item.as_str(), key.as_str()) else {
            return Err(invalid("tojson takes separators that are strings".to_owned()));
        };
        self.item_separator = item.to_owned();
        self.key_separator = key.to_owned();
        Ok(())
    }
}

/// `value` as Python's `json.dumps` writes it, at most `max_bytes` long.
pub(super) fn write(value: &Value, style: &Style, max_bytes: u64) -> Result<String, Error> {
    let mut writer = Writer { style, output: String::new(), max_bytes };
    writer.value(value, 0)?;
    Ok(writer.output)
}

struct Writer<'a> {
    style: &'a Style,
    output: String,
    max_bytes: u64,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if self.output.len() as u64 > self.max_bytes {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        if depth > MAX_DEPTH {
            return Err(invalid("the value is nested too deeply".to_owned()));
        }
        match value.kind() {
            ValueKind::None => self.output.push_str("null"),
            ValueKind::Bool => self.output.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut items = Vec::new();
                for item in value.try_iter()?.checked() {
                    items.push((None, item?));
                }
                self.items(['[', ']'], items, depth)?;
            }
            ValueKind::Map => {
                let mut items = Vec::new();
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    let item = value.get_item(&key)?;
                    items.push((Some(self.key(&key)?), item));
                }
                if self.style.sort_keys {
                    items.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.items(['{', '}'], items, depth)?;
            }
            other => return Err(invalid(format!("{other} is not JSON serializable"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        brackets: [char; 2],
        items: Vec<(Option<String>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        self.output.push(brackets[0]);
        let empty = items.is_empty();
        for (index, (key, item)) in items.into_iter().enumerate() {
            if index > 0 {
                self.output.push_str(&self.style.item_separator);
            }
            self.line_break(depth + 1);
            if let Some(key) = key {
                self.string(&key);
                self.output.push_str(&self.style.key_separator);
            }
            self.value(&item, depth + 1)?;
        }
        if !empty {
            self.line_break(depth);
        }
        self.output.push(brackets[1]);
        Ok(())
    }

    fn line_break(&mut self, depth: usize) {
        if let Some(indent) = &self.style.indent {
            self.output.push('\n');
            self.output.push_str(&indent.repeat(depth));
        }
    }

    fn key(&self, key: &Value) -> Result<String, Error> {
        if let Some(text) = key.as_str() {
            return Ok(text.to_owned());
        }
        match key.kind() {
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                write(key, &Style::default(), MAX_KEY_BYTES)
            }
            other => Err(invalid(format!("keys must be strings, not {other}"))),
        }
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            self.output.push_str(&value.to_string());
        } else {
            self.output.push_str(&float(f64::try_from(value.clone())?));
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
        self.output.push('"');
        for c in text.chars() {
            match c {
                '"' => self.output.push_str("\\\""),
                '\\' => self.output.push_str("\\\\"),
                '\n' => self.output.push_str("\\n"),
                '\r' => self.output.push_str("\\r"),
                '\t' => self.output.push_str("\\t"),
                '\u{8}' => self.output.push_str("\\b"),
                '\u{c}' => self.output.push_str("\\f"),
                c if c < ' ' || (self.style.ensure_ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.output.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.output.push(c),
            }
        }
        self.output.push('"');
    }
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent from 1e16 upwards
/// and below 1e-4.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{number:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

const MAX_DEPTH: usize = 100;
const MAX_KEY_BYTES: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (123456.789, "123456.789"),
            (f64::INFINITY, "Infinity"),
        ];
        for (number, expected) in cases {
            assert_eq!(float(number), expected);
        }
    }
}
