use std::io::{Read, Write};
use std::process::Stdio;

use crate::process::{User, output};

const QUESTION: &str = "What is the capital of France? Answer in one word.";

#[test]
fn only_the_answer_goes_to_stdout() {
    let user = User::new();
    let arguments = ["run", "smollm2", QUESTION, "--temperature", "0", "--verbose"];
    let (success, stdout, stderr) = output(&mut user.command_with_models(&arguments));
    assert!(success, "{stderr}");
    assert_eq!(stdout, "The capital of France is Paris.\n");
    assert!(stderr.contains("prompt: ") && stderr.contains("tok/s"), "{stderr}");
    assert!(stderr.lines().last().unwrap().starts_with("device: cpu, "), "{stderr}");
}

#[test]
fn what_is_piped_in_is_the_prompt() {
    let user = User::new();
    let mut command = user.command_with_models(&["run", "smollm2", "--temperature", "0"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{QUESTION}").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "The capital of France is Paris.\n");
}

#[test]
fn what_is_piped_in_follows_the_prompt() {
    let user = User::new();
    let ask = |prompt: &str, piped: &str| {
        let mut command =
            user.command_with_models(&["run", "smollm2", prompt, "--temperature", "0"]);
        command.args(["--verbose", "--max-tokens", "20"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(piped.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let stderr = String::from_utf8(output.stderr).unwrap();
        let tokens = stderr.split_whitespace().nth(1).unwrap().to_owned();
        (String::from_utf8(output.stdout).unwrap(), tokens)
    };
    let both = ask("What is this about?", "Paris is the capital of France.\n");
    assert_eq!(both, ask("What is this about?\n\nParis is the capital of France.", ""));
    assert_ne!(both, ask("What is this about?", ""));
}

#[test]
fn an_empty_stdin_is_no_prompt() {
    let user = User::new();
    let (success, _, stderr) = output(&mut user.command_with_models(&["run", "smollm2"]));
    assert!(!success);
    assert!(stderr.contains("the prompt on stdin is empty\nhint: "), "{stderr}");
}

#[test]
fn parameters_reach_the_model() {
    let user = User::new();
    let ask = |more: &[&str]| {
        let arguments = ["run", "smollm2", "Tell me a story.", "--max-tokens", "12"];
        let (success, stdout, stderr) =
            output(&mut user.command_with_models(&[&arguments, more].concat()));
        assert!(success, "{stderr}");
        stdout
    };
    let hot = ["--temperature", "1.5", "--seed", "7"];
    assert_eq!(ask(&hot), ask(&hot));
    assert_ne!(ask(&hot), ask(&["--temperature", "1.5", "--seed", "8"]));
    let greedy = ask(&["--temperature", "0"]);
    let stop = greedy.split_whitespace().nth(2).unwrap();
    let stopped = ask(&["--temperature", "0", "--stop", stop]);
    assert_eq!(stopped.trim_end(), greedy.split(stop).next().unwrap().trim_end());
    let told = ask(&["--temperature", "0", "--system", "Answer in French, as a pirate."]);
    assert_ne!(told, greedy);
}

#[test]
fn a_parameter_out_of_range_is_refused() {
    let user = User::new();
    let (success, _, stderr) =
        output(&mut user.command_with_models(&["run", "smollm2", "hi", "--temperature", "3"]));
    assert!(!success);
    assert!(stderr.contains("expected a number, 0 to 2"), "{stderr}");
}

#[test]
fn an_unknown_model_gets_the_closest_names() {
    let user = User::new();
    let (success, stdout, stderr) = output(&mut user.command_with_models(&["run", "smolm2", "hi"]));
    assert!(!success);
    assert_eq!(stdout, "");
    assert!(stderr.starts_with("error: "), "{stderr}");
    assert!(stderr.contains("`smolm2`") && stderr.contains("smollm2"), "{stderr}");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let user = User::new();
    let mut command = user.command_with_models(&[
        "run",
        "smollm2",
        "Count to one hundred.",
        "--max-tokens",
        "200",
    ]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(output.status.success());
}
