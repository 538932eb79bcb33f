//! Models that other tools have left: listed, served and used where they lie.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::embed::encoder_gguf;
use crate::process::{Serving, User, output, rest};
use crate::test_models::test_model;

const SYSTEM: &str = "You are a pirate who answers every question with a rhyme.";
const QUESTION: &str = "What is the capital of France?";

/// A link, as a copy of the test models would take long.
pub(crate) fn link(target: &Path, path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(target, path).unwrap();
}

pub(crate) fn write(path: PathBuf, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A blob of Ollama's. Nobody checks what its name says of its content, which would take long.
fn blob(user: &User, number: u8, content: &[u8]) -> Value {
    let hex = format!("{number:02x}").repeat(32);
    write(ollama(user).join(format!("blobs/sha256-{hex}")), content);
    json!({ "digest": format!("sha256:{hex}"), "size": content.len() })
}

fn ollama(user: &User) -> PathBuf {
    user.home.path().join(".ollama/models")
}

fn layer(kind: &str, mut blob: Value) -> Value {
    blob["mediaType"] = format!("application/vnd.ollama.image.{kind}").into();
    blob
}

pub(crate) fn manifest(user: &User, name: &str, layers: &[Value]) {
    let manifest = json!({ "schemaVersion": 2, "layers": layers });
    write(
        ollama(user).join("manifests/registry.ollama.ai/library").join(name),
        manifest.to_string(),
    );
}

/// SmolLM2 as Ollama keeps it: plain, and as `ollama create` makes it of a Modelfile.
fn with_ollama(user: &User) {
    let file = test_model("smollm2.gguf");
    let hex = "ab".repeat(32);
    link(&file, &ollama(user).join(format!("blobs/sha256-{hex}")));
    let weights = layer(
        "model",
        json!({ "digest": format!("sha256:{hex}"), "size": file.metadata().unwrap().len() }),
    );
    let template = layer("template", blob(user, 1, b"{{ .Prompt }}"));
    manifest(user, "tiny/latest", &[weights.clone(), template.clone()]);
    let parameters =
        json!({ "temperature": 0, "num_predict": 24, "stop": ["!", "\n\n"], "num_ctx": 2048 });
    let parameters = layer("params", blob(user, 2, parameters.to_string().as_bytes()));
    let system = layer("system", blob(user, 3, SYSTEM.as_bytes()));
    manifest(user, "pirate/v1", &[weights, template, system, parameters]);
}

/// A home in which many tools have left models, whole ones and others.
fn full() -> User {
    let user = User::new();
    with_ollama(&user);
    let home = user.home.path();
    let file = test_model("smollm2.gguf");
    let gone = json!({ "digest": format!("sha256:{}", "cd".repeat(32)), "size": 5 });
    manifest(&user, "gone/latest", &[layer("model", gone)]);
    let studio = home.join(".lmstudio/models/me");
    link(&file, &studio.join("Tiny-GGUF/Tiny-Q4_1.gguf"));
    write(studio.join("Half-GGUF/downloading_Half-Q4_1.gguf.part"), "GG");
    let llama = home.join(".cache/llama.cpp");
    link(&file, &llama.join("me_old_old-Q4_1.gguf"));
    write(
        llama.join("manifest=me=old=latest.json"),
        r#"{"ggufFile":{"rfilename":"old-Q4_1.gguf"}}"#,
    );
    write(llama.join("me_new_new-Q4_1.gguf.downloadInProgress"), "GG");
    // `HF_HOME` is there.
    let hub = home.join("hub/hub/models--me--hub");
    write(hub.join("refs/main"), "abc");
    link(&file, &hub.join("blobs/e1"));
    link(Path::new("../../blobs/e1"), &hub.join("snapshots/abc/hub-Q4_1.gguf"));
    link(Path::new("../../blobs/e2"), &hub.join("snapshots/abc/hub-Q8_0.gguf"));
    let models = home.join("mine");
    link(&file, &models.join("linked.gguf"));
    link(Path::new("/nowhere/lost.gguf"), &models.join("lost.gguf"));
    write(models.join("cut.gguf"), &fs::read(&file).unwrap()[..3_000_000]);
    write(models.join("torn/config.json"), "{");
    user
}

#[test]
fn the_list_and_the_api_show_the_same_models() {
    let user = full();
    let models = user.home.path().join("mine");
    let models = models.to_str().unwrap();
    let (success, stdout, stderr) =
        output(&mut user.command(&["list", "--json", "--models-dir", models]));
    assert!(success, "{stderr}");
    let rows: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    let named = |broken: bool| -> Vec<&str> {
        let rows = rows.iter().filter(|row| row["error"].is_string() == broken);
        rows.map(|row| row["name"].as_str().unwrap()).collect()
    };
    let usable =
        ["linked", "me/Tiny-GGUF", "me/hub:Q4_1", "me/old:Q4_1", "pirate:v1", "tiny:latest"];
    assert_eq!(named(false), usable);
    let broken =
        ["cut", "gone:latest", "lost", "me/Half-GGUF", "me/hub:Q8_0", "me_new_new-Q4_1", "torn"];
    assert_eq!(named(true), broken);

    let arguments = ["serve", "--port", "0", "--model", "tiny", "--models-dir", models];
    let serving = Serving::start(&mut user.command(&arguments));
    let ids = |serving: &Serving| -> Vec<String> {
        let list = get(serving, "/v1/models");
        let ids = list["data"].as_array().unwrap().iter();
        ids.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&serving), usable);
    // Loading one changes nothing of that.
    ask(&serving, "pirate:v1", json!({ "max_tokens": 1 }));
    assert_eq!(ids(&serving), usable);
    for name in named(true) {
        let error = post(
            &serving,
            &json!({ "model": name, "messages": [{ "role": "user", "content": "a" }] }),
        );
        assert_eq!(error["error"]["code"], "model_damaged", "{error}");
        let message = error["error"]["message"].as_str().unwrap();
        assert!(!message.contains(user.home.path().to_str().unwrap()), "{message}");
    }

    let (_, stdout, _) = output(&mut user.command(&["list", "--models-dir", models]));
    let line = |start: &str| stdout.lines().find(|line| line.starts_with(start)).unwrap();
    assert!(line("pirate:v1 ").ends_with("  Ollama"), "{stdout}");
    assert!(line("me/hub:Q4_1 ").ends_with("  Hugging Face cache"), "{stdout}");
    assert!(line("gone:latest ").contains("the blob of its weights is missing"), "{stdout}");
    assert!(line("cut ").contains("cut.gguf is damaged"), "{stdout}");
    assert!(line("me_new_new-Q4_1 ").contains("llama.cpp"), "{stdout}");
}

#[test]
fn an_embedding_model_of_ollamas_is_told_from_those_that_write() {
    let user = User::new();
    with_ollama(&user);
    for (name, number, file) in [("embed", 4, "nomic_bert"), ("last", 5, "qwen3")] {
        let weights = blob(&user, number, &fs::read(encoder_gguf(file)).unwrap());
        manifest(&user, &format!("{name}/latest"), &[layer("model", weights)]);
    }
    let (success, stdout, stderr) = output(&mut user.command(&["list", "--json"]));
    assert!(success, "{stderr}");
    let rows: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    let told: Vec<[&str; 3]> = rows
        .iter()
        .map(|row| ["name", "family", "purpose"].map(|key| row[key].as_str().unwrap()))
        .collect();
    let expected = [
        ["embed:latest", "nomic_bert", "embeddings"],
        ["last:latest", "qwen3", "embeddings"],
        ["pirate:v1", "llama", "text"],
        ["tiny:latest", "llama", "text"],
    ];
    assert_eq!(told, expected);

    // The first that writes is the server's own.
    let serving = Serving::start(&mut user.command(&["serve", "--port", "0"]));
    let messages = json!([{ "role": "user", "content": "a" }]);
    let answer = post(&serving, &json!({ "messages": messages, "max_tokens": 1 }));
    assert_eq!(answer["model"], "pirate:v1", "{answer}");
    for name in ["embed", "last:latest"] {
        let error = post(&serving, &json!({ "model": name, "messages": messages }));
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("is an embedding model"), "{error}");
        let body = json!({ "model": name, "input": ["a", "cat"] }).to_string();
        let answer = json_of(&rest(serving.post("/v1/embeddings", &body)));
        let vectors = answer["data"].as_array().unwrap();
        assert_eq!((vectors.len(), vectors[1]["embedding"].as_array().unwrap().len()), (2, 32));
    }
}

#[test]
fn ollamas_system_text_and_parameters_count_over_http() {
    let user = User::new();
    with_ollama(&user);
    let serving = Serving::start(&mut user.command(&["serve", "--port", "0", "--model", "tiny"]));
    let own = ask(&serving, "pirate:v1", json!({}));
    let system = json!({ "role": "system", "content": SYSTEM });
    let user_message = json!({ "role": "user", "content": QUESTION });
    let said = json!({
        "messages": [system, user_message], "temperature": 0, "max_tokens": 24, "stop": ["!", "\n\n"],
    });
    let spelled_out = ask(&serving, "tiny", said);
    assert_eq!(own["choices"], spelled_out["choices"]);
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(prompt(&own), prompt(&spelled_out));
    assert!(own["usage"]["completion_tokens"].as_u64().unwrap() <= 24, "{own}");
    // Another name of the same weights has none of it.
    let plain = ask(&serving, "tiny", json!({ "max_tokens": 1 }));
    assert_ne!(prompt(&plain), prompt(&own));
    // A client's own word counts more.
    let other = json!({ "role": "system", "content": "Be brief." });
    let user_message = json!({ "role": "user", "content": QUESTION });
    let asked =
        |name| ask(&serving, name, json!({ "messages": [other, user_message], "max_tokens": 1 }));
    assert_eq!(prompt(&asked("pirate:v1")), prompt(&asked("tiny")));
}

#[test]
fn ollamas_system_text_and_parameters_count_at_the_terminal() {
    let user = User::new();
    with_ollama(&user);
    let (success, own, stderr) = output(&mut user.command(&["run", "pirate:v1", QUESTION]));
    assert!(success, "{stderr}");
    let spelled_out = [
        "run",
        "ollama:tiny",
        QUESTION,
        "--system",
        SYSTEM,
        "--temperature",
        "0",
        "--max-tokens",
        "24",
        "--stop",
        "!",
        "--stop",
        "\n\n",
    ];
    let (success, expected, stderr) = output(&mut user.command(&spelled_out));
    assert!(success, "{stderr}");
    assert_eq!(own, expected);

    let (_, shown, _) = output(&mut user.command(&["show", "pirate:v1"]));
    let line = |start: &str| shown.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    assert!(line("system").contains("pirate who answers"), "{shown}");
    assert!(line("num_predict").ends_with("24") && line("kept by").ends_with("Ollama"), "{shown}");
    assert!(line("chat template").contains("characters"), "{shown}");
}

#[test]
fn a_model_of_ollamas_without_a_template_in_its_file_says_so() {
    let user = User::new();
    let mut bytes = fs::read(test_model("smollm2.gguf")).unwrap();
    let key = b"tokenizer.chat_template";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    bytes[at..at + key.len()].copy_from_slice(b"tokenizer.that_template");
    let weights = layer("model", blob(&user, 7, &bytes));
    let template = layer("template", blob(&user, 8, b"{{ .Prompt }}"));
    manifest(&user, "old/latest", &[weights, template]);
    let (success, _, stderr) =
        output(&mut user.command(&["run", "old", "The sea is", "--max-tokens", "2"]));
    assert!(success, "{stderr}");
    assert!(stderr.starts_with("warning: old has no chat template in its GGUF file"), "{stderr}");
    let (_, shown, _) = output(&mut user.command(&["show", "old"]));
    assert!(shown.contains("none in its GGUF file; Ollama's own"), "{shown}");
    let serving = Serving::start(&mut user.command(&["serve", "--port", "0", "--model", "old"]));
    let error = post(&serving, &json!({ "messages": [{ "role": "user", "content": "a" }] }));
    assert_eq!(error["error"]["code"], "model_not_supported");
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("tokenizer.chat_template") && message.contains("Ollama"), "{message}");
}

#[test]
fn only_force_removes_what_another_tool_keeps() {
    let user = User::new();
    with_ollama(&user);
    let (success, _, stderr) = output(&mut user.command(&["rm", "pirate:v1"]));
    assert!(!success);
    assert!(
        stderr.contains("belongs to Ollama\nhint: remove it there, or with --force here"),
        "{stderr}"
    );
    let (success, _, stderr) = output(&mut user.command(&["rm", "--force", "pirate:v1"]));
    assert!(success, "{stderr}");
    let (_, stdout, _) = output(&mut user.command(&["list"]));
    assert!(!stdout.contains("pirate") && stdout.contains("tiny:latest"), "{stdout}");
    assert!(test_model("smollm2.gguf").exists());
}

#[test]
fn of_two_with_one_name_the_list_says_which_one_it_means() {
    let user = full();
    let second = user.home.path().join(".lmstudio/models/me/hub/hub-Q4_1.gguf");
    // A copy: a link would be the same file.
    write(second.clone(), fs::read(test_model("smollm2.gguf")).unwrap());
    let third = user.home.path().join(".lmstudio/models/me/hub/hub-Q8_0.gguf");
    link(&test_model("smollm2.gguf"), &third);
    let (success, stdout, _) = output(&mut user.command(&["list"]));
    assert!(success);
    let lines: Vec<&str> = stdout.lines().filter(|line| line.starts_with("me/hub:Q4_1 ")).collect();
    let hub = user.home.path().join("hub/hub/models--me--hub/snapshots/abc/hub-Q4_1.gguf");
    assert!(lines[0].contains(hub.to_str().unwrap()), "{stdout}");
    assert!(lines[0].ends_with("Hugging Face cache"), "{stdout}");
    assert!(lines[1].ends_with(second.to_str().unwrap()), "{stdout}");
    let why = format!("`me/hub:Q4_1` means the one of Hugging Face cache in {}", hub.display());
    assert!(lines[1].contains(&why), "{stdout}");
    // Of what is broken there another tool has a whole one.
    let whole = stdout.lines().find(|line| line.starts_with("me/hub:Q8_0 ")).unwrap();
    assert!(whole.ends_with("LM Studio"), "{stdout}");

    let (_, stdout, _) = output(&mut user.command(&["list", "--json"]));
    let rows: Vec<Value> = serde_json::from_str(&stdout).unwrap();
    let row = rows.iter().find(|row| row["note"].is_string()).unwrap();
    assert_eq!((&row["note"], &row["error"]), (&json!(why), &Value::Null));
    assert_eq!((&row["name"], &row["path"]), (&json!(second), &json!(second)));
    // The name in every row without an error can be asked for, and is that copy.
    for row in rows.iter().filter(|row| row["error"].is_null()) {
        let name = row["name"].as_str().unwrap();
        let (success, shown, stderr) = output(&mut user.command(&["show", name, "--json"]));
        assert!(success, "{stderr}");
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let path = |value: &Value| fs::canonicalize(value.as_str().unwrap()).unwrap();
        assert_eq!(path(&shown["path"]), path(&row["path"]), "{name}");
    }
}

#[test]
fn a_folder_that_a_variable_names_in_vain_is_told() {
    let user = User::new();
    let file = user.home.path().join("file");
    write(file.clone(), "no folder");
    let list = |name: &str, value: &Path| {
        let (success, _, stderr) = output(user.command(&["list"]).env(name, value));
        assert!(success, "{stderr}");
        stderr.lines().next().unwrap_or_default().to_owned()
    };
    let gone = Path::new("/nowhere/ollama");
    let told = "warning: Ollama: OLLAMA_MODELS names /nowhere/ollama, which is not there";
    assert_eq!(list("OLLAMA_MODELS", gone), told);
    let told = list("OLLAMA_MODELS", &file);
    let start = format!("warning: Ollama: cannot read {}: ", file.display());
    assert!(told.starts_with(&start), "{told}");
    fs::create_dir_all(ollama(&user)).unwrap();
    assert!(list("LLAMA_CACHE", gone).starts_with("warning: llama.cpp: LLAMA_CACHE names "));
    assert!(list("HF_HUB_CACHE", gone).contains("HF_HUB_CACHE names"));
    // Where nobody has said that there is one, none is missed.
    assert_eq!(list("NOTHING", gone), "no model is on disk");
}

fn ask(serving: &Serving, model: &str, fields: Value) -> Value {
    let mut body = json!({ "model": model, "messages": [{ "role": "user", "content": QUESTION }] });
    for (key, value) in fields.as_object().unwrap() {
        body[key] = value.clone();
    }
    let answer = post(serving, &body);
    assert!(answer["choices"].is_array(), "{answer}");
    answer
}

fn post(serving: &Serving, body: &Value) -> Value {
    json_of(&rest(serving.post("/v1/chat/completions", &body.to_string())))
}

fn get(serving: &Serving, path: &str) -> Value {
    json_of(&rest(serving.get(path)))
}

fn json_of(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}
