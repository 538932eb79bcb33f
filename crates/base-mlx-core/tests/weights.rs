//! Checkpoints of both formats, from the file to the tensors that a family gets.

#![allow(clippy::unwrap_used)] // Tests and their helpers fail by panicking.

mod support;

use std::fs;

use base_mlx_core::backend::{Backend, Pool, ReferenceBackend};
use base_mlx_core::tensor::{Dtype, HostWeight, Tensor, Weight};
use base_mlx_core::weights::{Checkpoint, LoadError, TensorInfo, gguf};
use support::gguf::GgufFile;
use support::safetensors::SafetensorsFile;
use support::test_models::test_model;
use tempfile::TempDir;

#[test]
fn a_folder_gives_its_config_and_its_tensors() {
    let file = SafetensorsFile::new().f32("model.norm.weight", &[2], &[1.0, 2.0]).tensor(
        "model.embed_tokens.weight",
        "BF16",
        &[2, 2],
        &bf16(&[1.0, -2.0, 3.0, 0.5]),
    );
    let folder = folder(r#"{"model_type": "llama", "hidden_size": 2}"#, &file);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.config().model_type().unwrap(), "llama");
    assert!(checkpoint.gguf().is_none());
    let info = |name: &str, kind: &str, shape: &[usize], bytes| TensorInfo {
        name: name.into(),
        kind: kind.into(),
        shape: shape.into(),
        bytes,
    };
    let tensors: Vec<_> = checkpoint.tensors().collect();
    let expected = [
        info("model.norm.weight", "F32", &[2], 8),
        info("model.embed_tokens.weight", "BF16", &[2, 2], 8),
    ];
    assert_eq!(tensors, expected);

    let loader = checkpoint.loader(&ReferenceBackend).at("model");
    let norm = loader.at("norm").tensor("weight", &[2]).unwrap();
    assert_eq!(download(&norm), [1.0, 2.0]);
    let error = loader.finish().unwrap_err().to_string();
    assert!(error.contains("1 tensors that family `llama`"), "{error}");
    assert!(error.contains("`model.embed_tokens.weight`"), "{error}");
    let Weight::Dense { array, shape } = loader.weight("embed_tokens", [2, 2]).unwrap() else {
        panic!("the table is not dense");
    };
    assert_eq!(download(&Tensor::new(&ReferenceBackend, array, shape)), [1.0, -2.0, 3.0, 0.5]);
    loader.finish().unwrap();
}

#[test]
fn a_tensor_that_may_be_absent_and_one_that_is_not_needed() {
    let file = SafetensorsFile::new().f32("a.bias", &[2], &[1.0, 2.0]).f32("b.inv", &[1], &[0.0]);
    let folder = folder(r#"{"model_type": "llama"}"#, &file);
    let loader = Checkpoint::open(folder.path()).unwrap().loader(&ReferenceBackend);
    assert!(loader.at("a").has("bias") && !loader.at("b").has("bias"));
    assert!(loader.at("b").optional_tensor("bias", &[2]).unwrap().is_none());
    assert!(loader.optional_host("c").unwrap().is_none());
    let found = loader.at("a").optional_tensor("bias", &[2]).unwrap().unwrap();
    assert_eq!(download(&found), [1.0, 2.0]);
    loader.at("b").ignore("inv");
    loader.at("b").ignore("no such tensor");
    loader.finish().unwrap();
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    write("config.json", br#"{"model_type": "llama"}"#);
    write("1.safetensors", &SafetensorsFile::new().f32("a", &[1], &[1.0]).bytes());
    write("2.safetensors", &SafetensorsFile::new().f32("b", &[1], &[2.0]).bytes());
    write(
        "model.safetensors.index.json",
        br#"{"metadata": {"total_size": 8}, "weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}"#,
    );
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let loader = checkpoint.loader(&ReferenceBackend);
    assert_eq!(download(&loader.tensor("a", &[1]).unwrap()), [1.0]);
    assert_eq!(download(&loader.tensor("b", &[1]).unwrap()), [2.0]);
}

/// Two layers with settings of their own, one left dense, one with the common settings.
#[test]
fn each_layer_has_its_own_quantisation() {
    let config = r#"{"model_type": "qwen3", "quantization": {"group_size": 64, "bits": 4, "mode": "affine",
        "b": {"group_size": 32, "bits": 8}, "c": false, "d": true}}"#;
    let quantised = |file: SafetensorsFile, name: &str, bits: usize, group: usize| {
        let packed = vec![0x0403_0201; 64 * bits / 32 * 2];
        let scales: Vec<f32> = (0..64 / group * 2).map(|group| group as f32 + 1.0).collect();
        file.u32(&format!("{name}.weight"), &[2, 64 * bits / 32], &packed)
            .f32(&format!("{name}.scales"), &[2, 64 / group], &scales)
            .f32(&format!("{name}.biases"), &[2, 64 / group], &scales)
    };
    let mut file = quantised(SafetensorsFile::new(), "a", 4, 64);
    file = quantised(file, "b", 8, 32).f32("c.weight", &[2, 64], &[0.5; 128]);
    let folder = folder(config, &quantised(file, "d", 4, 64));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();

    let kinds: Vec<_> = checkpoint.tensors().map(|it| (it.name, it.kind, it.shape)).collect();
    let kind = |name: &str, kind: &str| (format!("{name}.weight"), kind.to_owned(), vec![2, 64]);
    let affine = "affine 4-bit, group 64";
    let expected = [
        kind("a", affine),
        kind("b", "affine 8-bit, group 32"),
        kind("c", "F32"),
        kind("d", affine),
    ];
    assert_eq!(kinds, expected);
    let bytes: usize = checkpoint.tensors().map(|info| info.bytes).sum();
    assert_eq!(bytes, 2 * (64 + 16) + (128 + 32) + 512);

    for (name, expected) in
        [("a", Some((4, 64))), ("b", Some((8, 32))), ("c", None), ("d", Some((4, 64)))]
    {
        let found = match checkpoint.weight(&pool(), name, [2, 64]).unwrap() {
            HostWeight::Dense(_) => None,
            HostWeight::Affine { bits, group_size, .. } => Some((bits, group_size)),
        };
        assert_eq!(found, expected, "{name}");
    }
    let loader = checkpoint.loader(&ReferenceBackend);
    for name in ["a", "b", "c", "d"] {
        loader.weight(name, [2, 64]).unwrap();
    }
    loader.finish().unwrap();
}

#[test]
fn gguf_speaks_the_words_of_config_json() {
    let file = gguf_model("qwen3")
        .u32("qwen3.attention.key_length", 6)
        .u32("qwen3.rope.dimension_count", 3)
        .f32("qwen3.rope.freq_base", 5e6)
        .str("qwen3.rope.scaling.type", "yarn")
        .f32("qwen3.rope.scaling.factor", 4.0)
        .u32("qwen3.rope.scaling.original_context_length", 1024)
        .u32("tokenizer.ggml.eos_token_id", 7)
        .f32_tensor("token_embd.weight", &[3, 8], &[0.0; 24])
        .f32_tensor("blk.0.attn_q.bias", &[12], &[0.0; 12])
        .f32_tensor("blk.11.ffn_down.weight", &[1, 2], &[0.0; 2])
        .f32_tensor("rope_freqs.weight", &[3], &[1.0, 2.0, 3.0])
        .f32_tensor("something.else", &[1], &[0.0]);
    let (_folder, checkpoint) = open_gguf(&file);
    let config = checkpoint.config();
    let words = serde_json::json!({
        "model_type": "qwen3", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 6, "intermediate_size": 16, "max_position_embeddings": 4096,
        "rms_norm_eps": f64::from(1e-5_f32), "rope_theta": 5e6, "eos_token_id": 7, "vocab_size": 3,
        "partial_rotary_factor": 0.5, "attention_bias": true, "mlp_bias": false, "tie_word_embeddings": true,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    });
    for (key, expected) in words.as_object().unwrap() {
        assert_eq!(config.get(key), Some(expected), "{key}");
    }
    let names: Vec<_> = checkpoint.tensors().map(|info| info.name).collect();
    let expected = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.11.mlp.down_proj.weight",
        "rope_freqs.weight",
        "something.else",
    ];
    assert_eq!(names, expected);
    let loader = checkpoint.loader(&ReferenceBackend);
    assert_eq!(loader.optional_host("rope_freqs.weight").unwrap().unwrap(), [1.0, 2.0, 3.0]);
}

#[test]
fn gguf_fills_in_what_is_usual() {
    let file = GgufFile::new("llama")
        .u32("llama.embedding_length", 8)
        .u32("llama.attention.head_count", 2)
        .f32_tensor("output.weight", &[1, 1], &[0.0]);
    let (_folder, checkpoint) = open_gguf(&file);
    let config = checkpoint.config();
    assert_eq!(config.count("num_key_value_heads").unwrap(), 2);
    assert_eq!(config.count("head_dim").unwrap(), 4);
    assert_eq!(config.optional_f32("rope_theta").unwrap(), Some(10000.0));
    assert!(!config.bool_or("tie_word_embeddings", true).unwrap());
    assert!(config.get("rope_scaling").is_none() && config.get("partial_rotary_factor").is_none());
}

/// llama.cpp's converter makes the pairs of a rotation neighbours; here the halves are apart again.
#[test]
fn the_rows_of_q_and_k_return_to_their_halves() {
    // Two heads of four rows, each row of two columns with its place in the Hugging Face order.
    let place = [0, 2, 1, 3, 4, 6, 5, 7];
    let rows: Vec<f32> = place.iter().flat_map(|&row| [row as f32, -(row as f32)]).collect();
    let bias: Vec<f32> = place.iter().map(|&row| row as f32).collect();
    let blocks: Vec<u8> = place.iter().flat_map(|&row| q8_0(row)).collect();
    let file = |architecture: &str| {
        GgufFile::new(architecture)
            .u32(&format!("{architecture}.attention.head_count"), 2)
            .f32_tensor("blk.0.attn_q.weight", &[8, 2], &rows)
            .f32_tensor("blk.0.attn_q.bias", &[8], &bias)
            .tensor("blk.0.attn_k.weight", 8, &[8, 32], &blocks)
            .f32_tensor("blk.0.attn_v.weight", &[8, 2], &rows)
    };
    let in_order: Vec<f32> = (0..8).map(|row| row as f32).collect();
    for (architecture, expected) in [("llama", &in_order), ("qwen2", &bias)] {
        let (_folder, checkpoint) = open_gguf(&file(architecture));
        let loader = checkpoint.loader(&ReferenceBackend).at("model.layers.0.self_attn");
        let q = download(&loader.tensor("q_proj.weight", &[8, 2]).unwrap());
        assert_eq!(q.iter().step_by(2).copied().collect::<Vec<_>>(), *expected, "{architecture}");
        assert_eq!(download(&loader.tensor("q_proj.bias", &[8]).unwrap()), *expected);
        let v = download(&loader.tensor("v_proj.weight", &[8, 2]).unwrap());
        assert_eq!(v, rows);
        let k = checkpoint.weight(&pool(), "model.layers.0.self_attn.k_proj", [8, 32]).unwrap();
        let HostWeight::Affine { packed, bits: 8, group_size: 32, .. } = k else {
            panic!("{k:?}");
        };
        let first_values: Vec<f32> =
            packed.data.chunks(32).map(|row| f32::from(row[0]) - 128.0).collect();
        assert_eq!(first_values, *expected, "{architecture}");
    }
}

#[test]
fn gguf_metadata_of_every_type_can_be_read() {
    let nested = [&3_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &[1, 0, 0xff, 0xff]].concat();
    let file = GgufFile::new("llama")
        .pair("u8", 0, &[200])
        .pair("i8", 1, &[200])
        .pair("u16", 2, &60000_u16.to_le_bytes())
        .pair("i16", 3, &(-3_i16).to_le_bytes())
        .u32("u32", 1 << 31)
        .pair("i32", 5, &(-3_i32).to_le_bytes())
        .f32("f32", 0.5)
        .bool("bool", true)
        .pair("bad text", 8, &[2, 0, 0, 0, 0, 0, 0, 0, b'a', 0xff])
        .u64("u64", 1 << 60)
        .pair("i64", 11, &(-3_i64).to_le_bytes())
        .pair("f64", 12, &0.25_f64.to_le_bytes())
        .strings("strings", &["a", "", "ß"])
        .i32s("i32s", &[1, -1])
        .f32s("f32s", &[1.5])
        .array("bools", 7, 2, &[0, 1])
        .array("nested", 9, 1, &nested);
    let (_folder, checkpoint) = open_gguf(&file);
    let metadata = checkpoint.gguf().unwrap();
    let integer = |key: &str| metadata.get(key).unwrap().integer().unwrap();
    let integers = ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"].map(integer);
    assert_eq!(integers, [200, -56, 60000, -3, 1 << 31, -3, 1 << 60, -3]);
    assert_eq!(
        (metadata.u64("u8"), metadata.u64("i8"), metadata.u64("f32")),
        (Some(200), None, None)
    );
    assert_eq!((metadata.f32("f32"), metadata.f32("f64")), (Some(0.5), Some(0.25)));
    assert_eq!(metadata.bool("bool"), Some(true));
    assert_eq!(metadata.str("bad text"), Some("a\u{fffd}"));
    assert_eq!(metadata.array("strings").unwrap().strings().unwrap(), ["a", "", "ß"]);
    assert_eq!(metadata.array("i32s").unwrap().integers().unwrap(), [1, -1]);
    assert_eq!(metadata.array("f32s").unwrap().f32s().unwrap(), [1.5]);
    assert_eq!(metadata.array("bools").unwrap().bools().unwrap(), [false, true]);
    let inner = gguf::Array::I16(vec![1, -1]);
    assert_eq!(metadata.array("nested").unwrap(), &gguf::Array::Array(vec![inner]));
}

#[test]
fn version_2_and_another_alignment_are_read_too() {
    let mut file = GgufFile::new("llama").u32("general.alignment", 64);
    file = file.f32_tensor("a", &[1], &[1.0]).f32_tensor("b", &[1], &[2.0]);
    (file.version, file.alignment) = (2, 64);
    let (_folder, checkpoint) = open_gguf(&file);
    assert_eq!(checkpoint.values("b").unwrap().unwrap(), [2.0]);
}

#[test]
fn parts_of_a_gguf_model_are_one_checkpoint() {
    let folder = TempDir::new().unwrap();
    let part = |number: u32| {
        let file =
            if number == 0 { GgufFile::new("llama") } else { GgufFile::without_architecture() };
        let file = file.pair("split.no", 2, &(number as u16).to_le_bytes());
        file.pair("split.count", 2, &3_u16.to_le_bytes()).u32("split.tensors.count", 3)
    };
    let path = |number: u32| folder.path().join(format!("m-0000{}-of-00003.gguf", number + 1));
    for number in 0..3 {
        let file = part(number).f32_tensor(&format!("t{number}"), &[1], &[number as f32]);
        fs::write(path(number), file.bytes()).unwrap();
    }
    // Whichever part is named, all are opened.
    for number in [0, 2] {
        let checkpoint = Checkpoint::open(&path(number)).unwrap();
        assert_eq!(checkpoint.tensors().count(), 3);
        assert_eq!(checkpoint.values("t2").unwrap().unwrap(), [2.0]);
    }
    fs::write(path(1), part(2).bytes()).unwrap();
    let error = Checkpoint::open(&path(0)).unwrap_err().to_string();
    assert!(error.contains("part 3 of 3") && error.contains("part 2 of 3"), "{error}");
    fs::write(path(1), part(1).bytes()).unwrap();
    let error = Checkpoint::open(&path(0)).unwrap_err().to_string();
    assert!(error.contains("3 tensors together, but have 2"), "{error}");
    fs::remove_file(path(1)).unwrap();
    let error = Checkpoint::open(&path(0)).unwrap_err().to_string();
    assert!(error.contains("m-00002-of-00003.gguf"), "{error}");
}

#[test]
fn the_real_models_open_and_every_tensor_loads() {
    for (file, tensors, bytes, family) in [
        ("smollm2.gguf", 272, 96_576_768, "llama"),
        ("qwen2.5-coder-0.5b.gguf", 291, 485_452_288, "qwen2"),
        ("gemma3-270m.gguf", 236, 246_587_904, "gemma3"),
    ] {
        let checkpoint = Checkpoint::open(&test_model(file)).unwrap();
        assert_eq!(checkpoint.config().model_type().unwrap(), family);
        assert_eq!(checkpoint.tensors().count(), tensors, "{file}");
        assert_eq!(checkpoint.tensors().map(|info| info.bytes).sum::<usize>(), bytes, "{file}");
        for info in checkpoint.tensors() {
            match (&info.shape[..], info.name.strip_suffix(".weight")) {
                (&[rows, columns], Some(name)) => {
                    assert_eq!(
                        checkpoint.weight(&pool(), name, [rows, columns]).unwrap().shape(),
                        [rows, columns]
                    );
                }
                _ => {
                    let values = checkpoint.values(&info.name).unwrap().unwrap();
                    assert!(values.iter().all(|value| value.is_finite()), "{}", info.name);
                }
            }
        }
    }
    let minilm = Checkpoint::open(&test_model("minilm")).unwrap();
    assert_eq!(minilm.config().model_type().unwrap(), "bert");
    let HostWeight::Dense(table) =
        minilm.weight(&pool(), "embeddings.word_embeddings", [30522, 384]).unwrap()
    else {
        panic!("the table is not dense");
    };
    assert_eq!(table.dtype, Dtype::F32);
    let error = minilm.values("embeddings.position_ids").unwrap_err();
    assert!(matches!(error, LoadError::Unsupported { .. }), "{error}");
}

fn pool() -> Pool {
    Pool::new(1)
}

fn folder(config: &str, file: &SafetensorsFile) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    fs::write(folder.path().join("model.safetensors"), file.bytes()).unwrap();
    folder
}

fn open_gguf(file: &GgufFile) -> (TempDir, Checkpoint) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, file.bytes()).unwrap();
    (folder, Checkpoint::open(&path).unwrap())
}

/// The metadata that every model has.
fn gguf_model(architecture: &str) -> GgufFile {
    let key = |key: &str| format!("{architecture}.{key}");
    GgufFile::new(architecture)
        .u32(&key("embedding_length"), 8)
        .u32(&key("block_count"), 1)
        .u32(&key("attention.head_count"), 2)
        .i32s(&key("attention.head_count_kv"), &[1, 1])
        .u32(&key("feed_forward_length"), 16)
        .u32(&key("context_length"), 4096)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
}

/// A block whose 32 values are all `value`.
fn q8_0(value: u8) -> Vec<u8> {
    let one = half::f16::ONE.to_le_bytes();
    [&one[..], &[value; 32]].concat()
}

fn bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect()
}

fn download(tensor: &Tensor<ReferenceBackend>) -> Vec<f32> {
    tensor.backend().download(tensor.array()).unwrap().to_f32()
}
