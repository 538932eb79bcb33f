use std::path::PathBuf;

use base_mlx_core::weights::Checkpoint;
use serde_json::Value;

use crate::process::{User, output};
use crate::test_models::test_models;

#[test]
fn bench_prints_one_json_object() {
    let user = User::new();
    let arguments = ["bench", "--prompt", "16", "--generate", "4", "--repeat", "2", "--json"];
    let (success, stdout, stderr) = output(&mut user.command_with_models(&arguments));
    assert!(success, "{stderr}");
    assert_eq!(stdout.lines().count(), 1);
    let object: Value = serde_json::from_str(&stdout).unwrap();
    let number = |key: &str| object[key].as_f64().unwrap_or_else(|| panic!("{key} in {stdout}"));
    for key in [
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
        "first_token_ms",
        "cold_first_token_ms",
        "memory_bytes_per_second",
        "memory_share",
        "peak_rss_mb",
        "load_ms",
    ] {
        assert!(number(key) > 0.0, "{key} in {stdout}");
    }
    assert_eq!(object["model"], "smollm2");
    let [lowest, highest] =
        [0, 1].map(|end| object["decode_tokens_per_second_range"][end].as_f64().unwrap());
    let median = number("decode_tokens_per_second");
    assert!(lowest <= median && median <= highest, "{stdout}");
    // Each of 30 layers keeps 2 * 3 * 64 values as f16 of each of 18 tokens, on average. The head is the embedding, so all
    // weights are read, and Q4_1 and Q8_0 are kept in as many bits as the file has.
    let weights = Checkpoint::open(&test_models().join("smollm2.gguf")).unwrap();
    let weights: usize = weights.tensors().map(|tensor| tensor.bytes).sum();
    let kv = 30 * 2 * 3 * 64 * 2;
    assert_eq!(object["kv_bytes_per_token"], kv);
    assert_eq!(object["decode_bytes_per_token"], weights + 18 * kv, "{stdout}");
}

#[test]
fn bench_refuses_sizes_that_cannot_be_before_it_measures() {
    let user = User::new();
    let most = usize::MAX.to_string();
    let context = |prompt: &str, generate: &str, context: &str| {
        format!(
            "a --prompt of {prompt} tokens and {generate} to --generate do not fit into the context of {context}\n"
        )
    };
    let streams = "'--streams <N>': expected a whole number from 1 to 4096\n".to_owned();
    for (arguments, fault) in [
        (&["--prompt", &most][..], context(&most, "64", "8192")),
        (&["--generate", &most], context("512", &most, "8192")),
        (&["--prompt", "100000000000", "--streams", "4096"], context("100000000000", "64", "8192")),
        (&["--ctx", "2048", "--generate", "5000"], context("512", "5000", "2048")),
        (&["--ctx", "19", "--prompt", "16", "--generate", "4"], context("16", "4", "19")),
        (&["--streams", "4097"], streams.clone()),
        (&["--streams", &most], streams),
    ] {
        let mut command = user.command_with_models(&["bench", "--repeat", "1"]);
        let (success, stdout, stderr) = output(command.args(arguments));
        assert!(!success && stdout.is_empty(), "{arguments:?}: {stdout}");
        assert!(stderr.contains(&fault) && !stderr.contains("panicked"), "{arguments:?}: {stderr}");
    }
    let exact = ["bench", "--ctx", "20", "--prompt", "16", "--generate", "4", "--repeat", "1"];
    let (success, _, stderr) = output(&mut user.command_with_models(&exact));
    assert!(success, "{stderr}");
}

#[test]
fn bench_says_when_keys_and_values_were_kept_otherwise() {
    let user = User::new();
    let file = in_home(&user, "result.json");
    let path = file.to_str().unwrap();
    let bench = |more: &[&str]| {
        let arguments = ["bench", "--prompt", "16", "--generate", "4", "--repeat", "1"];
        let (success, _, stderr) = output(user.command_with_models(&arguments).args(more));
        assert!(success, "{stderr}");
        stderr
    };
    bench(&["--kv-cache-type", "q8_0", "--report", path]);
    let stderr = bench(&["--compare", path]);
    assert!(stderr.contains("not measured alike: bytes kept of a token: "), "{stderr}");
    bench(&["--report", path]);
    // The default by its name is no difference.
    let stderr = bench(&["--kv-cache-type", "f16", "--ctx", "100", "--compare", path]);
    assert_eq!(stderr, "warning: not measured alike: context: 8192, now 100\n");
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
    for part in ["prefill", "decode", "tok/s", "MB a token", "cpu, 1 thread", "peak host memory"] {
        assert!(stdout.contains(part), "no {part} in {stdout}");
    }
}

#[test]
fn bench_compares_with_an_earlier_result() {
    let user = User::new();
    let file = in_home(&user, "result.json");
    let path = file.to_str().unwrap();
    let same = ["bench", "--prompt", "16", "--generate", "4", "--repeat", "1", "--threads", "1"];
    let (success, _, stderr) = output(user.command_with_models(&same).args(["--report", path]));
    assert!(success, "{stderr}");

    // The report may take the place of what it is compared with.
    let (success, stdout, stderr) =
        output(user.command_with_models(&same).args(["--compare", path, "--report", path]));
    assert!(success, "{stderr}");
    assert!(stdout.contains("now / earlier") && stdout.contains("decode, tok/s"), "{stdout}");
    assert!(!stderr.contains("warning"), "{stderr}");

    let other = ["bench", "--prompt", "9", "--generate", "4", "--repeat", "1", "--threads", "1"];
    let (success, _, stderr) = output(user.command_with_models(&other).args(["--compare", path]));
    assert!(success, "{stderr}");
    let warning = "warning: not measured alike: tokens of the prompt: 16, now 9\n";
    assert_eq!(stderr, warning);
}

#[test]
fn bench_says_before_it_measures_that_there_is_nothing_to_compare_with() {
    let user = User::new();
    let file = in_home(&user, "result.json");
    let compare = ["bench", "--compare", file.to_str().unwrap()];
    let error = |user: &User| {
        let (success, stdout, stderr) = output(&mut user.command(&compare));
        assert!(!success && stdout.is_empty(), "{stdout}");
        stderr
    };
    assert!(error(&user).contains("cannot read the earlier result"), "{}", error(&user));
    std::fs::write(&file, "model  smollm2").unwrap();
    let garbled = error(&user);
    assert!(garbled.contains("result.json is not what `base-mlx bench --json` prints: expected"));
}

fn in_home(user: &User, name: &str) -> PathBuf {
    user.home.path().join(name)
}
