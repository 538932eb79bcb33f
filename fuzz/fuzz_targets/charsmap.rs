//! What passes as SentencePiece's table must be safe to look texts up in.

#![no_main]

use std::path::Path;

use base_mlx_core::text::{AddSpecial, Text};
use base_mlx_core::weights::gguf::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u32>, Vec<u8>, String)| {
    let (changes, texts, text) = input;
    // Few tables would be sound by themselves: this one leads from `a` to the first text, until it is changed.
    let mut units = vec![0_u32; 512];
    units[0] = 256 << 10;
    units[256 ^ 0x61] = 0x61 | 1 << 8 | 0x61 << 10;
    units[256] = 1 << 31;
    for change in changes.chunks_exact(2) {
        units[change[0] as usize % 512] = change[1];
    }
    let units: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let table = [&(units.len() as u32).to_le_bytes()[..], &units, &texts].concat();

    let tokens = ["<s>", "</s>", "<unk>", "▁a"];
    let metadata = [
        pair("general.architecture", 8, string("bert")),
        pair("tokenizer.ggml.model", 8, string("t5")),
        pair("tokenizer.ggml.tokens", 9, array(8, 4, tokens.map(string).concat())),
        pair("tokenizer.ggml.scores", 9, array(6, 4, [0.0_f32; 4].map(f32::to_le_bytes).concat())),
        pair("tokenizer.ggml.precompiled_charsmap", 9, array(0, table.len(), table)),
    ];
    let counts = [0_u64.to_le_bytes(), (metadata.len() as u64).to_le_bytes()].concat();
    let file = [b"GGUF", &3_u32.to_le_bytes()[..], &counts, &metadata.concat()].concat();
    let header = parse(&file).expect("the file is sound but for its table");
    let Ok(vocabulary) = Text::from_gguf(Path::new("x.gguf"), &header.metadata) else { return };
    for text in [&text, "a caca", "\u{301}a 東京 a\u{308}b", "🙂a\u{200d}é \u{7f}aa\0a"] {
        vocabulary.tokenizer.encode(text, AddSpecial::Yes);
    }
});

fn pair(key: &str, kind: u32, value: Vec<u8>) -> Vec<u8> {
    [string(key), kind.to_le_bytes().to_vec(), value].concat()
}

fn array(kind: u32, len: usize, values: Vec<u8>) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &(len as u64).to_le_bytes(), &values].concat()
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}
