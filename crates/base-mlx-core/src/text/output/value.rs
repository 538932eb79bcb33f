use super::syntax::Words;

/// Reads one JSON value as it comes, or one of Python's, which comes out as JSON.
#[derive(Clone, Debug)]
pub(super) struct ValueReader {
    words: Words,
    /// Open brackets.
    depth: usize,
    /// The quote that ends the string.
    string: Option<char>,
    escaped: bool,
    begun: bool,
    /// Letters of a word of Python's.
    word: String,
}

/// What a character was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// A part of the value.
    Within,
    /// Its last character.
    Last,
    /// What comes behind it.
    Behind,
    /// Nothing that a value can have here.
    Never,
}

impl ValueReader {
    pub(super) fn new(words: Words) -> Self {
        Self { words, depth: 0, string: None, escaped: false, begun: false, word: String::new() }
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// White space before the value is passed over.
    pub(super) fn push(&mut self, c: char, json: &mut String) -> Read {
        if let Some(quote) = self.string {
            return self.within_string(c, quote, json);
        }
        let is_python = self.words == Words::Python;
        if is_python && c.is_ascii_alphabetic() {
            self.begun = true;
            self.word.push(c);
            return Read::Within;
        }
        self.end_word(json);
        if !self.begun && is_space(c) {
            return Read::Within;
        }
        match c {
            '"' | '\'' if self.may_begin() && (c == '"' || is_python) => {
                self.string = Some(c);
                json.push('"');
            }
            '{' | '[' if self.may_begin() => {
                self.depth += 1;
                json.push(c);
            }
            '}' | ']' if self.depth > 0 => {
                self.depth -= 1;
                json.push(c);
                if self.depth == 0 {
                    return Read::Last;
                }
            }
            // A number or a word ends where something else begins.
            _ if self.depth == 0 && !(c.is_ascii_alphanumeric() || "+-.".contains(c)) => {
                return if self.begun { Read::Behind } else { Read::Never };
            }
            _ => json.push(c),
        }
        self.begun = true;
        Read::Within
    }

    /// The value ends where the text does.
    fn end_word(&mut self, json: &mut String) {
        json.push_str(match self.word.as_str() {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        });
        self.word.clear();
    }

    fn may_begin(&self) -> bool {
        self.depth > 0 || !self.begun
    }

    fn within_string(&mut self, c: char, quote: char, json: &mut String) -> Read {
        if self.escaped {
            self.escaped = false;
            self.escape(c, json);
            return Read::Within;
        }
        match c {
            '\\' if self.words == Words::Python => self.escaped = true,
            '\\' => {
                self.escaped = true;
                json.push(c);
            }
            _ if c == quote => {
                self.string = None;
                json.push('"');
                if self.depth == 0 {
                    return Read::Last;
                }
            }
            '"' => json.push_str("\\\""),
            _ if self.words == Words::Python => push_quoted(c, json),
            _ => json.push(c),
        }
        Read::Within
    }

    /// The character behind a backslash.
    fn escape(&self, c: char, json: &mut String) {
        match c {
            _ if self.words == Words::Json => json.push(c),
            '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' | 'u' => {
                json.push('\\');
                json.push(c);
            }
            'x' => json.push_str("\\u00"),
            '\'' => json.push('\''),
            '\n' => {}
            // Python keeps the backslash.
            _ => {
                json.push_str("\\\\");
                push_quoted(c, json);
            }
        }
    }
}

/// As it stands in a JSON string.
pub(super) fn push_quoted(c: char, json: &mut String) {
    match c {
        '"' => json.push_str("\\\""),
        '\\' => json.push_str("\\\\"),
        '\n' => json.push_str("\\n"),
        '\r' => json.push_str("\\r"),
        '\t' => json.push_str("\\t"),
        '\0'..='\u{1f}' => json.push_str(&format!("\\u{:04x}", u32::from(c))),
        _ => json.push(c),
    }
}

/// What JSON calls white space.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: Words, text: &str) -> (String, &str) {
        let mut reader = ValueReader::new(words);
        let mut json = String::new();
        for (at, c) in text.char_indices() {
            match reader.push(c, &mut json) {
                Read::Within => {}
                Read::Last => return (json, &text[at + c.len_utf8()..]),
                Read::Behind => return (json, &text[at..]),
                Read::Never => return ("never".to_owned(), &text[at..]),
            }
        }
        ("more".to_owned(), "")
    }

    #[test]
    fn json_passes_as_it_is() {
        for (text, value, rest) in [
            ("{\"a\": \"}\\\"\"} x", "{\"a\": \"}\\\"\"}", " x"),
            (" [1, {\"b\": []}],", "[1, {\"b\": []}]", ","),
            ("-1.5e+3</", "-1.5e+3", "</"),
            ("true)", "true", ")"),
            ("\"a\\\\\",", "\"a\\\\\"", ","),
            (",", "never", ","),
            ("}", "never", "}"),
        ] {
            assert_eq!(read(Words::Json, text), (value.to_owned(), rest));
        }
    }

    #[test]
    fn python_comes_out_as_json() {
        for (text, value, rest) in [
            ("True)", "true", ")"),
            ("None,", "null", ","),
            ("'it\\'s \"so\"'", "\"it's \\\"so\\\"\"", ""),
            (
                "{'a': [True, None, 1.5], \"b\": 'x'}",
                "{\"a\": [true, null, 1.5], \"b\": \"x\"}",
                "",
            ),
            ("'\\x41\\d\n'", "\"\\u0041\\\\d\\n\"", ""),
        ] {
            assert_eq!(read(Words::Python, text), (value.to_owned(), rest));
        }
    }
}
