use base_mlx_core::text::AddSpecial;
use serde_json::{Value, json};

use crate::support::{SERVER, TEXT, capital, content, user, with};

fn story(fields: Value) -> String {
    let body = json!({ "messages": user("Tell me a story."), "max_tokens": 12 });
    content(&SERVER.chat(with(body, fields)).ok()).to_owned()
}

#[test]
fn point_51_the_same_seed_gives_the_same_answer() {
    for seed in [json!(1), json!(-1), json!(0), json!(i64::MIN), json!(u64::MAX)] {
        let fields = json!({ "seed": seed, "temperature": 1.2 });
        assert_eq!(story(fields.clone()), story(fields), "{seed}");
    }
    assert_ne!(
        story(json!({ "seed": 1, "temperature": 1.5 })),
        story(json!({ "seed": 2, "temperature": 1.5 }))
    );
    assert_ne!(story(json!({ "temperature": 1.5 })), story(json!({ "temperature": 1.5 })));
    for wrong in [json!(1.5), json!("1"), json!(1e30), json!([1])] {
        assert_eq!(
            SERVER.chat(with(capital(), json!({ "seed": wrong }))).error(400)["param"],
            "seed"
        );
    }
}

#[test]
fn point_52_temperature_zero_is_greedy_whatever_else_is_said() {
    let plain = story(json!({ "temperature": 0 }));
    for fields in [
        json!({ "temperature": 0, "seed": 7 }),
        json!({ "temperature": 0, "top_p": 0.1, "top_k": 3, "min_p": 0.5, "seed": 8 }),
        json!({ "temperature": 1.3, "top_k": 1, "seed": 9 }),
    ] {
        assert_eq!(story(fields), plain);
    }
}

#[test]
fn point_52_values_outside_their_ranges_are_refused() {
    for (key, wrong) in [
        ("temperature", "-0.1"),
        ("temperature", "2.01"),
        ("temperature", "\"1\""),
        ("top_p", "0"),
        ("top_p", "1.1"),
        ("top_p", "-1"),
        ("presence_penalty", "2.1"),
        ("frequency_penalty", "-2.1"),
        ("min_p", "-0.1"),
        ("top_k", "-2"),
        ("repetition_penalty", "0"),
    ] {
        let body = format!(
            r#"{{"model":"smollm2","messages":[{{"role":"user","content":"a"}}],"{key}":{wrong}}}"#
        );
        let error = SERVER.send("POST", "/v1/chat/completions", &[], body.as_bytes()).error(400);
        assert_eq!(error["param"], key, "{wrong}");
    }
    for number in ["NaN", "Infinity", "-Infinity", "1e999"] {
        let body = format!(
            r#"{{"model":"smollm2","messages":[{{"role":"user","content":"a"}}],"temperature":{number}}}"#
        );
        SERVER.send("POST", "/v1/chat/completions", &[], body.as_bytes()).error(400);
    }
}

#[test]
fn point_52_penalties_look_at_what_was_generated() {
    // The prompt says it many times, yet only the answer's own repetitions count.
    let prompt = "one two one two one two one two one two one";
    let body = json!({ "prompt": prompt, "temperature": 0, "max_tokens": 1 });
    let text = |fields: Value| {
        SERVER.complete(with(body.clone(), fields)).ok()["choices"][0]["text"].clone()
    };
    let plain = text(json!({}));
    assert_eq!(plain, " two");
    assert_eq!(text(json!({ "presence_penalty": 2, "frequency_penalty": 2 })), plain);
    assert_ne!(text(json!({ "repetition_penalty": 10 })), plain);
    let longer = text(json!({ "presence_penalty": 2, "frequency_penalty": 2, "max_tokens": 12 }));
    assert_ne!(longer, text(json!({ "max_tokens": 12 })));
}

#[test]
fn point_53_a_bias_forces_and_bans_tokens() {
    let token = |text: &str| TEXT.tokenizer.encode(text, AddSpecial::No)[0].to_string();
    let forced =
        story(json!({ "temperature": 0, "max_tokens": 3, "logit_bias": { token(" cat"): 100 } }));
    assert_eq!(forced, " cat cat cat");
    let body = json!({ "prompt": "The capital of France is", "temperature": 0, "max_tokens": 1 });
    assert_eq!(SERVER.complete(body.clone()).ok()["choices"][0]["text"], " Paris");
    let banned = with(body, json!({ "logit_bias": { token(" Paris"): -100 } }));
    assert_ne!(SERVER.complete(banned).ok()["choices"][0]["text"], " Paris");
    for wrong in [
        json!({ "a": 1 }),
        json!({ "-1": 1 }),
        json!({ "1": 100.5 }),
        json!({ "49152": 1 }),
        json!([1]),
    ] {
        let error = SERVER.chat(with(capital(), json!({ "logit_bias": wrong }))).error(400);
        assert_eq!(error["param"], "logit_bias");
    }
}
