//! Keys and values on disk: they survive the process however it ends, and are never worth more than what they are.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::process::{Serving, User, output, rest};

fn serving(user: &User, disk: &[&str]) -> Serving {
    let arguments = ["serve", "--port", "0", "--model", "smollm2"];
    Serving::start(&mut user.command_with_models(&[&arguments[..], disk].concat()))
}

/// About 900 tokens, the same for the same number.
fn body(number: usize) -> String {
    let line = |i: usize| format!("Entry {i} of list {number} is worth {}. ", i * 37 % 101);
    let text: String = (0..64).map(line).collect();
    let message = json!({ "role": "user", "content": text + "Which entry is worth most?" });
    json!({ "messages": [message], "max_tokens": 12, "temperature": 0 }).to_string()
}

/// The answer's text, and what its header says of the cache.
fn ask(serving: &Serving, number: usize) -> (String, String) {
    let mut reply = serving.post("/v1/chat/completions", &body(number));
    let mut cache = String::new();
    loop {
        let mut line = String::new();
        reply.read_line(&mut line).unwrap();
        if let Some(value) = line.strip_prefix("x-base-mlx-cache: ") {
            cache = value.trim().to_owned();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let answer: Value = serde_json::from_str(&rest(reply)).unwrap();
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    (text.to_owned(), cache)
}

/// The files of keys and values in a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let shelves = std::fs::read_dir(folder.join("kv")).into_iter().flatten();
    let files = shelves.flat_map(|shelf| std::fs::read_dir(shelf.unwrap().path()).unwrap());
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "kv"));
    files.sort();
    files
}

#[track_caller]
fn wait_for(count: usize, folder: &Path) {
    let begun = Instant::now();
    while files(folder).len() < count {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", files(folder));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_was_computed_survives_a_kill_and_broken_files_cost_a_line_each() {
    let user = User::new();
    let folder = user.home.path().join("disk");
    let flags = ["--kv-disk", folder.to_str().unwrap(), "--kv-disk-gb", "1"];
    let mut first = serving(&user, &flags);
    let (expected, cache) = ask(&first, 1);
    assert_eq!(cache, "miss reason=new");
    let (other, _) = ask(&first, 2);
    let chunks = 3;
    wait_for(2 * chunks, &folder);

    let (ok, _, stderr) = output(&mut user.command_with_models(
        &[&["serve", "--port", "0", "--model", "smollm2"], &flags[..]].concat(),
    ));
    assert!(!ok && stderr.contains("is in use by another process"), "{stderr}");
    first.signal(Signal::SIGKILL);
    first.child.wait().unwrap();

    let second = serving(&user, &flags);
    let (answer, cache) = ask(&second, 1);
    assert_eq!(answer, expected);
    assert!(cache.starts_with(&format!("hit={}/", 256 * chunks)), "{cache}");
    second.signal(Signal::SIGTERM);
    drop(second);

    // One is cut, one says something else, and one is not ours at all.
    let all = files(&folder);
    let cut = std::fs::read(&all[0]).unwrap();
    std::fs::write(&all[0], &cut[..cut.len() / 2]).unwrap();
    for path in &all[1..] {
        let mut file = std::fs::read(path).unwrap();
        let middle = file.len() / 2;
        file[middle] ^= 1;
        std::fs::write(path, file).unwrap();
    }
    let foreign = all[0].with_file_name("notes.txt");
    std::fs::write(&foreign, "mine").unwrap();
    let third = serving(&user, &flags);
    assert!(third.before.contains("ignored"), "{}", third.before);
    assert!(third.before.contains("1 files of others, left alone"), "{}", third.before);
    let broken: Vec<Vec<u8>> =
        all.iter().map(|path| std::fs::read(path).unwrap_or_default()).collect();
    assert_eq!(ask(&third, 1).0, expected);
    assert_eq!(ask(&third, 2).0, other);
    let line = third.line_with("is ignored");
    assert!(line.contains("its checksum is not right"), "{line}");
    assert!(foreign.exists());
    // They are written again, or gone, where somebody found them broken.
    let begun = Instant::now();
    let is_broken =
        |(path, bytes): (&PathBuf, &Vec<u8>)| std::fs::read(path).is_ok_and(|now| now == *bytes);
    // A chain is read up to its first broken chunk, and the next are found when they are missed.
    while all.iter().zip(&broken).filter(|&pair| is_broken(pair)).count() > all.len() - 2 {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing was written again");
        std::thread::sleep(Duration::from_millis(5));
    }
    third.signal(Signal::SIGTERM);
    drop(third);

    std::fs::write(folder.join("index.redb"), "no database").unwrap();
    let fourth = serving(&user, &flags);
    assert!(fourth.before.contains("is begun anew"), "{}", fourth.before);
    assert_eq!(ask(&fourth, 2).0, other);
}

#[test]
fn a_kill_at_any_moment_loses_nothing_but_cache() {
    let user = User::new();
    let plain = serving(&user, &[]);
    let expected: Vec<String> = (0..4).map(|number| ask(&plain, number).0).collect();
    drop(plain);
    let folder = user.home.path().join("disk");
    // Room for two conversations and a little, so that files come and go.
    let flags = ["--kv-disk", folder.to_str().unwrap(), "--kv-disk-gb", "0.04"];
    for round in 0..12_u64 {
        let mut serving = serving(&user, &flags);
        assert!(!serving.before.contains("ignored"), "{}", serving.before);
        let ask = |number| serving.post("/v1/chat/completions", &body(number));
        let answers: Vec<_> = (0..4).map(ask).collect();
        // In the middle of writing, wherever that is on this machine.
        wait_for([0, 1, 3, 2, 5, 6][round as usize % 6], &folder);
        std::thread::sleep(Duration::from_millis(round * 37 % 90));
        serving.signal(Signal::SIGKILL);
        drop(answers);
        serving.child.wait().unwrap();
        let bytes: u64 = files(&folder).iter().map(|path| path.metadata().unwrap().len()).sum();
        let index = std::fs::metadata(folder.join("index.redb")).unwrap().len();
        assert!(bytes + index <= (0.04 * f64::from(1 << 30)) as u64, "{bytes} + {index}");
    }
    assert!((4..=7).contains(&files(&folder).len()), "{:?}", files(&folder));
    let last = serving(&user, &flags);
    for (number, expected) in expected.iter().enumerate() {
        assert_eq!(ask(&last, number).0, *expected);
    }
}

#[test]
fn what_is_not_yet_written_is_written_at_the_end() {
    let user = User::new();
    let folder = user.home.path().join("disk");
    let flags = ["--kv-disk", folder.to_str().unwrap()];
    for number in 0..2 {
        let mut serving = serving(&user, &flags);
        ask(&serving, number);
        serving.signal(Signal::SIGTERM);
        assert!(serving.child.wait().unwrap().success());
        assert_eq!(files(&folder).len(), 3 * (number + 1));
    }
    // Damage in the middle of a database that was closed in order.
    let index = folder.join("index.redb");
    let whole = std::fs::read(&index).unwrap();
    for page in 0..whole.len() / 4096 {
        let mut damaged = whole.clone();
        damaged[page * 4096..][..4096].fill(0x55);
        std::fs::write(&index, damaged).unwrap();
        if page % 4 == 1 {
            let serving = serving(&user, &flags);
            ask(&serving, 0);
        }
    }
}
