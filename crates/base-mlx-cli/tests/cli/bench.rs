use serde_json::Value;

use crate::process::{User, output};

#[test]
fn bench_prints_one_json_object() {
    let user = User::new();
    let arguments = ["bench", "--prompt", "16", "--generate", "4", "--repeat", "1", "--json"];
    let (success, stdout, stderr) = output(&mut user.command_with_models(&arguments));
    assert!(success, "{stderr}");
    assert_eq!(stdout.lines().count(), 1);
    let object: Value = serde_json::from_str(&stdout).unwrap();
    for key in ["prefill_tokens_per_second", "decode_tokens_per_second", "peak_rss_mb", "load_ms"] {
        assert!(object[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {stdout}");
    }
    assert_eq!(object["model"], "smollm2");
}

#[test]
fn a_report_stays_until_there_is_another() {
    let user = User::new();
    let file = user.home.path().join("report.json");
    std::fs::write(&file, "old").unwrap();
    let arguments = ["bench", "--prompt", "16", "--generate", "4", "--repeat", "1", "--report"];
    let bench = |more: &[&str]| {
        let mut command = user.command_with_models(&arguments);
        let (success, _, stderr) = output(command.arg(&file).args(more));
        assert_eq!(success, more.is_empty(), "{stderr}");
        std::fs::read_to_string(&file).unwrap()
    };
    assert_eq!(bench(&["--ctx", "8"]), "old");
    let object: Value = serde_json::from_str(&bench(&[])).unwrap();
    assert_eq!(object["prompt_tokens"], 16);
}

#[test]
fn bench_prints_a_table_for_people() {
    let user = User::new();
    let arguments =
        ["bench", "--prompt", "16", "--generate", "4", "--repeat", "1", "--threads", "1"];
    let (success, stdout, stderr) = output(&mut user.command_with_models(&arguments));
    assert!(success, "{stderr}");
    for part in ["prefill", "decode", "tok/s", "cpu, 1 thread", "peak host memory"] {
        assert!(stdout.contains(part), "no {part} in {stdout}");
    }
}
