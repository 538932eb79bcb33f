//! The C++ compiler, which only the bridge to MLX is built with; Rust's crates are content with C.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::process;

/// Finds one or, on a throw-away machine, installs it. Says at once what is missing, not after all the tests.
pub(crate) fn find() -> Result<()> {
    let machine = Machine::look();
    match machine.remedy() {
        Remedy::None => Ok(()),
        Remedy::Install => {
            println!("no C++ compiler here: installing g++");
            process::run(Command::new("apt-get").args(["update", "--quiet"]))?;
            let install = ["install", "--yes", "--quiet", "--no-install-recommends", "g++"];
            process::run(
                Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(install),
            )
        }
        Remedy::Tell => bail!(
            "no C++ compiler: `{}` cannot be started\n\
             hint: step `clippy` compiles the bridge to MLX and needs one with C++20. Install it (`apt-get install g++`, \
             `dnf install gcc-c++`, `xcode-select --install`), or name it in CXX",
            machine.compiler
        ),
    }
}

/// What decides where a compiler is to come from.
struct Machine {
    /// The command that build scripts will call.
    compiler: String,
    compiles: bool,
    /// Did the user choose the compiler?
    chosen: bool,
    ci: bool,
    root: bool,
    apt_get: bool,
}

#[derive(Debug, PartialEq)]
enum Remedy {
    None,
    Install,
    Tell,
}

impl Machine {
    fn look() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let chosen = variable("CXX");
        let compiler = chosen.clone().unwrap_or_else(|| "c++".to_owned());
        // It may come with arguments, or behind the name of a cache.
        let program = compiler.split_whitespace().next().unwrap_or_default();
        let user = Command::new("id").arg("-u").output();
        Self {
            compiles: starts(program),
            chosen: chosen.is_some(),
            ci: variable("CI").is_some(),
            root: user.is_ok_and(|user| user.stdout.trim_ascii() == b"0"),
            apt_get: starts("apt-get"),
            compiler,
        }
    }

    fn remedy(&self) -> Remedy {
        match self {
            Self { compiles: true, .. } => Remedy::None,
            Self { chosen: false, ci: true, root: true, apt_get: true, .. } => Remedy::Install,
            _ => Remedy::Tell,
        }
    }
}

fn starts(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_made_for_ci_is_changed() {
        let bare = || Machine {
            compiler: "c++".to_owned(),
            compiles: false,
            chosen: false,
            ci: true,
            root: true,
            apt_get: true,
        };
        assert_eq!(bare().remedy(), Remedy::Install);
        assert_eq!(Machine { compiles: true, ..bare() }.remedy(), Remedy::None);
        for other in [
            Machine { ci: false, ..bare() },
            Machine { root: false, ..bare() },
            Machine { apt_get: false, ..bare() },
            Machine { chosen: true, ..bare() },
        ] {
            assert_eq!(other.remedy(), Remedy::Tell);
        }
    }

    #[test]
    fn a_program_that_is_not_there_does_not_start() {
        assert!(!starts("no-such-compiler"));
        assert!(!starts(""));
    }
}
