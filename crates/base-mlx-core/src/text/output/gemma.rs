use super::llama3::PYTHON;
use super::syntax::{ARGUMENTS, Args, Fields, Syntax, Words};

/// FunctionGemma.
pub(super) const GEMMA: Syntax = Syntax {
    name: "gemma",
    trigger: Some("<start_function_call>"),
    open: "",
    between: "",
    close: "",
    call: "<start_function_call>call:",
    named: "",
    args: Args::Fields(FIELDS),
    bare_key: ARGUMENTS,
    end: "<end_function_call>",
    id: None,
    markers: &["<end_function_call>", "<escape>"],
};

/// Gemma 4: the same with other marks.
pub(super) const GEMMA4: Syntax = Syntax {
    name: "gemma4",
    trigger: Some("<|tool_call>"),
    call: "<|tool_call>call:",
    args: Args::Fields(Fields { text: Some(("<|\"|>", "<|\"|>")), ..FIELDS }),
    end: "<tool_call|>",
    markers: &["<tool_call|>", "<|\"|>"],
    ..GEMMA
};

/// Gemma 3, as its makers say it may be asked: Python in a fence.
pub(super) const GEMMA_FENCED: Syntax = Syntax {
    name: "gemma-fenced",
    trigger: Some("```tool_code"),
    open: "```tool_code\n",
    between: "\n",
    close: "\n```",
    call: "",
    named: "(",
    args: PYTHON,
    bare_key: ARGUMENTS,
    end: "",
    id: None,
    markers: &[],
};

const FIELDS: Fields = Fields {
    open: "{",
    key: "",
    keyed: ":",
    value_end: "",
    between: ",",
    close: "}",
    text: Some(("<escape>", "<escape>")),
    words: Words::Json,
    whole: ("", ""),
};

#[cfg(test)]
mod tests {
    use crate::text::output::cuts::table;

    #[test]
    fn fields_with_marks_around_text() {
        table(
            "gemma",
            &[
                (
                    "<start_function_call>call:get_weather{city:<escape> a}\" <escape>,days:3,unit:<escape>C<escape>,rain:false}<end_function_call><start_function_call>call:get{}<end_function_call>",
                    &[
                        "call get_weather",
                        "args {\"city\": \" a}\\\" \", \"days\": 3, \"unit\": \"C\", \"rain\": false}",
                        "end",
                        "call get",
                        "args {}",
                        "end",
                    ],
                ),
                ("<start_function_call>call:getter{}<end_function_call>", &["text call:getter{}"]),
                ("<start_function_call>call:got{}<end_function_call>", &["text call:got{}"]),
                ("x <start_fun", &["text x "]),
            ],
        );
        table(
            "gemma4",
            &[(
                "<|tool_call>call:get_weather{city:<|\"|>x<|\"|>}<tool_call|><|tool_call>call:get{}<tool_call|>",
                &[
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

    #[test]
    fn python_in_a_fence() {
        table(
            "gemma-fenced",
            &[
                (
                    "I look.\n```tool_code\nget_weather(city=\"x\", rain=False)\nget()\n```",
                    &[
                        "text I look.",
                        "call get_weather",
                        "args {\"city\": \"x\", \"rain\": false}",
                        "end",
                        "call get",
                        "args {}",
                        "end",
                    ],
                ),
                ("```python\nget()\n```", &["text ```python\nget()\n```"]),
                ("```tool_code\nx = 1\n```", &["text \nx = 1\n```"]),
                ("a\n```tool", &["text a\n"]),
            ],
        );
    }
}
