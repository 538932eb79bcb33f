use super::syntax::{ARGUMENTS, Args, Syntax};

/// Hermes 2 and 3, Qwen 2.5 and 3, QwQ, Granite 4, and whoever learned from them.
pub(super) const HERMES: Syntax = Syntax {
    name: "hermes",
    trigger: Some("<tool_call>"),
    open: "",
    between: "\n",
    close: "",
    call: "<tool_call>\n{\"name\": \"",
    named: "\", \"arguments\": ",
    args: Args::Json,
    bare_key: ARGUMENTS,
    end: "}\n</tool_call>",
    id: None,
    markers: &["</tool_call>"],
};

#[cfg(test)]
mod tests {
    use crate::text::output::Wanted;
    use crate::text::output::cuts::{auto, read, table};

    #[test]
    fn calls_are_read_from_their_tags() {
        table(
            "hermes",
            &[
                ("Hello", &["text Hello"]),
                (" \n", &["text  \n"]),
                ("a < b\n\n", &["text a < b\n\n"]),
                (
                    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\"}}\n</tool_call>",
                    &["call get_weather", "args {\"city\": \"Köln\"}", "end"],
                ),
                (
                    "Let me see.\n\n<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"</tool_call>}\\\"\"}}\n</tool_call>\n",
                    &[
                        "text Let me see.",
                        "call get",
                        "args {}",
                        "end",
                        "call get_weather",
                        "args {\"city\": \"</tool_call>}\\\"\"}",
                        "end",
                    ],
                ),
                // Other white space.
                (
                    " \n<tool_call>{\"name\":\"get\",\"arguments\":{ }}</tool_call>",
                    &["call get", "args { }", "end"],
                ),
                // Cut off.
                ("Well <tool_", &["text Well "]),
                ("Well <", &["text Well <"]),
                ("<tool_call>\n{\"name\": \"get_wea", &[]),
                (
                    "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"K",
                    &["call get_weather", "args {\"city\": \"K"],
                ),
                (
                    "<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool",
                    &["call get", "args {}"],
                ),
                // Not declared.
                (
                    "<tool_call>\n{\"name\": \"got\", \"arguments\": {}}\n</tool_call> so",
                    &["text \n{\"name\": \"got\", \"arguments\": {}} so"],
                ),
                (
                    "<tool_call>\n{\"name\": \"get\", \"arguments\": 5}",
                    &["text \n{\"name\": \"get\", \"arguments\": 5}"],
                ),
            ],
        );
    }

    #[test]
    fn json_that_names_a_tool_is_a_call_if_it_is_the_whole_answer() {
        table(
            "hermes",
            &[
                (
                    "```json\n{\n  \"name\": \"get_weather\",\n  \"arguments\": {\n    \"city\": \"x\"\n  }\n}\n```",
                    &["call get_weather", "args {\n    \"city\": \"x\"\n  }", "end"],
                ),
                (
                    "```\n{\"name\": \"get\", \"parameters\": {}}\n```\n",
                    &["call get", "args {}", "end"],
                ),
                ("{\"name\": \"get\", \"arguments\": {}}", &["call get", "args {}", "end"]),
                (
                    "{\"name\": \"got\", \"arguments\": {}}",
                    &["text {\"name\": \"got\", \"arguments\": {}}"],
                ),
                (
                    "{\"name\": \"get\", \"arguments\": 1}",
                    &["text {\"name\": \"get\", \"arguments\": 1}"],
                ),
                ("{\"name\": \"get\"}", &["text {\"name\": \"get\"}"]),
                ("{\"name\": \"ge", &["text {\"name\": \"ge"]),
                (
                    "{\"name\": \"get\", \"arguments\":",
                    &["text {\"name\": \"get\", \"arguments\":"],
                ),
                (
                    "So: {\"name\": \"get\", \"arguments\": {}}",
                    &["text So: {\"name\": \"get\", \"arguments\": {}}"],
                ),
                (
                    "``` json\n{\"name\": \"get\", \"arguments\": {}}\n```",
                    &["text ``` json\n{\"name\": \"get\", \"arguments\": {}}\n```"],
                ),
                ("```json\n{\"a\": 1}\n```", &["text ```json\n{\"a\": 1}\n```"]),
                ("```", &["text ```"]),
            ],
        );
    }

    #[test]
    fn thoughts_come_first_or_never() {
        table(
            "hermes",
            &[
                ("<think>\nHm.\n\nOk\n</think>\n\nYes", &["think Hm.\n\nOk", "text Yes"]),
                ("\n<think></think>Yes\n", &["text Yes\n"]),
                ("<think>a</thi", &["think a"]),
                ("<think>a < b", &["think a < b"]),
                ("<thi", &[]),
                ("<", &["text <"]),
                ("<thin air", &["text <thin air"]),
                ("Use <think>x</think>", &["text Use <think>x</think>"]),
                (
                    "<think>\n<tool_call>\n</think>\n\n<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>",
                    &["think <tool_call>", "call get", "args {}", "end"],
                ),
                (
                    "<think>\nx\n</think>\n\n```json\n{\"name\": \"get\", \"arguments\": {}}\n```",
                    &["think x", "call get", "args {}", "end"],
                ),
            ],
        );
        let opened = Wanted { opened: true, ..auto() };
        assert_eq!(read("hermes", &opened, "\nx\n</think>\n\n  y"), ["think x", "text   y"]);
        let thoughtless = Wanted { may_think: false, ..auto() };
        assert_eq!(read("hermes", &thoughtless, "<think>x"), ["text <think>x"]);
        let none = Wanted { may_think: true, ..Wanted::default() };
        assert_eq!(
            read("hermes", &none, "<think>x</think>\n\n<tool_call>"),
            ["think x", "text <tool_call>"]
        );
        assert_eq!(read("hermes", &none, "<tool_call>\n"), ["text <tool_call>\n"]);
    }

    #[test]
    fn beside_other_wanted_text_only_the_beginning_can_be_a_call() {
        use crate::text::output::{Rule, Spacing};
        use serde_json::json;
        let rule = Rule::Json { schema: json!({}), strict: false, spacing: Spacing::Flexible };
        let wanted = Wanted { content: Some(("response_format".to_owned(), rule)), ..auto() };
        for (text, lines) in [
            ("{\"a\": \"<tool_call>\"}", &["text {\"a\": \"<tool_call>\"}"][..]),
            (
                "{\"name\": \"get\", \"arguments\": {}}",
                &["text {\"name\": \"get\", \"arguments\": {}}"],
            ),
            (
                "<tool_call>\n{\"name\": \"get\", \"arguments\": {}}\n</tool_call>",
                &["call get", "args {}", "end"],
            ),
            ("<tool_", &[]),
            // As the grammar has it, to the letter.
            (
                "<tool_call>{\"name\": \"get\", \"arguments\": {}}\n</tool_call>",
                &["text <tool_call>{\"name\": \"get\", \"arguments\": {}}\n</tool_call>"],
            ),
        ] {
            assert_eq!(read("hermes", &wanted, text), lines);
        }
    }

    #[test]
    fn wanted_text_that_was_cut_off_is_no_mark() {
        use crate::text::output::{Rule, Spacing};
        use serde_json::json;
        let schema = json!({ "type": "object", "properties": {}, "additionalProperties": false });
        let rule = Rule::Json { schema, strict: false, spacing: Spacing::Flexible };
        let wanted = Wanted { content: Some(("response_format".to_owned(), rule)), ..auto() };
        for (format, text) in
            [("llama3-json", "{\"na"), ("mistral", "[\n"), ("mistral", " ["), ("hermes", "\n{")]
        {
            assert_eq!(read(format, &wanted, text), [format!("text {text}")], "{format}");
        }
        assert!(read("mistral", &wanted, "[TO").is_empty());
    }
}
