/// How one family of models writes calls. A call is `call`, the name, `named`, the arguments, `end`; all of them are
/// `open`, calls with `between` them, `close`. The grammar has these texts byte for byte, the parser but for white space.
#[derive(Debug)]
pub(super) struct Syntax {
    pub(super) name: &'static str,
    /// How the first call begins, if no other text has that: calls may then come after text. Without one they are calls
    /// only if the answer begins with them.
    pub(super) trigger: Option<&'static str>,
    pub(super) open: &'static str,
    pub(super) between: &'static str,
    pub(super) close: &'static str,
    pub(super) call: &'static str,
    pub(super) named: &'static str,
    pub(super) args: Args,
    /// What holds the arguments where a call is JSON without marks.
    pub(super) bare_key: &'static str,
    pub(super) end: &'static str,
    pub(super) id: Option<Id>,
    /// Further texts that are never content; with `trigger`, what may be special tokens.
    pub(super) markers: &'static [&'static str],
}

/// An identifier of the call that the model makes up and nobody reads.
#[derive(Debug)]
pub(super) enum Id {
    /// Between the name and `named`, behind this.
    AfterName(&'static str),
    /// Between the arguments and `end`, within these.
    AfterArgs(&'static str, &'static str),
}

#[derive(Debug)]
pub(super) enum Args {
    /// A JSON object.
    Json,
    Fields(Fields),
}

/// Arguments one by one: `key`, the name, `keyed`, the value, `value_end`.
#[derive(Debug)]
pub(super) struct Fields {
    pub(super) open: &'static str,
    pub(super) key: &'static str,
    pub(super) keyed: &'static str,
    pub(super) value_end: &'static str,
    pub(super) between: &'static str,
    pub(super) close: &'static str,
    /// What is around text that stands for itself; without it, text is quoted as JSON has it.
    pub(super) text: Option<(&'static str, &'static str)>,
    pub(super) words: Words,
    /// What is around the arguments as one JSON object where they cannot be told apart.
    pub(super) whole: (&'static str, &'static str),
}

/// How truth and nothing are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    Json,
    Python,
}

/// The marks around a model's thoughts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ThoughtMarks {
    pub(super) open: &'static str,
    pub(super) close: &'static str,
    /// What the model is made to write to come to an end.
    pub(super) forced: &'static str,
}

/// What holds the arguments of calls that are JSON.
pub(super) const BARE_KEYS: [&str; 2] = [ARGUMENTS, PARAMETERS];
pub(super) const ARGUMENTS: &str = "arguments";
pub(super) const PARAMETERS: &str = "parameters";

/// Between a name and its call's arguments, and so on: the letters of an [`Id`].
pub(super) const ID: &str = "[a-zA-Z0-9]{9}";

impl Syntax {
    /// What comes before the name of the first call, behind the trigger.
    pub(super) fn behind_trigger(&self) -> String {
        let first = [self.open, self.call].concat();
        let trigger = self.trigger.unwrap_or_default();
        first.strip_prefix(trigger).unwrap_or(&first).to_owned()
    }

    /// What comes before the name of any further call.
    pub(super) fn next(&self) -> String {
        [self.between, self.call].concat()
    }

    /// Whether a call is JSON and nothing else.
    pub(super) fn is_bare(&self) -> bool {
        self.open.is_empty() && self.end == "}"
    }

    /// How a call begins where it has no mark, in the pieces before each of which white space may come: the grammar and the
    /// parser agree to the letter, for what is no call is text that nothing holds.
    pub(super) fn unmarked_head(&self, name: &str) -> [String; 2] {
        [self.open.to_owned(), [self.call, &self.written(name), self.named].concat()]
    }

    /// A name as it stands in a call.
    pub(super) fn written(&self, name: &str) -> String {
        match self.call.ends_with('"') {
            true => quoted(name),
            false => name.to_owned(),
        }
    }
}

/// How a call begins that is JSON, up to its arguments: [`Syntax::unmarked_head`] of any format.
pub(super) fn bare_head(name: &str, key: &str) -> Vec<String> {
    let text = |text: &str| format!("\"{}\"", quoted(text));
    vec![
        "{".to_owned(),
        text("name"),
        ":".to_owned(),
        text(name),
        ",".to_owned(),
        text(key),
        ":".to_owned(),
    ]
}

/// As it stands within the quotes of a JSON string.
pub(super) fn quoted(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json[1..json.len() - 1].to_owned()
}
