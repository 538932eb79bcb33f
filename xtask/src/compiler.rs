//! The C++ compiler, which only the bridge to MLX is built with; Rust's crates are content with C.

use anyhow::{Result, bail};

use crate::debian;
use crate::process::{starts, variable};

/// Finds one or, on a throw-away machine, installs it. Says at once what is missing, not after all the tests.
pub(crate) fn find() -> Result<()> {
    let chosen = variable("CXX");
    let compiler = chosen.as_deref().unwrap_or("c++");
    // It may come with arguments, or behind the name of a cache.
    if starts(compiler.split_whitespace().next().unwrap_or_default()) {
        return Ok(());
    }
    // Another than the user's choice would not be called.
    if chosen.is_none() && debian::install("g++")? {
        return Ok(());
    }
    bail!(
        "no C++ compiler: `{compiler}` cannot be started\n\
         hint: step `clippy` compiles the bridge to MLX and needs one with C++20. Install it (`apt-get install g++`, \
         `dnf install gcc-c++`, `xcode-select --install`), or name it in CXX"
    )
}
