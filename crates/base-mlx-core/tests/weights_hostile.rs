//! Files that are cut off, oversized, or lie: each is refused by an error that says which file, which tensor and both
//! numbers, and none brings the process down.

#![allow(clippy::unwrap_used)] // Tests and their helpers fail by panicking.

mod support;

use std::fs;
use std::path::Path;

use base_mlx_core::backend::Pool;
use base_mlx_core::weights::{Checkpoint, ParseError, Storage, gguf, safetensors};
use support::dice::Dice;
use support::gguf::GgufFile;
use support::safetensors::{SafetensorsFile, with_header};
use tempfile::TempDir;

#[test]
fn a_hostile_safetensors_file_is_refused() {
    let sound = SafetensorsFile::new().f32("a", &[2], &[1.0, 2.0]).f32("b", &[1], &[3.0]).bytes();
    let tensor = |shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = |first: &str, second: &str, data: usize| {
        let entry = |name: &str, offsets: &str| {
            format!(r#""{name}":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#)
        };
        with_header(&format!("{{{},{}}}", entry("a", first), entry("b", second)), &vec![0; data])
    };
    let one = |shape: &str, offsets: &str, data: usize| {
        with_header(&tensor(shape, offsets), &vec![0; data])
    };
    let long_header = |length: u64| [&length.to_le_bytes()[..], &sound[8..]].concat();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", vec![], &["0 bytes"]),
        ("five bytes", vec![1; 5], &["5 bytes", "8"]),
        ("a header beyond the end", long_header(1 << 40), &["1099511627776", "follow"]),
        ("the longest header", long_header(u64::MAX), &["18446744073709551615", "follow"]),
        ("a header that is no JSON", with_header("{\"a\":", &[]), &["header cannot be read"]),
        ("a header that is a list", with_header("[]", &[]), &["header cannot be read"]),
        ("a header of bad text", with_header("{\"a\u{0}\":1}", &[]), &["header cannot be read"]),
        ("a header of many brackets", with_header(&"[".repeat(1 << 20), &[]), &["header cannot"]),
        (
            "brackets inside the metadata",
            with_header(&format!("{{\"__metadata__\":{}", "[".repeat(1 << 20)), &[]),
            &["header cannot be read"],
        ),
        ("cut off", sound[..sound.len() - 1].to_vec(), &["`b`", "8..12", "11 bytes"]),
        ("oversized", [&sound[..], &[0; 7]].concat(), &["12 bytes", "19 bytes"]),
        ("overlapping", two("[0,8]", "[4,12]", 12), &["`b`", "`a`", "inside"]),
        ("one place for two", two("[0,8]", "[0,8]", 8), &["`b`", "`a`", "inside"]),
        ("a hole", two("[0,8]", "[12,20]", 20), &["16 bytes", "20 bytes"]),
        (
            "2^60 elements",
            one("[1073741824,1073741824]", "[0,8]", 8),
            &["`a`", "4611686018427387904", "8 bytes"],
        ),
        (
            "2^80 elements",
            one("[1099511627776,1099511627776]", "[0,8]", 8),
            &["`a`", "1099511627776", "2^64"],
        ),
        (
            "2^62 elements",
            one("[4611686018427387904]", "[0,8]", 8),
            &["`a`", "4611686018427387904"],
        ),
        ("2^64 elements", one("[18446744073709551616]", "[0,8]", 8), &["header cannot be read"]),
        ("no elements", one("[0,64]", "[0,0]", 0), &["`a`", "[0, 64]", "no elements"]),
        ("a negative dimension", one("[-2]", "[0,8]", 8), &["header cannot be read"]),
        ("half a dimension", one("[0.5]", "[0,8]", 8), &["header cannot be read"]),
        ("backward offsets", one("[2]", "[8,0]", 8), &["`a`", "8..0", "8 bytes"]),
        ("offsets past the end", one("[2]", "[8,16]", 8), &["`a`", "8..16", "8 bytes"]),
        (
            "the largest offsets",
            one("[2]", "[18446744073709551607,18446744073709551615]", 8),
            &["`a`", "8 bytes"],
        ),
        ("one offset", one("[2]", "[0]", 8), &["header cannot be read"]),
        ("too few bytes", one("[2]", "[0,4]", 4), &["`a`", "4 bytes", "takes 8"]),
        (
            "one name twice",
            with_header(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                &[0; 2],
            ),
            &["`a`", "twice"],
        ),
        (
            "a field twice",
            with_header(
                r#"{"a":{"dtype":"U8","dtype":"F32","shape":[1],"data_offsets":[0,1]}}"#,
                &[0],
            ),
            &["duplicate field"],
        ),
        (
            "an unknown type",
            with_header(r#"{"a":{"dtype":"Q9","shape":[1],"data_offsets":[0,1]}}"#, &[0]),
            &["`Q9`", "`a`"],
        ),
        (
            "half a byte",
            with_header(r#"{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,1]}}"#, &[0]),
            &["`a`", "F4", "[1]"],
        ),
    ];
    for (name, bytes, words) in cases {
        let folder = folder("{}", &[("model.safetensors", &bytes)]);
        assert_refused(name, folder.path(), &[words, &["model.safetensors"]].concat());
    }
}

#[test]
fn a_hostile_gguf_file_is_refused() {
    let new = || GgufFile::new("llama");
    let value = |kind: u32, bytes: &[u8]| new().pair("k", kind, bytes);
    let array = |kind: u32, count: u64| new().array("k", kind, count, &[0; 16]);
    let q8_0 = |shape: &[u64], bytes: usize| new().tensor("a", 8, shape, &vec![0; bytes]);
    let with = |change: fn(&mut GgufFile)| {
        let mut file = new();
        change(&mut file);
        file
    };
    let deep = (0..6).fold(vec![0; 12], |inner, _| {
        [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &inner].concat()
    });
    let head_count = |heads: u32| {
        new().u32("llama.attention.head_count", heads).f32_tensor(
            "blk.0.attn_q.weight",
            &[6, 1],
            &[0.0; 6],
        )
    };
    let cases: Vec<(&str, GgufFile, &[&str])> = vec![
        ("version 1", with(|file| file.version = 1), &["GGUF version 1", "2 and 3"]),
        ("version 4", with(|file| file.version = 4), &["GGUF version 4", "2 and 3"]),
        ("big-endian", with(|file| file.version = 3_u32.swap_bytes()), &["big-endian"]),
        (
            "2^60 tensors",
            with(|file| file.tensor_count = Some(1 << 60)),
            &["1152921504606846976 tensors"],
        ),
        (
            "2^64 - 1 pairs",
            with(|file| file.pair_count = Some(u64::MAX)),
            &["18446744073709551615 metadata"],
        ),
        (
            "one pair too many",
            with(|file| file.pair_count = Some(2)),
            &["metadata key ``", "empty"],
        ),
        ("a long string", value(8, &[0xff; 16]), &["18446744073709551615", "`k`", "at most"]),
        (
            "a string of 2^60",
            value(8, &(1_u64 << 60).to_le_bytes()),
            &["1152921504606846976", "`k`"],
        ),
        ("an unknown type", value(13, &[0; 8]), &["`k`", "type 13", "0..=12"]),
        ("a boolean of 2", value(7, &[2]), &["`k`", "boolean 2"]),
        ("an array of 2^60", array(0, 1 << 60), &["1152921504606846976 elements", "`k`"]),
        ("an array of 2^62 numbers", array(12, 1 << 62), &["4611686018427387904 elements", "`k`"]),
        ("an array of 2^60 strings", array(8, 1 << 60), &["1152921504606846976 elements", "`k`"]),
        ("an array of 2^60 arrays", array(9, 1 << 60), &["1152921504606846976 elements", "`k`"]),
        ("an array of an unknown type", array(77, 1), &["`k`", "type 77"]),
        ("arrays in arrays", value(9, &deep), &["`k`", "nested deeper"]),
        ("one key twice", new().u32("k", 1).u32("k", 2), &["`k`", "twice"]),
        ("no architecture", GgufFile::without_architecture(), &["general.architecture"]),
        (
            "an architecture of 3",
            GgufFile::without_architecture().u32("general.architecture", 3),
            &["general.architecture"],
        ),
        ("alignment 0", new().u32("general.alignment", 0), &["general.alignment", "U32(0)"]),
        ("alignment 3", new().u32("general.alignment", 3), &["general.alignment", "U32(3)"]),
        (
            "alignment 2^40",
            new().u64("general.alignment", 1 << 40),
            &["general.alignment", "1099511627776"],
        ),
        ("alignment of text", new().str("general.alignment", "32"), &["general.alignment"]),
        ("no dimensions", new().tensor("a", 0, &[], &[]), &["`a`", "0 dimensions"]),
        ("five dimensions", new().tensor("a", 0, &[1; 5], &[0; 4]), &["`a`", "5 dimensions"]),
        ("no elements", new().tensor("a", 0, &[4, 0], &[]), &["`a`", "[4, 0]", "no elements"]),
        (
            "2^60 elements",
            new().tensor("a", 0, &[1 << 30, 1 << 30], &[0; 32]),
            &["`a`", "4611686018427387904"],
        ),
        (
            "2^80 elements",
            new().tensor("a", 0, &[1 << 40, 1 << 40], &[0; 32]),
            &["`a`", "1099511627776", "2^64"],
        ),
        ("2^63 bytes", new().tensor("a", 0, &[1 << 62], &[0; 32]), &["`a`", "4611686018427387904"]),
        ("rows that blocks do not divide", q8_0(&[4, 8], 34), &["`a`", "rows of 8", "Q8_0", "32"]),
        (
            "an unaligned offset",
            new().tensor_at("a", 0, &[1], 4),
            &["`a`", "offset 4", "alignment, 32"],
        ),
        (
            "an offset past the end",
            new().tensor_at("a", 0, &[1], 1 << 20),
            &["`a`", "1048576..1048580", "file has"],
        ),
        ("the largest offset", new().tensor_at("a", 0, &[1], u64::MAX - 31), &["`a`", "file has"]),
        ("an end beyond 2^64", new().tensor_at("a", 0, &[64], u64::MAX - 31), &["`a`", "2^64"]),
        ("too few blocks", q8_0(&[2, 64], 68), &["`a`", "0..136", "file has"]),
        ("overlapping", q8_0(&[2, 32], 68).tensor_at("b", 0, &[1], 32), &["`b`", "`a`", "inside"]),
        (
            "one place for two",
            q8_0(&[1, 32], 34).tensor_at("b", 0, &[1], 0),
            &["inside", "`a`", "`b`"],
        ),
        ("one name twice", q8_0(&[1, 32], 34).f32_tensor("a", &[1], &[0.0]), &["`a`", "twice"]),
        (
            "one name in two spellings",
            new().f32_tensor("output.weight", &[1], &[0.0]).f32_tensor(
                "lm_head.weight",
                &[1],
                &[0.0],
            ),
            &["`lm_head.weight`", "twice"],
        ),
        (
            "a type nobody reads",
            new().tensor("a", 17, &[256], &[0; 74]),
            &["`a`", "IQ2_XS", "Q4_K"],
        ),
        ("a type nobody knows", new().tensor("a", 99, &[256], &[0; 74]), &["`a`", "type 99"]),
        ("heads that rows do not divide", head_count(2), &["q_proj", "6 rows", "2 heads"]),
        ("no heads", head_count(0), &["`llama.attention.head_count`", "is 0"]),
        ("2^32 - 1 heads", head_count(u32::MAX), &["`llama.attention.head_count`", "4294967295"]),
        (
            "layers that differ",
            new().i32s("llama.attention.head_count_kv", &[1, 2]),
            &["head_count_kv", "each layer"],
        ),
        (
            "a number that is none",
            new().f32("llama.rope.freq_base", f32::NAN),
            &["freq_base", "NaN"],
        ),
        ("a number of text", new().str("llama.block_count", "3"), &["block_count", "\"3\""]),
        ("an empty list of numbers", new().i32s("llama.block_count", &[]), &["block_count"]),
    ];
    for (name, file, words) in cases {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("m.gguf");
        fs::write(&path, file.bytes()).unwrap();
        assert_refused(name, &path, &[words, &["m.gguf"]].concat());
    }
}

#[test]
fn what_is_no_checkpoint_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("m.gguf");
    assert_refused("nothing there", &path, &["m.gguf", "cannot read"]);
    fs::write(&path, b"").unwrap();
    assert_refused("an empty file", &path, &["m.gguf", "0 bytes"]);
    fs::write(&path, b"GGML....").unwrap();
    assert_refused("another file", &path, &["m.gguf", "`GGUF`", "hint"]);
    assert_refused("a folder without config", folder.path(), &["config.json", "cannot read"]);
    fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert_refused("a folder without weights", folder.path(), &["without safetensors", "hint"]);
    for name in ["x.safetensors", "y.safetensors"] {
        fs::write(folder.path().join(name), SafetensorsFile::new().bytes()).unwrap();
    }
    assert_refused("no index", folder.path(), &["2 safetensors files", "hint"]);
    for (name, config) in [("a list", "[]"), ("no JSON", "{"), ("brackets", &"[".repeat(1 << 20))] {
        fs::write(folder.path().join("config.json"), config).unwrap();
        assert_refused(name, folder.path(), &["config.json", "JSON object"]);
    }
    fs::write(folder.path().join("config.json"), vec![b' '; (64 << 20) + 1]).unwrap();
    assert_refused("a huge config", folder.path(), &["config.json", "67108865", "67108864"]);
}

#[test]
fn an_index_of_shards_that_lies_is_refused() {
    let shard = SafetensorsFile::new().f32("a", &[1], &[1.0]).bytes();
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("s.safetensors"), &shard).unwrap();
    let absolute = outside.path().join("s.safetensors").display().to_string();
    let relative = format!("../{}/s.safetensors", outside.path().file_name().unwrap().display());
    let map = |entries: &[(&str, &str)]| {
        let entries: Vec<_> = entries.iter().map(|(a, b)| format!("{a:?}:{b:?}")).collect();
        format!("{{\"weight_map\":{{{}}}}}", entries.join(","))
    };
    let cases: Vec<(&str, String, &[&str])> = vec![
        (
            "a missing shard",
            map(&[("a", "gone.safetensors")]),
            &["gone.safetensors", "cannot read"],
        ),
        ("a shard above the folder", map(&[("a", &relative)]), &["../", "not the name of a file"]),
        (
            "a shard anywhere",
            map(&[("a", &absolute)]),
            &["/s.safetensors`", "not the name of a file"],
        ),
        ("a shard without a name", map(&[("a", "")]), &["``", "not the name of a file"]),
        ("the folder as a shard", map(&[("a", ".")]), &["`.`", "not the name of a file"]),
        ("the folder above", map(&[("a", "..")]), &["`..`", "not the name of a file"]),
        ("a folder in a name", map(&[("a", "./1.safetensors")]), &["not the name of a file"]),
        ("a folder as a shard", map(&[("a", "folder")]), &["folder", "not a file"]),
        (
            "a tensor that is nowhere",
            map(&[("a", "1.safetensors"), ("z", "1.safetensors")]),
            &["1.safetensors", "`z`"],
        ),
        (
            "a tensor in two shards",
            map(&[("a", "1.safetensors"), ("b", "2.safetensors")]),
            &["`a`", "twice"],
        ),
        ("no map", "{}".into(), &["index.json", "weight_map"]),
        ("no JSON", "{".into(), &["index.json", "cannot be read"]),
    ];
    let both = SafetensorsFile::new().f32("a", &[1], &[1.0]).f32("b", &[1], &[1.0]).bytes();
    for (name, index, words) in cases {
        let index = ("model.safetensors.index.json", index.as_bytes());
        let shards = [("1.safetensors", &shard[..]), ("2.safetensors", &both[..]), index];
        let folder = folder("{}", &shards);
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert_refused(name, folder.path(), words);
    }
}

#[test]
fn a_config_that_disagrees_with_the_tensors_is_refused() {
    type Case = (&'static str, &'static str, SafetensorsFile, [usize; 2], &'static [&'static str]);
    let quantised = |weight: &[usize], scales: &[usize], biases: &[usize]| {
        let zeros = |shape: &[usize]| vec![0.0; shape.iter().product()];
        let packed = vec![0; weight.iter().product()];
        SafetensorsFile::new()
            .u32("w.weight", weight, &packed)
            .f32("w.scales", scales, &zeros(scales))
            .f32("w.biases", biases, &zeros(biases))
    };
    let sound = quantised(&[2, 8], &[2, 1], &[2, 1]);
    let packed = || SafetensorsFile::new().u32("w.weight", &[2, 8], &[0; 16]);
    let common = r#"{"quantization": {"bits": 4, "group_size": 64}}"#;
    let cases: Vec<Case> = vec![
        (
            "another shape",
            "{}",
            SafetensorsFile::new().f32("w.weight", &[2, 1], &[0.0; 2]),
            [2, 64],
            &["[2, 1]", "[2, 64]"],
        ),
        (
            "three dimensions",
            "{}",
            SafetensorsFile::new().f32("w.weight", &[2, 1, 1], &[0.0; 2]),
            [2, 1],
            &["[2, 1, 1]", "[2, 1]"],
        ),
        (
            "integers",
            "{}",
            SafetensorsFile::new().tensor("w.weight", "I32", &[1, 1], &[0; 4]),
            [1, 1],
            &["w.weight", "I32"],
        ),
        ("packed without scales", common, packed(), [2, 8], &["w.scales"]),
        ("no settings", "{}", sound.clone(), [2, 64], &["`w`", "quantization", "scales"]),
        (
            "a layer left dense",
            r#"{"quantization": {"bits": 4, "group_size": 64, "w": false}}"#,
            sound.clone(),
            [2, 64],
            &["`w`", "scales"],
        ),
        (
            "other bits",
            r#"{"quantization": {"bits": 8, "group_size": 64}}"#,
            sound.clone(),
            [2, 64],
            &["w.weight", "[2, 8]", "[2, 16]", "8 bits"],
        ),
        (
            "another group",
            r#"{"quantization": {"bits": 4, "group_size": 32}}"#,
            sound.clone(),
            [2, 64],
            &["w.scales", "[2, 1]", "[2, 2]", "groups of 32"],
        ),
        (
            "a group that does not divide",
            common,
            sound.clone(),
            [2, 96],
            &["groups of 64", "96 columns"],
        ),
        ("more columns", common, sound.clone(), [2, 128], &["w.scales", "[2, 1]", "[2, 2]"]),
        ("columns beyond counting", common, sound.clone(), [2, 1 << 62], &["w.scales", "[2, 1]"]),
        ("fewer rows", common, sound, [1, 64], &["w.scales", "[2, 1]", "[1, 1]"]),
        (
            "short biases",
            common,
            quantised(&[2, 8], &[2, 1], &[1, 1]),
            [2, 64],
            &["w.biases", "[1, 1]", "[2, 1]"],
        ),
        ("no biases", common, packed().f32("w.scales", &[2, 1], &[0.0; 2]), [2, 64], &["w.biases"]),
        (
            "a float for packed",
            common,
            SafetensorsFile::new()
                .f32("w.weight", &[2, 8], &[0.0; 16])
                .f32("w.scales", &[2, 1], &[0.0; 2])
                .f32("w.biases", &[2, 1], &[0.0; 2]),
            [2, 64],
            &["w.weight", "F32", "U32"],
        ),
        (
            "scales of integers",
            common,
            packed().u32("w.scales", &[2, 1], &[0; 2]).u32("w.biases", &[2, 1], &[0; 2]),
            [2, 64],
            &["w.scales", "U32", "F16"],
        ),
        (
            "biases of another type",
            common,
            packed().f32("w.scales", &[2, 1], &[0.0; 2]).tensor(
                "w.biases",
                "F16",
                &[2, 1],
                &[0; 4],
            ),
            [2, 64],
            &["w.biases", "F16", "F32"],
        ),
        ("nothing", "{}", SafetensorsFile::new(), [2, 64], &["w.weight", "no tensor"]),
    ];
    for (name, config, file, shape, words) in cases {
        let folder = folder(config, &[("model.safetensors", &file.bytes())]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let error = checkpoint.weight(&pool(), "w", shape).expect_err(name).to_string();
        assert_words(name, &error, words);
        checkpoint.tensors().for_each(drop);
    }
}

#[test]
fn quantisation_that_nobody_knows_is_refused() {
    let file = SafetensorsFile::new().bytes();
    for (name, config, words) in [
        (
            "7 bits",
            r#"{"quantization": {"bits": 7, "group_size": 64}}"#,
            &["quantization.bits", "is 7", "8]"],
        ),
        (
            "groups of 48",
            r#"{"quantization": {"bits": 4, "group_size": 48}}"#,
            &["group_size", "is 48", "128]"],
        ),
        (
            "no bits",
            r#"{"quantization": {"group_size": 64}}"#,
            &["quantization.bits", "missing", "8]"],
        ),
        (
            "text for bits",
            r#"{"quantization": {"bits": "4", "group_size": 64}}"#,
            &["bits", "\"4\"", "8]"],
        ),
        ("a list", r#"{"quantization": [4, 64]}"#, &["quantization", "[4,64]", "object"]),
        (
            "another mode",
            r#"{"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}"#,
            &["mxfp4", "affine", "hint"],
        ),
        (
            "a layer of 1 bit",
            r#"{"quantization": {"bits": 4, "group_size": 32, "w": {"bits": 1}}}"#,
            &["quantization.w.bits", "is 1", "8]"],
        ),
        (
            "GPTQ",
            r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#,
            &["gptq", "config.json", "hint"],
        ),
    ] {
        let folder = folder(config, &[("model.safetensors", &file)]);
        assert_refused(name, folder.path(), words);
    }
}

/// Cut after any byte, the files of both formats are refused or, where only padding is gone, read.
#[test]
fn a_file_cut_anywhere_does_not_panic() {
    let file = sound_safetensors();
    for end in 0..file.len() {
        let error = safetensors::parse(&file[..end]).unwrap_err();
        assert!(matches!(error, ParseError::Damaged(_)), "cut at {end}: {error:?}");
    }
    let file = sound_gguf();
    let last =
        gguf::parse(&file).unwrap().tensors.iter().map(|entry| entry.data.end).max().unwrap();
    for end in 0..last {
        assert!(gguf::parse(&file[..end]).is_err(), "cut at {end}");
    }
}

/// Random damage with fixed seeds. Whatever is still read must be safe to use.
#[test]
fn random_damage_does_not_panic() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (sound_safetensors, sound_gguf) = (sound_safetensors(), sound_gguf());
    let (mut read, mut refused) = (0, 0);
    for _ in 0..50_000 {
        let file = damage(&sound_safetensors, &mut dice);
        let good = safetensors::parse(&file).is_ok_and(|entries| {
            let bytes: usize = entries.iter().map(|entry| file[entry.data.clone()].len()).sum();
            assert!(bytes <= file.len());
            true
        });
        let file = damage(&sound_gguf, &mut dice);
        let good_gguf = gguf::parse(&file).is_ok_and(|header| {
            use_gguf(&file, &header);
            true
        });
        for good in [good, good_gguf] {
            *(if good { &mut read } else { &mut refused }) += 1;
        }
    }
    // The damage is neither so slight nor so heavy that one side goes untested.
    assert!(read > 1000 && refused > 1000, "{read} files were read, {refused} refused");
}

/// The same through the whole door, with files on the disk and a config that is damaged too.
#[test]
fn random_damage_to_a_checkpoint_does_not_panic() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let (sound_safetensors, sound_gguf) = (sound_safetensors(), sound_gguf());
    let config =
        br#"{"quantization": {"bits": 4, "group_size": 32, "q": {"bits": 8}, "m": false}}"#;
    let mut opened = 0;
    for round in 0..600 {
        let mut damage_if = |on: bool, bytes: &[u8]| {
            if on { damage(bytes, &mut dice) } else { bytes.to_vec() }
        };
        // A folder of its own, because a disk may be slow to replace a file.
        let folder = TempDir::new().unwrap();
        let write = |name: &str, bytes: Vec<u8>| {
            fs::write(folder.path().join(name), bytes).unwrap();
        };
        write("config.json", damage_if(round % 3 != 1, config));
        write("model.safetensors", damage_if(round % 3 != 0, &sound_safetensors));
        write("m.gguf", damage_if(true, &sound_gguf));
        let path = folder.path().join("m.gguf");
        for path in [folder.path(), &path] {
            let Ok(checkpoint) = Checkpoint::open(path) else { continue };
            opened += 1;
            for info in checkpoint.tensors() {
                let _ = checkpoint.values(&info.name);
                if let (Some(name), &[rows, columns]) =
                    (info.name.strip_suffix(".weight"), &info.shape[..])
                {
                    let _ = checkpoint.weight(&pool(), name, [rows, columns]);
                }
            }
        }
    }
    assert!(opened > 60, "only {opened} checkpoints opened");
}

fn use_gguf(file: &[u8], header: &gguf::Gguf) {
    let _ = gguf::config(header);
    for entry in &header.tensors {
        if let Storage::Blocks(format) = entry.storage {
            let data = &file[entry.data.clone()];
            let columns = entry.shape[entry.shape.len() - 1];
            let rows = entry.shape.iter().product::<usize>() / columns;
            let weight =
                gguf::repack(&pool(), gguf::Blocks { format, data }, [rows, columns], |row| row);
            assert_eq!(weight.shape(), [rows, columns]);
            assert_eq!(gguf::dequantize(format, data).len(), rows * columns);
        }
    }
}

fn pool() -> Pool {
    Pool::new(1)
}

fn sound_safetensors() -> Vec<u8> {
    SafetensorsFile::new()
        .tensor("norm.weight", "BF16", &[4], &[1; 8])
        .u32("q.weight", &[2, 8], &[7; 16])
        .f32("q.scales", &[2, 1], &[1.0, 2.0])
        .f32("q.biases", &[2, 1], &[0.5, 0.25])
        .f32("m.weight", &[3, 2], &[1.0; 6])
        .tensor("ids", "I64", &[1, 2], &[0; 16])
        .bytes()
}

fn sound_gguf() -> Vec<u8> {
    let mut file = GgufFile::new("llama")
        .u32("llama.embedding_length", 64)
        .u32("llama.attention.head_count", 2)
        .f32("llama.rope.freq_base", 1e4)
        .bool("tokenizer.ggml.add_bos_token", true)
        .strings("tokenizer.ggml.tokens", &["a", "bc", "<s>"])
        .i32s("tokenizer.ggml.token_type", &[1, 1, 3])
        .f32s("tokenizer.ggml.scores", &[0.0, 1.0, 2.0])
        .array("nested", 9, 1, &[&[0; 4][..], &2_u64.to_le_bytes(), &[1, 2]].concat());
    for (layer, format) in gguf::FORMATS.iter().enumerate() {
        let data: Vec<u8> = (0..4 * format.bytes).map(|byte| (byte * 37 + layer) as u8).collect();
        let name = format!("blk.{layer}.attn_q.weight");
        file = file.tensor(&name, format.id, &[4, format.values as u64], &data);
    }
    file.f32_tensor("output_norm.weight", &[8], &[1.0; 8]).bytes()
}

/// Up to four wounds: a byte, a bit, a number somewhere, a piece cut out or doubled, the end cut off.
fn damage(sound: &[u8], dice: &mut Dice) -> Vec<u8> {
    let mut file = sound.to_vec();
    for _ in 0..=dice.below(4) {
        if file.len() < 8 {
            break;
        }
        // Most of the wounds go to the header.
        let reach = if dice.below(4) == 0 { file.len() } else { file.len().min(700) };
        let at = dice.below(reach - 7);
        match dice.below(8) {
            0..=2 => file[at] ^= 1 << dice.below(8),
            3 => file[at] = dice.next() as u8,
            4 => {
                let numbers = [0, 1, 0xff, 0x7fff_ffff, 1 << 31, 1 << 60, u64::MAX, u64::MAX - 31];
                file[at..at + 8].copy_from_slice(&numbers[dice.below(8)].to_le_bytes());
            }
            5 => drop(file.drain(at..at + dice.below(8))),
            6 => {
                let piece = file[at..at + dice.below(8)].to_vec();
                file.splice(at..at, piece);
            }
            _ if dice.below(4) == 0 => file.truncate(dice.below(file.len())),
            _ => {}
        }
    }
    file
}

fn folder(config: &str, files: &[(&str, &[u8])]) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn assert_refused(name: &str, path: &Path, words: &[&str]) {
    match Checkpoint::open(path) {
        Ok(checkpoint) => panic!("{name}: opened as {checkpoint:?}"),
        Err(error) => assert_words(name, &error.to_string(), words),
    }
}

fn assert_words(name: &str, message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{name}: {word:?} is missing in: {message}");
    }
    assert!(message.len() < 2000, "{name}: {} bytes of message", message.len());
}
