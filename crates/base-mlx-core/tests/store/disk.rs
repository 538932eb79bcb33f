use base_mlx_core::store::{Silent, Source, Store, StoreError, StoreOptions};

use crate::World;

/// A machine on which many tools have left models.
fn full() -> World {
    let mut world = World::new();
    world.options.models_dir = Some(world.path("models"));
    for path in [
        "models/smollm2.gguf",
        "models/minilm/config.json",
        "models/me/tuned/config.json",
        ".lmstudio/models/qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf",
        ".lmstudio/models/mlx-community/Qwen3-8B-4bit/config.json",
        ".lmstudio/models/mlx-community/Qwen3-8B-4bit/tokenizer.json",
        ".lmstudio/models/mlx-community/Qwen3-8B-4bit/model.safetensors",
        ".lmstudio/models/mlx-community/half/config.json",
    ] {
        world.write(path, "{}");
    }
    let repo = ".cache/huggingface/hub/models--mlx-community--Qwen3-0.6B-4bit";
    world.write(&format!("{repo}/refs/main"), "abc");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        world.write(&format!("{repo}/snapshots/abc/{file}"), "{}");
    }
    let half = ".cache/huggingface/hub/models--mlx-community--half";
    world.write(&format!("{half}/refs/main"), "abc");
    world.write(&format!("{half}/snapshots/abc/config.json"), "{}");
    world.write(".cache/huggingface/hub/models--x--evil/refs/main", "../../../../models/minilm");
    world
}

#[test]
fn the_models_of_every_tool_are_listed_with_where_they_lie() {
    let world = full();
    let list = world.store().list();
    let shown: Vec<_> = list.iter().map(|entry| (entry.name.as_str(), entry.source)).collect();
    let expected = [
        ("me/tuned", Source::ModelsDir),
        ("minilm", Source::ModelsDir),
        ("mlx-community/Qwen3-0.6B-4bit", Source::HubCache),
        ("mlx-community/Qwen3-8B-4bit", Source::LmStudio),
        ("qwen/Qwen3-0.6B-GGUF", Source::LmStudio),
        ("smollm2", Source::ModelsDir),
    ];
    assert_eq!(shown, expected);
    for entry in &list {
        for name in entry.aliases.iter().chain([&entry.name]) {
            let found = world.store().find_installed(name).unwrap();
            assert_eq!((&found.name, &found.path, found.bytes), (name, &entry.path, entry.bytes));
        }
    }
    assert_eq!(world.store().find("qwen3-8b").unwrap().name, "qwen3-8b");
}

#[test]
fn only_the_exact_name_is_on_disk() {
    let world = full();
    let store = world.store();
    for name in ["Smollm2", "smollm", "smollm2.", "Qwen3-8B-4bit", "mlx-community/qwen3-8b-4bit"] {
        assert!(matches!(store.find(name), Err(StoreError::NotFound { .. })), "{name}");
    }
    let Err(StoreError::NotFound { closest, .. }) = store.find("Qwen3-8B-4bit") else { panic!() };
    assert_eq!(closest[0], "mlx-community/Qwen3-8B-4bit");
    let message = store.find("smolm2").unwrap_err().to_string();
    assert_eq!(message, "model `smolm2` is not on disk\nhint: closest names: smollm2");
    assert!(matches!(store.pull("smolm2", &Silent), Err(StoreError::Unknown { .. })));
    let Err(error) = store.find("llama-3.2-1b") else { panic!() };
    assert!(error.to_string().ends_with("hint: run `base-mlx pull llama-3.2-1b`"), "{error}");
    // Others cannot pull: they are told what is there.
    let Err(StoreError::NotFound { closest, .. }) = store.find_installed("llama-3.2-1") else {
        panic!()
    };
    assert!(closest.is_empty(), "{closest:?}");
    // What is incomplete, or leads elsewhere, is not there.
    assert!(store.find("mlx-community/half").is_err());
    assert!(store.find("x/evil").is_err());
}

#[test]
fn a_path_is_a_name_for_its_owner_but_not_for_others() {
    let world = full();
    let store = world.store();
    let file = world.path("models/smollm2.gguf");
    let found = store.find(file.to_str().unwrap()).unwrap();
    assert_eq!((found.name.as_str(), found.source), ("smollm2", Source::Path));
    assert_eq!(store.find("~/models/minilm").unwrap().name, "minilm");
    let folder = world.path(".lmstudio/models/qwen/Qwen3-0.6B-GGUF");
    assert!(store.find(folder.to_str().unwrap()).unwrap().path.ends_with("Qwen3-0.6B-Q8_0.gguf"));
    for path in ["/nowhere.gguf", "~/models/me"] {
        assert!(matches!(store.find(path), Err(StoreError::NoModel { .. })), "{path}");
    }
    for path in [file.to_str().unwrap(), "~/models/minilm", "../smollm2", "/etc/passwd", ""] {
        let found = store.find_installed(path);
        assert!(matches!(found, Err(StoreError::NotFound { .. })), "{path}");
    }
}

#[test]
fn only_what_a_pull_brought_can_be_removed() {
    let world = full();
    let store = world.store();
    let path = world.path("models/minilm");
    for name in ["smollm2", "minilm", "qwen3-8b", "qwen/Qwen3-0.6B-GGUF", path.to_str().unwrap()] {
        let error = store.remove(name).unwrap_err();
        assert!(matches!(error, StoreError::NotOurs { .. }), "{error}");
    }
    assert_eq!(store.list().len(), 6);
    assert_eq!(store.remove("qwen3-0.6b").unwrap().name, "qwen3-0.6b");
    assert!(store.remove("mlx-community/half").is_ok(), "half a pull can be cleared away");
    assert!(matches!(store.remove("mlx-community/half"), Err(StoreError::NotFound { .. })));
    assert_eq!(store.list().len(), 5);
}

#[test]
fn a_model_that_is_being_pulled_is_not_removed() {
    let world = full();
    let lock = ".cache/huggingface/hub/.locks/models--mlx-community--Qwen3-0.6B-4bit/x.lock";
    let lock = std::fs::File::open(world.write(lock, "")).unwrap();
    lock.lock().unwrap();
    let store = world.store();
    let error = store.remove("qwen3-0.6b").unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    drop(lock);
    store.remove("qwen3-0.6b").unwrap();
}

#[test]
fn nothing_on_disk_is_an_empty_list() {
    let world = World::new();
    assert!(world.store().list().is_empty());
    let nowhere = Store::open(StoreOptions::from_vars(|_| None));
    let message = nowhere.find("gpt-oss-120b").unwrap_err().to_string();
    assert!(message.contains("`base-mlx pull NAME` fetches"), "{message}");
}
