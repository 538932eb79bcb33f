use super::syntax::{ARGUMENTS, Args, Fields, PARAMETERS, Syntax, Words};

/// Llama 3.1 to 3.3. A call is the whole answer; one that stands for code has a mark before it.
pub(super) const LLAMA3_JSON: Syntax = Syntax {
    name: "llama3-json",
    trigger: Some("<|python_tag|>"),
    open: "",
    between: "; ",
    close: "",
    call: "{\"name\": \"",
    named: "\", \"parameters\": ",
    args: Args::Json,
    bare_key: PARAMETERS,
    end: "}",
    id: None,
    markers: &[],
};

/// Llama 3.2's other way, and Llama 4's: a list of Python's calls.
pub(super) const LLAMA3_PYTHONIC: Syntax = Syntax {
    name: "llama3-pythonic",
    trigger: None,
    open: "[",
    between: ", ",
    close: "]",
    call: "",
    named: "(",
    args: PYTHON,
    bare_key: ARGUMENTS,
    end: "",
    id: None,
    markers: &[],
};

/// LFM 2 and 2.5: the same between marks.
pub(super) const LFM2: Syntax = Syntax {
    name: "lfm2",
    trigger: Some("<|tool_call_start|>"),
    open: "<|tool_call_start|>[",
    close: "]<|tool_call_end|>",
    markers: &["<|tool_call_end|>"],
    ..LLAMA3_PYTHONIC
};

/// Arguments of a call in Python; what is not plain fields is spread from a dictionary.
pub(super) const PYTHON: Args = Args::Fields(Fields {
    open: "",
    key: "",
    keyed: "=",
    value_end: "",
    between: ", ",
    close: ")",
    text: None,
    words: Words::Python,
    whole: ("**", ")"),
});

#[cfg(test)]
mod tests {
    use crate::text::output::cuts::table;

    #[test]
    fn json_is_a_call_and_so_is_what_stands_behind_the_mark() {
        table(
            "llama3-json",
            &[
                (
                    "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"x\"}}",
                    &["call get_weather", "args {\"city\": \"x\"}", "end"],
                ),
                (
                    "<|python_tag|>{\"name\": \"get\", \"parameters\": {}}; {\"name\": \"get\", \"parameters\": {}}",
                    &["call get", "args {}", "end", "call get", "args {}", "end"],
                ),
                (
                    "{\"name\": \"get\", \"parameters\": {}}; {\"name\": \"get\", \"parameters\": {}}",
                    &["call get", "args {}", "end", "call get", "args {}", "end"],
                ),
                ("<|python_tag|>print(1)", &["text print(1)"]),
                (
                    "{\"na me\": \"get\", \"parameters\": {}}",
                    &["text {\"na me\": \"get\", \"parameters\": {}}"],
                ),
                (
                    "{\"name\": \"get_ weather\", \"parameters\": {}}",
                    &["text {\"name\": \"get_ weather\", \"parameters\": {}}"],
                ),
                ("{\"city\": 1}", &["text {\"city\": 1}"]),
                ("<|python", &[]),
            ],
        );
    }

    #[test]
    fn a_list_of_pythons_calls() {
        table(
            "llama3-pythonic",
            &[
                (
                    "[get_weather(city='it\\'s', days=3, rain=True), get()]",
                    &[
                        "call get_weather",
                        "args {\"city\": \"it's\", \"days\": 3, \"rain\": true}",
                        "end",
                        "call get",
                        "args {}",
                        "end",
                    ],
                ),
                ("\n[\n get()]", &["call get", "args {}", "end"]),
                // What the grammar takes for text is text.
                ("[ge t()]", &["text [ge t()]"]),
                ("[get ()]", &["text [get ()]"]),
                ("[1, 2]", &["text [1, 2]"]),
                ("[get_weath", &["text [get_weath"]),
                ("[got()]", &["text [got()]"]),
                ("So [get()]", &["text So [get()]"]),
            ],
        );
        table(
            "lfm2",
            &[(
                "So\n<|tool_call_start|>[get_weather(city=\"x\"), get()]<|tool_call_end|>",
                &[
                    "text So",
                    "call get_weather",
                    "args {\"city\": \"x\"}",
                    "end",
                    "call get",
                    "args {}",
                    "end",
                ],
            )],
        );
    }
}
