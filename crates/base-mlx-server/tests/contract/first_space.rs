//! Vocabularies that put a space before every text: it is part of what goes on with a text, and no part of what begins
//! one.

use std::path::Path;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::support::{TestServer, content, streamed, user, with};

/// A server whose model, made of noise, says ` a` again and again if it is told to.
static SERVER: LazyLock<TestServer> = LazyLock::new(|| {
    let models = Path::new(env!("CARGO_TARGET_TMPDIR")).join("first-space");
    let folder = models.join("noise");
    std::fs::create_dir_all(&folder).unwrap();
    let weights =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../base-mlx-core/tests/golden/llama/tied");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(weights.join(name), folder.join(name)).unwrap();
    }
    let template = "{% for message in messages %}{{ message.content }}{% endfor %}";
    let settings = json!({ "bos_token": "<s>", "eos_token": "</s>", "chat_template": template });
    for (name, value) in [("tokenizer.json", tokenizer()), ("tokenizer_config.json", settings)] {
        std::fs::write(folder.join(name), value.to_string()).unwrap();
    }
    TestServer::with_models(&models, |_| {})
});

/// As Llama 2 has it.
fn tokenizer() -> Value {
    let added = |id: u32, content: &str| {
        json!({ "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false })
    };
    let replace = |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": { "type": "Sequence", "normalizers":
            [{ "type": "Prepend", "prepend": "▁" }, replace(" ", "▁")] },
        "post_processor": { "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": { "type": "Sequence", "decoders":
            [replace("▁", " "), { "type": "ByteFallback" }, { "type": "Fuse" },
             { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] },
        "model": { "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": { "<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "b": 5, "▁a": 6, "▁b": 7 },
            "merges": ["▁ a", "▁ b"] },
    })
}

fn says_a(fields: Value) -> Value {
    with(json!({ "model": "noise", "max_tokens": 2, "logit_bias": { "6": 100 } }), fields)
}

#[test]
fn point_47_a_completion_keeps_the_space_that_it_begins_with() {
    for (prompt, echo, answer) in [
        (json!("a b"), "a b", " a a"),
        (json!(" b"), " b", " a a"),
        (json!("a</s>b"), "a</s>b", " a a"),
        (json!([6, 7]), " a b".trim_start(), " a a"),
        (json!([4]), "a", " a a"),
        (json!([1, 6]), "<s> a", " a a"),
        // Nothing is before it: it begins the text.
        (json!(""), "", "a a"),
    ] {
        let text = |fields: Value| {
            let body = says_a(with(json!({ "prompt": prompt }), fields));
            let whole = SERVER.complete(body.clone()).ok();
            let chunks = SERVER.complete(with(body, json!({ "stream": true }))).chunks();
            assert_eq!(whole["choices"][0]["text"], streamed(&chunks, 0));
            streamed(&chunks, 0)
        };
        assert_eq!(text(json!({})), answer, "{prompt}");
        assert_eq!(text(json!({ "echo": true })), echo.to_owned() + answer, "{prompt}");
    }
}

#[test]
fn point_47_offsets_leave_out_the_space_that_is_not_there() {
    for (prompt, echo, offsets) in [
        (json!("a b"), false, json!([0, 2])),
        (json!("a b"), true, json!([0, 1, 3, 5])),
        (json!(" b"), true, json!([0, 0, 2, 4])),
        (json!("a</s>b"), true, json!([0, 1, 5, 6, 8])),
        (json!([6, 7]), true, json!([0, 1, 3, 5])),
        (json!([1, 6]), true, json!([0, 3, 5, 7])),
        (json!(""), false, json!([0, 1])),
        (json!(""), true, json!([0, 1])),
    ] {
        let body = says_a(json!({ "prompt": prompt, "echo": echo, "logprobs": 0, "n": 2 }));
        let answer = SERVER.complete(body).ok();
        for choice in answer["choices"].as_array().unwrap() {
            assert_eq!(choice["logprobs"]["text_offset"], offsets, "{choice}");
        }
    }
}

#[test]
fn point_17_an_answer_does_not_begin_with_the_tokenizers_space_and_a_continued_one_may() {
    let chat = |fields: Value| {
        let body = says_a(with(json!({ "messages": user("b") }), fields));
        let whole = SERVER.chat(body.clone()).ok();
        let chunks = SERVER.chat(with(body, json!({ "stream": true }))).chunks();
        assert_eq!(content(&whole), streamed(&chunks, 0));
        streamed(&chunks, 0)
    };
    assert_eq!(chat(json!({})), "a a");
    // A space of its own stays.
    assert_eq!(chat(json!({ "logit_bias": { "3": 100 } })), " ");
    let continued = json!([{ "role": "assistant", "content": "b" }]);
    assert_eq!(chat(json!({ "messages": continued, "continue_final_message": true })), " a a");
    // What is held to a grammar has the space that the grammar says.
    let held = json!({ "grammar": { "regex": " a a" } });
    assert_eq!(chat(held.clone()), " a a");
    let completed = SERVER.complete(says_a(with(json!({ "prompt": "" }), held))).ok();
    assert_eq!(completed["choices"][0]["text"], " a a");
}
