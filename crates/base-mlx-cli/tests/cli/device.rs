use std::env::consts::{DLL_EXTENSION, DLL_PREFIX};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::process::{Serving, User, output};

const QUESTION: [&str; 5] = ["run", "smollm2", "Hi", "--max-tokens", "1"];

/// A folder where MLX should be, with a text in its place.
fn broken_mlx(user: &User) -> PathBuf {
    let folder = user.home.path().join("mlx");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(bridge(&folder), "a text").unwrap();
    folder
}

fn bridge(folder: &Path) -> PathBuf {
    folder.join(format!("{DLL_PREFIX}base-mlx-bridge.{DLL_EXTENSION}"))
}

#[test]
fn a_gpu_that_cannot_be_used_is_told_and_the_cpu_answers() {
    let user = User::new();
    let folder = broken_mlx(&user);
    let mut command = user.command_with_models(&QUESTION);
    command.env("BASE_MLX_DEVICE", "auto").env("BASE_MLX_MLX_LIB", &folder);
    let (success, stdout, stderr) = output(&mut command);
    assert!(success && !stdout.is_empty(), "{stderr}");
    let file = bridge(&folder);
    let told = "warning: computing on the CPU, because no GPU can be used: cannot open";
    assert!(stderr.starts_with(&format!("{told} {}: ", file.display())), "{stderr}");
}

#[test]
fn a_server_logs_in_its_format_that_no_gpu_can_be_used() {
    let user = User::new();
    let arguments = ["serve", "--port", "0", "--model", "smollm2", "--log-format", "json"];
    let mut command = user.command_with_models(&arguments);
    command.env("BASE_MLX_DEVICE", "auto").env("BASE_MLX_MLX_LIB", broken_mlx(&user));
    let serving = Serving::start(&mut command);
    let line: Value = serde_json::from_str(&serving.before).unwrap();
    assert_eq!(line["level"], "WARN");
    let message = line["message"].as_str().unwrap();
    assert!(message.starts_with("computing on the CPU, because no GPU can be used: "), "{message}");
}

#[test]
fn a_build_with_mlx_misses_it_and_another_does_not() {
    let user = User::new();
    let mut command = user.command_with_models(&QUESTION);
    command.env("BASE_MLX_DEVICE", "auto").env("BASE_MLX_MLX_LIB", user.home.path());
    let (success, stdout, stderr) = output(&mut command);
    assert!(success && !stdout.is_empty(), "{stderr}");
    if cfg!(any(feature = "mlx", target_os = "macos")) {
        assert!(stderr.starts_with("warning: computing on the CPU, because"), "{stderr}");
        assert!(stderr.contains(" is in none of "), "{stderr}");
    } else {
        assert_eq!(stderr, "");
    }
}

#[test]
fn a_device_that_was_asked_for_is_that_or_an_error() {
    let user = User::new();
    let folder = broken_mlx(&user);
    for device in ["metal", "cuda", "mlx-cpu"] {
        let mut command = user.command_with_models(&QUESTION);
        command.args(["--device", device]).env("BASE_MLX_MLX_LIB", &folder);
        let (success, stdout, stderr) = output(&mut command);
        assert!(!success);
        assert_eq!(stdout, "");
        let file = bridge(&folder);
        assert!(
            stderr.starts_with(&format!("error: cannot open {}: ", file.display())),
            "{stderr}"
        );
    }
}

#[test]
fn an_unknown_device_gets_the_names_of_those_there_are() {
    let user = User::new();
    let mut command = user.command_with_models(&QUESTION);
    let (success, _, stderr) = output(command.args(["--device", "gpu"]));
    assert!(!success);
    for name in ["'gpu'", "auto", "metal", "cuda", "cpu", "mlx-cpu"] {
        assert!(stderr.contains(name), "{stderr}");
    }
}
