//! Tokens to text, as they come.

use base_mlx_core::TokenId;
use base_mlx_core::text::{AddSpecial, Tokenizer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::files::{self, Entry, Folder};
use crate::support::dice::Dice;

/// Tokens from a small generator: any of the vocabulary, or only those of few bytes, which break characters.
fn streams(tokenizer: &Tokenizer) -> impl Iterator<Item = Vec<TokenId>> {
    let short: Vec<TokenId> = (0..tokenizer.vocab_size() as TokenId)
        .filter(|&token| {
            let bytes = tokenizer.token_bytes(token);
            bytes.len() < 4 && !bytes.is_ascii()
        })
        .collect();
    let mut dice = Dice(0);
    (0..400).map(move |round| {
        (0..1 + round % 50)
            .map(|_| match dice.below(4) {
                0 => dice.below(tokenizer.vocab_size() + 3) as TokenId,
                _ => short[dice.below(short.len())],
            })
            .collect()
    })
}

fn check(tokenizer: &Tokenizer, strips_first_space: bool) {
    for tokens in streams(tokenizer) {
        let visible = tokens.iter().filter(|&&token| !tokenizer.is_special(token));
        let bytes: Vec<u8> =
            visible.flat_map(|&token| tokenizer.token_bytes(token).to_vec()).collect();
        let bytes = match bytes.strip_prefix(b" ") {
            Some(rest) if strips_first_space => rest,
            _ => &bytes,
        };
        let expected = String::from_utf8_lossy(bytes);

        let mut decoder = tokenizer.decoder();
        let mut opening = tokenizer.opening_after(&[]);
        let mut text = String::new();
        let mut add = |piece: String| {
            text.push_str(&piece[opening.skip(piece.as_bytes())..]);
            // What was shown is never taken back.
            assert!(expected.starts_with(&text));
        };
        tokens.iter().for_each(|&token| add(decoder.push(token)));
        add(decoder.finish());
        assert_eq!(text, expected);
        assert_eq!(tokenizer.decode(&tokens), expected);
    }
}

#[test]
fn any_tokens_in_pieces_give_the_text_of_the_whole() {
    check(&files::vocabulary("gpt-2").tokenizer, false);
    check(&files::vocabulary("qwen2").tokenizer, false);
    check(&files::vocabulary("llama-spm").tokenizer, true);
}

#[test]
fn a_text_that_goes_on_keeps_its_first_space() {
    for name in ["gpt-2", "qwen2", "llama-spm"] {
        let tokenizer = files::vocabulary(name).tokenizer;
        for special in [AddSpecial::Yes, AddSpecial::No] {
            let tokens = tokenizer.encode("The capital of France is Paris", special);
            for cut in 0..tokens.len() {
                let (head, tail) = tokens.split_at(cut);
                let mut decoder = tokenizer.decoder();
                let mut text: String = tail.iter().map(|&token| decoder.push(token)).collect();
                text.drain(..tokenizer.opening_after(head).skip(text.as_bytes()));
                assert_eq!(tokenizer.decode(head) + &text, tokenizer.decode(&tokens), "{name}");
            }
        }
    }
}

#[test]
fn every_byte_has_a_token_in_byte_vocabularies() {
    for name in ["gpt-2", "llama-spm"] {
        let tokenizer = files::vocabulary(name).tokenizer;
        let mut found = [false; 256];
        for token in 0..tokenizer.vocab_size() as TokenId {
            if let [byte] = tokenizer.token_bytes(token) {
                found[usize::from(*byte)] = true;
            }
        }
        assert_eq!(found, [true; 256], "{name}");
    }
}

#[test]
fn special_tokens_are_read_and_not_shown() {
    let tokenizer = files::vocabulary("llama-bpe").tokenizer;
    let tokens = tokenizer.encode("<|eot_id|>a", AddSpecial::No);
    assert_eq!(tokens, [128_009, 64]);
    assert!(tokenizer.is_special(128_009) && !tokenizer.is_special(64));
    assert_eq!(tokenizer.token_bytes(128_009), b"<|eot_id|>");
    assert_eq!(tokenizer.decode(&tokens), "a");
}

#[test]
fn a_first_token_is_added_where_the_model_wants_one() {
    let begins = |name: &str| {
        let tokenizer = files::vocabulary(name).tokenizer;
        let plain = tokenizer.encode("Hello", AddSpecial::No);
        let full = tokenizer.encode("Hello", AddSpecial::Yes);
        assert_eq!(full[full.len() - plain.len()..], plain);
        full[..full.len() - plain.len()].to_vec()
    };
    assert_eq!(begins("llama-spm"), [1]);
    assert_eq!(begins("llama-bpe"), [128_000]);
    assert!(begins("qwen2").is_empty());
}

#[test]
fn user_defined_tokens_are_text() {
    let text = files::from_gguf(&[
        ("tokenizer.ggml.model", Entry::Str("gpt2")),
        ("tokenizer.ggml.pre", Entry::Str("gpt-2")),
        ("tokenizer.ggml.tokens", Entry::Strs(&["a", "<tool>", "<|x|>", "[PAD3]"])),
        ("tokenizer.ggml.token_type", Entry::I32s(&[1, 4, 3, 5])),
    ]);
    let tokenizer = text.unwrap().tokenizer;
    let tokens = tokenizer.encode("a<tool><|x|>", AddSpecial::Yes);
    assert_eq!(tokens, [0, 1, 2]);
    assert_eq!(tokenizer.decode(&[0, 1, 2, 3, 99]), "a<tool>");
    // The characters that this vocabulary lacks are left out.
    assert_eq!(tokenizer.encode("za z", AddSpecial::No), [0]);
}

#[test]
fn an_unknown_way_to_cut_words_is_named() {
    let error = files::from_gguf(&[
        ("tokenizer.ggml.model", Entry::Str("gpt2")),
        ("tokenizer.ggml.pre", Entry::Str("brand-new")),
        ("tokenizer.ggml.tokens", Entry::Strs(&["a"])),
    ]);
    let message = error.unwrap_err().to_string();
    assert!(message.contains("brand-new") && message.contains("made-up.gguf"), "{message}");
}

#[test]
fn vocabularies_that_contradict_themselves_are_errors() {
    let tokens = Entry::Strs(&["a", "b", "ab"]);
    let cases: [&[(&str, Entry)]; 5] = [
        &[("tokenizer.ggml.merges", Entry::Strs(&["a c"]))],
        &[("tokenizer.ggml.merges", Entry::Strs(&["ab"]))],
        &[("tokenizer.ggml.merges", Entry::Strs(&["ab ab"]))],
        &[("tokenizer.ggml.token_type", Entry::I32s(&[1, 1]))],
        &[("tokenizer.ggml.merges", Entry::Strs(&[" "]))],
    ];
    for case in cases {
        let mut entries = vec![
            ("tokenizer.ggml.model", Entry::Str("gpt2")),
            ("tokenizer.ggml.pre", Entry::Str("gpt-2")),
            ("tokenizer.ggml.tokens", tokens),
        ];
        entries.extend(case);
        assert!(files::from_gguf(&entries).is_err());
    }
    let unscored = [
        ("tokenizer.ggml.model", Entry::Str("llama")),
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.scores", Entry::F32s(&[0.0])),
        ("tokenizer.ggml.add_space_prefix", Entry::Bool(false)),
    ];
    assert!(files::from_gguf(&unscored).is_err());
    assert!(files::from_gguf(&[("tokenizer.ggml.model", Entry::Str("rwkv"))]).is_err());
    assert!(files::from_gguf(&[]).is_err());
}

/// Its lookups would leave the table with the first character of any text.
#[test]
fn a_table_of_normalizations_that_leads_out_of_itself_is_refused() {
    let trie = [u32::MAX, 0, 0, 0].map(u32::to_le_bytes).concat();
    let table = STANDARD.encode([&16_u32.to_le_bytes()[..], &trie, b"b\0"].concat());
    let table = json!({ "type": "Precompiled", "precompiled_charsmap": table });
    let folder = Folder::new();
    let mut tokenizer = folder.json("tokenizer.json");
    tokenizer["normalizer"] = json!({ "type": "Sequence", "normalizers": [table] });
    let error = folder.with("tokenizer.json", &tokenizer.to_string()).load().unwrap_err();
    let expected = "its `precompiled_charsmap` has a trie whose unit 0 leads out of it";
    assert!(error.to_string().ends_with(expected), "{error}");
}
