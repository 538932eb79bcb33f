use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    SERVER, TestServer, capital, content, redacted, streamed, until, user, with, with_model,
};

#[test]
fn point_07_all_chunks_of_a_stream_have_one_id_time_model_and_fingerprint() {
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let chunks = SERVER.chat(with(capital(), json!({ "stream": true, "n": 2 }))).chunks();
    for key in ["id", "created", "model", "system_fingerprint", "object"] {
        assert!(chunks.iter().all(|chunk| chunk[key] == chunks[0][key]), "{key}");
    }
    assert!(chunks[0]["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(chunks[0]["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    let created = chunks[0]["created"].as_u64().unwrap();
    assert!((before.as_secs()..before.as_secs() + 600).contains(&created));
    let other = SERVER.chat(with(capital(), json!({ "stream": true }))).chunks();
    assert_ne!(other[0]["id"], chunks[0]["id"]);
}

#[test]
fn point_08_the_model_is_called_as_the_client_called_it() {
    assert_eq!(SERVER.chat(capital()).ok()["model"], "smollm2");
    let chunks = SERVER.chat(with(capital(), json!({ "stream": true }))).chunks();
    assert_eq!(chunks[0]["model"], "smollm2");
    // A path is nobody's name, even if a model lies there.
    let path = crate::test_models::test_model("smollm2.gguf");
    let body = with(capital(), json!({ "model": path.to_str().unwrap() }));
    SERVER.chat(body).error(404);
}

#[test]
fn points_10_to_13_a_stream_as_a_whole() {
    let reply = SERVER.chat(with(capital(), json!({ "stream": true })));
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
    let chunks: Vec<Value> = reply.chunks().into_iter().map(redacted).collect();
    insta::assert_json_snapshot!("chat_stream", chunks);
}

#[test]
fn point_10_the_role_comes_first_and_nowhere_else() {
    let chunks = SERVER.chat(with(capital(), json!({ "stream": true }))).chunks();
    let first = &chunks[0]["choices"][0];
    assert_eq!(first["delta"], json!({ "role": "assistant", "content": "" }));
    assert!(chunks[1..].iter().all(|chunk| chunk["choices"][0]["delta"].get("role").is_none()));
}

#[test]
fn point_11_the_finish_reason_is_null_until_a_chunk_of_its_own() {
    let chunks = SERVER.chat(with(capital(), json!({ "stream": true }))).chunks();
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    for chunk in others {
        assert_eq!(chunk["choices"][0].get("finish_reason"), Some(&Value::Null), "{chunk}");
    }
}

#[test]
fn point_12_usage_comes_when_asked_for_after_the_finish() {
    let asked = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let chunks = SERVER.chat(with(capital(), asked)).chunks();
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert!(last["usage"]["total_tokens"].as_u64().unwrap() > 0);
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    assert_eq!(others.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"], SERVER.chat(capital()).ok()["usage"]);

    for options in [json!(null), json!({}), json!({ "include_usage": false })] {
        let body = with(capital(), json!({ "stream": true, "stream_options": options }));
        assert!(SERVER.chat(body).chunks().iter().all(|chunk| chunk.get("usage").is_none()));
    }
}

#[test]
fn point_13_done_comes_once_and_last() {
    for body in [
        with(capital(), json!({ "stream": true, "n": 3 })),
        with(capital(), json!({ "stream": true })),
    ] {
        let reply = SERVER.chat(body);
        assert_eq!(reply.text().matches("[DONE]").count(), 1);
        assert!(reply.text().ends_with("\n\ndata: [DONE]\n\n"));
    }
    let reply = SERVER.complete(json!({ "prompt": "a", "stream": true, "max_tokens": 2 }));
    assert!(reply.text().ends_with("\n\ndata: [DONE]\n\n"));
}

#[test]
fn point_14_a_silent_stream_shows_that_it_lives() {
    let server = TestServer::start(|options| options.keep_alive = Duration::from_millis(1));
    // A prompt of some hundred tokens takes far longer than that.
    let long = user(&"word ".repeat(400));
    let body = json!({ "messages": long, "stream": true, "max_tokens": 1 });
    let reply = server.chat(body);
    let (before, _) = reply.text().split_once("\"finish_reason\":\"").unwrap();
    assert!(before.contains("\n\n: keep-alive\n\n"), "{before}");
    // Comments are no chunks.
    assert!(reply.chunks().len() <= 3);
}

#[test]
fn point_15_characters_are_never_split() {
    let body = json!({ "prompt": "😀🎉😀🎉😀🎉😀🎉😀🎉😀🎉", "temperature": 0, "max_tokens": 24, "stream": true });
    let chunks = SERVER.complete(body).chunks();
    let texts: Vec<&str> = chunks
        .iter()
        .filter(|chunk| chunk["choices"][0]["finish_reason"].is_null())
        .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap())
        .collect();
    assert!(texts.concat().contains("🎉"), "{texts:?}");
    // Only what the limit cut off may be broken.
    for text in &texts[..texts.len() - 1] {
        assert!(!text.contains('\u{fffd}'), "{texts:?}");
    }
}

#[test]
fn point_15_bytes_that_never_become_a_character_are_shown_at_the_end() {
    let emoji = crate::support::TEXT.tokenizer.encode("😀", base_mlx_core::text::AddSpecial::No);
    assert!(emoji.len() > 1, "the model has a token for this emoji");
    let first = emoji[0].to_string();
    let forced =
        json!({ "prompt": "a", "temperature": 0, "max_tokens": 1, "logit_bias": { first: 100 } });
    let answer = SERVER.complete(forced.clone()).ok();
    assert_eq!(answer["choices"][0]["text"], "\u{fffd}");
    let chunks = SERVER.complete(with(forced, json!({ "stream": true }))).chunks();
    assert_eq!(streamed(&chunks, 0), "\u{fffd}");
}

fn endless() -> Value {
    let messages = user("Count to a million.");
    with_model(json!({ "ignore_eos": true, "max_tokens": null, "messages": messages }))
}

#[test]
fn point_16_a_client_that_goes_ends_its_stream() {
    // Only one answer at a time, and the first would take minutes.
    let server = TestServer::start(|options| options.engine.parallel = 1);
    let mut answer = server.open_chat(with(endless(), json!({ "stream": true })));
    for _ in 0..5 {
        assert!(!answer.piece().is_empty());
    }
    drop(answer);
    server.chat(capital()).ok();
}

#[test]
fn point_16_a_client_that_goes_frees_its_place() {
    let server = TestServer::start(|options| options.max_requests = 1);
    let body = endless().to_string();
    let mut connection = server.announce_chat(&body);
    connection.write_all(body.as_bytes()).unwrap();
    server.chat(capital()).error(429);
    drop(connection);
    until(|| server.chat(capital()), |reply| reply.status != 429).ok();
}

#[test]
fn point_17_what_is_streamed_is_what_is_answered_at_once() {
    for fields in [
        json!({}),
        json!({ "temperature": 0.8, "seed": 3, "max_tokens": 40 }),
        json!({ "temperature": 1.2, "seed": 4, "max_tokens": 40, "n": 3 }),
        json!({ "stop": ["is Pa"], "max_tokens": 40 }),
        json!({ "temperature": 0.8, "seed": 5, "presence_penalty": 1, "logprobs": true, "max_tokens": 20 }),
        json!({ "messages": user("Write three emojis."), "seed": 6, "max_tokens": 30 }),
    ] {
        let body = with(capital(), fields);
        let answer = SERVER.chat(body.clone()).ok();
        let chunks = SERVER.chat(with(body, json!({ "stream": true }))).chunks();
        for choice in answer["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            assert_eq!(choice["message"]["content"], streamed(&chunks, index));
            let finish = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
            let mut finish =
                finish.filter(|part| part["index"] == index && !part["finish_reason"].is_null());
            assert_eq!(finish.next().unwrap()["finish_reason"], choice["finish_reason"]);
            assert!(finish.next().is_none());
        }
    }
}

#[test]
fn point_18_several_choices_have_their_own_chunks_and_one_prompt() {
    let body = with(capital(), json!({ "n": 3, "temperature": 1, "seed": 1, "max_tokens": 8 }));
    let asked = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let chunks = SERVER.chat(with(body.clone(), asked)).chunks();
    for index in 0..3 {
        let parts: Vec<&Value> = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"].as_array().unwrap())
            .filter(|choice| choice["index"] == index)
            .collect();
        assert_eq!(parts[0]["delta"]["role"], "assistant");
        assert!(!parts.last().unwrap()["finish_reason"].is_null());
        assert_eq!(parts.iter().filter(|part| part["delta"].get("role").is_some()).count(), 1);
        assert_eq!(parts.iter().filter(|part| !part["finish_reason"].is_null()).count(), 1);
    }
    let one = SERVER.chat(with(body.clone(), json!({ "n": 1 }))).ok();
    let answer = SERVER.chat(body).ok();
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!(usage["prompt_tokens"], one["usage"]["prompt_tokens"]);
    assert_eq!(usage["completion_tokens"], answer["usage"]["completion_tokens"]);
    // The first of several is the one that would have come alone.
    assert_eq!(content(&answer), content(&one));
}
