use std::process::Command;

use crate::process::User;
use crate::test_models::test_models;

/// A terminal is made by Python's `pty`, which every machine that runs the tests has.
#[test]
fn a_chat_remembers_obeys_and_survives_ctrl_c() {
    let user = User::new();
    let output = Command::new("python3")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/chat.py"))
        .arg(env!("CARGO_BIN_EXE_base-mlx"))
        .env("HOME", user.home.path())
        .env("XDG_STATE_HOME", user.home.path().join("state"))
        .env("BASE_MLX_MODELS_DIR", test_models())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let history = user.home.path().join("state/base-mlx/history");
    assert!(std::fs::read_to_string(history).unwrap().contains("capital of France"));
}
