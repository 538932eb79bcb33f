//! Debian's packages, installed only on a machine made for CI.

use std::process::Command;

use anyhow::Result;

use crate::process::{self, starts, variable};

/// Installs the package for a program that is missing, or says that this machine is not ours to change.
pub(crate) fn install(package: &str) -> Result<bool> {
    if !Machine::look().is_thrown_away() {
        return Ok(false);
    }
    println!("installing {package}, which is missing here");
    process::run(Command::new("apt-get").args(["update", "--quiet"]))?;
    let install = ["install", "--yes", "--quiet", "--no-install-recommends", package];
    process::run(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(install))?;
    Ok(true)
}

struct Machine {
    ci: bool,
    root: bool,
    apt_get: bool,
}

impl Machine {
    fn look() -> Self {
        let user = Command::new("id").arg("-u").output();
        Self {
            ci: variable("CI").is_some(),
            root: user.is_ok_and(|user| user.stdout.trim_ascii() == b"0"),
            apt_get: starts("apt-get"),
        }
    }

    fn is_thrown_away(&self) -> bool {
        self.ci && self.root && self.apt_get
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_made_for_ci_is_changed() {
        let made_for_ci = || Machine { ci: true, root: true, apt_get: true };
        assert!(made_for_ci().is_thrown_away());
        for other in [
            Machine { ci: false, ..made_for_ci() },
            Machine { root: false, ..made_for_ci() },
            Machine { apt_get: false, ..made_for_ci() },
        ] {
            assert!(!other.is_thrown_away());
        }
    }
}
