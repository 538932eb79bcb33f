use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Answer, SERVER, TestServer, capital, user, with};

#[test]
fn point_01_every_error_comes_in_the_envelope() {
    SERVER.get("/v1/nothing").error(404);
    SERVER.get("/").error(404);
    let wrong_method = SERVER.get("/v1/chat/completions");
    wrong_method.error(405);
    assert_eq!(wrong_method.header("allow"), Some("POST"));
    SERVER.send("DELETE", "/v1/models/smollm2", &[], b"").error(405);
    SERVER.post("/v1/models", &json!({})).error(405);
    // A name that is no text.
    SERVER.get("/v1/models/%ff").error(400);
    SERVER.get("/v1/models/a%c3/b").error(400);

    let small = TestServer::start(|options| options.body_bytes = 1000);
    let body = json!({ "messages": user(&"long ".repeat(1000)) });
    small.chat(body).error(413);
    small.chat(json!({ "messages": [] })).error(400);
}

#[test]
fn point_02_validation_failures_are_400_and_name_the_parameter() {
    for (fields, param) in [
        (json!({ "temperature": 3 }), "temperature"),
        (json!({ "messages": "hi" }), "messages"),
        (json!({ "messages": [{ "role": "user" }] }), "messages[0].content"),
        (
            json!({ "messages": [{ "role": "user", "content": [{ "type": "text" }] }] }),
            "messages[0].content[0].text",
        ),
        (json!({ "messages": [{ "role": "queen", "content": "hi" }] }), "messages[0].role"),
        (json!({ "n": 0 }), "n"),
        (json!({ "max_completion_tokens": 0 }), "max_completion_tokens"),
        (json!({ "top_logprobs": 21, "logprobs": true }), "top_logprobs"),
    ] {
        let error = SERVER.chat(with(capital(), fields)).error(400);
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }

    for body in ["", "{", "[1]", "{\"messages\":NaN}", "\u{7}"] {
        let error = SERVER.send("POST", "/v1/chat/completions", &[], body.as_bytes()).error(400);
        assert_eq!(error["type"], "invalid_request_error");
    }

    let error = SERVER.chat(with(capital(), json!({ "model": "smolm2" }))).error(404);
    assert_eq!(error["code"], "model_not_found");
    assert_eq!(error["param"], "model");
    assert!(error["message"].as_str().unwrap().contains("`smollm2`"), "{error}");
    // Without a model of its own the server has to be told.
    let error = SERVER.post("/v1/chat/completions", &capital()).error(400);
    assert_eq!(error["param"], "model");
}

#[test]
fn point_02_a_value_of_the_wrong_type_is_told_in_plain_words() {
    let message = json!({ "role": "user", "content": "a" });
    for (fields, param, told) in [
        (json!({ "temperature": "hot" }), "temperature", "is a string, expected a number"),
        (json!({ "max_tokens": 1.5 }), "max_tokens", "is 1.5, expected a whole number"),
        (json!({ "n": true }), "n", "is true, expected a whole number"),
        (json!({ "stream": 1 }), "stream", "is 1, expected true or false"),
        (json!({ "model": [] }), "model", "is an array, expected a string"),
        (json!({ "seed": 0.5 }), "seed", "is 0.5, expected a 64-bit integer"),
        (json!({ "messages": message }), "messages", "is an object, expected an array"),
        (json!({ "logit_bias": { "1": "x" } }), "logit_bias.1", "is a string, expected a number"),
        // An array is no object, whatever its items.
        (json!({ "messages": [["user", "a"]] }), "messages[0]", "is an array, expected an object"),
        (
            json!({ "stream": true, "stream_options": [true] }),
            "stream_options",
            "is an array, expected an object",
        ),
        (
            json!({ "messages": [{ "role": "user", "content": [["text", "a"]] }] }),
            "messages[0].content[0]",
            "is an array, expected an object",
        ),
        (
            json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "function": ["f"] }] }] }),
            "messages[0].tool_calls[0].function",
            "is an array, expected an object",
        ),
        (
            json!({ "messages": [message, { "content": "a" }] }),
            "messages[1].role",
            "is missing, expected `developer`, `system`, `user`, `assistant`, `tool` or `function`",
        ),
        (
            json!({ "chat_template_kwargs": [] }),
            "chat_template_kwargs",
            "is an array, expected an object",
        ),
    ] {
        let error = SERVER.chat(with(capital(), fields)).error(400);
        assert_eq!(error["message"], format!("`{param}` {told}"));
        assert_eq!(error["param"], param);
    }
    let error = SERVER.complete(json!({ "prompt": "a", "best_of": "2" })).error(400);
    assert_eq!(error["message"], "`best_of` is a string, expected a whole number");
}

#[test]
fn point_02_a_full_server_says_when_to_come_back() {
    let server = TestServer::start(|options| options.max_requests = 1);
    let endless =
        with(capital(), json!({ "stream": true, "ignore_eos": true, "max_tokens": null }));
    let mut first = server.open_chat(endless);
    first.piece();
    let full = server.chat(capital());
    assert_eq!(full.error(429)["type"], "rate_limit_error");
    assert_eq!(full.header("retry-after"), Some("1"));
}

#[test]
fn point_03_what_is_wrong_before_the_first_token_is_no_stream() {
    let long = user(&"word ".repeat(10_000));
    let error = SERVER.chat(json!({ "messages": long, "stream": true })).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    let bias = with(capital(), json!({ "stream": true, "logit_bias": { "999999": 1 } }));
    assert_eq!(SERVER.chat(bias).error(400)["param"], "logit_bias");
    let unknown = with(capital(), json!({ "stream": true, "model": "nobody" }));
    SERVER.chat(unknown).error(404);
}

#[test]
fn point_04_a_stream_that_fails_says_so_and_ends() {
    let server = TestServer::start(|options| options.grace = std::time::Duration::ZERO);
    let endless =
        with(capital(), json!({ "stream": true, "ignore_eos": true, "max_tokens": null }));
    let mut answer = server.open_chat(endless);
    answer.piece();
    server.begin_shutdown();
    let data = answer.finish().data();
    let last: Value = serde_json::from_str(data.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down");
    assert_eq!(last["error"].as_object().unwrap().len(), 4);
    assert!(!data.iter().any(|data| data.contains("\"stop\"") || data == "[DONE]"));
    server.wait_until_gone();
}

#[test]
fn point_05_a_prompt_that_is_too_long_is_told_both_numbers() {
    let server = TestServer::start(|options| options.engine.context = Some(64));
    let error = server.chat(json!({ "messages": user(&"one two ".repeat(40)) })).error(400);
    assert_eq!(error["code"], "context_length_exceeded");
    assert_eq!(error["param"], "messages");
    let message = error["message"].as_str().unwrap();
    let numbers: Vec<usize> =
        message.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers.len() == 2 && numbers[0] > 80 && numbers[1] == 64, "{message}");

    let error = server.complete(json!({ "prompt": "one two ".repeat(40) })).error(400);
    assert_eq!(error["param"], "prompt");
}

#[test]
fn point_06_what_cannot_be_done_is_refused_and_what_nobody_knows_is_ignored() {
    let custom = json!([{ "type": "custom", "custom": { "name": "f" } }]);
    let tagged = json!({ "type": "structural_tag", "format": {} });
    for (fields, param) in [
        (json!({ "tools": custom }), "tools[0].type"),
        (json!({ "response_format": tagged }), "response_format"),
        (json!({ "modalities": ["text", "audio"] }), "modalities"),
        (json!({ "audio": { "voice": "x" } }), "audio"),
        (json!({ "prediction": { "type": "content", "content": "x" } }), "prediction"),
        (json!({ "web_search_options": {} }), "web_search_options"),
        (
            json!({ "structured_outputs": { "structural_tag": "x" } }),
            "structured_outputs.structural_tag",
        ),
        (json!({ "verbosity": "low" }), "verbosity"),
        (json!({ "stop_token_ids": [2] }), "stop_token_ids"),
        (json!({ "min_tokens": 5 }), "min_tokens"),
        (json!({ "best_of": 2 }), "best_of"),
        (json!({ "echo": true }), "echo"),
        (json!({ "suffix": "x" }), "suffix"),
    ] {
        let error = SERVER.chat(with(capital(), fields)).error(400);
        assert_eq!(error["code"], "unsupported_parameter", "{error}");
        assert_eq!(error["param"], param);
    }
    let error = SERVER.complete(json!({ "prompt": "a", "suffix": "b" })).error(400);
    assert_eq!(error["code"], "unsupported_parameter");
    assert_eq!(
        SERVER.chat(with(capital(), json!({ "response_format": 5 }))).error(400)["code"],
        json!(null)
    );

    let harmless = json!({
        "user": "u", "store": true, "metadata": { "a": "b" }, "service_tier": "auto",
        "prompt_cache_key": "k", "safety_identifier": "s", "no_such_parameter": [1, 2],
        "tools": [], "tool_choice": null, "response_format": { "type": "text" },
        "stop_token_ids": [], "min_tokens": 0, "typical_p": 1.0, "best_of": 1, "echo": false,
        "parallel_tool_calls": true, "modalities": ["text"], "max_tokens": 1,
    });
    SERVER.chat(with(capital(), harmless)).ok();
}

#[test]
fn what_bans_every_token_is_an_error() {
    let bans: serde_json::Map<String, Value> =
        (0..49_152).map(|token: u32| (token.to_string(), json!(-100))).collect();
    let error = SERVER.chat(with(capital(), json!({ "logit_bias": bans }))).error(400);
    assert_eq!(error["param"], "logit_bias");
}

#[test]
fn point_09_whatever_is_quoted_in_an_error_is_escaped() {
    let odd = "a\"b\\c\nd\u{1}e\u{2028}";
    let error = SERVER.chat(with(capital(), json!({ "model": odd }))).error(404);
    assert!(error["message"].as_str().unwrap().contains(odd));
    let error = SERVER.get("/v1/models/%22%0a").error(404);
    assert!(error["message"].as_str().unwrap().contains("\"\n"));
}

#[test]
fn a_body_that_does_not_arrive_gives_its_place_back() {
    let server = TestServer::start(|options| {
        options.upload_time = Duration::from_millis(50);
        options.max_requests = 1;
    });
    let mut slow = server.announce_chat("{\"messages\": []}");
    slow.write_all(b"{").unwrap();
    let reply = Answer::read(slow, false).finish();
    assert_eq!(reply.error(408)["code"], "request_timeout");
    assert_eq!(reply.header("connection"), Some("close"));
    server.chat(with(capital(), json!({ "max_tokens": 1 }))).ok();
}
