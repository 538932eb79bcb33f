//! Reference data, made by the implementations that everyone compares with. The scripts lie beside what they make:
//! `crates/*/tests/**/make*.py`, or a `Cargo.toml` there with a program of its own. What they make is committed, so this
//! runs only when a script changes. llama-cpp-python is compiled on the way, which wants CMake.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::{process, python};

const PACKAGES: &[&str] = &[
    "gguf==0.19.0",
    "jinja2==3.1.6",
    "llama-cpp-python==0.3.36",
    "mlx-lm==0.32.2",
    "mlx[cpu]==0.32.4",
    "numpy==2.4.6",
];

pub(crate) const ENCODER_PACKAGES: &[&str] = &[
    "gguf==0.19.0",
    "numpy==2.4.6",
    "protobuf==7.36.2",
    "safetensors==0.8.0",
    "sentence-transformers==6.2.0",
    "sentencepiece==0.2.3",
    "torch==2.15.0",
    "transformers==5.24.0",
];

pub(crate) fn make(root: &Path, what: Option<&str>) -> Result<()> {
    let mut scripts = Vec::new();
    for entry in std::fs::read_dir(root.join("crates"))? {
        find(&entry?.path().join("tests"), &mut scripts)?;
    }
    scripts.sort();
    scripts.retain(|script| what.is_none_or(|what| script.to_string_lossy().contains(what)));
    ensure!(
        !scripts.is_empty(),
        "no script fits\nhint: they are crates/*/tests/**/make*.py and Cargo.toml"
    );
    for script in scripts {
        println!("{}", script.strip_prefix(root).unwrap_or(&script).display());
        if script.ends_with("Cargo.toml") {
            let mut cargo = process::cargo(root);
            cargo.args(["run", "--quiet", "--locked", "--manifest-path"]).arg(&script);
            let target = process::target(root).join("golden");
            process::run(cargo.arg("--target-dir").arg(target))?;
            continue;
        }
        // PyTorch is large, and only encoders are compared with it.
        let (set, packages) = match script.ends_with("make_encoders.py") {
            true => ("encoders", ENCODER_PACKAGES),
            false => ("golden", PACKAGES),
        };
        let mut python = python::with_packages(root, set, packages)?;
        python.env("BASE_MLX_TEST_MODELS", crate::models::folder(root));
        process::run(python.current_dir(root).arg(script))?;
    }
    Ok(())
}

fn find(folder: &Path, scripts: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            find(&path, scripts)?;
        } else if (name.starts_with("make") && name.ends_with(".py")) || name == "Cargo.toml" {
            scripts.push(path);
        }
    }
    Ok(())
}
