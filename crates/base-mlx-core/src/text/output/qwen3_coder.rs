use super::syntax::{ARGUMENTS, Args, Fields, Syntax, Words};

/// Qwen3-Coder, Qwen 3.5, Nemotron 3, Step 3.5.
pub(super) const QWEN3_CODER: Syntax = Syntax {
    name: "qwen3-coder",
    trigger: Some("<tool_call>"),
    open: "",
    between: "\n",
    close: "",
    call: "<tool_call>\n<function=",
    named: ">\n",
    args: Args::Fields(Fields {
        open: "",
        key: "<parameter=",
        keyed: ">\n",
        value_end: "\n</parameter>\n",
        between: "",
        close: "</function>",
        text: Some(("", "")),
        words: Words::Json,
        whole: ("", "\n</function>"),
    }),
    bare_key: ARGUMENTS,
    end: "\n</tool_call>",
    id: None,
    markers: &["</tool_call>"],
};

#[cfg(test)]
mod tests {
    use crate::text::output::cuts::table;

    #[test]
    fn parameters_become_an_object() {
        table(
            "qwen3-coder",
            &[
                (
                    "I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nA \"b\"</parameter> c\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=rain>\ntrue\n</parameter>\n</function>\n</tool_call>",
                    &[
                        "text I look.",
                        "call get_weather",
                        "args {\"city\": \"A \\\"b\\\"</parameter> c\\n\", \"days\": 3, \"rain\": true}",
                        "end",
                    ],
                ),
                (
                    "<tool_call>\n<function=get>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n<parameter=city>\n  x\n</parameter>\n<parameter=unit>\nC\n</parameter>\n</function>\n</tool_call>",
                    &[
                        "call get",
                        "args {}",
                        "end",
                        "call get_weather",
                        "args {\"city\": \"  x\", \"unit\": \"C\"}",
                        "end",
                    ],
                ),
                (
                    "<tool_call>\n<function=get_weather>\n<parameter=city>\nnull\n</parameter>\n<parameter=note>\nnull\n</parameter>\n</function>\n</tool_call>",
                    &["call get_weather", "args {\"city\": \"null\", \"note\": null}", "end"],
                ),
                (
                    "<tool_call>\n<function=get_weather>\n<parameter=note>\nnull \"\n</parameter>\n</function>\n</tool_call>",
                    &["call get_weather", "args {\"note\": \"null \\\"\"}", "end"],
                ),
                (
                    "<tool_call>\n<function=get_weather>\n<parameter=note>\n\n</parameter>\n</function>\n</tool_call>",
                    &["call get_weather", "args {\"note\": \"\"}", "end"],
                ),
                (
                    "<tool_call>\n<function=get_weather>\n<parameter=note>\nnul\n</para",
                    &["call get_weather", "args {\"note\": "],
                ),
                (
                    "<tool_call>\n<function=got>\n</function>\n</tool_call>",
                    &["text \n<function=got>\n</function>"],
                ),
                (
                    "<tool_call>\n<function=get_weather>\n<parameter=city>\nx\n</para",
                    &["call get_weather", "args {\"city\": \"x"],
                ),
            ],
        );
    }
}
