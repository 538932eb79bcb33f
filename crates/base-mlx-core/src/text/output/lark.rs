use std::fmt::Write;

use super::fields::{Arguments, Field, Kind};
use super::syntax::{self, Args, BARE_KEYS, Fields, ID, Id, Syntax, ThoughtMarks, quoted};
use super::{Calls, GrammarSource, Part, Rule, Spacing, Tool, Wanted};

/// Writes the grammar of an answer, rule by rule.
#[derive(Debug, Default)]
pub(super) struct Lark {
    rules: String,
    parts: Vec<Part>,
}

/// The grammar of an answer with thoughts between marks and calls as `syntax` has them.
pub(super) fn grammar(
    syntax: &'static Syntax,
    thoughts: Option<&'static ThoughtMarks>,
    wanted: &Wanted,
) -> Option<GrammarSource> {
    let calls = &wanted.calls;
    if calls.tools.is_empty() && wanted.content.is_none() {
        return None;
    }
    let mut lark = Lark::default();
    let begun = thoughts.filter(|_| wanted.opened);
    let may_begin = thoughts.filter(|_| wanted.may_think && !wanted.opened);
    if let Some((origin, rule)) = &wanted.content {
        lark.part("content", origin, rule.clone());
    }
    if calls.tools.is_empty() {
        lark.rule("answer", "@content");
    } else {
        lark.calls(syntax, calls);
    }
    let is_text = !calls.tools.is_empty() && !calls.required && wanted.content.is_none();
    let start = match (is_text, begun, may_begin) {
        (true, Some(_), _) => "thoughts answer",
        (true, None, Some(_)) => "thoughts answer | unthought",
        (false, Some(_), _) => "thoughts LINES? answer",
        (false, None, Some(_)) => "(thoughts LINES?)? answer",
        (_, None, None) => "answer",
    };
    lark.rule("start", start);
    if let Some(thoughts) = begun {
        lark.rule("thoughts[lazy]", &format!("TEXT {}", literal(thoughts.close)));
    } else if let Some(thoughts) = may_begin {
        let (open, close) = (literal(thoughts.open), literal(thoughts.close));
        lark.rule("thoughts[lazy]", &format!("LEAD {open} TEXT {close}"));
        if is_text {
            // An answer that begins with the mark is within it.
            lark.rule("UNTHOUGHT", &format!("TEXT & ~(SPACE {open} TEXT)"));
        }
    }
    if is_text {
        lark.auto(syntax, calls, "answer", "TEXT");
        if may_begin.is_some() && begun.is_none() {
            lark.auto(syntax, calls, "unthought", "UNTHOUGHT");
        }
    } else if !calls.tools.is_empty() {
        let answer = match (calls.required, &wanted.content) {
            (false, Some((_, Rule::Json { schema: _, strict: _, spacing })))
                if syntax.is_bare() =>
            {
                lark.bare_beside_content(syntax, calls, *spacing)
            }
            (false, Some(_)) => "calls | @content".to_owned(),
            _ => "calls".to_owned(),
        };
        lark.rule("answer", &answer);
    }
    Some(lark.finish())
}

impl Lark {
    pub(super) fn finish(mut self) -> GrammarSource {
        self.rules.push_str(TERMINALS);
        GrammarSource { lark: self.rules, parts: self.parts }
    }

    pub(super) fn rule(&mut self, name: &str, body: &str) {
        let _ = writeln!(self.rules, "{name}: {body}");
    }

    pub(super) fn part(&mut self, name: &str, origin: &str, rule: Rule) {
        self.parts.push(Part { name: name.to_owned(), origin: origin.to_owned(), rule });
    }

    /// The arguments of a tool as a JSON object.
    pub(super) fn object(&mut self, name: &str, tool: &Tool, spacing: Spacing) {
        let schema = super::fields::object(&tool.parameters);
        self.part(name, &tool.origin, Rule::Json { schema, strict: tool.strict, spacing });
    }

    /// `calls`, `rest0`... from the arguments to a call's end, `more` calls and `over`, what comes behind the last.
    fn calls(&mut self, syntax: &'static Syntax, calls: &Calls) {
        for (index, tool) in calls.tools.iter().enumerate() {
            self.rest(syntax, index, tool);
        }
        let more = if calls.parallel { "more*" } else { "" };
        self.rule("over", &format!("{more} {}", literal(syntax.close)));
        let next = heads(syntax, calls, &syntax.next());
        self.rule("more", &next);
        let first = heads(syntax, calls, &[syntax.open, syntax.call].concat());
        self.rule("calls", &format!("({first}) over"));
    }

    /// `rest0` from behind a tool's name on, `behind0` from its arguments on.
    fn rest(&mut self, syntax: &'static Syntax, index: usize, tool: &Tool) {
        let named = literal(syntax.named);
        let named = match syntax.id {
            Some(Id::AfterName(open)) => format!("({} /{ID}/)? {named}", literal(open)),
            _ => named,
        };
        self.rule(&format!("rest{index}"), &format!("{named} behind{index}"));
        let end = match syntax.id {
            Some(Id::AfterArgs(open, close)) => {
                format!("({} /{ID}/ {})? {}", literal(open), literal(close), literal(syntax.end))
            }
            _ => literal(syntax.end),
        };
        let args = match (Arguments::of(syntax, tool), &syntax.args) {
            (Arguments::Fields(fields), Args::Fields(marks)) => {
                self.fields(marks, index, tool, &fields);
                format!("{} first{index}_0", literal(marks.open))
            }
            (Arguments::Whole { open, close, .. }, _) => {
                self.object(&format!("args{index}"), tool, Spacing::Compact);
                format!("{} @args{index} {}", literal(open), literal(close))
            }
            (Arguments::Fields(_), Args::Json) => return,
        };
        self.rule(&format!("behind{index}"), &format!("{args} {end}"));
    }

    /// Fields in their order, required ones for sure. `first` rules come where no field has been written.
    fn fields(&mut self, marks: &Fields, tool_index: usize, tool: &Tool, fields: &[Field]) {
        let rule = |kind: &str, at: usize| format!("{kind}{tool_index}_{at}");
        for (at, field) in fields.iter().enumerate() {
            let value = self.value(marks, &format!("args{tool_index}_{at}"), tool, field);
            let text = marks.text.filter(|_| field.kind.is_raw()).map_or("", |(open, _)| open);
            let key = [marks.key, &field.name, marks.keyed, text].concat();
            let next = rule("further", at + 1);
            for (kind, between) in [("first", ""), ("further", marks.between)] {
                let mut body = format!("{} {value} {next}", literal(&[between, &key].concat()));
                if !field.required {
                    let _ = write!(body, " | {}", rule(kind, at + 1));
                }
                self.rule(&rule(kind, at), &body);
            }
        }
        for kind in ["first", "further"] {
            self.rule(&rule(kind, fields.len()), &literal(marks.close));
        }
    }

    /// A value and what ends it.
    fn value(&mut self, marks: &Fields, name: &str, tool: &Tool, field: &Field) -> String {
        let raw_end = [marks.text.map_or("", |(_, close)| close), marks.value_end].concat();
        match &field.kind {
            Kind::Text | Kind::TextOrNull => {
                let end = raw_end.trim_end();
                self.rule(&format!("{name}[lazy]"), &format!("TEXT {}", literal(end)));
                format!("{name} {}", literal(&raw_end[end.len()..]))
            }
            Kind::Choice(texts) => {
                let texts: Vec<String> =
                    texts.iter().map(|text| literal(&[text, &*raw_end].concat())).collect();
                format!("({})", texts.join(" | "))
            }
            Kind::Truth => format!("(\"True\" | \"False\") {}", literal(marks.value_end)),
            Kind::Json(schema) => {
                let rule = Rule::Json {
                    schema: schema.clone(),
                    strict: tool.strict,
                    spacing: Spacing::Compact,
                };
                let origin = format!("{}.properties.{}", tool.origin, field.name);
                self.part(name, &origin, rule);
                format!("@{name} {}", literal(marks.value_end))
            }
        }
    }

    /// Text, or text and calls, or a call without marks: `text` is a terminal for the text.
    fn auto(&mut self, syntax: &'static Syntax, calls: &Calls, name: &str, text: &str) {
        let mut answers = vec![text.to_owned()];
        if let Some(trigger) = syntax.trigger {
            let first = heads(syntax, calls, &syntax.behind_trigger());
            self.rule(&format!("{name}_text[lazy]"), &format!("{text} {}", literal(trigger)));
            answers.push(format!("{name}_text ({first}) over"));
        } else if !syntax.is_bare() {
            for (index, tool) in calls.tools.iter().enumerate() {
                let rule = format!("{name}_start{index}");
                self.rule(&format!("{rule}[lazy]"), &spaced(&syntax.unmarked_head(&tool.name)));
                answers.push(format!("{rule} behind{index} over"));
            }
        }
        answers.push("bare".to_owned());
        self.rule(name, &answers.join(" | "));
        if name == "answer" {
            self.bare(syntax, calls);
        }
    }

    /// JSON that names a tool, in a fence or not, is a call: what small models write in place of their format.
    fn bare(&mut self, syntax: &'static Syntax, calls: &Calls) {
        let mut calls_of_all = Vec::new();
        for (index, tool) in calls.tools.iter().enumerate() {
            self.object(&format!("bare{index}"), tool, Spacing::Flexible);
            let heads = BARE_KEYS.map(|key| spaced(&syntax::bare_head(&tool.name, key)));
            let head = heads.join(" | ");
            self.rule(&format!("open{index}[lazy]"), &head);
            self.rule(
                &format!("fenced{index}[lazy]"),
                &format!("SPACE \"```\" \"json\"? ({head})"),
            );
            let over = if syntax.is_bare() { "over" } else { "" };
            calls_of_all.push(format!("open{index} GAP? @bare{index} GAP? \"}}\" {over}"));
            calls_of_all.push(format!("fenced{index} GAP? @bare{index} GAP? \"}}\" GAP? \"```\""));
        }
        self.rule("bare", &calls_of_all.join(" | "));
    }

    /// A call that is JSON where any JSON may be: the same tokens, so that what comes decides.
    fn bare_beside_content(
        &mut self,
        syntax: &'static Syntax,
        calls: &Calls,
        spacing: Spacing,
    ) -> String {
        let mut answers = vec!["@content".to_owned()];
        let key = syntax.bare_key;
        for (index, tool) in calls.tools.iter().enumerate() {
            let mut schema = super::fields::object(&tool.parameters);
            // What its references lead to is in it, and not in the call.
            if let Some(schema) = schema.as_object_mut()
                && super::fields::has_reference(&tool.parameters)
            {
                schema.entry("$id").or_insert_with(|| "call:arguments".into());
            }
            let call = serde_json::json!({
                "type": "object",
                "properties": { "name": { "const": tool.name }, key: schema },
                "required": ["name", key],
                "additionalProperties": false,
            });
            let rule = Rule::Json { schema: call, strict: tool.strict, spacing };
            self.part(&format!("call{index}"), &tool.origin, rule);
            answers.push(format!("@call{index}"));
        }
        answers.join(" | ")
    }
}

/// A call of one of the tools, behind `before`.
fn heads(syntax: &Syntax, calls: &Calls, before: &str) -> String {
    let head = |(index, tool): (usize, &Tool)| {
        let name = literal(&[before, &*syntax.written(&tool.name)].concat());
        format!("{name} rest{index}")
    };
    let heads: Vec<String> = calls.tools.iter().enumerate().map(head).collect();
    heads.join(" | ")
}

/// As Lark has it.
pub(crate) fn literal(text: &str) -> String {
    let json = format!("\"{}\"", quoted(text));
    json.replace('\u{7f}', "\\u007f")
}

/// The pieces of a text, with white space before each.
fn spaced(pieces: &[String]) -> String {
    let pieces: Vec<String> =
        pieces.iter().map(|piece| format!("SPACE {}", literal(piece))).collect();
    pieces.join(" ")
}

const TERMINALS: &str = r#"TEXT: /(.|\n)*/
SPACE: /[ \t\r\n]*/
LEAD: /[ \t\r\n]{0,4}/
GAP: /[ \t\n]{1,24}/
LINES: /\n{1,2}/
"#;
