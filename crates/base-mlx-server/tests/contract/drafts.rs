//! Drafts make answers faster and change nothing in them.

use serde_json::{Value, json};

use crate::support::{SERVER, capital, content, with};

fn ask(query: &str, fields: Value) -> crate::support::Reply {
    let body = with(capital(), with(json!({ "model": "smollm2" }), fields));
    SERVER.post(&format!("/v1/chat/completions{query}"), &body)
}

#[test]
fn point_63_a_draft_model_is_named_in_the_body_or_in_the_url() {
    let plain = SERVER.chat(capital()).ok();
    for (query, fields) in [
        ("?spec=smollm2", json!({})),
        ("?spec=prompt-lookup", json!({})),
        ("", json!({ "draft_model": "smollm2" })),
        ("", json!({ "draft_model": "prompt-lookup" })),
        ("?spec=prompt%2Dlookup", json!({ "draft_model": "prompt-lookup" })),
        ("?spec=", json!({ "draft_model": "none" })),
        ("?other=1", json!({ "draft_model": null })),
    ] {
        assert_eq!(content(&ask(query, fields).ok()), content(&plain), "{query}");
    }
    let completion = SERVER.post(
        "/v1/completions?spec=prompt-lookup",
        &json!({ "model": "smollm2", "prompt": "One, two, three, one, two,", "max_tokens": 4 }),
    );
    completion.ok();
}

#[test]
fn point_54_drafts_change_nothing_that_decides_about_a_token() {
    let fields = json!({
        "messages": [{ "role": "user", "content": "Repeat: red green blue red green blue red green" }],
        "temperature": 0.7, "seed": 3, "n": 2, "logprobs": true, "top_logprobs": 2, "max_tokens": 24,
        "frequency_penalty": 0.2, "repetition_penalty": 1.05, "logit_bias": { "260": -100 },
        "stop": ["purple"],
    });
    let plain = ask("", fields.clone()).ok();
    for draft in ["smollm2", "prompt-lookup"] {
        let drafted = ask(&format!("?spec={draft}"), fields.clone()).ok();
        assert_eq!(drafted["choices"], plain["choices"], "{draft}");
    }
}

#[test]
fn a_drafter_that_does_not_fit_is_refused() {
    let error = ask("", json!({ "draft_model": "no-such-model" })).error(404);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("model_not_found"), &json!("draft_model"))
    );
    let error = ask("?spec=qwen2.5-coder-0.5b", json!({})).error(400);
    assert_eq!(error["param"], "draft_model");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("token 0 is not the same in both vocabularies"), "{message}");
    let error = ask("?spec=smollm2", json!({ "draft_model": "prompt-lookup" })).error(400);
    assert_eq!(error["param"], "spec");
    assert_eq!(ask("", json!({ "draft_model": 7 })).error(400)["param"], "draft_model");
}
