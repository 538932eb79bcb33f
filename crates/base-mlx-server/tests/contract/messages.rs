use serde_json::{Value, json};

use crate::support::{Reply, SERVER, capital, content, user, with};

fn prompt_tokens(messages: Value) -> u64 {
    tokens_of(SERVER.chat(json!({ "messages": messages, "max_tokens": 1 })))
}

/// As a model counts them whose template writes calls and their answers down.
fn caller_tokens(messages: Value) -> u64 {
    let model = "qwen2.5-coder-0.5b";
    tokens_of(SERVER.chat(json!({ "model": model, "messages": messages, "max_tokens": 1 })))
}

fn tokens_of(reply: Reply) -> u64 {
    reply.ok()["usage"]["prompt_tokens"].as_u64().unwrap()
}

#[test]
fn point_26_parts_are_one_text_in_order() {
    let question = "What is the capital of France? Answer in one word.";
    let (head, tail) = question.split_at(20);
    let parts = json!([{ "role": "user", "content": [
        { "type": "text", "text": head }, { "type": "text", "text": tail },
    ] }]);
    let answer = SERVER.chat(with(capital(), json!({ "messages": parts }))).ok();
    let plain = SERVER.chat(capital()).ok();
    assert_eq!(content(&answer), content(&plain));
    assert_eq!(answer["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"]);

    let unknown = json!([{ "role": "user", "content": [{ "type": "dance", "dance": 1 }] }]);
    let error = SERVER.chat(json!({ "messages": unknown })).error(400);
    assert_eq!(error["param"], "messages[0].content[0].type");
    let image = json!([{ "role": "user", "content": [
        { "type": "image_url", "image_url": { "url": "data:image/png;base64,AA==" } },
    ] }]);
    let error = SERVER.chat(json!({ "messages": image })).error(400);
    assert_eq!(error["code"], "unsupported_parameter");
}

#[test]
fn point_26_an_assistant_that_called_a_tool_may_have_no_content() {
    let conversation = json!([
        { "role": "user", "content": "What is the weather?" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "call_1", "type": "function", "function": { "name": "weather", "arguments": "{}" } },
        ] },
        { "role": "tool", "tool_call_id": "call_1", "content": "sunny" },
    ]);
    let mut plain = conversation.clone();
    plain[1]["content"] = "".into();
    assert_eq!(prompt_tokens(conversation), prompt_tokens(plain));
    let error =
        SERVER.chat(json!({ "messages": [{ "role": "user", "content": null }] })).error(400);
    assert_eq!(error["param"], "messages[0].content");
}

#[test]
fn point_27_a_developer_is_the_system() {
    let greedy = |role: &str| {
        let messages = json!([
            { "role": role, "content": "You always answer in capital letters." },
            { "role": "user", "content": "Say hello." },
        ]);
        SERVER.chat(json!({ "messages": messages, "temperature": 0, "max_tokens": 8 })).ok()
    };
    let (system, developer) = (greedy("system"), greedy("developer"));
    assert_eq!(content(&system), content(&developer));
    assert_eq!(system["usage"]["total_tokens"], developer["usage"]["total_tokens"]);
}

#[test]
fn point_27_several_systems_are_allowed_and_orphaned_tools_are_not() {
    let systems = json!([
        { "role": "system", "content": "Be brief." },
        { "role": "developer", "content": "Be kind." },
        { "role": "user", "content": "Hi." },
        { "role": "system", "content": "Be quick." },
        { "role": "user", "content": "Well?" },
    ]);
    let one = json!([
        { "role": "system", "content": "Be brief.\n\nBe kind.\n\nBe quick." },
        { "role": "user", "content": "Hi." },
        { "role": "user", "content": "Well?" },
    ]);
    assert_eq!(prompt_tokens(systems), prompt_tokens(one));
    let orphan = json!([{ "role": "user", "content": "Hi." }, { "role": "tool", "tool_call_id": "x", "content": "y" }]);
    let error = SERVER.chat(json!({ "messages": orphan })).error(400);
    assert_eq!(error["param"], "messages[1].tool_call_id");
    let nameless =
        json!([{ "role": "user", "content": "Hi." }, { "role": "tool", "content": "y" }]);
    SERVER.chat(json!({ "messages": nameless })).error(400);
    let legacy = json!([
        { "role": "user", "content": "Hi." },
        { "role": "assistant", "content": null, "function_call": { "name": "f", "arguments": "{}" } },
        { "role": "function", "name": "f", "content": "y" },
    ]);
    let plain = json!([
        { "role": "user", "content": "Hi." },
        { "role": "assistant", "content": "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>" },
        { "role": "user", "content": "<tool_response>\ny\n</tool_response>" },
    ]);
    assert_eq!(caller_tokens(legacy), caller_tokens(plain));
}

#[test]
fn point_28_arguments_that_are_no_json_break_nothing() {
    for (arguments, written) in [
        (json!(r#"{"city": "Paris"}"#), r#"{"city": "Paris"}"#),
        (json!({ "city": "Paris" }), r#"{"city": "Paris"}"#),
        (json!(r#"{"z":1,"a":[2]}"#), r#"{"z": 1, "a": [2]}"#),
        (json!(""), "{}"),
        (json!(r#"{"city": "#), r#""{\"city\": ""#),
        (json!("[1]"), r#""[1]""#),
        (json!(r#""x""#), r#""\"x\"""#),
    ] {
        let conversation = json!([
            { "role": "user", "content": "Weather?" },
            { "role": "assistant", "content": "", "reasoning_content": "Let me look.", "tool_calls": [
                { "id": "c", "type": "function", "function": { "name": "w", "arguments": arguments } },
            ] },
            { "role": "tool", "tool_call_id": "c", "content": "sunny" },
            { "role": "user", "content": "Thanks." },
        ]);
        let call =
            format!("<tool_call>\n{{\"name\": \"w\", \"arguments\": {written}}}\n</tool_call>");
        let plain = json!([
            { "role": "user", "content": "Weather?" },
            { "role": "assistant", "content": call },
            { "role": "user", "content": "<tool_response>\nsunny\n</tool_response>" },
            { "role": "user", "content": "Thanks." },
        ]);
        assert_eq!(caller_tokens(conversation), caller_tokens(plain), "{written}");
    }
}

#[test]
fn point_30_the_last_message_is_continued_only_when_asked() {
    let messages = json!([
        { "role": "user", "name": "ada", "content": "What is the capital of France?" },
        { "role": "assistant", "content": "The capital of France is" },
    ]);
    let body = json!({ "messages": messages, "temperature": 0, "max_tokens": 2 });
    let continued = SERVER.chat(with(body.clone(), json!({ "continue_final_message": true }))).ok();
    assert_eq!(content(&continued), " Paris.");
    let answered = SERVER.chat(body.clone()).ok();
    assert!(
        answered["usage"]["prompt_tokens"].as_u64() > continued["usage"]["prompt_tokens"].as_u64()
    );

    // Texts that also stand in what the template puts behind the message.
    for text in ["i", "<"] {
        let history = |text: &str| json!([{ "role": "user", "content": "a" }, { "role": "assistant", "content": text }]);
        let tokens = |text: &str| {
            let fields = json!({ "messages": history(text), "continue_final_message": true });
            tokens_of(SERVER.chat(with(body.clone(), fields)))
        };
        // Both are one token behind the line break that opens the turn.
        assert_eq!(tokens(text), tokens("The"), "{text}");
    }

    let question = with(body, json!({ "messages": user("Hi"), "continue_final_message": true }));
    let error = SERVER.chat(question).error(400);
    assert_eq!(error["param"], "continue_final_message");
}
