use super::syntax::{ARGUMENTS, Args, Fields, Syntax, Words};

/// GLM 4.5 and 4.6, Ling 3.
pub(super) const GLM: Syntax = Syntax {
    name: "glm",
    trigger: Some("<tool_call>"),
    open: "",
    between: "\n",
    close: "",
    call: "<tool_call>",
    named: "\n",
    args: Args::Fields(FIELDS),
    bare_key: ARGUMENTS,
    end: "",
    id: None,
    markers: &["</tool_call>"],
};

/// GLM 4.7: the same without line ends.
pub(super) const GLM_CLOSE: Syntax = Syntax {
    between: "",
    named: "",
    args: Args::Fields(Fields {
        keyed: "</arg_key><arg_value>",
        value_end: "</arg_value>",
        whole: ("", "</tool_call>"),
        ..FIELDS
    }),
    ..GLM
};

const FIELDS: Fields = Fields {
    open: "",
    key: "<arg_key>",
    keyed: "</arg_key>\n<arg_value>",
    value_end: "</arg_value>\n",
    between: "",
    close: "</tool_call>",
    text: Some(("", "")),
    words: Words::Json,
    whole: ("", "\n</tool_call>"),
};

#[cfg(test)]
mod tests {
    use crate::text::output::cuts::table;

    #[test]
    fn keys_and_values_become_an_object() {
        table(
            "glm",
            &[
                (
                    "\n<think>Hm</think>\nI look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value> a\n\"b\" </arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>get\n</tool_call>",
                    &[
                        "think Hm",
                        "text I look.",
                        "call get_weather",
                        "args {\"city\": \" a\\n\\\"b\\\" \", \"days\": 3}",
                        "end",
                        "call get",
                        "args {}",
                        "end",
                    ],
                ),
                (
                    "<tool_call>get_weather<arg_key>city</arg_key><arg_value></arg_value></tool_call><tool_call>get</tool_call>",
                    &[
                        "call get_weather",
                        "args {\"city\": \"\"}",
                        "end",
                        "call get",
                        "args {}",
                        "end",
                    ],
                ),
                (
                    "<tool_call>get_weather\n<arg_key>note</arg_key>\n<arg_value>null</arg_value>\n<arg_key>unit</arg_key>\n<arg_value>C</arg_value>\n</tool_call>",
                    &["call get_weather", "args {\"note\": null, \"unit\": \"C\"}", "end"],
                ),
                ("<tool_call>getter</tool_call>", &["text getter"]),
                ("<tool_call>get", &[]),
            ],
        );
    }
}
