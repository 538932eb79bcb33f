use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::super::catalogue::PipSource;
use super::super::digest::Digest;
use super::super::name::PipName;
use super::super::{Progress, StoreError, StoreOptions, folders};
use super::Work;

/// Runs pip, and returns the wheel that it brought, whose hash is right if it is known.
pub(super) fn wheel(
    options: &StoreOptions,
    name: &PipName,
    known: Option<&PipSource>,
    work: &Work,
    progress: &dyn Progress,
) -> Result<PathBuf, StoreError> {
    let failed = |why: String| StoreError::Pip {
        python: options.python.display().to_string(),
        package: name.to_string(),
        why,
    };
    let (wheels, temporary) = (work.subfolder("wheel")?, work.subfolder("tmp")?);
    let log_path = work.path.join("log");
    let log = File::create(&log_path).map_err(StoreError::io("create", &log_path))?;
    let second_log = log.try_clone().map_err(StoreError::io("open", &log_path))?;
    let child = Command::new(program(&options.python))
        .args(["-m", "pip", "download", "--only-binary=:all:", "--no-deps", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar", "off", "-d"])
        .arg(&wheels)
        .arg(name.to_string())
        // `-m` looks into the current folder first, where somebody may have left a `pip`.
        .current_dir(work.subfolder("cwd")?)
        .env("TMPDIR", &temporary)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(second_log)
        .spawn();
    let mut child = match child {
        Ok(child) => Running(child),
        Err(error) => return Err(failed(format!("{error}\nhint: is Python 3 installed?"))),
    };
    let total = known.map(|known| known.wheel.bytes);
    progress.start(&name.to_string(), total, 0);
    let mut seen = 0;
    let status = loop {
        let status = child.0.try_wait().map_err(|error| failed(error.to_string()))?;
        // The file grows in pip's temporary folder, then appears among the wheels.
        let largest = largest_file(&temporary).max(largest_file(&wheels));
        let now = total.map_or(largest, |total| largest.min(total));
        if now > seen {
            progress.advance(now - seen);
            seen = now;
        }
        match status {
            Some(status) => break status,
            None => options.host.pause(Duration::from_millis(100), &|| false),
        }
    };
    if !status.success() {
        return Err(failed(reason(&log_path).unwrap_or_else(|| status.to_string())));
    }
    progress.finish();
    let found = folders::children(&wheels);
    let wheel = match found.as_slice() {
        [(file, path)] if file.ends_with(".whl") => path.clone(),
        _ => return Err(failed("it brought no wheel".to_owned())),
    };
    if let Some(known) = known {
        check(&wheel, known, name)?;
    }
    Ok(wheel)
}

/// A relative path to Python is meant from the user's folder, not from the one that pip runs in.
fn program(python: &Path) -> PathBuf {
    match python.components().count() {
        0 | 1 => python.to_owned(),
        _ => std::path::absolute(python).unwrap_or_else(|_| python.to_owned()),
    }
}

fn check(wheel: &Path, known: &PipSource, name: &PipName) -> Result<(), StoreError> {
    let corrupt = |what, expected: String, found: String| StoreError::Corrupt {
        file: format!("the wheel of {name}"),
        what,
        expected,
        found,
    };
    let bytes = fs::metadata(wheel).map_err(StoreError::io("read", wheel))?.len();
    if bytes != known.wheel.bytes {
        return Err(corrupt("its size", known.wheel.bytes.to_string(), bytes.to_string()));
    }
    let digest = Digest::Sha256(known.wheel.sha256.clone());
    let mut hasher = digest.hasher(bytes);
    hasher.update_from(wheel).map_err(StoreError::io("read", wheel))?;
    match hasher.finish() {
        found if found == digest.hex() => Ok(()),
        found => Err(corrupt(digest.kind(), digest.hex().to_owned(), found)),
    }
}

/// The last errors that pip wrote, or else its last line.
fn reason(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&text[text.len().saturating_sub(16 << 10)..]).into_owned();
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let errors: Vec<&str> = lines().filter_map(|line| line.strip_prefix("ERROR: ")).collect();
    match errors.as_slice() {
        [] => lines().next_back().map(str::to_owned),
        errors => Some(errors[errors.len().saturating_sub(2)..].join("; ")),
    }
}

/// The size of the largest file below a folder that is being written to.
fn largest_file(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => largest_file(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).max().unwrap_or(0)
}

/// A child that does not outlive the pull.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
