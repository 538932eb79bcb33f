//! Where a folder keeps its chat template.

use base_mlx_core::text::{ChatInput, ChatTemplate};
use serde_json::{Map, Value, json};

use crate::files::Folder;

fn says(template: &ChatTemplate, tools: Option<&Value>) -> String {
    let messages = json!([{ "role": "user", "content": "hello" }]);
    let input =
        ChatInput { messages: &messages, tools, add_generation_prompt: false, kwargs: &Map::new() };
    template.render(&input).unwrap()
}

fn template(folder: &Folder) -> ChatTemplate {
    folder.load().unwrap().template.unwrap()
}

#[test]
fn a_folder_without_one_has_none() {
    assert!(Folder::new().load().unwrap().template.is_none());
}

#[test]
fn a_broken_one_leaves_the_tokenizer() {
    let folder = Folder::new().with("tokenizer_config.json", r#"{ "chat_template": "{% fou %}" }"#);
    let text = folder.load().unwrap();
    assert!(text.template.is_none());
    assert!(text.template_error.unwrap().to_string().contains("fou"));
}

#[test]
fn a_string_in_the_tokenizer_config() {
    let config = r#"{ "chat_template": "{{ bos_token }}{{ messages[0].content }}",
        "bos_token": { "content": "<|stop|>" } }"#;
    let folder = Folder::new().with("tokenizer_config.json", config);
    assert_eq!(says(&template(&folder), None), "<|stop|>hello");
    assert_eq!(template(&folder).source(), "{{ bos_token }}{{ messages[0].content }}");
}

#[test]
fn a_list_in_the_tokenizer_config() {
    let config = r#"{ "chat_template": [{ "name": "default", "template": "plain" },
        { "name": "tool_use", "template": "tools" }] }"#;
    let folder = Folder::new().with("tokenizer_config.json", config);
    let tools = json!([]);
    assert_eq!(says(&template(&folder), None), "plain");
    assert_eq!(says(&template(&folder), Some(&tools)), "tools");
}

#[test]
fn files_win_over_the_tokenizer_config() {
    let folder = Folder::new()
        .with("tokenizer_config.json", r#"{ "chat_template": "config" }"#)
        .with("chat_template.jinja", "file\n")
        .with("additional_chat_templates/tool_use.jinja", "additional");
    let tools = json!([]);
    assert_eq!(says(&template(&folder), None), "file");
    assert_eq!(says(&template(&folder), Some(&tools)), "additional");
}

#[test]
fn a_json_file_of_its_own() {
    let folder = Folder::new().with("chat_template.json", r#"{ "chat_template": "json" }"#);
    assert_eq!(says(&template(&folder), None), "json");
}

#[test]
fn broken_files_are_errors() {
    assert!(Folder::new().with("tokenizer.json", "{}").load().is_err());
    assert!(Folder::new().with("tokenizer.json", "\u{0}").load().is_err());
    assert!(Folder::new().with("tokenizer_config.json", "[]").load().is_err());
    assert!(Folder::new().with("generation_config.json", "{").load().is_err());
    let far = r#"{ "version": "1.0", "added_tokens": [], "decoder": { "type": "ByteLevel",
        "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": { "a": 4000000000 }, "merges": [] } }"#;
    let message = Folder::new().with("tokenizer.json", far).load().unwrap_err().to_string();
    assert!(message.contains("4000000001"), "{message}");
    let odd = r#"{ "version": "1.0", "added_tokens": [], "decoder": { "type": "CTC",
        "pad_token": "p", "word_delimiter_token": "w", "cleanup": true },
        "model": { "type": "BPE", "vocab": { "a": 0 }, "merges": [] } }"#;
    let message = Folder::new().with("tokenizer.json", odd).load().unwrap_err().to_string();
    assert!(message.contains("CTC"), "{message}");
}
