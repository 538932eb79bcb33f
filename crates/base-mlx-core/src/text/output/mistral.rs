use super::syntax::{ARGUMENTS, Args, Id, Syntax};

/// Mistral 7B v0.3, Nemo, Large 2, Small 3.1: a list behind one mark.
pub(super) const MISTRAL: Syntax = Syntax {
    name: "mistral",
    trigger: Some("[TOOL_CALLS]"),
    open: "[TOOL_CALLS][",
    between: ", ",
    close: "]",
    call: "{\"name\": \"",
    named: "\", \"arguments\": ",
    args: Args::Json,
    bare_key: ARGUMENTS,
    end: "}",
    id: Some(Id::AfterArgs(", \"id\": \"", "\"")),
    markers: &[],
};

/// The first of them, whose tokens have a space there.
pub(super) const MISTRAL_SPACE: Syntax = Syntax { open: "[TOOL_CALLS] [", ..MISTRAL };

/// From Small 3.2, Magistral and Devstral on: a mark before each call and another before its arguments.
pub(super) const MISTRAL_ARGS: Syntax = Syntax {
    name: "mistral-args",
    trigger: Some("[TOOL_CALLS]"),
    open: "",
    between: "",
    close: "",
    call: "[TOOL_CALLS]",
    named: "[ARGS]",
    args: Args::Json,
    bare_key: ARGUMENTS,
    end: "",
    id: Some(Id::AfterName("[CALL_ID]")),
    markers: &["[ARGS]", "[CALL_ID]"],
};

#[cfg(test)]
mod tests {
    use crate::text::output::cuts::table;

    #[test]
    fn a_list_behind_one_mark() {
        table(
            "mistral",
            &[
                (
                    "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"]\"}, \"id\": \"abcdefgh1\"}, {\"name\": \"get\", \"arguments\": {}}]",
                    &[
                        "call get_weather",
                        "args {\"city\": \"]\"}",
                        "end",
                        "call get",
                        "args {}",
                        "end",
                    ],
                ),
                (
                    "Hm [TOOL_CALLS] [{\"name\": \"get\", \"arguments\": {}, \"id\": \"abc",
                    &["text Hm ", "call get", "args {}"],
                ),
                ("[TOOL_CALLS][{\"name\": \"got\"}]", &["text [{\"name\": \"got\"}]"]),
                ("a [TOOL", &["text a "]),
                ("a [", &["text a ["]),
            ],
        );
    }

    #[test]
    fn a_mark_before_each_call() {
        table(
            "mistral-args",
            &[
                (
                    "Hm\n[TOOL_CALLS]get_weather[ARGS]{\"city\": \"x\"}[TOOL_CALLS]get[CALL_ID]abcdefgh1[ARGS]{}",
                    &[
                        "text Hm",
                        "call get_weather",
                        "args {\"city\": \"x\"}",
                        "end",
                        "call get",
                        "args {}",
                        "end",
                    ],
                ),
                ("[TOOL_CALLS]got[ARGS]{}", &["text got{}"]),
                ("[TOOL_CALLS]get[ARGS]{", &["call get", "args {"]),
                ("[TOOL_CALLS]get[CALL_ID]ab", &[]),
            ],
        );
    }
}
