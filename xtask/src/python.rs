use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// The user's own Python, so that their mirror, proxy and certificates count.
pub(crate) fn command() -> Command {
    Command::new(std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into()))
}

/// pip, quiet, with nothing asked.
pub(crate) fn pip(task: &str) -> Command {
    let mut command = command();
    command.args(["-m", "pip", task, "--quiet", "--no-input", "--disable-pip-version-check"]);
    command
}

/// Python that finds `packages`, each `NAME==VERSION` or an option of pip's, installed beside the build and not in the
/// user's own Python. Sets with different names do not disturb each other.
pub(crate) fn with_packages(root: &Path, set: &str, packages: &[&str]) -> Result<Command> {
    let folder = install(root, set, packages)?;
    let mut command = command();
    command.env("PYTHONPATH", folder);
    Ok(command)
}

fn install(root: &Path, set: &str, packages: &[&str]) -> Result<PathBuf> {
    let folder = root.join("target/python").join(set);
    let stamp = folder.join("installed.txt");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(folder);
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    process::run(pip("install").arg("--target").arg(&folder).args(packages))?;
    std::fs::write(&stamp, wanted).with_context(|| format!("write {}", stamp.display()))?;
    Ok(folder)
}
