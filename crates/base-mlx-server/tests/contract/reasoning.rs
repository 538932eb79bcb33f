//! Thoughts apart from answers. No model as small as ours thinks by itself, so one is made to: its chat template opens
//! its thoughts, and a budget or the grammar closes them.

use std::sync::LazyLock;

use base_mlx_server::ReasoningField;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Reply, SERVER, TestServer, capital, content, streamed, user, with};
use crate::test_models::test_model;

/// `thinker`, which can be told not to think, and `mule`, which cannot.
static THINKER: LazyLock<(TestServer, TempDir)> =
    LazyLock::new(|| thinkers(ReasoningField::default()));

fn thinkers(field: ReasoningField) -> (TestServer, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let turns = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n\
                 {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n";
    let switch = "{% if enable_thinking is defined and not enable_thinking %}{{ '\\n</think>\\n\\n' }}{% endif %}";
    for (name, template) in [
        ("thinker", format!("{turns}{switch}{{% endif %}}")),
        ("mule", format!("{turns}{{% endif %}}{{# </think> #}}")),
    ] {
        let mut file = std::fs::read(test_model("smollm2.gguf")).unwrap();
        exchange_template(&mut file, &template);
        std::fs::write(folder.path().join(format!("{name}.gguf")), file).unwrap();
    }
    let server = TestServer::with_models(folder.path(), |options| options.reasoning_field = field);
    (server, folder)
}

/// Puts another template in the place of the file's own, filled up to the same length.
fn exchange_template(file: &mut [u8], template: &str) {
    let key = b"tokenizer.chat_template";
    let at = file.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    // The type of the value, a string, then its length, then its bytes.
    let length = u64::from_le_bytes(file[at + 4..at + 12].try_into().unwrap()) as usize;
    let padding = (length - template.len()).checked_sub("{##}".len()).unwrap();
    let filled = format!("{template}{{#{}#}}", " ".repeat(padding));
    file[at + 12..at + 12 + length].copy_from_slice(filled.as_bytes());
}

fn think(fields: Value) -> Reply {
    THINKER.0.chat(with(with(capital(), json!({ "model": "thinker", "max_tokens": 40 })), fields))
}

fn thoughts(answer: &Value) -> Option<&str> {
    answer["choices"][0]["message"].get("reasoning_content").map(|text| text.as_str().unwrap())
}

fn finish(answer: &Value) -> &str {
    answer["choices"][0]["finish_reason"].as_str().unwrap()
}

fn reasoning_tokens(answer: &Value) -> u64 {
    answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap()
}

#[test]
fn point_48_thoughts_are_told_apart_from_the_answer() {
    let answer = think(json!({ "reasoning_budget": 5 })).ok();
    let message = &answer["choices"][0]["message"];
    let keys: Vec<&String> = message.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["role", "content", "reasoning_content", "refusal", "annotations"]);
    assert!(!thoughts(&answer).unwrap().is_empty() && !content(&answer).is_empty(), "{answer}");
    for text in [thoughts(&answer).unwrap(), content(&answer)] {
        assert!(!text.contains("think>"), "{text}");
    }
    assert!(reasoning_tokens(&answer) >= 5, "{answer}");
    let completion = answer["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(completion > reasoning_tokens(&answer) && completion <= 40);

    // Point 17.
    let streaming = json!({ "reasoning_budget": 5, "stream": true, "stream_options": { "include_usage": true } });
    let chunks = think(streaming).chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let deltas = chunks.iter().filter_map(|chunk| chunk["choices"].get(0)?.get("delta"));
    let thought: Vec<&str> =
        deltas.filter_map(|delta| delta.get("reasoning_content")?.as_str()).collect();
    assert!(thought.len() > 2, "{thought:?}");
    assert_eq!(thought.concat(), thoughts(&answer).unwrap());
    assert_eq!(streamed(&chunks, 0), content(&answer));
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], completion);
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], reasoning_tokens(&answer));
}

#[test]
fn point_48_thoughts_have_the_name_that_the_server_was_told() {
    for (field, names) in [
        (ReasoningField::Reasoning, vec!["reasoning"]),
        (ReasoningField::Both, vec!["reasoning_content", "reasoning"]),
    ] {
        let (server, _folder) = thinkers(field);
        let body = with(capital(), json!({ "model": "thinker", "reasoning_budget": 5 }));
        let answer = server.chat(body).ok();
        let message = &answer["choices"][0]["message"];
        for name in ["reasoning_content", "reasoning"] {
            assert_eq!(message.get(name).is_some(), names.contains(&name), "{message}");
        }
    }
}

#[test]
fn point_48_marks_that_are_a_part_of_the_answer_stay() {
    let text = "Write <think>a</think> in code.";
    let fields = json!({ "grammar": { "choice": [text] } });
    assert_eq!(content(&SERVER.chat(with(capital(), fields.clone())).ok()), text);
    let answer = think(with(fields, json!({ "reasoning_budget": 8 }))).ok();
    assert_eq!(content(&answer), text);
    assert!(!thoughts(&answer).unwrap().contains("think>"));
}

#[test]
fn point_20_stops_do_not_end_thoughts() {
    let fields = json!({ "reasoning_budget": 16, "grammar": { "choice": ["alpha STOP omega"] } });
    let plain = think(fields.clone()).ok();
    let thought = thoughts(&plain).unwrap().to_owned();
    assert_eq!(content(&plain), "alpha STOP omega");
    let word =
        thought.split_whitespace().find(|word| word.len() > 2 && !content(&plain).contains(word));
    let answer = think(with(fields, json!({ "stop": [word.unwrap(), "STOP"] }))).ok();
    assert_eq!(thoughts(&answer), Some(&thought[..]));
    assert_eq!((content(&answer), finish(&answer)), ("alpha ", "stop"));
}

#[test]
fn point_40_a_grammar_begins_behind_the_thoughts() {
    let schema = json!({
        "type": "object", "properties": { "city": { "enum": ["Paris", "Rome"] } },
        "required": ["city"], "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": schema } });
    let answer = think(json!({ "reasoning_budget": 10, "response_format": format })).ok();
    assert!(!thoughts(&answer).unwrap().starts_with('{'), "{answer}");
    let made: Value = serde_json::from_str(content(&answer)).unwrap();
    assert!(made["city"] == "Paris" || made["city"] == "Rome");
    assert_eq!(finish(&answer), "stop");
}

#[test]
fn point_49_an_effort_reaches_the_template_or_becomes_a_budget() {
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let thinking = think(json!({ "max_tokens": 1 })).ok();
    let none = think(json!({ "reasoning_effort": "none" }));
    let (cache, none) = (none.header("x-base-mlx-cache").unwrap().to_owned(), none.ok());
    assert_eq!((thoughts(&none), reasoning_tokens(&none)), (None, 0));
    assert!(!content(&none).is_empty() && prompt(&none) > prompt(&thinking), "{none}");
    // The same by the template's own variable, which counts more; its prompt is the same and cached.
    for effort in ["high", "none"] {
        let kwargs = json!({ "chat_template_kwargs": { "enable_thinking": false } });
        let reply = think(with(json!({ "reasoning_effort": effort }), kwargs));
        let hit = reply.header("x-base-mlx-cache").unwrap();
        assert!(hit.starts_with("hit=") && !hit.contains("reason"), "{hit}, before {cache}");
        assert_eq!(content(&reply.ok()), content(&none));
    }
    // It knows of no switch, so its thoughts are closed at once.
    let fields = json!({ "model": "mule", "reasoning_effort": "none" });
    let mule = think(fields).ok();
    assert_eq!(thoughts(&mule), None, "{mule}");
    assert!(!content(&mule).is_empty() && !content(&mule).contains("think>"), "{mule}");
    let low = think(
        json!({ "model": "mule", "reasoning_effort": "minimal", "max_tokens": 300, "ignore_eos": true }),
    );
    let low = low.ok();
    assert!((256..300).contains(&reasoning_tokens(&low)), "{low}");
    assert!(!content(&low).is_empty());
}

#[test]
fn point_49_what_is_no_effort_is_refused() {
    for (fields, param) in [
        (json!({ "reasoning_effort": "lots" }), "reasoning_effort"),
        (json!({ "reasoning_effort": 1 }), "reasoning_effort"),
        (json!({ "reasoning_budget": -2 }), "reasoning_budget"),
        (json!({ "thinking_budget": "5" }), "thinking_budget"),
        (json!({ "chat_template_kwargs": [] }), "chat_template_kwargs"),
    ] {
        assert_eq!(SERVER.chat(with(capital(), fields)).error(400)["param"], param);
    }
    // Models that do not think take any effort.
    for effort in ["none", "minimal", "low", "medium", "high", "xhigh", "max"] {
        let fields = json!({ "reasoning_effort": effort });
        let answer = SERVER.chat(with(capital(), fields)).ok();
        assert_eq!(content(&answer), content(&SERVER.chat(capital()).ok()), "{effort}");
    }
}

#[test]
fn point_50_thoughts_that_are_cut_leave_no_content() {
    let answer = think(json!({ "max_tokens": 8, "messages": user("Count to a hundred.") })).ok();
    assert_eq!((content(&answer), finish(&answer)), ("", "length"));
    assert!(!thoughts(&answer).unwrap().is_empty());
    assert_eq!(reasoning_tokens(&answer), 8);
    let body = json!({ "max_tokens": 8, "messages": user("Count to a hundred."), "stream": true });
    let chunks = think(body).chunks();
    assert_eq!(streamed(&chunks, 0), "");
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("length")));
}

#[test]
fn calls_come_behind_thoughts() {
    let tool = json!({ "type": "function", "function": { "name": "get_weather", "parameters": {
        "type": "object", "properties": { "city": { "enum": ["Paris", "Rome"] } },
        "required": ["city"], "additionalProperties": false,
    } } });
    let fields = json!({
        "reasoning_budget": 5, "tools": [tool], "tool_choice": "required", "max_tokens": 60,
        "parallel_tool_calls": false,
        "messages": user("What is the weather in Paris?"),
    });
    let answer = think(fields).ok();
    let message = &answer["choices"][0]["message"];
    assert!(!thoughts(&answer).unwrap().is_empty());
    assert_eq!(message["content"], json!(null), "{message}");
    assert_eq!(message["tool_calls"][0]["function"]["name"], "get_weather");
    assert_eq!(finish(&answer), "tool_calls");
}

#[test]
fn point_48_an_answer_that_goes_on_within_thoughts_begins_with_thoughts() {
    let messages = json!([
        { "role": "user", "content": "What is the capital of France?" },
        { "role": "assistant", "content": "<think>\nSo far, I know that" },
    ]);
    let fields =
        json!({ "messages": messages, "continue_final_message": true, "reasoning_budget": 5 });
    let answer = think(fields).ok();
    assert!(!thoughts(&answer).unwrap().is_empty() && !content(&answer).is_empty(), "{answer}");
    assert!(!content(&answer).contains("think>"), "{answer}");
}
