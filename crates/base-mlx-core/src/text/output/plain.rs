use super::syntax::{ARGUMENTS, Args, Syntax};

/// For models whose template knows no tools: JSON as most have seen it.
pub(super) const PLAIN: Syntax = Syntax {
    name: "plain",
    trigger: None,
    open: "",
    between: "\n",
    close: "",
    call: "{\"name\": \"",
    named: "\", \"arguments\": ",
    args: Args::Json,
    bare_key: ARGUMENTS,
    end: "}",
    id: None,
    markers: &[],
};

#[cfg(test)]
mod tests {
    use crate::text::output::cuts::table;

    #[test]
    fn json_that_names_a_tool_is_a_call() {
        table(
            "plain",
            &[
                (
                    "{\"name\": \"get\", \"arguments\": {}}\n{\"name\": \"get\", \"arguments\": {}}",
                    &["call get", "args {}", "end", "call get", "args {}", "end"],
                ),
                (
                    "```json\n{\"name\": \"get\", \"arguments\": {}}\n```",
                    &["call get", "args {}", "end"],
                ),
                ("{\"name\": \"get", &["text {\"name\": \"get"]),
                ("{\"a\": 1}", &["text {\"a\": 1}"]),
            ],
        );
    }
}
