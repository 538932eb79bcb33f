//! What lies among models and is none: pipes, sockets, notes without an end, folders that cannot be read.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

use base_mlx_core::store::{Source, Survey};

use crate::World;
use crate::adopted::{WHOLE, gguf, names, reasons, survey};

fn pipe(world: &World, path: &str) -> PathBuf {
    let path = world.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

/// Whoever opens a pipe waits for ever.
fn within_a_minute<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = channel();
    std::thread::spawn(move || sender.send(work()));
    done.recv_timeout(Duration::from_secs(60)).expect("it waits for somebody to write")
}

#[test]
fn pipes_and_sockets_hold_nobody_up() {
    let mut world = World::new();
    world.options.models_dir = Some(world.path("models"));
    pipe(&world, "models/pipe.gguf");
    world.write("models/sound.gguf", gguf());
    let _socket = UnixListener::bind(world.path("models/socket.gguf")).unwrap();
    for file in ["config.json", "model.safetensors", "model.safetensors.index.json"] {
        let name = file.replace('.', "-");
        for (other, content) in WHOLE {
            if other != file {
                world.write(&format!("models/{name}/{other}"), content);
            }
        }
        pipe(&world, &format!("models/{name}/{file}"));
    }
    pipe(&world, ".lmstudio/models/me/X-GGUF/X-Q4_0.gguf");
    pipe(&world, ".lmstudio/settings.json");
    pipe(&world, ".lmstudio-home-pointer");
    pipe(&world, ".cache/huggingface/hub/models--me--a/refs/main");
    pipe(&world, ".cache/huggingface/hub/models--me--b/snapshots/main/b-Q4_0.gguf");
    pipe(&world, ".cache/llama.cpp/me_x_x-Q4_0.gguf");
    world.write(".cache/llama.cpp/noted.gguf", gguf());
    pipe(&world, ".cache/llama.cpp/noted.gguf.json");
    pipe(&world, ".cache/llama.cpp/manifest=me=x=latest.json");
    pipe(&world, ".ollama/models/manifests/registry.ollama.ai/library/pipe/latest");

    let home = world.folder.path().to_owned();
    let options = move || {
        base_mlx_core::store::StoreOptions::from_vars(|name| {
            (name == "HOME").then(|| home.clone().into_os_string())
        })
    };
    within_a_minute(options);
    let store = world.store();
    let found: Survey = within_a_minute(move || store.survey(|_| Ok(())));
    // A folder in the models folder counts by its config.json alone.
    assert_eq!(
        names(&found),
        ["model-safetensors", "model-safetensors-index-json", "noted", "sound"]
    );
    let no_file = "it is neither a file nor a folder";
    assert_eq!(
        reasons(&found),
        [
            ("me/X-GGUF", no_file),
            ("me/a", "its branch `main` leads to a version that is not there"),
            ("me/b:Q4_0", no_file),
            ("me_x_x-Q4_0", no_file),
            ("pipe", no_file),
            ("pipe:latest", "its manifest cannot be read: it is not a file"),
            ("socket", no_file),
        ]
    );
    for name in ["pipe", "me/X-GGUF", "pipe:latest", "me/a", "me/b", "socket"] {
        let store = world.store();
        assert!(within_a_minute(move || store.find(name).is_err()), "{name}");
    }
}

#[test]
fn notes_have_a_largest_size() {
    let world = World::new();
    let folder = ".cache/llama.cpp";
    let note = |url: &str, spaces: usize| format!(r#"{{"url":"{url}"{}}}"#, " ".repeat(spaces));
    let url = |name: &str| format!("https://hf.example/me/{name}/resolve/main/{name}-Q4_0.gguf");
    for (name, spaces) in [("small", 0), ("large", 5 << 20)] {
        world.write(&format!("{folder}/me_{name}_{name}-Q4_0.gguf"), gguf());
        world.write(&format!("{folder}/me_{name}_{name}-Q4_0.gguf.json"), note(&url(name), spaces));
    }
    assert_eq!(names(&survey(&world)), ["me/small:Q4_0", "me_large_large-Q4_0"]);
}

#[test]
fn a_folder_that_is_none_or_cannot_be_read_is_told() {
    let mut world = World::new();
    world.options.ollama = vec![world.write("file", "no folder")];
    world.options.lm_studio = Some(world.path("nowhere"));
    let hidden = world.write(".cache/lm-studio/models/hidden/X-GGUF/X-Q4_0.gguf", gguf());
    let owner = hidden.parent().unwrap().parent().unwrap();
    let trouble = |source: Source| {
        let folders = world.store().folders();
        let folder = folders.into_iter().find(|folder| folder.source == source).unwrap();
        folder.trouble.map(|error| error.kind())
    };
    assert_eq!(trouble(Source::Ollama), Some(std::io::ErrorKind::NotADirectory));
    assert_eq!(trouble(Source::LmStudio), Some(std::io::ErrorKind::NotFound));
    assert_eq!(names(&survey(&world)), ["hidden/X-GGUF"]);

    fs::set_permissions(owner, fs::Permissions::from_mode(0o000)).unwrap();
    let found = survey(&world);
    // Some users may read everything.
    let expected =
        fs::read_dir(owner).err().map(|error| format!("its folder cannot be read: {error}"));
    fs::set_permissions(owner, fs::Permissions::from_mode(0o755)).unwrap();
    let told = reasons(&found).into_iter().find(|(name, _)| *name == "hidden");
    assert_eq!(told.map(|(_, why)| why.to_owned()), expected);
}
