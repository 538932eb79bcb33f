use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// What was measured, and on what: the JSON of `--json` and `--report`, which `--compare` reads again. What may be absent
/// is what earlier versions did not measure, or what this device does not know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) model: String,
    pub(super) family: String,
    pub(super) model_bytes: u64,
    pub(super) device: String,
    /// As it was asked for; without, what suits the device.
    pub(super) kv_cache_type: Option<String>,
    pub(super) kv_bytes_per_token: Option<u64>,
    pub(super) stock_kernels: Option<bool>,
    /// Most tokens of an answer and its prompt.
    pub(super) context: Option<usize>,
    pub(super) streams: usize,
    pub(super) prompt_tokens: usize,
    pub(super) generated_tokens: usize,
    pub(super) repeat: usize,
    /// Medians; the lowest and the highest stand beside them.
    pub(super) prefill_tokens_per_second: f64,
    pub(super) prefill_tokens_per_second_range: Option<[f64; 2]>,
    pub(super) decode_tokens_per_second: f64,
    pub(super) decode_tokens_per_second_range: Option<[f64; 2]>,
    pub(super) first_token_ms: f64,
    pub(super) first_token_ms_range: Option<[f64; 2]>,
    /// From nothing, device and model included, to the first run's first token.
    pub(super) cold_first_token_ms: Option<f64>,
    pub(super) decode_bytes_per_token: Option<u64>,
    pub(super) memory_bytes_per_second: Option<u64>,
    /// What decoding reads a second, as a part of what memory gives.
    pub(super) memory_share: Option<f64>,
    pub(super) peak_rss_mb: f64,
    pub(super) load_ms: u64,
    pub(super) version: String,
    pub(super) os: String,
    pub(super) os_version: String,
    pub(super) arch: String,
    pub(super) cpu: Option<String>,
    pub(super) cores: usize,
}

impl Report {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let cannot = || format!("cannot read the earlier result {}", path.display());
        let is_file = std::fs::metadata(path).with_context(cannot)?.is_file();
        ensure!(is_file, "{}: it is not a regular file", cannot());
        let mut text = String::new();
        let file = File::open(path).with_context(cannot)?;
        file.take(MOST_BYTES + 1).read_to_string(&mut text).with_context(cannot)?;
        let fits = text.len() as u64 <= MOST_BYTES;
        ensure!(fits, "{}: it has more than {MOST_BYTES} bytes", cannot());
        serde_json::from_str(&text).with_context(|| {
            format!("{} is not what `base-mlx bench --json` prints", path.display())
        })
    }
}

/// The median of repetitions, and the lowest and the highest of them.
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) range: [f64; 2],
}

impl Spread {
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.map(round).collect();
        values.sort_by(f64::total_cmp);
        let (middle, last) = (values.len() / 2, values.len() - 1);
        let median = round((values[middle] + values[last - middle]) / 2.0);
        Self { median, range: [values[0], values[last]] }
    }
}

/// To one decimal, which no measurement here goes beyond.
pub(super) fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// As the system calls itself: `Linux 6.1.0`, `macOS 26.1`.
pub(super) fn os_version() -> String {
    let (program, arguments, name) = match std::env::consts::OS {
        "macos" => ("sw_vers", "-productVersion", "macOS"),
        _ => ("uname", "-r", "Linux"),
    };
    format!("{name} {}", printed(program, &[arguments]).unwrap_or_default())
}

/// As its maker calls it, where the system says so.
pub(super) fn cpu() -> Option<String> {
    if cfg!(target_os = "macos") {
        return printed("sysctl", &["-n", "machdep.cpu.brand_string"]);
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

fn printed(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The most memory this process ever held.
pub(super) fn peak_rss_mb() -> Result<f64> {
    let peak = getrusage(UsageWho::RUSAGE_SELF)?.max_rss() as f64;
    // Linux counts in KiB, macOS in bytes.
    let bytes = if cfg!(target_os = "macos") { peak } else { peak * 1024.0 };
    Ok(bytes / 1e6)
}

/// Some hundred times what a report takes.
const MOST_BYTES: u64 = 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    /// As printed before there were ranges, bandwidth and the CPU's name.
    const EARLIER: &str = r#"{"model": "smollm2", "family": "llama", "model_bytes": 1, "device": "cpu, 2 threads, avx2",
        "streams": 1, "prompt_tokens": 512, "generated_tokens": 64, "repeat": 3, "prefill_tokens_per_second": 650.0,
        "decode_tokens_per_second": 99.5, "first_token_ms": 788.0, "peak_rss_mb": 300.1, "load_ms": 120,
        "version": "0.1.0", "os": "linux", "os_version": "Linux 6.1", "arch": "x86_64", "cores": 2}"#;

    fn read(text: &str) -> Result<Report> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("earlier.json");
        std::fs::write(&path, text).unwrap();
        Report::read(&path)
    }

    #[test]
    fn what_an_earlier_version_printed_can_be_read() {
        let report = read(EARLIER).unwrap();
        assert_eq!((report.decode_tokens_per_second, report.cpu), (99.5, None));
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let report = Report { memory_share: Some(0.5), ..read(EARLIER).unwrap() };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::to_string(&read(&text).unwrap()).unwrap(), text);
    }

    #[test]
    fn another_file_is_named_with_its_fault() {
        for (text, fault) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            ("model  smollm2", "expected value at line 1 column 1"),
            ("{}", "missing field `model` at line 1 column 2"),
            (&EARLIER.replace("99.5", "\"fast\""), "invalid type: string \"fast\", expected f64"),
        ] {
            let error = format!("{:#}", read(text).unwrap_err());
            let what = "earlier.json is not what `base-mlx bench --json` prints: ";
            assert!(error.contains(&format!("{what}{fault}")), "{error}");
        }
    }

    #[test]
    fn what_has_no_end_is_not_read() {
        let error = |path: &Path| format!("{:#}", Report::read(path).unwrap_err());
        let text = error(Path::new("/dev/zero"));
        assert_eq!(text, "cannot read the earlier result /dev/zero: it is not a regular file");
        let text = format!("{:#}", read(&" ".repeat(1 << 20)).unwrap_err());
        assert!(text.ends_with("earlier.json: it has more than 262144 bytes"), "{text}");
    }

    #[test]
    fn the_median_lies_in_the_middle() {
        for (values, median, range) in [
            (&[3.0][..], 3.0, [3.0, 3.0]),
            (&[5.0, 1.0, 2.04], 2.0, [1.0, 5.0]),
            (&[4.0, 1.0, 2.0, 3.0], 2.5, [1.0, 4.0]),
        ] {
            let spread = Spread::of(values.iter().copied());
            assert_eq!((spread.median, spread.range), (median, range));
        }
    }
}
