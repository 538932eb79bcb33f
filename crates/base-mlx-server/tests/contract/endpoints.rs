use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use crate::support::{SERVER, TestServer, capital, with};
use crate::test_models::test_model;

#[test]
fn point_55_models_lists_what_can_be_asked_for() {
    let server = TestServer::start(|_| {});
    let list = server.get("/v1/models").ok();
    assert_eq!(list["object"], "list");
    let find = |list: &Value| {
        let models = list["data"].as_array().unwrap();
        models.iter().find(|model| model["id"] == "smollm2").unwrap().clone()
    };
    let mut model = find(&list);
    assert!(model["created"].as_u64().unwrap() > 1_500_000_000);
    model["created"] = json!("[redacted]");
    insta::assert_json_snapshot!("model", model);

    server.chat(with(capital(), json!({ "max_tokens": 1 }))).ok();
    assert_eq!(find(&server.get("/v1/models").ok())["loaded"], true);
    assert_eq!(server.get("/v1/models/smollm2").ok()["loaded"], true);
    assert_eq!(server.get("/health").ok()["loaded"], json!(["smollm2"]));
}

#[test]
fn point_55_one_model_is_found_by_its_id_and_others_are_404() {
    assert_eq!(SERVER.get("/v1/models/smollm2").ok()["id"], "smollm2");
    for path in ["/v1/models/no/such", "/v1/models/no%2Fsuch", "/v1/models/..%2Fsmollm2.gguf"] {
        assert_eq!(SERVER.get(path).error(404)["code"], "model_not_found");
    }
}

#[test]
fn point_55_an_id_may_have_slashes_raw_or_encoded() {
    let models = Path::new(env!("CARGO_TARGET_TMPDIR")).join("slashes");
    let folder = models.join("acme");
    std::fs::create_dir_all(&folder).unwrap();
    put(&test_model("smollm2.gguf"), &folder.join("tiny-model.gguf"));
    let server = TestServer::with_models(&models, |_| {});
    for path in ["/v1/models/acme/tiny-model", "/v1/models/acme%2Ftiny-model"] {
        assert_eq!(server.get(path).ok()["id"], "acme/tiny-model");
    }
    let asked = json!({ "model": "acme/tiny-model", "max_tokens": 1 });
    assert_eq!(server.chat(with(capital(), asked)).ok()["model"], "acme/tiny-model");
}

#[test]
fn point_59_a_broken_chat_template_leaves_completions() {
    let models = Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken-template");
    std::fs::create_dir_all(&models).unwrap();
    let mut bytes = std::fs::read(test_model("smollm2.gguf")).unwrap();
    let (tag, broken) = (b"{% for", b"{% fou");
    let at = bytes.windows(tag.len()).position(|window| window == tag).unwrap();
    bytes[at..at + tag.len()].copy_from_slice(broken);
    std::fs::write(models.join("m.gguf"), bytes).unwrap();
    let server = TestServer::with_models(&models, |_| {});
    let error = server.chat(with(capital(), json!({ "model": "m", "stream": true }))).error(400);
    assert_eq!(error["code"], "model_not_supported");
    assert!(error["message"].as_str().unwrap().contains("fou"), "{error}");
    server.complete(json!({ "model": "m", "prompt": "a", "max_tokens": 1 })).ok();
}

#[test]
fn a_load_that_fails_is_told_to_all_who_wait_and_tried_again() {
    let models = Path::new(env!("CARGO_TARGET_TMPDIR")).join("failing");
    std::fs::create_dir_all(&models).unwrap();
    let (whole, file) = (test_model("smollm2.gguf"), models.join("m.gguf"));
    let head = std::fs::read(&whole).unwrap()[..3_000_000].to_vec();
    let _ = std::fs::remove_file(&file);
    std::fs::write(&file, head).unwrap();
    let server = TestServer::with_models(&models, |_| {});
    let ask = || server.chat(with(capital(), json!({ "model": "m", "max_tokens": 1 })));
    let failed = || {
        // Asking again makes no file whole, and where it lies is not for everybody.
        let error = ask().error(400);
        assert_eq!(error["code"], "model_damaged");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("m.gguf") && !message.contains('/'), "{message}");
    };
    thread::scope(|scope| {
        let clients = [scope.spawn(failed), scope.spawn(failed), scope.spawn(failed)];
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    assert_eq!(server.get("/health").ok()["loaded"], json!([]));
    put(&whole, &file);
    ask().ok();
}

#[test]
fn point_08_what_is_wrong_with_a_model_is_told_without_paths() {
    let models = Path::new(env!("CARGO_TARGET_TMPDIR")).join("broken-models");
    let _ = std::fs::remove_dir_all(&models);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../base-mlx-core/tests/golden/llama");
    let config = std::fs::read_to_string(golden.join("tied/config.json")).unwrap();
    let weights = std::fs::read(golden.join("tied/model.safetensors")).unwrap();
    let index = |first: &str, second: &str| {
        json!({ "weight_map": { "model.norm.weight": first, "model.embed_tokens.weight": second } })
            .to_string()
    };
    let shards = index("a.safetensors", "b.safetensors");
    // What lies beside config.json.
    type Files<'a> = Vec<(&'a str, &'a [u8])>;
    let cases: [(&str, Files, &str); 7] = [
        (
            "twice",
            vec![
                ("model.safetensors.index.json", shards.as_bytes()),
                ("a.safetensors", &weights),
                ("b.safetensors", &weights),
            ],
            "a.safetensors",
        ),
        (
            "shard-missing",
            vec![("model.safetensors.index.json", shards.as_bytes()), ("a.safetensors", &weights)],
            "b.safetensors",
        ),
        ("index", vec![("model.safetensors.index.json", b"{")], "model.safetensors.index.json"),
        ("cut-off", vec![("model.safetensors", &weights[..1000])], "model.safetensors"),
        ("no-tokenizer", vec![("model.safetensors", &weights)], "tokenizer.json"),
        (
            "tokenizer",
            vec![("model.safetensors", &weights), ("tokenizer.json", b"{}")],
            "tokenizer.json",
        ),
        ("several", vec![("a.safetensors", &weights), ("b.safetensors", &weights)], "several"),
    ];
    for (name, files, _) in &cases {
        let folder = models.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.json"), &config).unwrap();
        for (file, bytes) in files {
            std::fs::write(folder.join(file), bytes).unwrap();
        }
    }
    let server = TestServer::with_models(&models, |_| {});
    for (name, _, file) in cases {
        let reply = server.complete(json!({ "model": name, "prompt": "a" }));
        let error = reply.error(400);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(file), "{message}");
        assert!(!reply.text().contains(models.to_str().unwrap()), "{message}");
    }
}

/// A file in another place, without a copy of it.
fn put(from: &Path, to: &Path) {
    let _ = std::fs::remove_file(to);
    std::os::unix::fs::symlink(std::path::absolute(from).unwrap(), to).unwrap();
}

#[test]
fn point_55_the_api_answers_before_any_model_is_loaded() {
    let server = TestServer::start(|_| {});
    assert_eq!(server.get("/health").ok()["status"], "ok");
    assert_eq!(server.get("/health").ok()["loaded"], json!([]));
    let models = server.get("/v1/models").ok();
    assert!(models["data"].as_array().unwrap().iter().all(|model| model["loaded"] == false));
}

#[test]
fn point_59_a_model_that_cannot_chat_says_so() {
    let error = SERVER.chat(with(capital(), json!({ "model": "minilm" }))).error(400);
    assert_eq!(error["param"], "model");
    assert!(error["message"].as_str().unwrap().contains("is an embedding model"), "{error}");
    // It may be asked again, and nothing is worse for it.
    SERVER.chat(with(capital(), json!({ "model": "minilm" }))).error(400);
    SERVER.chat(with(capital(), json!({ "max_tokens": 1 }))).ok();
}

#[test]
fn point_59_slashes_at_the_end_and_other_methods_are_sane() {
    assert_eq!(SERVER.get("/v1/models/").ok()["object"], "list");
    assert_eq!(SERVER.get("/v1//models").ok()["object"], "list");
    let body = with(capital(), json!({ "model": "smollm2", "max_tokens": 1 }));
    SERVER.post("/v1/chat/completions/", &body).ok();

    let head = SERVER.send("HEAD", "/v1/models", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-type"), Some("application/json"));
    let options = SERVER.send("OPTIONS", "/v1/chat/completions", &[], b"");
    assert_eq!(options.status, 204);
    assert_eq!(options.header("allow"), Some("POST"));
    assert_eq!(SERVER.send("OPTIONS", "/v1/nothing", &[], b"").status, 404);
}

#[test]
fn point_60_strange_bodies_are_client_errors() {
    let send = |body: &[u8]| SERVER.send("POST", "/v1/chat/completions", &[], body);
    let deep = format!(
        r#"{{"model":"smollm2","messages":[{{"role":"user","content":"a"}}],"x":{}{}}}"#,
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    send(deep.as_bytes()).error(400);
    send(br#"{"model":"smollm2","messages":[{"role":"user","content":"\ud83d"}]}"#).error(400);
    send(b"{\"model\":\"smollm2\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}")
        .error(400);
    // Of two equal keys the last one counts.
    let twice = br#"{"model":"nobody","model":"smollm2","max_tokens":1,"messages":[],"messages":[{"role":"user","content":"a"}]}"#;
    send(twice).ok();
    let whole = r#"{"model":"smollm2","max_tokens":1,"messages":[{"role":"user","content":"\ud83d\ude00 \u0000"}]}"#;
    send(whole.as_bytes()).ok();
}

#[test]
fn point_60_no_key_goes_round_the_depth() {
    let key = "$serde_json::private::RawValue";
    let send = |body: &str| SERVER.send("POST", "/v1/chat/completions", &[], body.as_bytes());
    let chat = |more: &str| {
        let message = r#"{"role":"user","content":"a"}"#;
        send(&format!(r#"{{"model":"smollm2","max_tokens":1,"messages":[{message}],{more}}}"#))
    };
    let levels = |count: usize| format!("{}{}", "[".repeat(count), "]".repeat(count));
    // A text like any other, under a name that nobody knows.
    for text in [levels(100), levels(50_000), "{".to_owned(), "not JSON".to_owned()] {
        chat(&format!(r#""x":{{"{key}":"{text}"}}"#)).ok();
        chat(&format!(r#""x":{},"y":{{"{key}":5}}"#, levels(100))).ok();
        chat(&format!(r#""{key}":"{text}""#)).ok();
        chat(&format!(r#""chat_template_kwargs":{{"x":{{"{key}":"{text}"}}}}"#)).ok();
    }
    chat(&format!(r#""x":{{"{key}":{}}}"#, levels(200))).error(400);
    // It is no number, no text and no list of messages either.
    let number = r#"{"$serde_json::private::Number":"0.5"}"#;
    assert_eq!(chat(&format!(r#""temperature":{number}"#)).error(400)["param"], "temperature");
    assert_eq!(chat(&format!(r#""stop":{{"{key}":"\"a\""}}"#)).error(400)["param"], "stop");
    let hidden = r#"[{\"role\":\"user\",\"content\":\"a\"}]"#;
    let body = format!(r#"{{"model":"smollm2","messages":{{"{key}":"{hidden}"}}}}"#);
    assert_eq!(send(&body).error(400)["param"], "messages");
    let body = format!(r#"{{"{key}":"{{\"model\":\"smollm2\",\"messages\":{hidden}}}"}}"#);
    assert_eq!(send(&body).error(400)["param"], "messages");
}

#[test]
fn point_60_a_body_has_a_largest_size() {
    let body = vec![b' '; 33 * 1024 * 1024];
    let error = SERVER.send("POST", "/v1/chat/completions", &[], &body).error(413);
    assert!(error["message"].as_str().unwrap().contains("33554432"), "{error}");
    SERVER.chat(with(capital(), json!({ "max_tokens": 1 }))).ok();
}
