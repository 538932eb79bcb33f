use base_mlx_core::engine::{Device, DeviceKind, DeviceOptions};
use base_mlx_core::store::Bytes;

use super::Report;

/// The system, the CPU, memory, and what computes.
pub(super) fn look(report: &mut Report) {
    report.ok(system());
    let start = |kind| Device::start(DeviceOptions { kind, ..DeviceOptions::default() });
    match start(DeviceKind::Cpu) {
        Ok(device) => {
            report.ok(device.describe());
            memory(&device, report);
            device.stop();
        }
        Err(error) => report.wrong(format!("the CPU cannot compute: {error}"), "free some memory"),
    }
    gpu(start(DeviceKind::Auto), report);
}

fn memory(device: &Device, report: &mut Report) {
    let Some(bytes) = device.memory_bytes() else {
        report.note("how much memory is free is not known, so models have no ceiling");
        return;
    };
    let told = format!("models may have {} of memory", Bytes(bytes as u64));
    if bytes < LITTLE_MEMORY {
        report.wrong(told, "end other programs: the smallest models need more");
    } else {
        report.ok(told);
    }
}

fn gpu(found: Result<Device, impl std::fmt::Display>, report: &mut Report) {
    match found {
        Err(error) => report.wrong(format!("no device starts: {error}"), "use --device cpu"),
        Ok(device) => {
            match device.warning() {
                Some(warning) => report.wrong(
                    warning,
                    "mend what it names, or leave it and compute on the CPU with --device cpu",
                ),
                None if device.describe().starts_with("cpu") => {
                    report.note(if cfg!(target_os = "macos") {
                        "no GPU that MLX can use; the CPU computes"
                    } else {
                        "no GPU is used: this build has no CUDA, or there is no such GPU; the CPU computes"
                    });
                }
                None => report.ok(device.describe()),
            }
            device.stop();
        }
    }
}

/// The system's name, as it calls itself.
fn system() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/etc/os-release");
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.map_or(std::env::consts::OS, |name| name.trim_matches('"')).to_owned();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    match read("/proc/sys/kernel/osrelease").trim() {
        "" => format!("{name}, {cores} cores for this process"),
        kernel => format!("{name}, kernel {kernel}, {cores} cores for this process"),
    }
}

/// Less than the smallest model of the catalogue takes.
const LITTLE_MEMORY: usize = 256 << 20;
