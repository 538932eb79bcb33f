//! Formats whose calls are one list in JSON between marks.

use super::syntax::{ARGUMENTS, Args, Id, Syntax};

/// Phi-4-mini.
pub(super) const PHI4: Syntax = Syntax {
    name: "phi4",
    trigger: Some("<|tool_call|>"),
    open: "<|tool_call|>[",
    between: ", ",
    close: "]<|/tool_call|>",
    call: "{\"name\": \"",
    named: "\", \"arguments\": ",
    args: Args::Json,
    bare_key: ARGUMENTS,
    end: "}",
    id: None,
    markers: &["<|/tool_call|>"],
};

/// Granite 3: the list ends without a mark.
pub(super) const GRANITE3: Syntax = Syntax { name: "granite3", close: "]", markers: &[], ..PHI4 };

/// Nemotron Nano 2.
pub(super) const NEMOTRON: Syntax = Syntax {
    name: "nemotron",
    trigger: Some("<TOOLCALL>"),
    open: "<TOOLCALL>[",
    close: "]</TOOLCALL>",
    markers: &["</TOOLCALL>"],
    ..PHI4
};

/// Apriel 1.5 and 1.6.
pub(super) const APRIEL: Syntax = Syntax {
    name: "apriel",
    trigger: Some("<tool_calls>"),
    open: "<tool_calls>[",
    close: "]</tool_calls>",
    id: Some(Id::AfterArgs(", \"id\": \"", "\"")),
    markers: &["</tool_calls>"],
    ..PHI4
};

#[cfg(test)]
mod tests {
    use crate::text::output::cuts::table;

    #[test]
    fn a_list_between_marks() {
        let list = "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"x\"}}, {\"name\": \"get\", \"arguments\": {}}]";
        let calls =
            ["call get_weather", "args {\"city\": \"x\"}", "end", "call get", "args {}", "end"];
        table("granite3", &[(list, &calls)]);
        table(
            "phi4",
            &[
                (&format!("{list}<|/tool_call|>"), &calls),
                (&format!("{list}<|/tool"), &calls),
                ("<|tool_call|>[]<|/tool_call|>", &["text []"]),
                ("a<|tool", &["text a"]),
            ],
        );
    }
}
