//! Everything that must pass, in the order in which it fails soonest. All in the release profile: nothing is
//! compiled twice, and what is tested is what is shipped.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{self, cargo};
use crate::{compiler, instructions, models, python, readme, tidy};

pub(crate) const OPENAI_CLIENT: &[&str] = &["openai==3.54.0"];

type Step = fn(&Path) -> Result<()>;

pub(crate) fn run(root: &Path) -> Result<()> {
    let steps: [(&str, Step); 14] = [
        ("c++ compiler", |_| compiler::find()),
        ("valgrind", |_| instructions::find_valgrind()),
        ("fmt", fmt),
        ("tidy", tidy::run),
        ("models", |root| models::fetch(&models::folder(root))),
        ("clippy", clippy),
        ("default build needs no C++", without_cpp),
        ("test", test),
        ("instructions", instructions::check),
        ("loom", loom),
        ("openai client", openai_client),
        ("what the README shows", readme::run),
        ("smollm2 knows Paris", smollm2_knows_paris),
        ("qwen2.5-coder writes a function that runs", qwen_writes_a_function),
    ];
    let started = Instant::now();
    for (name, step) in steps {
        println!("\n=== {name}");
        let begun = Instant::now();
        let result = step(root);
        let seconds = begun.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("=== {name}: passed in {seconds:.1} s"),
            Err(error) => {
                println!("=== {name}: FAILED after {seconds:.1} s");
                return Err(error.context(format!("ci failed at step `{name}`")));
            }
        }
    }
    println!("\n=== ci passed in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn fmt(root: &Path) -> Result<()> {
    process::run(cargo(root).args(["fmt", "--all", "--check"]))
}

fn clippy(root: &Path) -> Result<()> {
    process::run(
        cargo(root)
            .args(["clippy", "--release", "--workspace", "--all-targets", "--locked"])
            .args(WITH_MLX)
            .args(["--", "-D", "warnings"]),
    )
}

/// Whoever runs the README's first command on Linux may have no C++ compiler: the command line with its default features
/// is checked without one.
fn without_cpp(root: &Path) -> Result<()> {
    if cfg!(target_os = "macos") {
        return Ok(());
    }
    let mut check = cargo(root);
    check.args(["check", "--release", "--locked", "--package", "base-mlx-cli"]);
    process::run(check.env("CXX", "no-compiler-is-to-be-run"))
}

/// With MLX, whose tests run on its CPU device here and on the GPU of a Mac. The Rust code is the same without it.
fn test(root: &Path) -> Result<()> {
    process::run(
        cargo(root)
            .env("BASE_MLX_TEST_MODELS", models::folder(root))
            .args(["test", "--release", "--workspace", "--locked", "--no-fail-fast"])
            .args(WITH_MLX),
    )
}

pub(crate) const WITH_MLX: [&str; 2] = ["--features", "base-mlx-cli/mlx"];

/// Every order in which the pool's threads can meet. In a folder of its own: with other flags cargo would compile
/// everything again, here and then there.
fn loom(root: &Path) -> Result<()> {
    process::run(
        cargo(root)
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", process::target(root).join("loom"))
            .args(["test", "--release", "--locked", "--package", "base-mlx-simd"])
            .args(["--lib", "models"]),
    )
}

/// The official Python client against a server of ours.
fn openai_client(root: &Path) -> Result<()> {
    let server = Server::start(root, 0)?;
    let mut client = python::with_packages(root, "openai", OPENAI_CLIENT)?;
    client.arg(root.join("crates/base-mlx-server/tests/python/openai_client.py"));
    process::run(client.arg(format!("{}/v1", server.url)).args(["smollm2", "qwen2.5-coder-0.5b"]))
}

fn smollm2_knows_paris(root: &Path) -> Result<()> {
    let question = "What is the capital of France? Answer in one word.";
    let answer = ask(root, "smollm2", question)?;
    print!("{answer}");
    ensure!(answer.contains("Paris"), "no Paris in the answer: {answer}");
    Ok(())
}

fn qwen_writes_a_function(root: &Path) -> Result<()> {
    let answer = ask(
        root,
        "qwen2.5-coder-0.5b",
        "Write a Python function `fibonacci(n)` that returns the n-th Fibonacci number, where fibonacci(0) is 0 and \
         fibonacci(1) is 1. Answer with one code block.",
    )?;
    print!("{answer}");
    let code = fenced(&answer).context("the answer has no code block")?;
    let folder = root.join("target/written-by-a-model");
    std::fs::create_dir_all(&folder)?;
    let script = folder.join("fibonacci.py");
    std::fs::write(&script, format!("{code}\nprint('fibonacci(10) =', fibonacci(10))\n"))?;
    // -I: it sees neither our folder nor the user's packages.
    let printed = process::output(python::command().arg("-I").arg(&script).current_dir(&folder))?;
    ensure!(printed.lines().any(|line| line == "fibonacci(10) = 55"), "it printed {printed}");
    Ok(())
}

/// One greedy answer of the command line, as a user would ask for it.
fn ask(root: &Path, model: &str, question: &str) -> Result<String> {
    let mut run = base_mlx(root);
    run.args(["run", model, question, "--temperature", "0"]);
    process::output(run.stdin(Stdio::null()))
}

/// The binary that step `test` has built and tested. `cargo run` would choose features for this crate alone and
/// compile half of the dependencies again.
fn base_mlx(root: &Path) -> Command {
    let mut command = Command::new(process::target(root).join("release/base-mlx"));
    command.env("BASE_MLX_MODELS_DIR", models::folder(root));
    command
}

/// What lies between the first pair of fences.
fn fenced(answer: &str) -> Option<&str> {
    let (_, rest) = answer.split_once("```")?;
    let (_, rest) = rest.split_once('\n')?;
    let (code, _) = rest.split_once("```")?;
    Some(code)
}

/// `base-mlx serve`; killed when dropped.
pub(crate) struct Server {
    child: Child,
    url: String,
}

impl Server {
    /// On that port; 0 lets the system choose.
    pub(crate) fn start(root: &Path, port: u16) -> Result<Self> {
        let mut child = base_mlx(root)
            .args(["serve", "--model", "smollm2", "--port", &port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start base-mlx serve")?;
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let mut server = Self { child, url: String::new() };
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        while lines.read_line(&mut line)? > 0 {
            if let Some(url) = line.split_whitespace().find(|word| word.starts_with("http://")) {
                let end = url.find("/v1").unwrap_or(url.len());
                server.url = url[..end].to_owned();
                // Whatever else it prints must find a reader.
                std::thread::spawn(move || lines.read_to_end(&mut Vec::new()));
                return Ok(server);
            }
            line.clear();
        }
        bail!("base-mlx serve ended before it said where it listens")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
