/// How one family of models writes calls. A call is `call`, the name, `named`, the arguments, `end`; all of them are
/// `open`, calls with `between` them, `close`. The grammar has these texts byte for byte, the parser but for white space.
#[derive(Debug)]
pub(super) struct Syntax {
    pub name: &'static str,
    /// How the first call begins, if no other text has that: calls may then come after text. Without one they are calls
    /// only if the answer begins with them.
    pub trigger: Option<&'static str>,
    pub open: &'static str,
    pub between: &'static str,
    pub close: &'static str,
    pub call: &'static str,
    pub named: &'static str,
    pub args: Args,
    pub end: &'static str,
    pub id: Option<Id>,
    /// Further texts that are never content; with `trigger`, what may be special tokens.
    pub markers: &'static [&'static str],
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
    pub open: &'static str,
    pub key: &'static str,
    pub keyed: &'static str,
    pub value_end: &'static str,
    pub between: &'static str,
    pub close: &'static str,
    /// What is around text that stands for itself; without it, text is quoted as JSON has it.
    pub text: Option<(&'static str, &'static str)>,
    pub words: Words,
    /// What is around the arguments as one JSON object where they cannot be told apart.
    pub whole: (&'static str, &'static str),
}

/// How truth and nothing are spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    Json,
    Python,
}

/// The marks around a model's thoughts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Thoughts {
    pub open: &'static str,
    pub close: &'static str,
    /// What the model is made to write to come to an end.
    pub forced: &'static str,
}

/// Between a name and its call's arguments, and so on: the letters of an [`Id`].
pub(super) const ID: &str = "[a-zA-Z0-9]{9}";

impl Syntax {
    /// What comes before the name of the first call, behind the trigger.
    pub fn behind_trigger(&self) -> String {
        let first = [self.open, self.call].concat();
        let trigger = self.trigger.unwrap_or_default();
        first.strip_prefix(trigger).unwrap_or(&first).to_owned()
    }

    /// What comes before the name of any further call.
    pub fn next(&self) -> String {
        [self.between, self.call].concat()
    }

    /// Whether a call is JSON and nothing else.
    pub fn is_bare(&self) -> bool {
        self.open.is_empty() && self.end == "}"
    }

    /// A name as it stands in a call.
    pub fn written(&self, name: &str) -> String {
        match self.call.ends_with('"') {
            true => quoted(name),
            false => name.to_owned(),
        }
    }
}

/// As it stands within the quotes of a JSON string.
pub(super) fn quoted(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json[1..json.len() - 1].to_owned()
}
