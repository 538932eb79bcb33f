//! Ollama's folder: manifests that name blobs.

use std::fs;
use std::path::PathBuf;

use base_mlx_core::store::{OwnTemplate, Source, StoreError};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::gguf::GgufFile;
use crate::{World, names_in};

const ROOT: &str = ".ollama/models";

/// Writes a blob, and gives the layer that names it.
fn layer(world: &World, kind: &str, content: &[u8]) -> Value {
    let hex: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    world.write(&format!("{ROOT}/blobs/sha256-{hex}"), content);
    json!({
        "mediaType": format!("application/vnd.ollama.image.{kind}"),
        "digest": format!("sha256:{hex}"),
        "size": content.len(),
    })
}

fn manifest(world: &World, name: &str, layers: &[Value]) -> PathBuf {
    let config =
        layer(world, "config", format!(r#"{{"model_format":"gguf","of":"{name}"}}"#).as_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": config,
        "layers": layers,
    });
    world.write(&format!("{ROOT}/manifests/{name}"), manifest.to_string())
}

fn model(world: &World, what: &str) -> Value {
    let file =
        GgufFile::new("llama").str("general.name", what).f32_tensor("a.weight", &[8], &[0.5; 8]);
    layer(world, "model", &file.bytes())
}

fn blob(world: &World, layer: &Value) -> PathBuf {
    let digest = layer["digest"].as_str().unwrap().replace(':', "-");
    world.path(&format!("{ROOT}/blobs/{digest}"))
}

/// Ollama's folder after some use.
fn used() -> World {
    let world = World::new();
    let weights = model(&world, "llama3.2");
    let template = layer(&world, "template", b"{{ .System }} {{ .Prompt }}");
    let stop = layer(
        &world,
        "params",
        br#"{"stop":["<|end|>","<|user|>"],"temperature":0.5,"num_ctx":4096}"#,
    );
    let library = "registry.ollama.ai/library";
    manifest(
        &world,
        &format!("{library}/llama3.2/latest"),
        &[weights.clone(), template.clone(), stop],
    );
    manifest(&world, &format!("{library}/llama3.2/1b"), &[model(&world, "1b")]);
    // Made by `ollama create` on top of the first: the same weights.
    let system = layer(&world, "system", "You are Mario.".as_bytes());
    let odd = layer(
        &world,
        "params",
        br#"{"temperature":"hot","top_k":40,"stop":"STOP","seed":7,"num_predict":-1}"#,
    );
    manifest(&world, &format!("{library}/mario/latest"), &[weights, template, system, odd]);
    manifest(&world, "registry.ollama.ai/me/mine/v2", &[model(&world, "mine")]);
    manifest(&world, "hf.co/owner/name-GGUF/Q4_K_M", &[model(&world, "hf")]);
    world
}

#[test]
fn models_are_listed_and_found_by_the_names_that_ollama_gives_them() {
    let world = used();
    let list = world.store().list();
    let names: Vec<_> = list.iter().map(|entry| (entry.name.as_str(), entry.source)).collect();
    let expected = [
        "hf.co/owner/name-GGUF:Q4_K_M",
        "llama3.2:1b",
        "llama3.2:latest",
        "mario:latest",
        "me/mine:v2",
    ];
    assert_eq!(names, expected.map(|name| (name, Source::Ollama)));
    for entry in &list {
        for name in entry.aliases.iter().chain([&entry.name]) {
            let found = world.store().find_installed(name).unwrap();
            assert_eq!(
                (&found.name, &found.path, &found.extras),
                (name, &entry.path, &entry.extras)
            );
        }
        assert!(fs::read(&entry.path).unwrap().starts_with(b"GGUF"));
    }
    let store = world.store();
    for (name, expected) in [
        ("llama3.2", "llama3.2:latest"),
        ("ollama:llama3.2:1b", "llama3.2:1b"),
        ("ollama:me/mine:v2", "me/mine:v2"),
        ("registry.ollama.ai/library/llama3.2:1b", "llama3.2:1b"),
    ] {
        assert_eq!(store.find(name).unwrap().path, store.find(expected).unwrap().path, "{name}");
    }
    for name in
        ["llama3.2:3b", "llama3", "mine:v2", "me/mine", "ollama:nobody", "hf.co/owner/name-GGUF"]
    {
        assert!(matches!(store.find(name), Err(StoreError::NotFound { .. })), "{name}");
    }
}

#[test]
fn a_word_of_the_catalogue_means_the_catalogues_model() {
    let world = used();
    manifest(&world, "registry.ollama.ai/library/smollm2/latest", &[model(&world, "1.7b")]);
    let store = world.store();
    assert!(matches!(store.find("smollm2"), Err(StoreError::NotFound { in_catalogue: true, .. })));
    assert!(store.find("smollm2:latest").is_ok());
    let list = store.list();
    let entry = list.iter().find(|entry| entry.name == "smollm2:latest").unwrap();
    assert_eq!(entry.aliases, ["ollama:smollm2", "ollama:smollm2:latest"]);
}

#[test]
fn system_text_and_parameters_come_with_the_model() {
    let world = used();
    let store = world.store();
    let plain = store.find("llama3.2").unwrap().extras;
    assert_eq!((plain.system, plain.template), (None, OwnTemplate::Go));
    assert_eq!(plain.parameters.stop, ["<|end|>", "<|user|>"]);
    assert_eq!(plain.parameters.temperature, Some(0.5));
    let mario = store.find("mario").unwrap();
    assert_eq!(mario.extras.system.as_deref(), Some("You are Mario."));
    let parameters = mario.extras.parameters;
    // What is of a wrong kind is left out, and one text is a list of one.
    assert_eq!((parameters.temperature, parameters.top_k), (None, Some(40)));
    assert_eq!((parameters.seed, parameters.num_predict), (Some(7), Some(-1)));
    assert_eq!(parameters.stop, ["STOP"]);
    assert_eq!(mario.path, store.find("llama3.2").unwrap().path);
    assert_eq!(store.find("llama3.2:1b").unwrap().extras.template, OwnTemplate::Absent);
}

#[test]
fn what_is_broken_is_listed_with_the_reason_and_not_offered() {
    let world = World::new();
    let library = "registry.ollama.ai/library";
    let gone = model(&world, "gone");
    fs::remove_file(blob(&world, &gone)).unwrap();
    let half = model(&world, "half");
    fs::remove_file(blob(&world, &half)).unwrap();
    for part in ["-partial", "-partial-0"] {
        world.write(&format!("{}{part}", blob(&world, &half).display()), "GGU");
    }
    let mut cut = model(&world, "cut");
    cut["size"] = 1_000_000.into();
    let adapter = layer(&world, "adapter", b"lora");
    let outside = json!({
        "mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../secret", "size": 1,
    });
    let tensor = layer(&world, "tensor; name=a; dtype=BF16", b"t");
    for (name, layers) in [
        ("gone", vec![gone]),
        ("half", vec![half]),
        ("cut", vec![cut]),
        ("lora", vec![model(&world, "base"), adapter]),
        ("cloud", vec![]),
        ("outside", vec![outside]),
        ("tensors", vec![tensor]),
        ("two", vec![model(&world, "a"), model(&world, "b")]),
    ] {
        manifest(&world, &format!("{library}/{name}/latest"), &layers);
    }
    world.write(&format!("{ROOT}/manifests/{library}/torn/latest"), r#"{"schemaVersion": 2, "lay"#);
    let survey = world.store().survey(|_| Ok(()));
    assert_eq!(survey.models, []);
    let why: Vec<_> =
        survey.unusable.iter().map(|one| (one.name.as_str(), one.fault.why.as_str())).collect();
    assert_eq!(
        why,
        [
            ("cloud:latest", "there are no weights in it: Ollama runs it elsewhere"),
            ("cut:latest", "the blob of its weights is damaged: it has 192 bytes of 1.0 MB"),
            ("gone:latest", "the blob of its weights is missing"),
            ("half:latest", "its download is not finished"),
            ("lora:latest", "it has a LoRA adapter, which is not read"),
            ("outside:latest", "its manifest is damaged"),
            (
                "tensors:latest",
                "its weights are single tensors in Ollama's own layout, which is not read"
            ),
            ("torn:latest", "its manifest is damaged"),
            ("two:latest", "its weights are in 2 files, which are not read"),
        ]
    );
    for name in ["gone", "gone:latest", "ollama:gone"] {
        for found in [world.store().find(name), world.store().find_installed(name)] {
            let error = found.unwrap_err();
            assert!(matches!(error, StoreError::Broken { .. }), "{error}");
            let message = format!(
                "model `{name}` (Ollama) cannot be used: the blob of its weights is missing"
            );
            assert_eq!(error.to_string(), message);
        }
    }
}

#[test]
fn only_force_removes_and_what_others_need_stays() {
    let world = used();
    let store = world.store();
    let error = store.remove("mario").unwrap_err();
    assert!(matches!(error, StoreError::NotOurs { owner: "Ollama", .. }), "{error}");
    assert!(error.to_string().ends_with("hint: remove it there, or with --force here"), "{error}");
    assert_eq!(store.list().len(), 5);

    let blobs = || names_in(&world.path(&format!("{ROOT}/blobs"))).len();
    let before = blobs();
    store.remove_forced("mario").unwrap();
    // Its config, system text and parameters; weights and template are another's.
    assert_eq!(blobs(), before - 3);
    assert!(!world.path(&format!("{ROOT}/manifests/registry.ollama.ai/library/mario")).exists());
    assert!(store.find("mario").is_err() && store.find("llama3.2").is_ok());
    let weights = store.find("llama3.2:1b").unwrap().path;
    let removed = store.remove_forced("ollama:llama3.2:1b").unwrap();
    assert!(!weights.exists() && removed.bytes > 160, "{removed:?}");
    assert!(store.find("llama3.2").is_ok());

    // Where one manifest cannot be read, nobody knows what it needs.
    world.write(&format!("{ROOT}/manifests/registry.ollama.ai/library/torn/latest"), "{");
    let before = blobs();
    store.remove_forced("me/mine:v2").unwrap();
    assert_eq!(blobs(), before);
    store.remove_forced("torn").unwrap();
    assert_eq!(store.survey(|_| Ok(())).unusable, []);
}

#[test]
fn a_download_without_a_manifest_is_told_and_can_be_cleared_away() {
    let world = used();
    let before = names_in(&world.path(&format!("{ROOT}/blobs")));
    // `ollama pull` was stopped: the pieces lie beside the blob-to-be, and the manifest comes last.
    let blob = format!("sha256-{}", "ab12".repeat(16));
    for end in ["-partial", "-partial-0", "-partial-1"] {
        world.write(&format!("{ROOT}/blobs/{blob}{end}"), "GGU");
    }
    // This one is told by its manifest.
    let coming = model(&world, "coming");
    let path = self::blob(&world, &coming);
    fs::rename(&path, format!("{}-partial", path.display())).unwrap();
    manifest(&world, "registry.ollama.ai/library/coming/latest", &[coming]);

    let store = world.store();
    let found = store.survey(|_| Ok(()));
    let why: Vec<_> =
        found.unusable.iter().map(|one| (&one.name[..], &one.fault.why[..])).collect();
    let half = "its download is not finished";
    assert_eq!(why, [("coming:latest", half), ("sha256-ab12ab12ab12", half)]);
    assert_eq!(store.list().len(), 5);

    assert!(matches!(store.remove("sha256-ab12ab12ab12"), Err(StoreError::NotOurs { .. })));
    let removed = store.remove_forced("sha256-ab12ab12ab12").unwrap();
    assert_eq!(removed.bytes, 9);
    store.remove_forced("coming").unwrap();
    let after = names_in(&world.path(&format!("{ROOT}/blobs")));
    let partial = |name: &&String| name.starts_with(&blob);
    assert_eq!(after.iter().find(partial), None);
    assert!(before.iter().all(|name| after.contains(name)));
}

#[test]
fn a_text_without_an_end_is_refused() {
    let world = World::new();
    let system = layer(&world, "system", &vec![b'a'; (4 << 20) + 1]);
    manifest(&world, "registry.ollama.ai/library/long/latest", &[model(&world, "long"), system]);
    let error = world.store().find("long").unwrap_err().to_string();
    assert!(error.contains("its system text cannot be read: it has more than 4.2 MB"), "{error}");
}
