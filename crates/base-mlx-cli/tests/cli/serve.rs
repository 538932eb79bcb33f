use std::io::BufRead;
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::process::{Serving, User, output, rest};

fn serving(user: &User) -> Serving {
    Serving::start(&mut user.command_with_models(&["serve", "--port", "0", "--model", "smollm2"]))
}

#[test]
fn a_port_in_use_is_named_with_a_hint() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let user = User::new();
    let (success, stdout, stderr) =
        output(&mut user.command_with_models(&["serve", "--port", &port]));
    assert!(!success);
    assert_eq!(stdout, "");
    assert!(stderr.contains(&port), "{stderr}");
    assert!(stderr.contains("in use"), "{stderr}");
    assert!(stderr.contains("hint: "), "{stderr}");
}

#[test]
fn an_address_of_another_machine_is_named_with_one_cause() {
    let user = User::new();
    let arguments = ["serve", "--host", "192.0.2.1", "--port", "1"];
    let (success, _, stderr) = output(&mut user.command_with_models(&arguments));
    assert!(!success);
    assert!(stderr.starts_with("error: cannot listen on 192.0.2.1:1: "), "{stderr}");
    assert_eq!(stderr.matches("os error").count(), 1, "{stderr}");
}

#[test]
fn a_key_is_never_printed() {
    let user = User::new();
    let file = user.home.path().join("my keys");
    std::fs::write(&file, "secret\n").unwrap();
    let arguments = ["serve", "--port", "0", "--model", "smollm2"];
    // What the shell of the user makes of the line.
    let header = |curl: &str| {
        let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}\n{curl}");
        let mut shell = Command::new("sh");
        let (_, words, _) =
            output(shell.args(["-c", &script]).env("BASE_MLX_API_KEY", "k3y-a,k3y-b"));
        words.lines().find(|word| word.starts_with("Authorization")).unwrap_or("").to_owned()
    };
    let mut command = user.command_with_models(&arguments);
    let serving = Serving::start(command.arg("--api-key-file").arg(&file));
    assert!(!serving.curl.contains("secret"), "{}", serving.curl);
    assert_eq!(header(&serving.curl), "Authorization: Bearer secret");
    let mut command = user.command_with_models(&arguments);
    let serving = Serving::start(command.env("BASE_MLX_API_KEY", "k3y-a,k3y-b"));
    assert!(!serving.curl.contains("k3y"), "{}", serving.curl);
    assert_eq!(header(&serving.curl), "Authorization: Bearer k3y-a");
}

#[test]
fn without_a_model_and_a_source_it_says_what_was_tried() {
    let user = User::new();
    let mut command = user.command(&["serve", "--port", "0"]);
    let (success, _, stderr) = output(command.env("BASE_MLX_PYTHON", "/nowhere/python3"));
    assert!(!success);
    for part in ["smollm2 is not on disk", "127.0.0.1:9", "/nowhere/python3", "error: "] {
        assert!(stderr.contains(part), "no `{part}` in {stderr}");
    }
}

#[test]
fn the_printed_line_is_answered_when_pasted() {
    let user = User::new();
    let serving = serving(&user);
    // The shell splits the line; what curl would do with the words is done here, because not every machine has it.
    let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}\n{}", serving.curl);
    let (success, words, stderr) = output(Command::new("sh").args(["-c", &script]));
    assert!(success, "{stderr}");
    let words: Vec<_> = words.lines().collect();
    let [url, "-H", "Content-Type: application/json", "-d", body] = words[..] else {
        panic!("{words:?}");
    };
    assert_eq!(url, format!("http://{}/v1/chat/completions", serving.address));
    let answer = rest(serving.post("/v1/chat/completions", body));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("Paris"), "{answer}");
}

#[test]
fn a_running_answer_finishes_after_sigterm() {
    let user = User::new();
    let mut serving = serving(&user);
    let body = r#"{"model":"smollm2","stream":true,"max_tokens":100,"temperature":0,
        "messages":[{"role":"user","content":"Write a long story about the sea."}]}"#;
    let mut answer = serving.post("/v1/chat/completions", body);
    let mut line = String::new();
    while !line.contains(r#""content":""#) || line.contains(r#""content":"""#) {
        line.clear();
        assert!(answer.read_line(&mut line).unwrap() > 0, "it ended without text");
    }
    serving.signal(Signal::SIGTERM);
    serving.line_with("shutting down");
    let answer = rest(answer);
    assert!(answer.contains(r#""finish_reason":"length""#), "{answer}");
    assert!(answer.contains("data: [DONE]"), "{answer}");
    assert!(serving.child.wait().unwrap().success());
    assert!(TcpStream::connect(&serving.address).is_err());
}

#[test]
fn an_idle_server_ends_at_once_with_ctrl_c() {
    let user = User::new();
    let mut serving = serving(&user);
    serving.signal(Signal::SIGINT);
    assert!(serving.child.wait().unwrap().success());
}

#[test]
fn log_lines_can_be_json() {
    let user = User::new();
    let mut command = user.command_with_models(&["serve", "--port", "0", "--log-format", "json"]);
    let serving = Serving::start(&mut command);
    let body = r#"{"model":"smollm2","max_tokens":2,"messages":[{"role":"user","content":"Hi"}]}"#;
    rest(serving.post("/v1/chat/completions", body));
    let line = serving.line_with("gen done");
    for part in [r#""tag":"oneshot""#, r#""completion_tokens":2"#, r#""prompt_tokens":"#] {
        assert!(line.contains(part), "no {part} in {line}");
    }
}
