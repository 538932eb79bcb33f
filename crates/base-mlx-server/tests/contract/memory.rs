//! Models come and go, and all of them together never have more memory than they may.

use std::time::Duration;

use base_mlx_server::ModelOptions;
use serde_json::{Value, json};

use crate::support::{TestServer, capital, content, until, with};
use crate::test_models::{test_model, test_models};

const QWEN: &str = "qwen2.5-coder-0.5b";

fn loaded(server: &TestServer) -> Vec<String> {
    let list = server.get("/v1/models").ok();
    let models = list["data"].as_array().unwrap().iter().filter(|model| model["loaded"] == true);
    models.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

fn ask(server: &TestServer, model: &str) -> String {
    content(&server.chat(with(capital(), json!({ "model": model }))).ok()).to_owned()
}

fn change(server: &TestServer, path: &str, body: &Value) -> Value {
    server.post(&format!("/v1/models/{path}"), body).ok()
}

#[test]
fn a_model_goes_when_another_needs_the_room_unless_it_is_pinned() {
    // Either fits, with a short conversation, and not both.
    let server = TestServer::with_memory(600 << 20, &test_models(), |options| {
        options.engine.context = Some(2048);
    });
    let first = ask(&server, "smollm2");
    assert_eq!(loaded(&server), ["smollm2"]);
    assert!(ask(&server, QWEN).contains("Paris"));
    assert_eq!(loaded(&server), [QWEN]);
    assert_eq!(ask(&server, "smollm2"), first);

    assert_eq!(change(&server, "smollm2/load", &json!({ "pinned": true }))["pinned"], true);
    let refused = server.chat(with(capital(), json!({ "model": QWEN })));
    let error = refused.error(503);
    assert_eq!(error["code"], "model_load_failed");
    assert!(error["message"].as_str().unwrap().contains("unload another model"), "{error}");
    assert!(refused.header("retry-after").is_some());
    change(&server, "smollm2/load", &json!({ "pinned": false }));
    assert_eq!(change(&server, &format!("{QWEN}/load"), &json!({}))["loaded"], true);
    assert_eq!(loaded(&server), [QWEN]);
}

#[test]
fn a_model_that_can_never_fit_is_refused_with_the_numbers() {
    let server = TestServer::with_memory(50 << 20, &test_models(), |_| {});
    let error = server.chat(capital()).error(400);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("can never fit: it needs "), "{message}");
    assert!(message.contains("of the 50 MiB that models may have 50 MiB are free"), "{message}");
}

#[test]
fn a_model_is_unloaded_when_asked_or_when_its_time_is_over() {
    let server = TestServer::start(|options| options.keep_models = None);
    let answer = ask(&server, "smollm2");
    assert_eq!(change(&server, "smollm2/unload", &json!({}))["loaded"], false);
    assert_eq!(change(&server, "smollm2/unload", &json!({}))["loaded"], false, "once more");
    assert_eq!(ask(&server, "smollm2"), answer);
    let brief = with(capital(), json!({ "keep_alive": "50ms" }));
    assert_eq!(content(&server.chat(brief).ok()), answer);
    until(|| server.get("/v1/models/smollm2"), |reply| reply.ok()["loaded"] == false);
    server.chat(with(capital(), json!({ "keep_alive": -1 }))).ok();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(loaded(&server), ["smollm2"]);
    let error = server.chat(with(capital(), json!({ "keep_alive": "soon" }))).error(400);
    assert_eq!(error["param"], "keep_alive");
    server.post("/v1/models/no-such-model/load", &json!({})).error(404);
    server.post("/v1/models/smollm2/load", &json!({ "pinned": 1 })).error(400);
    server.post("/v1/models/smollm2", &json!({})).error(405);
}

#[test]
fn three_models_and_four_chats_share_two_gigabytes() {
    let models = tempfile::tempdir().unwrap();
    for (file, name) in [("smollm2", "smollm2"), ("smollm2", "smollm2-copy"), (QWEN, QWEN)] {
        let place = models.path().join(format!("{name}.gguf"));
        std::fs::copy(test_model(&format!("{file}.gguf")), place).unwrap();
    }
    let server = TestServer::with_memory(2 << 30, models.path(), |options| {
        options.engine.context = Some(4096);
    });
    let alone = [ask(&server, "smollm2"), ask(&server, QWEN)];
    std::thread::scope(|scope| {
        let ask = |model: &'static str, draft: &'static str| {
            let body = with(capital(), json!({ "model": model, "draft_model": draft }));
            let server = &server;
            scope.spawn(move || content(&server.chat(body).ok()).to_owned())
        };
        let chats = [
            (0, ask("smollm2", "smollm2-copy")),
            (1, ask(QWEN, "prompt-lookup")),
            (0, ask("smollm2", "prompt-lookup")),
            (1, ask(QWEN, "none")),
        ];
        for (model, chat) in chats {
            assert_eq!(chat.join().unwrap(), alone[model]);
        }
    });
    assert_eq!(loaded(&server).len(), 3);
}

#[test]
fn a_model_may_have_its_own_kind_of_keys_and_its_own_context() {
    let own = ModelOptions { context: Some(2000), ..ModelOptions::default() };
    let server = TestServer::with_models(&test_models(), |options| {
        options.models.insert("smollm2".to_owned(), own);
    });
    let wrong = server.post("/v1/models/smollm2/load", &json!({ "kv_cache_type": "q5" }));
    let error = wrong.error(400);
    assert_eq!(error["param"], "kv_cache_type");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`f32`, `f16`, `q8_0`, `q4_0`"), "{message}");

    assert_eq!(server.get("/v1/models/smollm2").ok()["context_length"], 2000);
    // What it is anyway may be asked for.
    change(&server, "smollm2/load", &json!({}));
    change(&server, "smollm2/load", &json!({ "kv_cache_type": "f16", "context_length": 2000 }));
    change(&server, "smollm2/unload", &json!({}));
    change(&server, "smollm2/load", &json!({ "kv_cache_type": "q8_0" }));
    assert!(ask(&server, "smollm2").contains("Paris"));
    let long = json!({ "model": "smollm2", "prompt": "a ".repeat(2000), "max_tokens": 1 });
    let error = server.post("/v1/completions", &long).error(400);
    assert!(error["message"].as_str().unwrap().contains("length is 2000 tokens"), "{error}");
    // Asked for again it is the same one, asked for otherwise none.
    change(&server, "smollm2/load", &json!({ "kv_cache_type": "q8_0", "context_length": 2000 }));
    let other = server.post("/v1/models/smollm2/load", &json!({ "kv_cache_type": "q4_0" }));
    let message = other.error(400)["message"].as_str().unwrap().to_owned();
    assert!(message.contains("another `kv_cache_type`\nhint: unload it first"), "{message}");
    change(&server, "smollm2/unload", &json!({}));
    change(&server, "smollm2/load", &json!({ "kv_cache_type": "q4_0" }));
    assert!(ask(&server, "smollm2").contains("Paris"));
}
