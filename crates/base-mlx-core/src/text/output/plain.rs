use super::syntax::{Args, Syntax};

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
    end: "}",
    id: None,
    markers: &[],
};
