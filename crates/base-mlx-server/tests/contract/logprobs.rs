use base_mlx_core::text::AddSpecial;
use serde_json::{Value, json};

use crate::support::{SERVER, TEXT, capital, content, redacted, streamed, with};

fn bytes(entries: &[Value]) -> Vec<u8> {
    let bytes = entries.iter().flat_map(|entry| entry["bytes"].as_array().unwrap());
    bytes.map(|byte| byte.as_u64().unwrap() as u8).collect()
}

fn entries(choice: &Value) -> &[Value] {
    choice["logprobs"]["content"].as_array().unwrap()
}

#[test]
fn point_45_each_token_has_its_log_probability_and_the_best_others() {
    let asked = json!({ "logprobs": true, "top_logprobs": 3, "temperature": 1.5, "seed": 9, "max_tokens": 16 });
    let answer = SERVER.chat(with(capital(), asked)).ok();
    let choice = &answer["choices"][0];
    assert_eq!(choice["logprobs"]["refusal"], json!(null));
    let entries = entries(choice);
    assert_eq!(String::from_utf8_lossy(&bytes(entries)), content(&answer));
    for entry in entries {
        let logprob = entry["logprob"].as_f64().unwrap();
        let top = entry["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        let tops: Vec<f64> = top.iter().map(|top| top["logprob"].as_f64().unwrap()).collect();
        assert!(tops.is_sorted_by(|a, b| a >= b), "{tops:?}");
        assert!(logprob <= tops[0] && tops.iter().map(|top| top.exp()).sum::<f64>() <= 1.0 + 1e-4);
    }
}

#[test]
fn point_45_they_are_the_models_own_whatever_the_temperature() {
    let first = |fields: Value| {
        let body = with(
            capital(),
            with(json!({ "logprobs": true, "top_logprobs": 2, "max_tokens": 1 }), fields),
        );
        let answer = SERVER.chat(body).ok();
        entries(&answer["choices"][0])[0]["top_logprobs"].clone()
    };
    let plain = first(json!({}));
    assert_eq!(
        plain,
        first(json!({ "temperature": 1.9, "seed": 1, "top_p": 0.5, "presence_penalty": 2 }))
    );
}

#[test]
fn point_45_top_logprobs_needs_logprobs() {
    for (fields, param) in [
        (json!({ "top_logprobs": 2 }), "top_logprobs"),
        (json!({ "top_logprobs": 2, "logprobs": false }), "top_logprobs"),
        (json!({ "top_logprobs": 21, "logprobs": true }), "top_logprobs"),
        (json!({ "top_logprobs": -1, "logprobs": true }), "top_logprobs"),
        (json!({ "logprobs": 3 }), "logprobs"),
    ] {
        assert_eq!(SERVER.chat(with(capital(), fields)).error(400)["param"], param);
    }
    let answer = SERVER.chat(with(capital(), json!({ "logprobs": true, "max_tokens": 1 }))).ok();
    assert_eq!(entries(&answer["choices"][0])[0]["top_logprobs"], json!([]));
    let answer = SERVER.chat(with(capital(), json!({ "max_tokens": 1 }))).ok();
    assert_eq!(answer["choices"][0].get("logprobs"), Some(&Value::Null));
}

#[test]
fn point_45_bytes_are_true_even_of_half_characters() {
    let emoji = TEXT.tokenizer.encode("😀", AddSpecial::No);
    let bias = json!({ emoji[0].to_string(): 100 });
    let asked = json!({ "logprobs": true, "max_tokens": 1, "logit_bias": bias });
    let answer = SERVER.chat(with(capital(), asked)).ok();
    let entry = &entries(&answer["choices"][0])[0];
    let expected = TEXT.tokenizer.token_bytes(emoji[0]);
    assert_eq!(bytes(std::slice::from_ref(entry)), expected);
    assert!(std::str::from_utf8(expected).is_err());
    assert_eq!(content(&answer), "\u{fffd}");
}

#[test]
fn point_46_streamed_entries_travel_with_their_text() {
    let asked = json!({ "logprobs": true, "top_logprobs": 1, "max_tokens": 24 });
    let whole = SERVER.chat(with(capital(), asked.clone())).ok();
    let text = content(&whole).to_owned();
    // The stop string begins inside the answer's text, so its tokens are held back and then dropped.
    for stop in
        [json!(null), json!([&text[text.len() - 4..]]), json!([format!("{}~", &text[2..8])])]
    {
        let body = with(with(capital(), asked.clone()), json!({ "stop": stop }));
        let answer = SERVER.chat(body.clone()).ok();
        let chunks = SERVER.chat(with(body, json!({ "stream": true }))).chunks();
        let mut all = Vec::new();
        for choice in chunks.iter().map(|chunk| &chunk["choices"][0]) {
            if let Some(content) = choice["logprobs"]["content"].as_array() {
                assert!(choice["delta"].get("content").is_some(), "{choice}");
                all.extend(content.clone());
            }
        }
        assert_eq!(all, entries(&answer["choices"][0]));
        // Of the last token only a part may be visible, of the others all is.
        let text = streamed(&chunks, 0).into_bytes();
        let whole = &all[..all.len() - 1];
        assert!(text.starts_with(&bytes(whole)) && bytes(&all).starts_with(&text), "{stop}");
    }
}

#[test]
fn point_47_a_whole_completion() {
    let body = json!({
        "prompt": "The capital of France is", "temperature": 0, "max_tokens": 4, "logprobs": 0,
    });
    let mut answer = SERVER.complete(body).ok();
    for columns in ["token_logprobs", "top_logprobs"] {
        answer["choices"][0]["logprobs"][columns] = json!("[redacted]");
    }
    insta::assert_json_snapshot!("completion", redacted(answer));
}

#[test]
fn point_47_columns_are_as_long_as_the_answer_and_offsets_fit_the_text() {
    let body = json!({
        "prompt": "Wo ist Käse? Hier:", "temperature": 0, "max_tokens": 8, "logprobs": 2, "echo": true,
    });
    let answer = SERVER.complete(body.clone()).ok();
    let choice = &answer["choices"][0];
    let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
    assert!(text.starts_with(&"Wo ist Käse?".chars().collect::<Vec<_>>()));
    let column = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
    let (tokens, offsets) = (column("tokens"), column("text_offset"));
    assert_eq!(column("token_logprobs").len(), tokens.len());
    assert_eq!(column("top_logprobs").len(), tokens.len());
    assert_eq!(column("token_logprobs")[0], json!(null));
    assert!(column("token_logprobs")[1..].iter().all(Value::is_number));
    assert!(
        column("top_logprobs")[1..]
            .iter()
            .all(|top| (2..=3).contains(&top.as_object().unwrap().len()))
    );
    for (token, offset) in tokens.iter().zip(&offsets) {
        let token: Vec<char> = token.as_str().unwrap().chars().collect();
        if !token.starts_with(&['b', 'y', 't', 'e', 's', ':']) {
            assert!(
                text[offset.as_u64().unwrap() as usize..].starts_with(&token),
                "{token:?} at {offset}"
            );
        }
    }
    let chunks = SERVER.complete(with(body, json!({ "stream": true }))).chunks();
    assert_eq!(streamed(&chunks, 0), choice["text"].as_str().unwrap());
    let streamed_offsets: Vec<Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(streamed_offsets, offsets);
}

#[test]
fn point_47_an_echo_of_tokens_spells_them_all_and_unseen_tokens_have_no_width() {
    let end = TEXT.tokenizer.token("<|im_end|>").unwrap();
    let prompt = [1, 4093, 198];
    let spelled: Vec<u8> =
        prompt.iter().flat_map(|token| TEXT.tokenizer.token_bytes(*token).to_vec()).collect();
    let spelled = String::from_utf8(spelled).unwrap();
    assert!(TEXT.tokenizer.is_special(1) && TEXT.tokenizer.is_special(end));
    let body = json!({
        "prompt": prompt, "echo": true, "logprobs": 1, "temperature": 0, "max_tokens": 6, "ignore_eos": true,
    });
    let check = |body: Value| {
        let choice = SERVER.complete(body).ok()["choices"][0].clone();
        let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
        assert!(choice["text"].as_str().unwrap().starts_with(&spelled), "{choice}");
        let logprobs = &choice["logprobs"];
        let (tokens, offsets) = (&logprobs["tokens"], &logprobs["text_offset"]);
        for (index, token) in tokens.as_array().unwrap().iter().enumerate() {
            let rest: String = text[offsets[index].as_u64().unwrap() as usize..].iter().collect();
            let unseen = index >= prompt.len() && token == "<|im_end|>";
            assert!(unseen || rest.starts_with(token.as_str().unwrap()), "{token} in {choice}");
        }
        choice
    };
    check(body.clone());
    let unseen = check(with(body, json!({ "logit_bias": { end.to_string(): 100 } })));
    assert_eq!(unseen["text"], *spelled);
    let length = spelled.chars().count();
    let offsets = unseen["logprobs"]["text_offset"].as_array().unwrap();
    assert_eq!(offsets[prompt.len()..], vec![json!(length); 6]);
}

#[test]
fn point_47_an_echo_without_an_answer_scores_the_prompt() {
    let body = json!({ "prompt": "The capital of France is Paris", "max_tokens": 0, "echo": true, "logprobs": 1 });
    let answer = SERVER.complete(body).ok();
    assert_eq!(answer["choices"][0]["text"], "The capital of France is Paris");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let scores = answer["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert!(scores.last().unwrap().as_f64().unwrap() > -2.0, "{scores:?}");
    assert_eq!(
        SERVER.complete(json!({ "prompt": "a", "max_tokens": 0 })).error(400)["param"],
        "max_tokens"
    );
}

#[test]
fn point_47_prompts_of_all_forms_keep_their_order() {
    let text = |index: usize, answer: &Value| answer["choices"][index]["text"].clone();
    let prompts = ["The capital of France is", "One, two, three,"];
    let options = json!({ "temperature": 0, "max_tokens": 3 });
    let ask = |prompt: Value| {
        SERVER.complete(with(options.clone(), json!({ "prompt": prompt, "n": 2 }))).ok()
    };
    let both = ask(json!(prompts));
    assert_eq!(both["choices"].as_array().unwrap().len(), 4);
    for (index, choice) in both["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(choice["index"], index);
    }
    let alone: Vec<Value> = prompts.iter().map(|prompt| ask(json!(prompt))).collect();
    for index in 0..4 {
        assert_eq!(text(index, &both), text(index % 2, &alone[index / 2]));
    }
    let tokens = prompts.map(|prompt| TEXT.tokenizer.encode(prompt, AddSpecial::Yes));
    assert_eq!(ask(json!(tokens))["choices"], both["choices"]);
    assert_eq!(ask(json!(tokens[1]))["choices"], alone[1]["choices"]);
    let total = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(total(&both), total(&alone[0]) + total(&alone[1]));

    let body = with(options.clone(), json!({ "prompt": prompts, "n": 2, "stream": true }));
    let chunks = SERVER.complete(body).chunks();
    for index in 0..4 {
        assert_eq!(streamed(&chunks, index), text(index, &both).as_str().unwrap());
    }
}

#[test]
fn point_47_best_of_gives_the_most_probable_answers() {
    let body = json!({
        "prompt": "Once upon a time", "temperature": 1.5, "seed": 5, "max_tokens": 6, "logprobs": 0, "ignore_eos": true,
    });
    let mean = |choice: &Value| {
        let column = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        column.iter().map(|value| value.as_f64().unwrap()).sum::<f64>() / column.len() as f64
    };
    let all = SERVER.complete(with(body.clone(), json!({ "n": 4 }))).ok();
    let mut means: Vec<f64> = all["choices"].as_array().unwrap().iter().map(mean).collect();
    means.sort_by(|a, b| b.total_cmp(a));
    let best = SERVER.complete(with(body.clone(), json!({ "n": 2, "best_of": 4 }))).ok();
    let best_means: Vec<f64> = best["choices"].as_array().unwrap().iter().map(mean).collect();
    assert_eq!(best_means, means[..2]);
    assert_eq!(best["usage"]["completion_tokens"], 24);

    for fields in [json!({ "n": 2, "best_of": 1 }), json!({ "best_of": 2, "stream": true })] {
        assert_eq!(SERVER.complete(with(body.clone(), fields)).error(400)["param"], "best_of");
    }
}
