//! The two real chat models among the test models, and a tokenizer.json.

use base_mlx_core::text::{AddSpecial, ChatInput, Text};
use base_mlx_core::weights::{Checkpoint, Config};
use serde_json::{Map, Value, json};

use crate::support::test_models::test_model;

fn prompt(text: &Text, messages: Value) -> String {
    let template = text.template.as_ref().unwrap();
    let kwargs = Map::new();
    template
        .render(&ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            kwargs: &kwargs,
        })
        .unwrap()
}

fn turns() -> Value {
    json!([
        { "role": "system", "content": "Be terse." },
        { "role": "user", "content": "Hi" },
        { "role": "assistant", "content": "Hello." },
        { "role": "user", "content": "Größe?" },
    ])
}

const TURNS: &str = "<|im_start|>system\nBe terse.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
    <|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nGröße?<|im_end|>\n<|im_start|>assistant\n";

#[test]
fn smollm2_reads_a_conversation() {
    let text = Text::load(&Checkpoint::open(&test_model("smollm2.gguf")).unwrap()).unwrap();
    assert_eq!(prompt(&text, turns()), TURNS);
    assert_eq!(
        prompt(&text, json!([{ "role": "user", "content": "What is the capital of France?" }])),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    );
    // <|endoftext|> and <|im_end|>
    assert_eq!(text.end_tokens, [0, 2]);
    assert_eq!(text.tokenizer.vocab_size(), 49_152);
    let tokens = text.tokenizer.encode(TURNS, AddSpecial::No);
    assert_eq!(tokens[..3], [1, 9690, 198]);
    assert_eq!(tokens.iter().filter(|&&token| token == 2).count(), 4);
    assert_eq!(
        text.tokenizer.decode(&tokens),
        TURNS.replace("<|im_start|>", "").replace("<|im_end|>", "")
    );
}

#[test]
fn qwen_coder_reads_a_conversation() {
    let path = test_model("qwen2.5-coder-0.5b.gguf");
    let text = Text::load(&Checkpoint::open(&path).unwrap()).unwrap();
    assert_eq!(prompt(&text, turns()), TURNS);
    assert_eq!(
        prompt(&text, json!([{ "role": "user", "content": "What is the capital of France?" }])),
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n\
         <|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(text.end_tokens, [151_643, 151_645]);
    assert_eq!(text.tokenizer.vocab_size(), 151_936);
}

#[test]
fn a_tokenizer_json_loads_without_its_padding_and_truncation() {
    let folder = test_model("minilm");
    let text = Text::from_folder(&folder, &Config::new(&folder, Map::new())).unwrap();
    assert!(text.template.is_none());
    // [CLS] hello world [SEP]
    assert_eq!(text.tokenizer.encode("Hello world", AddSpecial::Yes), [101, 7592, 2088, 102]);
    assert_eq!(text.tokenizer.decode(&[101, 7592, 2088, 102]), "hello world");
    assert_eq!(text.tokenizer.encode(&"hello ".repeat(1000), AddSpecial::No).len(), 1000);
}
