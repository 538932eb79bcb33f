//! Which tokens end an answer: every place that may say it, alone and together.

use serde_json::json;

use crate::files::{self, Entry, Folder};

/// `<|im_end|>` exists in the made-up vocabulary and always ends a turn.
const IM_END: u32 = 6;

fn ends(folder: &Folder) -> Vec<u32> {
    folder.load().unwrap().end_tokens
}

#[test]
fn the_tokenizer_names_one() {
    let plain = r#"{ "eos_token": "<|stop|>" }"#;
    let wrapped = r#"{ "eos_token": { "content": "<|stop|>", "lstrip": false } }"#;
    for config in [plain, wrapped] {
        assert_eq!(ends(&Folder::new().with("tokenizer_config.json", config)), [4, IM_END]);
        assert_eq!(ends(&Folder::new().with("special_tokens_map.json", config)), [4, IM_END]);
    }
    let unknown = r#"{ "eos_token": "<|missing|>" }"#;
    assert_eq!(ends(&Folder::new().with("tokenizer_config.json", unknown)), [IM_END]);
}

#[test]
fn the_config_numbers_one_or_several() {
    let number = json!({ "eos_token_id": 1 });
    let list = json!({ "eos_token_id": [5, 1, 4_000_000_000_u64, -1, null] });
    let nested = json!({ "text_config": { "eos_token_id": 0 } });
    assert_eq!(ends(&Folder::new().config(number)), [1, IM_END]);
    assert_eq!(ends(&Folder::new().config(list)), [1, 5, IM_END]);
    assert_eq!(ends(&Folder::new().config(nested)), [0, IM_END]);
}

#[test]
fn the_generation_config_numbers_several() {
    let folder = Folder::new().with("generation_config.json", r#"{ "eos_token_id": [4, 5] }"#);
    assert_eq!(ends(&folder), [4, 5, IM_END]);
}

#[test]
fn the_template_writes_one_after_an_answer() {
    let template = |end: &str| {
        format!("{{% for m in messages %}}<|stop|>{{{{ m.content }}}}{end}{{% endfor %}}")
    };
    let folder = |end| Folder::new().with("chat_template.jinja", &template(end));
    assert_eq!(ends(&folder("\n<|fin|>\n")), [5, IM_END]);
    assert_eq!(ends(&folder("<|end|>")), [IM_END, 7]);
    // Not every special token behind an answer belongs to it.
    assert_eq!(ends(&folder(" and <|end|>")), [IM_END]);
}

#[test]
fn all_places_together_give_each_token_once() {
    let folder = Folder::new()
        .config(json!({ "eos_token_id": 5 }))
        .with("tokenizer_config.json", r#"{ "eos_token": "<|stop|>" }"#)
        .with("generation_config.json", r#"{ "eos_token_id": [7, 5] }"#)
        .with("chat_template.jinja", "{{ messages[1].content }}<|im_end|>");
    assert_eq!(ends(&folder), [4, 5, 6, 7]);
}

#[test]
fn gguf_metadata_numbers_them_by_role() {
    let roles = |roles: &[(&'static str, u32)]| {
        let mut entries = vec![
            ("tokenizer.ggml.model", Entry::Str("gpt2")),
            ("tokenizer.ggml.pre", Entry::Str("smollm")),
            ("tokenizer.ggml.tokens", Entry::Strs(&["a", "x", "y", "z", "<|im_end|>"])),
            ("tokenizer.ggml.token_type", Entry::I32s(&[1, 3, 3, 3, 3])),
        ];
        entries.extend(roles.iter().map(|&(key, id)| (key, Entry::U32(id))));
        files::from_gguf(&entries).unwrap().end_tokens
    };
    assert_eq!(roles(&[]), [4]);
    assert_eq!(roles(&[("tokenizer.ggml.eos_token_id", 1)]), [1, 4]);
    assert_eq!(roles(&[("tokenizer.ggml.eot_token_id", 2)]), [2, 4]);
    assert_eq!(roles(&[("tokenizer.ggml.eom_token_id", 3)]), [3, 4]);
    assert_eq!(roles(&[("tokenizer.ggml.eos_token_id", 77)]), [4]);
}

#[test]
fn a_word_that_only_looks_like_a_marker_ends_nothing() {
    let text = files::from_gguf(&[
        ("tokenizer.ggml.model", Entry::Str("gpt2")),
        ("tokenizer.ggml.pre", Entry::Str("smollm")),
        ("tokenizer.ggml.tokens", Entry::Strs(&["a", "<|im_end|>"])),
    ]);
    assert!(text.unwrap().end_tokens.is_empty());
}
