//! Where MLX is: a folder that was named, Homebrew's, or the official wheel, fetched once and checked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use sha2::{Digest, Sha256};

use crate::version::MLX as VERSION;

/// The official wheels: package, platform tag, sha256.
const WHEELS: [(&str, &str, &str); 9] = [
    (
        "mlx-cpu",
        "manylinux_2_35_x86_64",
        "0e0a24fa2ce8b6b94d2e6a90604e8813aa8e29fcb918bb2aa01cfb6d133d8cee",
    ),
    (
        "mlx-cpu",
        "manylinux_2_35_aarch64",
        "1289e85e64af1fd16380bf331438bfe4afe875d27afc3e0bcf35f427c488fadd",
    ),
    (
        "mlx-cuda-12",
        "manylinux_2_35_x86_64",
        "f385c7af7c1f63a9d6ce3e442e1c9ba881c881bcb45c6534ff8155b359da47e5",
    ),
    (
        "mlx-cuda-12",
        "manylinux_2_35_aarch64",
        "cea869b007c809013c369819d485e3b534f3ecc261199b4c655ef92a21f73f28",
    ),
    (
        "mlx-cuda-13",
        "manylinux_2_35_x86_64",
        "94cb48fba73e5ee39467e51c35c51c691123359ca17bafd1a24cf92ad6732bee",
    ),
    (
        "mlx-cuda-13",
        "manylinux_2_35_aarch64",
        "cf8a67b49cebff85cd98b1d118c09f6c8ee966b899a914c50cc74d614b25616e",
    ),
    (
        "mlx-metal",
        "macosx_14_0_arm64",
        "8019b2db622599267d66cc168b2f0dbf5af929790a6c3b3913e00eabc42a7947",
    ),
    (
        "mlx-metal",
        "macosx_15_0_arm64",
        "9f0a3cc26d89724434d9684932fc6f3e4e83669d2a895d858ed2c8a55eb84e8b",
    ),
    (
        "mlx-metal",
        "macosx_26_0_arm64",
        "514df92d41a286895d2564b4b18f4da45096bd7a4a0c47e1042f345ad5a7f936",
    ),
];

pub(crate) struct Mlx {
    pub(crate) include: PathBuf,
    pub(crate) lib: PathBuf,
    /// Where the bridge to it is kept.
    pub(crate) cache: PathBuf,
    /// Changes when this MLX is another.
    pub(crate) identity: String,
}

/// An error is what to tell the user.
pub(crate) fn mlx() -> Result<Mlx, String> {
    for name in ["BASE_MLX_MLX_DIR", "BASE_MLX_MLX_CUDA", "BASE_MLX_HOME", "XDG_CACHE_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let cache = cache()?;
    if let Some(folder) = folder("BASE_MLX_MLX_DIR") {
        // Cargo runs this in the crate's folder, which is not the user's: what they see shows it.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        let named = format!("BASE_MLX_MLX_DIR is {}, which", folder.display());
        let mlx = at(&folder, &cache)
            .ok_or_else(|| format!("{named} has no include/mlx/mlx.h and lib/libmlx"))?;
        println!("cargo::rerun-if-changed={}", mlx.lib.display());
        return match version(&mlx) {
            Some(version) if version == VERSION => Ok(mlx),
            Some(version) => Err(format!("{named} holds MLX {version}, expected {VERSION}")),
            None => Err(format!("{named} does not say its version in include/mlx/version.h")),
        };
    }
    // On Linux it would be one for CPUs.
    if cfg!(target_os = "macos")
        && let Some(mlx) = homebrew(&cache)
    {
        println!("cargo::rerun-if-changed={}", mlx.lib.display());
        return Ok(mlx);
    }
    wheel(&cache)
}

fn folder(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// What is kept for this version of MLX.
fn cache() -> Result<PathBuf, String> {
    let home = match folder("BASE_MLX_HOME") {
        Some(home) => home,
        None => folder("XDG_CACHE_HOME")
            .or_else(|| folder("HOME").map(|home| home.join(".cache")))
            .ok_or("neither HOME nor BASE_MLX_HOME is set")?
            .join("base-mlx"),
    };
    // The program looks there wherever it is started.
    let home =
        std::path::absolute(&home).map_err(|error| format!("{}: {error}", home.display()))?;
    Ok(home.join("mlx").join(VERSION))
}

fn at(folder: &Path, cache: &Path) -> Option<Mlx> {
    let folder = std::path::absolute(folder).ok()?;
    let (include, lib) = (folder.join("include"), folder.join("lib"));
    let library = ["libmlx.so", "libmlx.dylib"].into_iter().map(|name| lib.join(name));
    let library = library.into_iter().find(|library| library.is_file())?;
    if !include.join("mlx/mlx.h").is_file() {
        return None;
    }
    let metadata = fs::metadata(&library).ok()?;
    let identity = format!("{} {:?}", metadata.len(), metadata.modified());
    Some(Mlx { include, lib, cache: cache.to_owned(), identity })
}

/// Homebrew's, if it is the pinned version.
fn homebrew(cache: &Path) -> Option<Mlx> {
    let prefix = Command::new("brew").args(["--prefix", "mlx"]).output().ok()?;
    let prefix = String::from_utf8(prefix.stdout).ok()?;
    // This version's own folder: under the other name an upgrade would put the next one.
    let mlx = at(&fs::canonicalize(prefix.trim()).ok()?, cache)?;
    (version(&mlx)? == VERSION).then_some(mlx)
}

fn version(mlx: &Mlx) -> Option<String> {
    let header = fs::read_to_string(mlx.include.join("mlx/version.h")).ok()?;
    let part = |name: &str| -> Option<String> {
        let line = header.lines().find(|line| line.contains(&format!("#define {name} ")))?;
        line.split_whitespace().last().map(str::to_owned)
    };
    let parts = ["MLX_VERSION_MAJOR", "MLX_VERSION_MINOR", "MLX_VERSION_PATCH"].map(part);
    let parts: Vec<String> = parts.into_iter().collect::<Option<_>>()?;
    Some(parts.join("."))
}

fn wheel(cache: &Path) -> Result<Mlx, String> {
    let (package, platform) = variant()?;
    let Some((_, _, sha256)) = WHEELS.iter().find(|(p, t, _)| (*p, *t) == (package, &platform))
    else {
        return Err(format!(
            "there is no {package} {VERSION} for {platform}\nhint: build MLX yourself and name its folder in \
             BASE_MLX_MLX_DIR"
        ));
    };
    let done = cache.join(format!("{package}-{platform}"));
    let unpacked = || {
        let identity = (*sha256).to_owned();
        Some(Mlx { cache: done.clone(), identity, ..at(&done.join("mlx"), cache)? })
    };
    if let Some(mlx) = unpacked() {
        return Ok(mlx);
    }
    // The folder gets its name when it is whole, so that a build that is killed leaves nothing to trip over.
    let partial = cache.join(format!(".{package}-{platform}.{}", std::process::id()));
    let fetched = fetch(package, &platform, sha256, &partial);
    if fetched.is_ok() && fs::rename(&partial, &done).is_err() && unpacked().is_none() {
        return Err(format!("cannot rename {} to {}", partial.display(), done.display()));
    }
    // Gone after the rename; left over after a failure, or where another build was first.
    let _ = fs::remove_dir_all(&partial);
    fetched?;
    unpacked().ok_or_else(|| format!("{} holds no MLX", done.display()))
}

/// The wheel for this build: package and platform tag.
fn variant() -> Result<(&'static str, String), String> {
    let target = |part| env::var(part).expect("cargo sets it for build scripts");
    let machine = target("CARGO_CFG_TARGET_ARCH");
    match target("CARGO_CFG_TARGET_OS").as_str() {
        "macos" if machine != "aarch64" => {
            Err("MLX, which base-mlx needs on macOS, is for Macs with Apple silicon".to_owned())
        }
        "macos" => {
            let output = Command::new("sw_vers").arg("-productVersion").output();
            let version = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
            let major = version.and_then(|version| version.split('.').next()?.trim().parse().ok());
            // Each build has the kernels that its macOS can compile, the newest those of the newest GPUs. The one for 26 says
            // of itself that it is for 26.2 and later, its tag that it is for all of 26, as pip takes it.
            let built_for = match major.unwrap_or(14) {
                26.. => 26,
                15..26 => 15,
                _ => 14,
            };
            Ok(("mlx-metal", format!("macosx_{built_for}_0_arm64")))
        }
        "linux" => {
            let package = match (cfg!(feature = "cuda"), env::var("BASE_MLX_MLX_CUDA").as_deref()) {
                (false, _) => "mlx-cpu",
                (true, Ok("12")) => "mlx-cuda-12",
                (true, Ok("13" | "") | Err(_)) => "mlx-cuda-13",
                (true, Ok(other)) => {
                    return Err(format!("BASE_MLX_MLX_CUDA is {other}, expected 12 or 13"));
                }
            };
            Ok((package, format!("manylinux_2_35_{machine}")))
        }
        other => Err(format!("MLX has no build for {other}")),
    }
}

/// Downloads the wheel with the user's own pip, so that their mirror, proxy and certificates count, checks it, and
/// unpacks it into `folder`.
fn fetch(package: &str, platform: &str, sha256: &str, folder: &Path) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("{what} {}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(|error| failed("cannot create", error))?;
    let requirement = format!("{package}=={VERSION}");
    let hint = format!(
        "hint: on a machine with network run `python3 -m pip download --no-deps --only-binary=:all: --platform \
         {platform} {requirement}`, unzip the wheel, and name its folder `mlx` in BASE_MLX_MLX_DIR"
    );
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check"])
        .args(["--no-deps", "--only-binary=:all:", "--python-version", "3.12"])
        .args(["--platform", platform, "--dest"])
        .arg(folder)
        .arg(&requirement)
        .output()
        .map_err(|error| format!("cannot run python3 to fetch {requirement}: {error}\n{hint}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("pip could not fetch {requirement}\n{}\n{hint}", said.trim()));
    }
    let entries = fs::read_dir(folder).map_err(|error| failed("cannot read", error))?;
    let wheel = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| format!("pip left no wheel of {requirement} in {}", folder.display()))?;
    let bytes = fs::read(&wheel).map_err(|error| failed("cannot read the wheel in", error))?;
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != sha256 {
        return Err(format!(
            "{} has sha256 {found}, expected {sha256}\nhint: it is not the official wheel; clear pip's cache or \
             look at your mirror",
            wheel.display()
        ));
    }
    let mut archive = zip::ZipArchive::new(io::Cursor::new(bytes))
        .map_err(|error| format!("{}: {error}", wheel.display()))?;
    archive
        .extract(folder)
        .map_err(|error| format!("cannot unpack {}: {error}", wheel.display()))?;
    fs::remove_file(&wheel).map_err(|error| failed("cannot remove the wheel in", error))
}
