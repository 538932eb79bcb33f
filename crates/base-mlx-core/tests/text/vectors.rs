//! llama.cpp's token vectors: a vocabulary in GGUF form, texts, and the tokens it makes of them.

use base_mlx_core::text::AddSpecial;

use crate::files;
use crate::support::test_models::test_model;

fn check(name: &str) {
    let read = |extension: &str| {
        let path = test_model(&format!("llama.cpp/models/ggml-vocab-{name}.gguf.{extension}"));
        std::fs::read_to_string(path).unwrap()
    };
    let (texts, tokens) = (read("inp"), read("out"));
    // The line follows every text; in some files the last one too.
    let texts: Vec<_> = texts.split("\n__ggml_vocab_test__\n").collect();
    let tokens: Vec<_> = tokens.lines().collect();
    assert!(tokens.len() >= 45 && texts.len() - tokens.len() <= 1);

    let tokenizer = files::vocabulary(name).tokenizer;
    for (text, tokens) in texts.into_iter().zip(tokens) {
        let tokens: Vec<u32> = tokens.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text, AddSpecial::No), tokens, "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&tokens), text, "{name}");
    }
}

#[test]
fn llama3_gives_the_reference_tokens() {
    check("llama-bpe");
}

#[test]
fn sentencepiece_gives_the_reference_tokens() {
    check("llama-spm");
    check("phi-3");
}

#[test]
fn qwen_gives_the_reference_tokens() {
    check("qwen2");
    check("qwen35");
}

#[test]
fn gpt2_and_its_kin_give_the_reference_tokens() {
    check("gpt-2");
    check("mpt");
}

#[test]
fn vocabularies_that_split_digits_give_the_reference_tokens() {
    check("starcoder");
    check("refact");
    check("command-r");
}

#[test]
fn falcon_and_deepseek_give_the_reference_tokens() {
    check("falcon");
    check("deepseek-llm");
    check("deepseek-coder");
}

#[test]
fn gemma4_gives_the_reference_tokens() {
    check("gemma-4");
}
