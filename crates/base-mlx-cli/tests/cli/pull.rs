use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use crate::process::{User, output};

const FILES: [(&str, &str); 3] =
    [("config.json", "{}"), ("tokenizer.json", "{\"a\":1}"), ("model.safetensors", "no tensors")];

/// A hub with one repository. Returns its address; it ends with the test.
fn hub() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            let _headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            let (method, path) = first.split_once(' ').unwrap_or_default();
            let file = FILES.iter().find(|(name, _)| path.contains(&format!("/{name} ")));
            let listing = || {
                let sibling = |(name, text): &(&str, &str)| {
                    format!("{{\"rfilename\":\"{name}\",\"size\":{}}}", text.len())
                };
                let siblings = FILES.iter().map(sibling).collect::<Vec<_>>().join(",");
                format!("{{\"sha\":\"c0ffee\",\"siblings\":[{siblings}]}}")
            };
            let body = file.map_or_else(listing, |(_, text)| (*text).to_owned());
            let etag = file.map_or("list", |(name, _)| name);
            let length = body.len();
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
            let head = format!("{head}Content-Length: {length}\r\nETag: \"{etag}\"\r\n\r\n");
            let body = if method == "HEAD" { "" } else { &body };
            let _ = write!(stream, "{head}{body}");
        }
    });
    address
}

#[test]
fn without_a_terminal_a_pull_tells_its_total_and_its_end() {
    let user = User::new();
    let mut pull = user.command(&["pull", "owner/tiny"]);
    let (success, stdout, stderr) = output(pull.env("HF_ENDPOINT", hub()).env("NO_PROXY", "*"));
    assert!(success, "{stderr}");
    assert!(stdout.trim_end().ends_with("models--owner--tiny/snapshots/c0ffee"), "{stdout}");
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{stderr}");
    assert_eq!(lines[0], "pulling owner/tiny (19 bytes)");
    assert!(lines[1].starts_with("owner/tiny: 19 bytes came, "), "{stderr}");

    // Nothing is to be fetched, so nothing is told.
    let mut again = user.command(&["pull", "owner/tiny"]);
    let (success, _, stderr) = output(again.env("HF_ENDPOINT", hub()).env("NO_PROXY", "*"));
    assert!(success);
    assert_eq!(stderr, "");
}
