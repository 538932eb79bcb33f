//! One model under several names: what was loaded under one answers to all, and nobody looks for it twice.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use base_mlx_core::store::{ModelDir, Store, StoreOptions};
use base_mlx_server::ModelOptions;
use serde_json::{Value, json};

use crate::support::{TestServer, capital, with};
use crate::test_models::test_model;

fn put(file: &str, to: PathBuf) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    symlink(fs::canonicalize(test_model(file)).unwrap(), to).unwrap();
}

/// What belongs to LM Studio of a server with that models folder.
fn studio(models: &Path) -> PathBuf {
    models.join("nowhere/.lmstudio/models")
}

fn brief(model: &str) -> Value {
    with(capital(), json!({ "model": model, "max_tokens": 1 }))
}

fn loaded(server: &TestServer) -> Value {
    server.get("/health").ok()["loaded"].clone()
}

#[test]
fn a_model_in_memory_is_not_looked_for_under_any_name_that_was_used() {
    let models = tempfile::tempdir().unwrap();
    put("smollm2.gguf", studio(models.path()).join("me/Tiny-GGUF/Tiny-Q4_1.gguf"));
    let server = TestServer::with_models(models.path(), |_| {});
    let names = ["me/Tiny-GGUF", "me/Tiny-GGUF:Q4_1", "me/Tiny-GGUF:Tiny-Q4_1.gguf"];
    for name in names {
        assert_eq!(server.chat(brief(name)).ok()["model"], name);
    }
    // Its disk is gone.
    fs::remove_dir_all(studio(models.path())).unwrap();
    for name in names {
        assert_eq!(server.chat(brief(name)).ok()["model"], name);
    }
    assert_eq!(server.chat(brief("me/Tiny-GGUF:q4_1")).error(404)["code"], "model_not_found");
    server.post("/v1/models/me/Tiny-GGUF:Q4_1/unload", &json!({})).error(404);
    assert_eq!(loaded(&server), json!([]));
    for name in names {
        server.chat(brief(name)).error(404);
    }
}

#[test]
fn two_ways_to_one_file_are_one_model() {
    let models = tempfile::tempdir().unwrap();
    put("smollm2.gguf", models.path().join("a.gguf"));
    put("smollm2.gguf", models.path().join("b.gguf"));
    let server = TestServer::with_models(models.path(), |_| {});
    for name in ["a", "b"] {
        assert_eq!(server.chat(brief(name)).ok()["model"], name);
    }
    assert_eq!(loaded(&server), json!(["a"]));
    let list = server.get("/v1/models").ok();
    let seen: Vec<_> = list["data"].as_array().unwrap().iter().collect();
    assert_eq!(seen.len(), 2, "{list}");
    assert!(seen.iter().all(|model| model["loaded"] == true), "{list}");
    assert_eq!(server.post("/v1/models/b/unload", &json!({})).ok()["loaded"], false);
    assert_eq!(loaded(&server), json!([]));
}

#[test]
fn what_is_said_of_a_model_counts_by_whichever_name() {
    let models = tempfile::tempdir().unwrap();
    put("smollm2.gguf", studio(models.path()).join("me/Tiny-GGUF/Tiny-Q4_1.gguf"));
    put("smollm2.gguf", models.path().join("own.gguf"));
    fs::write(models.path().join("other.gguf"), fs::read(test_model("smollm2.gguf")).unwrap())
        .unwrap();
    let own = |context| ModelOptions { context: Some(context), ..ModelOptions::default() };
    let other = models.path().join("other.gguf").to_str().unwrap().to_owned();
    let server = TestServer::with_models(models.path(), |options| {
        options.models.insert("me/Tiny-GGUF:q4_1".to_owned(), own(512));
        options.models.insert("own".to_owned(), own(256));
        options.models.insert(other, own(128));
        options.models.insert("is/not-there".to_owned(), own(64));
    });
    let context =
        |name: &str| server.get(&format!("/v1/models/{name}")).ok()["context_length"].clone();
    let unload = |name: &str| server.post(&format!("/v1/models/{name}/unload"), &json!({})).ok();
    // The name that is asked for comes first, then any other of the same files.
    for (name, expected) in
        [("me/Tiny-GGUF:q4_1", 512), ("own", 256), ("me/Tiny-GGUF", 512), ("other", 128)]
    {
        assert_eq!(context(name), expected, "{name}");
        server.post(&format!("/v1/models/{name}/load"), &json!({})).ok();
        assert_eq!(context(name), expected, "{name} in memory");
        unload(name);
    }
}

#[test]
fn a_name_in_the_list_is_that_of_the_model_that_answers_to_it() {
    let (models, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put("smollm2.gguf", models.path().join("twice.gguf"));
    put("smollm2.gguf", models.path().join("one.gguf"));
    put("qwen2.5-coder-0.5b.gguf", elsewhere.path().join("twice.gguf"));
    // The server's own model is called like one on the disk, and hides it.
    let nobody = Store::open(StoreOptions::from_vars(|_| None));
    let path = elsewhere.path().join("twice.gguf");
    let own = nobody.find(path.to_str().unwrap()).unwrap();
    let own = ModelDir { name: "twice".to_owned(), ..own };
    let bytes = own.bytes;
    let server = TestServer::with_models(models.path(), |options| options.model = Some(own));
    let list = server.get("/v1/models").ok();
    let seen: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| (&model["id"], &model["size"]))
        .collect();
    let small = test_model("smollm2.gguf").metadata().unwrap().len();
    assert_eq!(seen, [(&json!("one"), &json!(small)), (&json!("twice"), &json!(bytes))]);
    for (id, size) in seen {
        assert_eq!(server.get(&format!("/v1/models/{}", id.as_str().unwrap())).ok()["size"], *size);
    }
}
