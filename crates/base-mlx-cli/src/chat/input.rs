/// What a user's lines amount to. A message may be longer than a line: a backslash at the end continues it, and
/// `"""` opens a block that the next `"""` closes.
#[derive(Debug, Default)]
pub(crate) struct Message {
    text: String,
    open: Open,
}

#[derive(Debug, Default, PartialEq)]
enum Open {
    #[default]
    No,
    Continued,
    Block,
}

impl Message {
    /// Takes one line; the whole message when that was the last.
    pub(crate) fn push(&mut self, line: &str) -> Option<String> {
        let line = match self.open {
            Open::No => match line.trim_start().strip_prefix(FENCE) {
                Some(rest) => {
                    self.open = Open::Block;
                    // The line break after the fence is not part of the message.
                    if rest.is_empty() {
                        return None;
                    }
                    rest
                }
                None => line,
            },
            _ => line,
        };
        if self.open == Open::Block {
            let Some(rest) = line.trim_end().strip_suffix(FENCE) else {
                self.text += line;
                self.text += "\n";
                return None;
            };
            self.text += rest;
            // The one before the closing fence neither.
            if rest.is_empty() && self.text.ends_with('\n') {
                self.text.pop();
            }
            return Some(self.take());
        }
        if let Some(rest) = line.strip_suffix('\\') {
            self.text += rest;
            self.text += "\n";
            self.open = Open::Continued;
            return None;
        }
        self.text += line;
        Some(self.take())
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open != Open::No
    }

    pub(crate) fn take(&mut self) -> String {
        self.open = Open::No;
        std::mem::take(&mut self.text)
    }
}

const FENCE: &str = "\"\"\"";

/// A line that begins with `/` and speaks to us, not to the model.
#[derive(Debug, PartialEq)]
pub(crate) enum Command<'a> {
    Help,
    Reset,
    Show,
    Set { name: &'a str, value: &'a str },
    Bye,
    Unknown(&'a str),
}

impl<'a> Command<'a> {
    /// `None` is a message. A path such as `/usr/bin is …` is one too: no command has a second slash.
    pub(crate) fn parse(line: &'a str) -> Option<Self> {
        let line = line.trim();
        let rest = line.strip_prefix('/')?;
        let (word, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if word.contains('/') || word.is_empty() {
            return None;
        }
        Some(match word {
            "help" | "?" => Self::Help,
            "reset" | "clear" => Self::Reset,
            "show" => Self::Show,
            "set" => {
                let rest = rest.trim();
                let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                Self::Set { name, value: value.trim() }
            }
            "bye" | "exit" | "quit" => Self::Bye,
            _ => Self::Unknown(word),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(lines: &[&str]) -> Vec<String> {
        let mut message = Message::default();
        lines.iter().filter_map(|line| message.push(line)).collect()
    }

    #[test]
    fn a_line_is_a_message_unless_it_goes_on() {
        assert_eq!(
            messages(&["one", "two\\", "three\\", "four", ""]),
            ["one", "two\nthree\nfour", ""]
        );
    }

    #[test]
    fn a_block_keeps_its_lines_and_backslashes() {
        assert_eq!(messages(&["\"\"\"", "a\\", "", "b", "\"\"\""]), ["a\\\n\nb"]);
        assert_eq!(messages(&["\"\"\"a", "b\"\"\"", "c"]), ["a\nb", "c"]);
        assert_eq!(messages(&["\"\"\"a\"\"\""]), ["a"]);
        assert_eq!(messages(&["\"\"\"", "open"]), [""; 0]);
    }

    #[test]
    fn commands_are_told_from_messages() {
        let set = Command::Set { name: "system", value: "Be  brief." };
        assert_eq!(Command::parse("/set system  Be  brief. "), Some(set));
        assert_eq!(Command::parse("/bye"), Some(Command::Bye));
        assert_eq!(Command::parse("/bie"), Some(Command::Unknown("bie")));
        assert_eq!(Command::parse("/usr/bin/env is what?"), None);
        assert_eq!(Command::parse("what is /bye"), None);
    }
}
