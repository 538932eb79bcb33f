//! What the project does to itself: `cargo xtask ci | tidy | instructions | models | peers | golden`.
//!
//! All need Rust and a C compiler; `tidy` needs nothing else. `instructions` needs valgrind, `models` Python 3 with pip, `ci`
//! both and a C++ compiler, `golden` Python, that compiler and CMake. Whatever else they use is fetched by the clients of Rust
//! and Python and lies under `target/`; only where CI runs as root does `ci` install g++ and valgrind by apt-get if they are
//! missing.

mod ci;
mod compiler;
mod debian;
mod golden;
mod instructions;
mod models;
mod peers;
mod process;
mod python;
mod readme;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "What the project does to itself")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Everything that must pass before a change is merged; stops at the first step that fails
    Ci,
    /// Check what the compiler does not: arrows between folders, file sizes and names, leftovers
    Tidy,
    /// Count the instructions of the hot kernels, beside those written down (Linux on x86-64, by valgrind)
    Instructions {
        /// Write down what is counted
        #[arg(long)]
        record: bool,
    },
    /// Fetch the models that tests need into $BASE_MLX_TEST_MODELS (default target/test-models)
    Models,
    Peers(peers::Peers),
    /// Make the reference data of the tests again, from the reference implementations
    Golden {
        /// Only scripts with this word in their path
        what: Option<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Ci => ci::run(&root()),
        Task::Tidy => tidy::run(&root()),
        Task::Instructions { record: false } => instructions::check(&root()),
        Task::Instructions { record: true } => instructions::record(&root()),
        Task::Models => models::fetch(&models::folder(&root())),
        Task::Peers(peers) => peers::run(&root(), &peers),
        Task::Golden { what } => golden::make(&root(), what.as_deref()),
    }
}

/// The workspace's folder.
fn root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().expect("xtask lies in the workspace").to_owned()
}
