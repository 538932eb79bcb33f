use super::syntax::{ARGUMENTS, Args, Syntax};

/// DeepSeek V3 and R1.
pub(super) const DEEPSEEK_V3: Syntax = Syntax {
    name: "deepseek-v3",
    trigger: Some("<｜tool▁calls▁begin｜>"),
    open: "<｜tool▁calls▁begin｜>",
    between: "\n",
    close: "<｜tool▁calls▁end｜>",
    call: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    named: "\n```json\n",
    args: Args::Json,
    bare_key: ARGUMENTS,
    end: "\n```<｜tool▁call▁end｜>",
    id: None,
    markers: &[
        "<｜tool▁calls▁end｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
    ],
};

/// DeepSeek V3.1.
pub(super) const DEEPSEEK_V3_1: Syntax = Syntax {
    name: "deepseek-v3.1",
    between: "",
    call: "<｜tool▁call▁begin｜>",
    named: "<｜tool▁sep｜>",
    end: "<｜tool▁call▁end｜>",
    ..DEEPSEEK_V3
};

#[cfg(test)]
mod tests {
    use crate::text::output::cuts::table;

    #[test]
    fn calls_between_the_marks_of_v3() {
        table(
            "deepseek-v3",
            &[
                (
                    "<think>\nHm\n</think>\n\nI look.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"```\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
                    &[
                        "think Hm",
                        "text I look.",
                        "call get_weather",
                        "args {\"city\": \"```\"}",
                        "end",
                        "call get",
                        "args {}",
                        "end",
                    ],
                ),
                (
                    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>got\n```json\n{}\n```<｜tool▁call▁end｜>",
                    &["text functiongot\n```json\n{}\n```"],
                ),
                ("a<｜tool▁ca", &["text a"]),
            ],
        );
    }

    #[test]
    fn calls_between_the_marks_of_v3_1() {
        table(
            "deepseek-v3.1",
            &[(
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"x\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
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
}
