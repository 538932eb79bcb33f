//! How a build finds MLX: what its user is told when something is wrong. It reads variables, so each case is a process of
//! its own, this program again.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // Not all of what is found is looked at.
#[path = "../build/find.rs"]
mod find;
#[allow(dead_code)]
#[path = "../src/version.rs"]
mod version;

use std::env::consts::{ARCH, DLL_EXTENSION, OS};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(FIND) {
        match find::mlx() {
            Ok(mlx) => print!("{} and {}", mlx.include.display(), mlx.lib.display()),
            Err(message) => print!("{message}"),
        }
        return;
    }
    a_named_folder_must_hold_this_version();
    without_python_or_network_there_is_a_hint();
    a_forged_wheel_is_refused();
    a_mac_needs_apple_silicon();
}

fn a_named_folder_must_hold_this_version() {
    let user = User::new("named");
    let folder = user.home.join("mlx");
    let named = format!("BASE_MLX_MLX_DIR is {}, which ", folder.display());
    // Relative, it is still shown whole.
    let found = || user.found(&[("BASE_MLX_MLX_DIR", "mlx")]);
    assert_eq!(found(), format!("{named}has no include/mlx/mlx.h and lib/libmlx"));

    let (include, lib) = (folder.join("include"), folder.join("lib"));
    fs::create_dir_all(include.join("mlx")).unwrap();
    fs::create_dir_all(&lib).unwrap();
    fs::write(include.join("mlx/mlx.h"), "").unwrap();
    fs::write(lib.join(format!("libmlx.{DLL_EXTENSION}")), "").unwrap();
    assert_eq!(found(), format!("{named}does not say its version in include/mlx/version.h"));

    let say = |version: &str| {
        let parts = ["MAJOR", "MINOR", "PATCH"].into_iter().zip(version.split('.'));
        let lines = parts.map(|(name, part)| format!("#define MLX_VERSION_{name} {part}\n"));
        fs::write(include.join("mlx/version.h"), lines.collect::<String>()).unwrap();
    };
    say("0.1.2");
    assert_eq!(found(), format!("{named}holds MLX 0.1.2, expected {}", version::MLX));
    say(version::MLX);
    assert_eq!(found(), format!("{} and {}", include.display(), lib.display()));
}

fn without_python_or_network_there_is_a_hint() {
    let user = User::new("offline");
    let told = user.found(&[]);
    assert!(told.starts_with("cannot run python3 to fetch mlx-"), "{told}");
    assert!(told.contains("\nhint: on a machine with network run"), "{told}");
    user.install_python("echo no network >&2; exit 1");
    let told = user.found(&[]);
    assert!(told.starts_with("pip could not fetch mlx-"), "{told}");
    assert!(told.contains("\nno network\nhint: "), "{told}");
    assert_eq!(user.kept(), 0);
}

fn a_forged_wheel_is_refused() {
    let user = User::new("forged");
    let find = "while [ \"$1\" != --dest ]; do shift; done";
    user.install_python(&format!("{find}; echo forged > \"$2/mlx.whl\""));
    let told = user.found(&[]);
    assert!(told.contains("/mlx.whl has sha256 ") && told.contains(", expected "), "{told}");
    assert_eq!(user.kept(), 0);
}

fn a_mac_needs_apple_silicon() {
    let user = User::new("intel");
    let mac = [("CARGO_CFG_TARGET_OS", "macos"), ("CARGO_CFG_TARGET_ARCH", "x86_64")];
    let told = user.found(&mac);
    assert!(told.ends_with("is for Macs with Apple silicon"), "{told}");
}

/// One who has no program but those that are installed for them: no Homebrew, and no Python at first.
struct User {
    home: PathBuf,
}

impl User {
    fn new(name: &str) -> Self {
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("find").join(name);
        let _ = fs::remove_dir_all(&home);
        fs::create_dir_all(home.join("bin")).unwrap();
        Self { home }
    }

    fn install_python(&self, script: &str) {
        let python = self.home.join("bin/python3");
        fs::write(&python, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What is found, or what the user is told.
    fn found(&self, variables: &[(&str, &str)]) -> String {
        let mut build = Command::new(std::env::current_exe().unwrap());
        build.arg(FIND).current_dir(&self.home).env_clear();
        build.env("PATH", self.home.join("bin")).env("BASE_MLX_HOME", &self.home);
        build.env("CARGO_CFG_TARGET_OS", OS).env("CARGO_CFG_TARGET_ARCH", ARCH);
        let output = build.envs(variables.iter().copied()).output().unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        // The rest is for cargo.
        let lines = told.lines().filter(|line| !line.starts_with("cargo::"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// How much of what was fetched is still there, finished or not.
    fn kept(&self) -> usize {
        fs::read_dir(self.home.join("mlx").join(version::MLX)).unwrap().count()
    }
}

const FIND: &str = "find";
