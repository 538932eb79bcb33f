use std::io::Write;
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::adopt::{link, manifest, write};
use crate::process::{Serving, User, free_port, output};
use crate::test_models::test_model;

/// The lines of stdout that begin with this word, without it.
fn lines<'a>(stdout: &'a str, state: &str) -> Vec<&'a str> {
    stdout
        .lines()
        .filter_map(|line| line.strip_prefix(&format!("  {state}")))
        .map(str::trim)
        .collect()
}

#[test]
fn a_sound_machine_is_told_so() {
    let user = User::new();
    link(
        &test_model("smollm2.gguf"),
        &user.home.path().join(".lmstudio/models/me/Tiny-GGUF/Tiny-Q4_1.gguf"),
    );
    let mut command = user.command(&["doctor"]);
    command.env("BASE_MLX_PORT", free_port().to_string()).env("HF_TOKEN", "hf_secret");
    command.env("HTTPS_PROXY", "http://me:secret@proxy.example:3128");
    let (success, stdout, stderr) = output(&mut command);
    // A build for a GPU misses it where there is none.
    if cfg!(not(feature = "cuda")) {
        assert!(success, "{stdout}{stderr}");
        assert_eq!((lines(&stdout, "wrong"), stderr.as_str()), (vec![], ""));
    }
    let ok = lines(&stdout, "ok");
    let has =
        |part: &str| assert!(ok.iter().any(|line| line.contains(part)), "no `{part}` in {stdout}");
    has(concat!("version ", env!("CARGO_PKG_VERSION")));
    has("cpu, ");
    has("models may have ");
    has("LM Studio: ");
    has("1 model, 98.4 MB");
    has("free for the hub's models in ");
    has("http://127.0.0.1:9 (it was not asked)");
    has("there is an access token");
    has("HTTPS_PROXY=http://…@proxy.example:3128");
    has(" is free");
    assert!(!stdout.contains("secret"), "{stdout}");
    let notes = lines(&stdout, "note");
    assert!(
        notes.iter().any(|line| line.starts_with("Ollama: ") && line.ends_with("is not there")),
        "{stdout}"
    );
}

#[test]
fn what_is_wrong_is_told_with_what_to_do_and_fails() {
    let user = User::new();
    let home = user.home.path();
    let gone = json!({
        "mediaType": "application/vnd.ollama.image.model",
        "digest": format!("sha256:{}", "cd".repeat(32)),
        "size": 5,
    });
    manifest(&user, "gone/latest", &[gone]);
    write(
        home.join("models/cut.gguf"),
        &std::fs::read(test_model("smollm2.gguf")).unwrap()[..3_000_000],
    );
    write(home.join("bad.toml"), "port = \"x\"\n");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    // Something that answers, but not as a server of ours.
    std::thread::spawn(move || {
        for stream in taken.incoming() {
            let _ = stream.unwrap().write_all(b"HTTP/1.1 200 OK\r\n\r\nhello");
        }
    });
    let arguments = ["doctor", "--config", "bad.toml", "--models-dir", "models"];
    let mut command = user.command(&arguments);
    command.env("BASE_MLX_PORT", port.to_string()).env("BASE_MLX_PYTHON", "/nowhere/python3");
    let (success, stdout, stderr) = output(&mut command);
    assert!(!success);
    let wrong = lines(&stdout, "wrong");
    let has = |part: &str| {
        assert!(wrong.iter().any(|line| line.contains(part)), "no `{part}` in {stdout}")
    };
    has("config file bad.toml, line 1");
    has("`cut` cannot be used: ");
    has("`gone:latest` cannot be used: the blob of its weights is missing");
    has(&format!("port {port} cannot be used, and no base-mlx server answers there"));
    assert!(stdout.contains("base-mlx rm --force gone:latest"), "{stdout}");
    assert!(
        lines(&stdout, "note").iter().any(|line| line.contains("/nowhere/python3")),
        "{stdout}"
    );
    if cfg!(not(feature = "cuda")) {
        assert_eq!(stderr, "error: 4 things are wrong\n");
    }

    let (success, stdout, _) = output(&mut user.command(&["doctor", "--models-dir", "/nowhere"]));
    assert!(!success);
    assert!(stdout.contains("cannot read the models folder /nowhere"), "{stdout}");
    assert!(stdout.contains("`gone:latest`"), "it goes on: {stdout}");
}

#[test]
fn what_is_whole_but_not_read_is_not_wrong() {
    let user = User::new();
    let layer = |kind: &str| {
        let media_type = format!("application/vnd.ollama.image.{kind}");
        json!({ "mediaType": media_type, "digest": format!("sha256:{}", "cd".repeat(32)), "size": 5 })
    };
    manifest(&user, "lora/latest", &[layer("model"), layer("adapter")]);
    let studio = user.home.path().join(".lmstudio/models/me/Odd");
    link(&test_model("smollm2.gguf"), &studio.join("Odd-Q4_1.gguf"));
    let odd = std::fs::read(test_model("smollm2.gguf")).unwrap();
    let at = odd.windows(5).position(|window| window == b"llama").unwrap();
    let odd = [&odd[..at], b"wombt", &odd[at + 5..]].concat();
    write(studio.join("Odd-F16.gguf"), odd);
    let mut command = user.command(&["doctor"]);
    let (success, stdout, stderr) = output(command.env("BASE_MLX_PORT", free_port().to_string()));
    if cfg!(not(feature = "cuda")) {
        assert!(success, "{stdout}{stderr}");
    }
    let notes = lines(&stdout, "note");
    let noted = |part: &str| {
        assert!(notes.iter().any(|line| line.starts_with(part)), "no `{part}` in {stdout}")
    };
    noted("`lora:latest` is whole, but not read: it has a LoRA adapter, which is not read");
    noted("`me/Odd:F16` is whole, but not read: ");
    let ok = lines(&stdout, "ok");
    let counted =
        |part: &str| assert!(ok.iter().any(|line| line.contains(part)), "no `{part}` in {stdout}");
    counted("no model; of kinds that are not read: 1");
    counted("1 model, 98.4 MB; of kinds that are not read: 1");
    let (_, listed, _) = output(&mut user.command(&["list", "--json"]));
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let odd = listed.iter().find(|row| row["name"] == "me/Odd:F16").unwrap();
    assert!(odd["error"].as_str().unwrap().contains("wombt"), "{odd}");
    assert!(!stdout.contains("rm --force"), "{stdout}");
}

#[test]
fn our_own_folder_must_be_writable_and_is_left_as_it_was() {
    let user = User::new();
    let home = user.home.path();
    write(home.join("file"), "no folder");
    let here = || {
        let mut names: Vec<_> =
            std::fs::read_dir(home).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let doctor = |ours: &std::path::Path| {
        let mut command = user.command(&["doctor"]);
        command.env("BASE_MLX_PORT", free_port().to_string()).env("BASE_MLX_HOME", ours);
        output(&mut command).1
    };
    // `command` itself writes a file.
    let _ = user.command(&["doctor"]);
    let before = here();
    let stdout = doctor(&home.join("new/folder"));
    assert!(!stdout.contains("nothing can be written"), "{stdout}");
    assert_eq!(here(), before);
    let ours = home.join("file/base-mlx");
    let stdout = doctor(&ours);
    let told = format!("nothing can be written to {}: ", ours.display());
    assert!(lines(&stdout, "wrong").iter().any(|line| line.starts_with(&told)), "{stdout}");
    assert_eq!(here(), before);
}

#[test]
fn a_server_that_runs_is_recognised() {
    let user = User::new();
    let serving = Serving::start(
        &mut user.command_with_models(&["serve", "--port", "0", "--model", "smollm2"]),
    );
    let port = serving.address.rsplit(':').next().unwrap().to_owned();
    let (_, stdout, _) = output(user.command(&["doctor"]).env("BASE_MLX_PORT", port));
    let ok = lines(&stdout, "ok");
    assert!(ok.iter().any(|line| line.starts_with("a base-mlx server, version ")), "{stdout}");
}
