//! Messages said in ways that a template does not know.

use std::collections::BTreeMap;
use std::sync::Arc;

use base_mlx_core::text::{ChatInput, ChatTemplate, SpecialTokens, TemplateError};
use serde_json::{Map, Value, json};

use crate::support::test_models::test_model;

fn compile(source: &str) -> ChatTemplate {
    let sources = BTreeMap::from([("default".to_owned(), source.to_owned())]);
    ChatTemplate::compile(sources, SpecialTokens::new(), Arc::new(jiff::Zoned::now)).unwrap()
}

fn real(name: &str) -> ChatTemplate {
    let path = test_model(&format!("llama.cpp/models/templates/{name}.jinja"));
    compile(&std::fs::read_to_string(path).unwrap())
}

fn write(template: &ChatTemplate, messages: Value) -> Result<String, TemplateError> {
    template.render(&ChatInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: false,
        kwargs: &Map::new(),
    })
}

const PLAIN: &str = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}";

#[test]
fn a_developer_is_the_system() {
    let messages = json!([{ "role": "developer", "content": "Be kind." }]);
    assert_eq!(write(&compile(PLAIN), messages).unwrap(), "[system:Be kind.]");
}

#[test]
fn a_function_is_a_tool() {
    let messages = json!([{ "role": "function", "name": "f", "content": "1" }]);
    assert_eq!(write(&compile(PLAIN), messages).unwrap(), "[tool:1]");
}

#[test]
fn calls_of_old_are_tool_calls_and_their_answers_belong_to_them() {
    let source = "{% for m in messages %}[{% for c in m.tool_calls %}{{ c.type }} {{ c.id }} \
        {{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}{{ m.tool_call_id }}]{% endfor %}";
    let messages = json!([
        { "role": "assistant", "content": null, "tool_calls": null,
            "function_call": { "name": "f", "arguments": "{\"a\": 1}" } },
        { "role": "function", "name": "f", "content": "1" },
    ]);
    let text = write(&compile(source), messages).unwrap();
    assert_eq!(text, r#"[function call00001 f {"a": 1}][call00001]"#);
}

#[test]
fn null_and_empty_lists_of_calls_are_absence() {
    let source = "{% for m in messages %}{{ m.role }}{{ 'tool_calls' in m }}{{ m.name is defined }}{% endfor %}";
    let messages = json!([
        { "role": "user", "content": "hi", "tool_calls": null, "name": null },
        { "role": "assistant", "content": "hi", "tool_calls": [] },
    ]);
    let text = write(&compile(source), messages).unwrap();
    assert_eq!(text, "userFalseFalseassistantFalseFalse");
}

#[test]
fn refusals_and_reasoning_come_under_the_names_that_templates_know() {
    let source = "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}";
    let messages = json!([
        { "role": "assistant", "content": null, "refusal": "no" },
        { "role": "assistant", "content": [{ "type": "refusal", "refusal": "never" }] },
        { "role": "assistant", "content": "yes", "reasoning": "hm" },
    ]);
    assert_eq!(write(&compile(source), messages).unwrap(), "[|no][|never][hm|yes]");
}

#[test]
fn several_system_messages_become_one_at_the_beginning() {
    let messages = json!([
        { "role": "system", "content": "One." },
        { "role": "user", "content": "hello" },
        { "role": "developer", "content": [{ "type": "text", "text": "Two." }] },
    ]);
    assert_eq!(write(&compile(PLAIN), messages).unwrap(), "[system:One.\n\nTwo.][user:hello]");
}

#[test]
fn a_template_without_a_system_role_gets_its_words_with_the_question() {
    let gemma = real("google-gemma-2-2b-it");
    let messages = json!([
        { "role": "system", "content": "Be kind." },
        { "role": "user", "content": [{ "type": "text", "text": "hello" }] },
    ]);
    let text = write(&gemma, messages).unwrap();
    assert_eq!(text, "<start_of_turn>user\nBe kind.\n\nhello<end_of_turn>\n");
}

#[test]
fn parts_become_a_string_for_templates_that_want_one() {
    let messages = json!([{ "role": "user", "content": [
        { "type": "text", "text": "One." }, { "type": "text", "text": "Two." },
    ] }]);
    assert_eq!(write(&compile(PLAIN), messages.clone()).unwrap(), "[user:One.Two.]");
    let adds = "{% for m in messages %}{{ 'x' + m.content }}{% endfor %}";
    assert_eq!(write(&compile(adds), messages).unwrap(), "xOne.Two.");
}

#[test]
fn strings_become_parts_for_templates_that_want_those() {
    let wants_parts =
        "{% for m in messages %}{% for p in m.content %}({{ p.text }}){% endfor %}{% endfor %}";
    let messages = json!([
        { "role": "system", "content": "One." },
        { "role": "user", "content": "Two." },
    ]);
    assert_eq!(write(&compile(wants_parts), messages).unwrap(), "(One.)(Two.)");
}

fn called(arguments: &str) -> Value {
    json!([
        { "role": "user", "content": "hello" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "abcdef123", "type": "function", "function": { "name": "f", "arguments": arguments } },
        ] },
    ])
}

#[test]
fn arguments_are_an_object_for_templates_that_turn_them_into_json() {
    let text = write(&real("Qwen-Qwen2.5-7B-Instruct"), called(r#"{"z":1,"a":[2]}"#)).unwrap();
    assert!(text.contains(r#"{"name": "f", "arguments": {"z": 1, "a": [2]}}"#), "{text}");
    let text = write(&real("Qwen3-Coder"), called(r#"{"z":1,"a":[2]}"#)).unwrap();
    assert!(text.contains("<parameter=z>\n1\n</parameter>"), "{text}");
}

#[test]
fn arguments_are_a_string_for_templates_that_print_them() {
    let source = "{% for m in messages %}{{ m.role }}{% for c in m.tool_calls %}\
        {{ c.function.name ~ c.function.arguments }}{% endfor %}{% endfor %}";
    let text = write(&compile(source), called(r#"{"a":1}"#)).unwrap();
    assert_eq!(text, r#"userassistantf{"a":1}"#);
}

#[test]
fn arguments_that_are_no_object_stay_what_the_model_wrote() {
    for arguments in ["{\"a\":", "[1]", "", "7"] {
        write(&real("Qwen-Qwen2.5-7B-Instruct"), called(arguments)).unwrap();
        write(&real("meta-llama-Llama-3.1-8B-Instruct"), called(arguments)).unwrap();
    }
    let text = write(&real("Qwen-Qwen2.5-7B-Instruct"), called("{\"a\":")).unwrap();
    assert!(text.contains(r#""arguments": "{\"a\":"}"#), "{text}");
    let text = write(&real("Qwen-Qwen2.5-7B-Instruct"), called(" ")).unwrap();
    assert!(text.contains(r#""arguments": {}}"#), "{text}");
}

#[test]
fn no_content_is_never_printed_as_none() {
    for name in ["Qwen-Qwen2.5-7B-Instruct", "llama-cpp-deepseek-r1", "Qwen-Qwen3-0.6B"] {
        let text = write(&real(name), called("{}")).unwrap();
        assert!(!text.contains("None") && text.contains('f'), "{text}");
    }
    let messages = json!([{ "role": "assistant", "content": null }, { "role": "user" }]);
    assert_eq!(write(&compile(PLAIN), messages).unwrap(), "[assistant:][user:]");
}

#[test]
fn a_refusal_is_told_in_the_templates_words() {
    let refuses =
        "{% if messages[0].role == 'user' %}{{ raise_exception('Ask ' ~ 'nicely') }}{% endif %}";
    let error = write(&compile(refuses), json!([{ "role": "user", "content": "x" }])).unwrap_err();
    assert_eq!(error, TemplateError::Refused("Ask nicely".to_owned()));
}

#[test]
fn arguments_of_the_request_reach_the_template() {
    let kwargs = json!({ "enable_thinking": false, "messages": "ignored" });
    let messages = json!([{ "role": "user", "content": "hello" }]);
    let input = ChatInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        kwargs: kwargs.as_object().unwrap(),
    };
    let text = real("Qwen-Qwen3-0.6B").render(&input).unwrap();
    assert!(text.ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"), "{text}");
    assert!(text.contains("hello"));
}

#[test]
fn messages_that_are_none_are_errors_or_nothing() {
    for messages in [json!(null), json!("x"), json!([1, null, "x", [], {}]), json!({}), json!([])] {
        let _ = write(&compile(PLAIN), messages.clone());
        let _ = write(&real("meta-llama-Llama-3.1-8B-Instruct"), messages);
    }
}

#[test]
fn a_template_is_asked_whether_it_shows_tools_and_calls() {
    for (name, tools, calls) in [
        ("Qwen-Qwen2.5-7B-Instruct", true, true),
        // Would change a list to show them, which templates may not.
        ("Kimi-K2-Instruct", true, false),
        // Shows calls and no tools.
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", false, true),
        ("deepseek-ai-DeepSeek-V3.1", false, true),
        ("LFM2-8B-A1B", true, false),
        ("google-gemma-2-2b-it", false, false),
    ] {
        let template = real(name);
        assert_eq!((template.shows_tools(), template.shows_calls(true)), (tools, calls), "{name}");
    }
}

#[test]
fn tools_come_with_the_system_message_where_the_template_looks_for_them_there() {
    let source = "{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}\
        {{ '<|system|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|>' }}{% else %}\
        {{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}{% endfor %}";
    let template = compile(source);
    assert!(template.shows_tools());
    let tools = json!([{ "type": "function", "function": { "name": "f" } }]);
    let write = |messages: Value| {
        template.render(&ChatInput {
            messages: &messages,
            tools: Some(&tools),
            add_generation_prompt: false,
            kwargs: &Map::new(),
        })
    };
    let user = json!({ "role": "user", "content": "Hi" });
    assert_eq!(
        write(json!([user])).unwrap(),
        r#"<|system|><|tool|>[{"name":"f"}]<|/tool|><|user|>Hi"#
    );
    let system = json!({ "role": "system", "content": "Be kind." });
    assert_eq!(
        write(json!([system, user])).unwrap(),
        r#"<|system|>Be kind.<|tool|>[{"name":"f"}]<|/tool|><|user|>Hi"#
    );
}
