use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::test_models::test_models;

/// A user with empty folders, whose hub cannot be reached.
pub(crate) struct User {
    pub(crate) home: TempDir,
}

impl User {
    pub(crate) fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }

    /// `base-mlx` with these arguments, and no variable of the real user's that would change what it does.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command_at_home(arguments);
        command.env("HOME", self.home.path());
        command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_CACHE_HOME");
        command
    }

    /// The same in the real user's home, where pip finds its own settings.
    pub(crate) fn command_at_home(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_base-mlx"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["BASE_MLX_", "HF_", "HUGGING", "LLAMA_", "RUST_"]
                .iter()
                .any(|start| name.starts_with(start))
            {
                command.env_remove(name);
            }
        }
        let home = self.home.path();
        let config = home.join("empty.toml");
        std::fs::write(&config, "").unwrap();
        command.args(arguments).current_dir(home).stdin(Stdio::null());
        command.env("BASE_MLX_CONFIG", config).env("BASE_MLX_HOME", home.join("models"));
        command.env("XDG_STATE_HOME", home.join("state")).env("HF_HOME", home.join("hub"));
        command.env("BASE_MLX_DEVICE", "cpu");
        // Otherwise its service's folder on this machine counts, too.
        command.env("OLLAMA_MODELS", home.join(".ollama/models"));
        // Nothing listens there.
        command.env("HF_ENDPOINT", "http://127.0.0.1:9");
        command
    }

    /// The same with the test models at hand.
    pub(crate) fn command_with_models(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(arguments);
        command.env("BASE_MLX_MODELS_DIR", test_models());
        command
    }
}

/// Runs to the end: whether it succeeded, stdout, stderr.
pub(crate) fn output(command: &mut Command) -> (bool, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.success(), text(stdout), text(stderr))
}

/// A port that nothing used a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running `base-mlx serve`, killed when dropped.
pub(crate) struct Serving {
    pub(crate) child: Child,
    pub(crate) address: String,
    pub(crate) curl: String,
    /// All of stderr before the line that says where it listens.
    pub(crate) before: String,
    stderr: Receiver<String>,
}

impl Serving {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, stderr) = channel();
        let reader = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                // Nobody reads any more once the test is over.
                let _ = lines.send(line);
            }
        });
        let mut curl = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut curl).unwrap();
        let (address, before) = Default::default();
        let mut serving = Self { child, address, curl, before, stderr };
        let (before, line) = serving.lines_to("listening on");
        serving.before = before;
        let rest = line.split("http://").nth(1).expect("an address");
        serving.address = rest.split_whitespace().next().unwrap().to_owned();
        serving
    }

    /// The next line of stderr with `part` in it.
    pub(crate) fn line_with(&self, part: &str) -> String {
        self.lines_to(part).1
    }

    /// The lines before it, and that line.
    fn lines_to(&self, part: &str) -> (String, String) {
        let mut seen = String::new();
        while let Ok(line) = self.stderr.recv_timeout(Duration::from_secs(60)) {
            if line.contains(part) {
                return (seen, line);
            }
            seen += &line;
            seen.push('\n');
        }
        panic!("no `{part}` on stderr:\n{seen}");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub(crate) fn get(&self, path: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let head =
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address);
        stream.write_all(head.as_bytes()).unwrap();
        BufReader::new(stream)
    }

    /// Sends a request and returns the connection to read the answer from.
    pub(crate) fn post(&self, path: &str, body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        BufReader::new(stream)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything up to the end.
pub(crate) fn rest(mut reader: impl Read) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}
