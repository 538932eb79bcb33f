//! What was computed for one prompt serves the next that begins alike, and the answer says so.

use serde_json::{Value, json};

use crate::support::{Reply, SERVER, TestServer, content, user};

fn cached(answer: &Value) -> u64 {
    let usage = &answer["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached <= usage["prompt_tokens"].as_u64().unwrap());
    cached
}

fn header(reply: &Reply) -> &str {
    reply.header("x-base-mlx-cache").unwrap()
}

#[test]
fn point_25_the_second_turn_counts_what_was_cached() {
    let server = TestServer::start(|_| {});
    let ask = |messages: &Value| {
        server.chat(json!({ "messages": messages, "temperature": 0, "max_tokens": 16 }))
    };
    let mut messages = json!([
        { "role": "system", "content": "You are a guide to old towns." },
        { "role": "user", "content": "Name a town in Italy." },
    ]);
    let first = ask(&messages);
    assert_eq!((cached(&first.ok()), header(&first)), (0, "miss reason=new"));
    let prompt = first.ok()["usage"]["prompt_tokens"].as_u64().unwrap();
    for (role, text) in [("assistant", content(&first.ok())), ("user", "And in Spain?")] {
        messages.as_array_mut().unwrap().push(json!({ "role": role, "content": text }));
    }
    let second = ask(&messages);
    let (hit, of) = (cached(&second.ok()), second.ok()["usage"]["prompt_tokens"].clone());
    assert!(hit > prompt, "{hit} of the first prompt's {prompt} and its answer");
    assert!(header(&second).starts_with(&format!("hit={hit}/{of}")), "{}", header(&second));

    // Another system message, after which nothing can be the same.
    messages[0]["content"] = json!("You are a guide to new towns.");
    let third = ask(&messages);
    let (hit, of) = (cached(&third.ok()), third.ok()["usage"]["prompt_tokens"].clone());
    let expected = format!("hit={hit}/{of} reason=first-difference@{hit} (system message)");
    assert_eq!(header(&third), expected);
    assert!((1..prompt / 2).contains(&hit), "{hit}");
    messages[0]["content"] = json!("You are a guide to old towns.");
    messages[3]["content"] = json!("But in Spain?");
    assert!(header(&ask(&messages)).ends_with("(message 4, user)"));
}

#[test]
fn a_stream_says_what_was_cached_too() {
    let body = json!({
        "messages": user("Which river flows through Paris?"), "max_tokens": 2,
        "stream": true, "stream_options": { "include_usage": true },
    });
    SERVER.chat(body.clone()).chunks();
    let again = SERVER.chat(body);
    let usage = again.chunks().pop().unwrap();
    let of = usage["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(cached(&usage), of - 1, "the last token's row is needed");
    assert_eq!(header(&again), format!("hit={}/{of}", of - 1));
}

#[test]
fn prompts_of_one_request_are_counted_together() {
    let body =
        json!({ "prompt": ["The first of May is", "The second of June is"], "max_tokens": 1 });
    SERVER.complete(body.clone()).ok();
    let again = SERVER.complete(body);
    let of = again.ok()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(header(&again), format!("hit={}/{of}", of - 2));
}
