//! Encoders from GGUF files: which vector they make of a text, what they are told apart by, and their vocabularies, beside
//! those of tokenizer.json and of SentencePiece itself. Their states are compared in `encoders.rs`.

#![allow(clippy::unwrap_used, reason = "all of it is test code, its helpers too")]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base_mlx_core::TokenId;
use base_mlx_core::engine::{Encodable, Encoder, Engine, EngineOptions, Purpose};
use base_mlx_core::text::{AddSpecial, Text};
use base_mlx_core::weights::gguf;
use half::f16;
use safetensors::SafeTensors;
use serde_json::Value;
use support::answer::DEVICE;
use support::encoders::{Golden, golden};
use support::gguf::GgufFile;
use support::golden::relative_error;
use support::test_models::test_model;

fn start(path: &Path) -> Encoder {
    Encoder::start(path, "model", &DEVICE, &EngineOptions::default()).unwrap()
}

fn refusal(file: &GgufFile) -> String {
    refusal_of(&file.bytes())
}

fn refusal_of(file: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, file).unwrap();
    let error = Encoder::start(&path, "x", &DEVICE, &EngineOptions::default()).unwrap_err();
    error.to_string().replace(&path.display().to_string(), "x.gguf")
}

fn encode(encoder: &Encoder, texts: Vec<Encodable>) -> Vec<Vec<f32>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(encoder.encode(texts)).unwrap()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_file_is_told_by_its_pooling_and_its_head() {
    for (name, purpose) in [
        ("bert", Purpose::Embed),
        ("nomic_bert", Purpose::Embed),
        ("qwen3", Purpose::Embed),
        ("xlm_roberta", Purpose::Embed),
        // One says so, the other only has a head.
        ("xlm_roberta_ranks", Purpose::Rank),
        ("bert_ranks", Purpose::Rank),
    ] {
        let path = golden().join(name).join("twin.gguf");
        assert_eq!(Purpose::of(&path).unwrap(), purpose, "{name}");
        let error = Engine::start(&path, name, &DEVICE, EngineOptions::default()).unwrap_err();
        assert!(error.to_string().contains("and does not write"), "{name}: {error}");
    }
}

/// Poolings of three kinds, each brought to length 1.
#[test]
fn a_vector_is_pooled_as_the_file_says() {
    for (name, pooling) in
        [("bert", "first"), ("xlm_roberta", "mean"), ("nomic_bert", "mean"), ("qwen3", "last")]
    {
        let golden_states = Golden::read(name);
        let encoder = start(&golden().join(name).join("twin.gguf"));
        assert!(encoder.info().normalized && encoder.info().prompts.is_empty());
        let rows: usize = golden_states.texts.iter().map(Vec::len).sum();
        let width = golden_states.states.len() / rows;
        let mut states = &golden_states.states[..];
        let mut types = &golden_states.types[..];
        for text in &golden_states.texts {
            let (own, others) = states.split_at(text.len() * width);
            let (kinds, rest) = types.split_at(text.len());
            (states, types) = (others, rest);
            // What is encoded alone is no second text of a pair.
            if kinds.iter().any(|&kind| kind != 0) {
                continue;
            }
            let vector = encode(&encoder, vec![Encodable::new(text.clone())]).remove(0);
            let row = |row: usize| own[row * width..][..width].to_vec();
            let mean = |i| own.iter().skip(i).step_by(width).sum::<f32>() / text.len() as f32;
            let pooled = match pooling {
                "first" => row(0),
                "last" => row(text.len() - 1),
                _ => (0..width).map(mean).collect(),
            };
            let length = pooled.iter().map(|x| x * x).sum::<f32>().sqrt();
            let expected: Vec<f32> = pooled.iter().map(|x| x / length).collect();
            let error = relative_error(&vector, &expected);
            assert!(error <= 1e-4, "{name}, {} tokens: {error:e}", text.len());
        }
    }
}

#[test]
fn the_tokens_around_a_text_are_the_familys() {
    let tokens = |name: &str, text: &str| {
        start(&golden().join(name).join("twin.gguf")).text(text, None, None).tokens
    };
    assert_eq!(tokens("bert", "a"), [2, 5, 3]);
    assert_eq!(tokens("xlm_roberta", "a"), [0, 12, 2]);
    assert_eq!(tokens("qwen3", "a"), [0, 63]);
    let pair = |name: &str| {
        let encoder = start(&golden().join(name).join("twin.gguf"));
        encoder.pairs("a", &["a".to_owned()]).unwrap().remove(0).tokens
    };
    assert_eq!(pair("bert_ranks"), [2, 5, 3, 5, 3]);
    assert_eq!(pair("xlm_roberta_ranks"), [0, 12, 2, 2, 12, 2]);
}

/// The bytes behind the key or the tensor's name.
fn behind(file: &[u8], name: &str) -> usize {
    let written = [&(name.len() as u64).to_le_bytes(), name.as_bytes()].concat();
    let mut places = file.windows(written.len()).enumerate().filter(|(_, at)| *at == written);
    let (at, _) = places.next().unwrap();
    assert!(places.next().is_none(), "{name} is there twice");
    at + written.len()
}

/// The file as ggml writes it that counts no dimension beyond the last that is more than 1.
fn flattened(file: &[u8]) -> Vec<u8> {
    let tensors = gguf::parse(file).unwrap().tensors;
    let last = tensors.last().unwrap();
    let header = behind(file, &last.name) + 4 + 8 * last.shape.len() + 4 + 8;
    let data = tensors.iter().map(|tensor| tensor.data.start).min().unwrap();
    let mut flat = file[..header].to_vec();
    for tensor in tensors.iter().filter(|tensor| tensor.shape.len() == 2 && tensor.shape[0] == 1) {
        let dimensions = behind(&flat, &tensor.name);
        flat[dimensions] = 1;
        flat.drain(dimensions + 4 + 8..dimensions + 4 + 16);
    }
    flat.resize(flat.len().next_multiple_of(32), 0);
    flat.extend(&file[data..]);
    flat
}

#[test]
fn a_matrix_of_one_row_may_have_lost_a_dimension() {
    let folder = tempfile::tempdir().unwrap();
    for (name, lost) in [
        ("xlm_roberta", &["token_types.weight"][..]),
        ("xlm_roberta_ranks", &["token_types.weight", "cls.output.weight"]),
        ("bert_ranks", &["cls.output.weight"]),
    ] {
        let twin = golden().join(name).join("twin.gguf");
        let path = folder.path().join("flat.gguf");
        let flat = flattened(&std::fs::read(&twin).unwrap());
        for tensor in gguf::parse(&flat).unwrap().tensors {
            let is_lost = lost.contains(&tensor.name.as_str());
            assert!(!is_lost || tensor.shape == [32], "{name}: {tensor:?}");
        }
        std::fs::write(&path, flat).unwrap();
        let (twin, flat) = (start(&twin), start(&path));
        assert_eq!(flat.info().knows_pairs, twin.info().knows_pairs);
        let text = || vec![Encodable::new(vec![0, 12, 14, 2])];
        assert_eq!(encode(&flat, text()), encode(&twin, text()), "{name}");
    }
}

#[test]
fn an_encoder_whose_tokens_see_only_those_before_them_is_refused() {
    for (name, key) in
        [("bert", "bert.attention.causal"), ("nomic_bert", "nomic-bert.attention.causal")]
    {
        let mut twin = std::fs::read(golden().join(name).join("twin.gguf")).unwrap();
        let value = behind(&twin, key) + 4;
        twin[value] = 1;
        let expected = format!("`{key}` in x.gguf is true, only false is supported");
        assert_eq!(refusal_of(&twin), expected);
    }
}

#[test]
fn what_a_file_lacks_has_the_files_name_for_it() {
    let mut twin = std::fs::read(golden().join("bert/twin.gguf")).unwrap();
    let name = behind(&twin, "token_types.weight");
    twin[name - 1] = b'z';
    assert_eq!(refusal_of(&twin), "`token_types.weight` in x.gguf is missing");
    let mut twin = std::fs::read(golden().join("bert/twin.gguf")).unwrap();
    let name = behind(&twin, "bert.feed_forward_length");
    twin[name - 1] = b'z';
    assert_eq!(refusal_of(&twin), "`bert.feed_forward_length` in x.gguf is missing");
    let twin = open(&golden().join("bert_ranks/twin.gguf"));
    let error = twin.config().error("id2label", "has 3 labels").to_string();
    assert!(error.starts_with("`cls.output.weight` in "), "{error}");
}

#[test]
fn a_sentencepiece_vocabulary_cuts_as_the_library_does() {
    let path = golden().join("xlm_roberta/twin.gguf");
    let file = gguf::parse(&std::fs::read(&path).unwrap()).unwrap();
    let text = Text::from_gguf(&path, &file.metadata).unwrap();
    for case in read_json(&golden().join("sentencepiece.json")).as_array().unwrap() {
        let expected: Vec<TokenId> = serde_json::from_value(case["tokens"].clone()).unwrap();
        let tokens = text.tokenizer.encode(case["text"].as_str().unwrap(), AddSpecial::Yes);
        assert_eq!(tokens, expected, "{}", case["text"]);
    }
}

/// MiniLM as a GGUF file of F16, with what converters write down of it, or with a vocabulary like those of the first ones: no
/// roles, and no marks at what stands in brackets.
fn minilm(folder: &Path, first_days: bool) -> PathBuf {
    let model = test_model("minilm");
    let mut file = GgufFile::new("bert")
        .u32("bert.context_length", 512)
        .u32("bert.embedding_length", 384)
        .u32("bert.block_count", 6)
        .u32("bert.feed_forward_length", 1536)
        .u32("bert.attention.head_count", 12)
        .f32("bert.attention.layer_norm_epsilon", 1e-12)
        .bool("bert.attention.causal", false)
        .u32("bert.pooling_type", 1)
        .str("tokenizer.ggml.model", "bert")
        .u32("tokenizer.ggml.token_type_count", 2);

    let tokenizer = read_json(&model.join("tokenizer.json"));
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let vocab: BTreeMap<u64, &str> =
        vocab.iter().map(|(token, id)| (id.as_u64().unwrap(), token.as_str())).collect();
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let is_name = |id: u64| added.iter().any(|token| token["id"] == id);
    let written: Vec<String> = vocab
        .iter()
        .map(|(&id, &token)| {
            let in_brackets = token.starts_with('[') && token.ends_with(']');
            match token.strip_prefix("##") {
                _ if is_name(id) || (first_days && in_brackets) => token.to_owned(),
                Some(rest) => rest.to_owned(),
                None => format!("▁{token}"),
            }
        })
        .collect();
    let kinds: Vec<i32> = vocab.keys().map(|&id| if is_name(id) { 3 } else { 1 }).collect();
    file = file
        .strings("tokenizer.ggml.tokens", &written.iter().map(String::as_str).collect::<Vec<_>>());
    file = file.i32s("tokenizer.ggml.token_type", &kinds);
    if !first_days {
        file = file
            .u32("tokenizer.ggml.bos_token_id", 101)
            .u32("tokenizer.ggml.eos_token_id", 102)
            .u32("tokenizer.ggml.unknown_token_id", 100)
            .u32("tokenizer.ggml.seperator_token_id", 102)
            .u32("tokenizer.ggml.padding_token_id", 0)
            .u32("tokenizer.ggml.mask_token_id", 103);
    }

    let bytes = std::fs::read(model.join("model.safetensors")).unwrap();
    let weights = SafeTensors::deserialize(&bytes).unwrap();
    for (name, tensor) in weights.tensors() {
        let Some(name) = gguf_name(&name) else { continue };
        let shape: Vec<u64> = tensor.shape().iter().map(|&size| size as u64).collect();
        let values =
            tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let small =
            shape.len() == 1 || name == "position_embd.weight" || name == "token_types.weight";
        let (kind, data): (u32, Vec<u8>) = match small {
            true => (0, tensor.data().to_vec()),
            false => (1, values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect()),
        };
        file = file.tensor(&name, kind, &shape, &data);
    }
    let path = folder.join("minilm.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    path
}

/// What llama.cpp calls a tensor of MiniLM; `None` for what it leaves out.
fn gguf_name(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let name = match stem.strip_prefix("encoder.layer.") {
        Some(rest) => {
            let (layer, part) = rest.split_once('.')?;
            let part = match part {
                "attention.self.query" => "attn_q",
                "attention.self.key" => "attn_k",
                "attention.self.value" => "attn_v",
                "attention.output.dense" => "attn_output",
                "attention.output.LayerNorm" => "attn_output_norm",
                "intermediate.dense" => "ffn_up",
                "output.dense" => "ffn_down",
                "output.LayerNorm" => "layer_output_norm",
                other => panic!("{other}"),
            };
            format!("blk.{layer}.{part}")
        }
        None => match stem {
            "embeddings.word_embeddings" => "token_embd".to_owned(),
            "embeddings.position_embeddings" => "position_embd".to_owned(),
            "embeddings.token_type_embeddings" => "token_types".to_owned(),
            "embeddings.LayerNorm" => "token_embd_norm".to_owned(),
            _ => return None,
        },
    };
    Some(format!("{name}.{kind}"))
}

#[test]
fn minilm_has_the_same_tokens_and_vectors_from_either_format() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (start(&minilm(folder.path(), false)), start(&test_model("minilm")));
    assert_eq!((ours.info().longest, ours.info().dimensions), (512, 384));
    assert_eq!(ours.info().prompts, theirs.info().prompts);
    let texts = read_json(&golden().join("minilm.json"));
    let texts: Vec<&str> =
        texts["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let encodable = |encoder: &Encoder| -> Vec<Encodable> {
        texts.iter().map(|text| encoder.text(text, None, None)).collect()
    };
    assert_eq!(encodable(&ours), encodable(&theirs));
    let both = [&ours, &theirs].map(|encoder| encode(encoder, encodable(encoder)));
    let cosine = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let dot = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let least = both[0].iter().zip(&both[1]).map(cosine).fold(1.0, f64::min);
    println!("least cosine: 1 - {:.1e}", 1.0 - least);
    assert!(least >= 0.9999, "{least}");
}

#[test]
fn a_bert_vocabulary_cuts_as_its_tokenizer_json_does() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = Text::load(&open(&test_model("minilm"))).unwrap().tokenizer;
    for first_days in [false, true] {
        let ours = Text::load(&open(&minilm(folder.path(), first_days))).unwrap().tokenizer;
        assert_eq!(ours.vocab_size(), theirs.vocab_size());
        if !first_days {
            assert_eq!(ours.difference(&theirs), None);
        }
        for text in AWKWARD {
            let tokens = ours.encode(text, AddSpecial::Yes);
            assert_eq!(tokens, theirs.encode(text, AddSpecial::Yes), "{text:?}, {first_days}");
            let inside = ours.encode_inside(text);
            assert_eq!(inside, theirs.encode_inside(text), "inside {text:?}, {first_days}");
        }
        let long = "a".repeat(101);
        for text in [&long, &long[..100], &"word ".repeat(600)] {
            assert_eq!(ours.encode_within(text, 77), theirs.encode_within(text, 77));
        }
        let seconds: Vec<String> = AWKWARD.iter().map(|&text| text.to_owned()).collect();
        let pairs = |it: &base_mlx_core::text::Tokenizer| it.encode_pairs("a Query", &seconds, 40);
        assert_eq!(pairs(&ours), pairs(&theirs));
    }
}

fn open(path: &Path) -> base_mlx_core::weights::Checkpoint {
    base_mlx_core::weights::Checkpoint::open(path).unwrap()
}

const AWKWARD: &[&str] = &[
    "",
    " ",
    "\t \n",
    "Hello, World!",
    "CAFÉ naïve Größe Ångström cafe\u{301} ﬁne İstanbul",
    "東京タワー 한국어 中文字符abc漢字",
    "don't (re-do) [it] {now}; $5.00 @ 50% — “quoted” …",
    "🙂 👩\u{200d}👩\u{200d}👧 \u{1f1e9}\u{1f1ea} a🙂b",
    "[MASK] a[MASK]b [mask] [CLS] x [SEP] y [PAD][UNK]",
    "[unused5] [unused 5] ##ing ing ▁the ▁ ##",
    "ẞ ß ǅ Σίσυφος ᾲ ِعَرَبِيّ עִבְרִית हिन्दी ไทย",
    "zero\u{200b}width\u{ad}soft\u{feff}bom\u{0}nul\u{fffd}bad\u{7f}del\u{2028}line",
    "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism",
    "x=y+z<a>b|c~d^e`f\\g",
    "३४५ ⅷ ½ 10⁻³ ﷽ \u{10ffff} \u{e000}",
    "MiXeD CaSe UPPER lower 1234567890",
];

#[test]
fn what_cannot_be_used_is_told() {
    let unknown = GgufFile::new("nomic-bert-moe")
        .u32("nomic-bert-moe.pooling_type", 1)
        .bool("nomic-bert-moe.attention.causal", false)
        .u32("nomic-bert-moe.context_length", 512)
        .f32_tensor("token_embd.weight", &[8, 4], &[0.5; 32]);
    let error = refusal(&unknown);
    assert!(error.contains("`nomic-bert-moe`") && error.contains("nomic_bert"), "{error}");
    let table = |file: GgufFile| file.f32_tensor("token_embd.weight", &[8, 4], &[0.5; 32]);
    let error = refusal(&table(GgufFile::new("qwen3").u32("qwen3.pooling_type", 9)));
    let expected = "x.gguf: `qwen3.pooling_type` U32(9) is not supported\n\
                    hint: supported are 1 (mean), 2 (first) and 3 (last)";
    assert_eq!(error, expected);
    let error = refusal(&table(GgufFile::new("qwen3").u32("qwen3.pooling_type", 0)));
    assert!(error.contains("it writes texts, and makes no vectors of them"), "{error}");
    let half = table(GgufFile::new("bert").u32("bert.pooling_type", 4)).f32_tensor(
        "cls.output.weight",
        &[8, 1],
        &[0.5; 8],
    );
    let error = refusal(&half);
    assert!(error.contains("without both layers of a head, `cls` and `cls.output`, is"), "{error}");
}

fn text(file: &GgufFile) -> Result<Text, String> {
    let file = gguf::parse(&file.bytes()).unwrap();
    Text::from_gguf(Path::new("x.gguf"), &file.metadata).map_err(|error| {
        let error = error.to_string();
        error.strip_prefix("x.gguf: the tokenizer cannot be read: ").unwrap().to_owned()
    })
}

fn vocabulary(model: &str, tokens: &[&str]) -> GgufFile {
    GgufFile::new("bert")
        .str("tokenizer.ggml.model", model)
        .strings("tokenizer.ggml.tokens", tokens)
}

#[test]
fn a_vocabulary_without_its_names_is_refused() {
    let file = vocabulary("bert", &["[CLS]", "[UNK]", "▁a"]);
    let error = text(&file).unwrap_err();
    assert_eq!(error, "it has no `[SEP]`, and names no token in its place");
    let beyond = file.u32("tokenizer.ggml.seperator_token_id", 3);
    let expected = "`tokenizer.ggml.seperator_token_id` is 3, expected a number below that of its \
                    tokens, 3, none of which is `[SEP]`";
    assert_eq!(text(&beyond).unwrap_err(), expected);
}

#[test]
fn a_role_of_no_token_leaves_the_next_its_turn() {
    let tokens = |file: &GgufFile| text(file).unwrap().tokenizer.encode("a", AddSpecial::Yes);
    let beyond = |tokens: &[&str]| {
        vocabulary("bert", tokens)
            .u32("tokenizer.ggml.cls_token_id", 9)
            .u32("tokenizer.ggml.seperator_token_id", u32::MAX)
    };
    let file = beyond(&["[CLS]", "[UNK]", "▁a", "x", "[SEP]"]);
    assert_eq!(tokens(&file), [0, 2, 4]);
    let file = beyond(&["[CLS]", "[UNK]", "▁a", "x", "y"])
        .u32("tokenizer.ggml.bos_token_id", 3)
        .u32("tokenizer.ggml.eos_token_id", 4);
    assert_eq!(tokens(&file), [3, 2, 4]);
}

/// Otherwise the file would be read as one without the key, and cut texts in another way.
#[test]
fn a_key_of_another_type_is_an_error() {
    let words = || vocabulary("bert", &["[CLS]", "[SEP]", "[UNK]", "▁a"]);
    let pieces = || {
        vocabulary("t5", &["<s>", "</s>", "<unk>", "▁a"])
            .f32s("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -1.0])
    };
    assert!(text(&words()).is_ok() && text(&pieces()).is_ok());
    for (file, key, expected) in [
        (
            words().array("tokenizer.ggml.token_type", 7, 4, &[1; 4]),
            "token_type",
            "an array of 4 values of type Bool, expected an array of whole numbers",
        ),
        (
            words().pair("tokenizer.ggml.normalizer.lowercase", 0, &[0]),
            "normalizer.lowercase",
            "U8(0), expected true or false",
        ),
        (
            words().str("tokenizer.ggml.cls_token_id", "0"),
            "cls_token_id",
            "String(\"0\"), expected a whole number",
        ),
        (
            words().bool("tokenizer.ggml.padding_token_id", true),
            "padding_token_id",
            "Bool(true), expected a whole number",
        ),
        (
            pieces().i32s("tokenizer.ggml.precompiled_charsmap", &[0; 600]),
            "precompiled_charsmap",
            "an array of 600 values of type I32, expected an array of bytes",
        ),
        (
            pieces().u32("tokenizer.ggml.add_space_prefix", 0),
            "add_space_prefix",
            "U32(0), expected true or false",
        ),
        (
            GgufFile::new("bert")
                .str("tokenizer.ggml.model", "bert")
                .i32s("tokenizer.ggml.tokens", &[0]),
            "tokens",
            "an array of 1 values of type I32, expected an array of strings",
        ),
        (
            GgufFile::new("bert").u32("tokenizer.ggml.model", 1),
            "model",
            "U32(1), expected a string",
        ),
    ] {
        assert_eq!(text(&file).unwrap_err(), format!("`tokenizer.ggml.{key}` is {expected}"));
    }

    let table = |file: GgufFile| file.f32_tensor("token_embd.weight", &[8, 4], &[0.5; 32]);
    let causal = table(GgufFile::new("bert").u32("bert.attention.causal", 1));
    let expected = "x.gguf is damaged: `bert.attention.causal` is U32(1), expected true or false";
    assert_eq!(refusal(&causal), expected);
    let pooling = table(GgufFile::new("bert").str("bert.pooling_type", "mean"));
    let expected = "x.gguf is damaged: `bert.pooling_type` is String(\"mean\"), expected a whole \
                    number of at least 0";
    assert_eq!(refusal(&pooling), expected);
}

/// The end token is what such models are trained to be read at.
#[test]
fn texts_of_which_the_last_token_counts_end_with_the_end_token() {
    let file = || {
        GgufFile::new("qwen3")
            .str("tokenizer.ggml.model", "gpt2")
            .str("tokenizer.ggml.pre", "qwen2")
            .strings("tokenizer.ggml.tokens", &["a", "b", "<|endoftext|>"])
            .i32s("tokenizer.ggml.token_type", &[1, 1, 3])
            .strings("tokenizer.ggml.merges", &[])
    };
    let end = "tokenizer.ggml.eos_token_id";
    let tokens = |file: &GgufFile| text(file).unwrap().tokenizer.encode("ab", AddSpecial::Yes);
    let last = || file().u32("qwen3.pooling_type", 3);
    assert_eq!(tokens(&last().u32(end, 2)), [0, 1, 2]);
    let said = |says| last().u32(end, 2).bool("tokenizer.ggml.add_eos_token", says);
    assert_eq!(tokens(&said(true)), [0, 1, 2]);
    assert_eq!(tokens(&said(false)), [0, 1]);
    assert_eq!(tokens(&last()), [0, 1]);
    assert_eq!(tokens(&last().u32(end, 3)), [0, 1]);
    assert_eq!(tokens(&file().u32(end, 2)), [0, 1]);
    assert_eq!(tokens(&file().u32(end, 2).u32("qwen3.pooling_type", 1)), [0, 1]);
}

#[test]
fn a_vocabulary_that_puts_no_space_before_texts_is_refused() {
    let file = vocabulary("t5", &["<s>", "</s>", "<unk>", "▁a"])
        .f32s("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -1.0]);
    let spaces = file.clone().bool("tokenizer.ggml.remove_extra_whitespaces", false);
    let encode = |file: &GgufFile| text(file).unwrap().tokenizer.encode("a  a", AddSpecial::Yes);
    assert_eq!(encode(&file.clone().bool("tokenizer.ggml.add_space_prefix", true)), [0, 3, 3, 1]);
    // What may be said of models that cut at all spaces.
    assert_eq!(encode(&spaces), [0, 3, 3, 1]);
    let expected = "`tokenizer.ggml.add_space_prefix` is false, only true is supported of a `t5` \
                    vocabulary";
    let none = file.bool("tokenizer.ggml.add_space_prefix", false);
    assert_eq!(text(&none).unwrap_err(), expected);
}

#[test]
fn a_vocabulary_larger_than_any_is_refused() {
    let long = "a".repeat(1025);
    for model in ["bert", "t5"] {
        let names = ["[CLS]", "[SEP]", "[UNK]", "<s>", "</s>", "<unk>"];
        let file = vocabulary(model, &[&names[..], &[&long]].concat());
        let expected = "token 6 has 1025 bytes, expected at most 1024";
        assert_eq!(text(&file).unwrap_err(), expected);
        let most = vec![&long[..1024]; 1 << 16];
        let file = vocabulary(model, &[&names[..], &most].concat());
        let expected = "`tokenizer.ggml.tokens` has 67108891 bytes, expected at most 67108864";
        assert_eq!(text(&file).unwrap_err(), expected);
    }
}
