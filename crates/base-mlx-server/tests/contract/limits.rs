use serde_json::{Value, json};

use crate::support::{SERVER, TestServer, capital, content, redacted, streamed, user, with};

fn long() -> Value {
    json!({ "messages": user("Name the planets of the solar system."), "temperature": 0, "max_tokens": 40 })
}

#[test]
fn point_19_the_answer_ends_before_the_stop_string() {
    let whole = SERVER.chat(long()).ok();
    let whole = content(&whole);
    // Wherever a stop string lies, on the borders of tokens or across them.
    for start in (1..whole.len().min(40)).step_by(4) {
        let Some(stop) = whole.get(start..start + 5) else { continue };
        let expected = &whole[..whole.find(stop).unwrap()];
        let body = with(long(), json!({ "stop": stop }));
        let answer = SERVER.chat(body.clone()).ok();
        assert_eq!(content(&answer), expected, "stop {stop:?}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let chunks = SERVER.chat(with(body, json!({ "stream": true }))).chunks();
        assert_eq!(streamed(&chunks, 0), expected, "stop {stop:?}, streamed");
    }
}

#[test]
fn point_19_the_first_of_several_stop_strings_counts() {
    let whole = SERVER.chat(long()).ok();
    let whole = content(&whole);
    let (early, late) = (&whole[4..9], &whole[12..17]);
    let stops = json!({ "stop": ["never to be seen", late, "neither", early, "nor this"] });
    let answer = SERVER.chat(with(long(), stops)).ok();
    assert_eq!(content(&answer), &whole[..whole.find(early).unwrap()]);
}

#[test]
fn point_19_text_that_only_began_like_a_stop_string_is_kept() {
    let whole = SERVER.chat(long()).ok();
    let whole = content(&whole);
    let almost = format!("{}~", &whole[whole.len() - 6..]);
    let body = with(long(), json!({ "stop": [almost, format!("{}~", &whole[3..9])] }));
    assert_eq!(content(&SERVER.chat(body.clone()).ok()), whole);
    let chunks = SERVER.chat(with(body, json!({ "stream": true }))).chunks();
    assert_eq!(streamed(&chunks, 0), whole);
}

#[test]
fn point_19_stop_is_null_a_string_or_an_array_without_empty_ones() {
    for stop in [json!(null), json!([]), json!("~~"), json!(["~1", "~2", "~3", "~4", "~5"])] {
        SERVER.chat(with(capital(), json!({ "stop": stop, "max_tokens": 1 }))).ok();
    }
    for stop in [json!(""), json!(["a", ""]), json!(5), json!([null])] {
        let error = SERVER.chat(with(capital(), json!({ "stop": stop }))).error(400);
        assert_eq!(error["param"], "stop");
    }
}

#[test]
fn point_21_the_finish_reason_tells_stop_from_length() {
    let reason = |fields: Value| {
        SERVER.chat(with(capital(), fields)).ok()["choices"][0]["finish_reason"].clone()
    };
    assert_eq!(reason(json!({ "max_tokens": 100 })), "stop");
    assert_eq!(reason(json!({ "stop": "France" })), "stop");
    assert_eq!(reason(json!({ "max_tokens": 2 })), "length");
}

#[test]
fn point_21_a_full_context_is_a_length() {
    let server = TestServer::start(|options| options.engine.context = Some(64));
    let body = with(capital(), json!({ "max_tokens": null, "ignore_eos": true }));
    let answer = server.chat(body).ok();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], 64);
}

#[test]
fn point_23_max_completion_tokens_goes_before_max_tokens() {
    let tokens = |fields: Value| {
        let body = with(capital(), with(json!({ "ignore_eos": true }), fields));
        SERVER.chat(body).ok()["usage"]["completion_tokens"].clone()
    };
    assert_eq!(tokens(json!({ "max_completion_tokens": 3, "max_tokens": 5 })), 3);
    assert_eq!(tokens(json!({ "max_tokens": 5 })), 5);
    for key in ["max_tokens", "max_completion_tokens"] {
        for wrong in [json!(0), json!(-1), json!("5"), json!(1.5)] {
            let error = SERVER.chat(with(capital(), json!({ key: wrong }))).error(400);
            assert_eq!(error["param"], key);
        }
    }
    // More than fits is as much as fits.
    SERVER.chat(with(capital(), json!({ "max_tokens": 1_000_000 }))).ok();
}

#[test]
fn point_23_chat_has_no_limit_of_its_own_and_completions_have_the_references() {
    let server = TestServer::start(|options| options.engine.context = Some(400));
    let body = json!({ "messages": user("Count."), "temperature": 0, "ignore_eos": true });
    assert_eq!(server.chat(body).ok()["usage"]["total_tokens"], 400);
    // The OpenAI reference gives legacy completions 16 tokens if nothing is said, and the reference wins.
    let body = json!({ "prompt": "Count: 1, 2, 3,", "temperature": 0, "ignore_eos": true });
    assert_eq!(SERVER.complete(body).ok()["usage"]["completion_tokens"], 16);
}

#[test]
fn point_24_end_tokens_are_no_text() {
    let answer = SERVER.chat(with(capital(), json!({ "logprobs": true, "max_tokens": 100 }))).ok();
    assert!(!content(&answer).contains("<|im_end|>"));
    let entries = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let text: String = entries.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(text, content(&answer));
    // The token that ended the answer was generated, so it is counted.
    assert_eq!(answer["usage"]["completion_tokens"], entries.len() + 1);
}

#[test]
fn point_25_usage_adds_up() {
    let usage = SERVER
        .chat(with(capital(), json!({ "n": 2, "max_tokens": 5, "ignore_eos": true })))
        .ok()["usage"]
        .clone();
    let number = |value: &Value| value.as_u64().unwrap();
    assert_eq!(number(&usage["completion_tokens"]), 10);
    assert_eq!(
        number(&usage["total_tokens"]),
        number(&usage["prompt_tokens"]) + number(&usage["completion_tokens"])
    );
    assert!(
        number(&usage["prompt_tokens_details"]["cached_tokens"]) <= number(&usage["prompt_tokens"])
    );
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 0);
    // The prompt is what the template made of the messages, its marks included.
    let raw = SERVER
        .complete(json!({ "prompt": capital()["messages"][0]["content"], "max_tokens": 1 }))
        .ok();
    assert!(number(&usage["prompt_tokens"]) > number(&raw["usage"]["prompt_tokens"]));
}

#[test]
fn a_whole_answer() {
    insta::assert_json_snapshot!("chat", redacted(SERVER.chat(capital()).ok()));
}
