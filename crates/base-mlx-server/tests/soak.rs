//! Minutes of mixed traffic from clients that come and go: no answer differs from what it should be, none is stuck, and
//! memory stays what it is. Two minutes, or BASE_MLX_SOAK_SECONDS.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, and so do their helpers")]
#![cfg(target_os = "linux")] // Where a process can ask how much memory it has.

#[path = "../../base-mlx-core/tests/support/dice.rs"]
mod dice;
#[path = "contract/support.rs"]
#[allow(dead_code, reason = "the contract's tests use the rest")]
mod support;
#[path = "../../base-mlx-core/tests/support/test_models.rs"]
mod test_models;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base_mlx_core::engine::KvDisk;
use serde_json::{Value, json};

use crate::dice::Dice;
use crate::support::{TestServer, streamed};
use crate::test_models::test_models;

const CLIENTS: usize = 16;
const KINDS: usize = 40;

#[test]
fn minutes_of_mixed_traffic_leave_no_trace() {
    let seconds = std::env::var("BASE_MLX_SOAK_SECONDS").ok();
    let seconds = seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or(120);
    let folder = tempfile::tempdir().unwrap();
    let disk = KvDisk::open(folder.path(), 100 << 20).unwrap();
    let server = TestServer::with_memory(300 << 20, &test_models(), |options| {
        options.engine.context = Some(1024);
        options.engine.kv_disk = Some(disk);
    });
    let references: Vec<Vec<String>> =
        (0..KINDS).map(|kind| texts(&server.chat(body(kind)).ok())).collect();
    let begun = Instant::now();
    let end = begun + Duration::from_secs(seconds);
    let (answered, left) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (server, references) = (&server, &references);
    let (answered_by, left_by) = (&answered, &left);
    let memory = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut dice = Dice(client as u64 + 1);
                while Instant::now() < end {
                    if visit(server, references, &mut dice) {
                        answered_by.fetch_add(1, Ordering::Relaxed);
                    } else {
                        left_by.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let mut memory = Vec::new();
        while Instant::now() < end {
            memory.push(resident_bytes());
            std::thread::sleep(Duration::from_millis(500));
        }
        memory
    });
    let (answered, left) = (answered.into_inner(), left.into_inner());
    assert!(answered > 50 && left > 5, "{answered} answers, {left} clients that left");
    // What is kept has filled its room by then.
    let most = |part: &[usize]| part.iter().copied().max().unwrap();
    let (early, late) = memory[memory.len() / 4..].split_at(memory.len() / 4);
    let (before, after) = (most(early), most(late));
    println!("{answered} answers, {left} left; {} then {} MB", before >> 20, after >> 20);
    assert!(after as f64 <= before as f64 * 1.05, "memory grew from {before} to {after} bytes");
    server.chat(body(0)).ok();
    let health = server.get("/health").ok();
    assert_eq!(health["status"], "ok", "{health}");
}

/// One request; false if the client left before its end.
fn visit(server: &TestServer, references: &[Vec<String>], dice: &mut Dice) -> bool {
    let kind = dice.below(KINDS);
    let mut asked = body(kind);
    if dice.below(3) == 0 {
        asked["draft_model"] = json!(if dice.below(2) == 0 { "smollm2" } else { "prompt-lookup" });
    }
    if dice.below(3) == 0 {
        asked["service_tier"] = json!("flex");
    }
    match dice.below(6) {
        // Something that nobody said before, or not lately, so that something that is kept must go and may come from disk.
        0 => {
            let number =
                if dice.below(2) == 0 { dice.next() } else { u64::MAX - dice.below(9) as u64 };
            asked["messages"] = json!([{ "role": "user", "content": format!("{number} is a number. ").repeat(12) }]);
            server.chat(asked).ok();
        }
        1 => {
            asked["stream"] = json!(true);
            let mut answer = server.open_chat(asked);
            for _ in 0..dice.below(4) {
                if answer.piece().is_empty() {
                    break;
                }
            }
            return false;
        }
        2 | 3 => {
            asked["stream"] = json!(true);
            let chunks = server.chat(asked).chunks();
            for (index, text) in references[kind].iter().enumerate() {
                assert_eq!(&streamed(&chunks, index), text, "kind {kind}, streamed");
            }
        }
        _ => assert_eq!(texts(&server.chat(asked).ok()), references[kind], "kind {kind}"),
    }
    true
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().unwrap().iter();
    choices.map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect()
}

fn body(kind: usize) -> Value {
    let mut dice = Dice(kind as u64 ^ 0x50a4);
    let questions = ["Name a colour.", "Count to seven.", "Why is the sky blue?", "Tell a joke."];
    let mut messages = vec![json!({ "role": "system", "content": "You are brief." })];
    for turn in 0..=dice.below(3) {
        if turn > 0 {
            messages.push(json!({ "role": "assistant", "content": "Of course." }));
        }
        let question = questions[dice.below(questions.len())];
        messages.push(json!({ "role": "user", "content": question }));
    }
    json!({
        "messages": messages,
        "n": dice.one_of(&[1, 1, 1, 2]),
        "seed": dice.below(1000),
        "temperature": dice.one_of(&[0.0, 0.7, 1.0]),
        "top_p": dice.one_of(&[1.0, 0.9]),
        "frequency_penalty": dice.one_of(&[0.0, 0.3]),
        "max_tokens": dice.one_of(&[4, 12, 24]),
        "stop": dice.one_of(&["seven", "purple", "."]),
    })
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4096
}
