//! How many instructions the hot kernels execute, beside what is written down of it: callgrind counts them, whatever else the
//! machine does, so that a kernel which has become longer is noticed where times say nothing. The kernels are those of
//! `crates/base-mlx-simd/benches/support`, on the instruction sets that valgrind has: not AVX-512.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::process::{self, cargo, starts};
use crate::{ci, debian};

/// Finds valgrind or, on a throw-away machine, installs it. Says at once what is missing, not after all the tests.
pub(crate) fn find_valgrind() -> Result<()> {
    if let Some(why) = nothing_to_count() {
        println!("{why}");
        return Ok(());
    }
    if starts("valgrind") || debian::install("valgrind")? {
        return Ok(());
    }
    bail!(
        "no valgrind, which counts the kernels' instructions\n\
         hint: install it (`apt-get install valgrind`, `dnf install valgrind`)"
    )
}

/// Counts, and fails if a kernel executes more than is written down.
pub(crate) fn check(root: &Path) -> Result<()> {
    if let Some(why) = nothing_to_count() {
        println!("{why}");
        return Ok(());
    }
    find_valgrind()?;
    let counted = Counts::take(root)?;
    let written = Counts::read(&file(root))?;
    let compared = counted.beside(&written)?;
    for line in &compared.lines {
        println!("{line}");
    }
    let (percent, all) = (compared.tolerance * 100.0, compared.lines.len());
    if compared.tolerance != SAME_COMPILER {
        println!(
            "note: these are of {}, those written down of {}, so that {percent} % more are let pass\n\
             hint: with a compiler that stays, record them anew: `cargo xtask instructions --record`",
            counted.rustc, written.rustc
        );
    }
    if compared.fewer > 0 {
        println!(
            "note: over {percent} % fewer instructions than {FILE} says: {} of {all} kernels\n\
             hint: write that down, so that it is not lost again: `cargo xtask instructions --record`",
            compared.fewer
        );
    }
    ensure!(
        compared.more == 0,
        "over {percent} % more instructions than {FILE} says: {} of {all} kernels\n\
         hint: if they are worth it, or the kernel is faster all the same, say so in the commit and write them down: \
         `cargo xtask instructions --record`",
        compared.more
    );
    Ok(())
}

/// Counts, and writes it down.
pub(crate) fn record(root: &Path) -> Result<()> {
    if let Some(why) = nothing_to_count() {
        bail!("{why}");
    }
    find_valgrind()?;
    let path = file(root);
    std::fs::write(&path, Counts::take(root)?.text())
        .with_context(|| format!("write {}", path.display()))
}

/// Other instruction sets would want counts of their own.
fn nothing_to_count() -> Option<&'static str> {
    let counted = cfg!(all(target_os = "linux", target_arch = "x86_64"));
    (!counted)
        .then_some("nothing to count: the instructions written down are those of Linux on x86-64")
}

fn file(root: &Path) -> PathBuf {
    root.join(FILE)
}

/// Instructions of one call of each kernel, and of which compiler they are.
#[derive(Debug)]
struct Counts {
    rustc: String,
    kernels: Vec<(String, u64)>,
}

impl Counts {
    fn take(root: &Path) -> Result<Self> {
        // The packages and features of step `test`, so that in CI it is built already.
        let mut build = cargo(root);
        build.args(["build", "--release", "--workspace", "--locked", "--example", "instructions"]);
        process::run(build.args(ci::WITH_MLX))?;
        let target = process::target(root);
        let dumps = target.join("callgrind.out");
        if dumps.exists() {
            // Callgrind would write behind what is there.
            std::fs::remove_file(&dumps).with_context(|| format!("remove {}", dumps.display()))?;
        }
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--quiet", "--combine-dumps=yes"]);
        valgrind.arg(format!("--toggle-collect={COUNTED}"));
        valgrind.arg(format!("--dump-after={COUNTED}"));
        valgrind.arg(format!("--callgrind-out-file={}", dumps.display()));
        let names = process::output(valgrind.arg(target.join("release/examples/instructions")))?;
        let dumps =
            std::fs::read_to_string(&dumps).with_context(|| format!("read {}", dumps.display()))?;
        let counts = totals(&dumps)?;
        ensure!(
            counts.len() == names.lines().count() && !counts.contains(&0),
            "callgrind has not counted each call of `{COUNTED}`: {counts:?} for\n{names}"
        );
        let rustc = process::output(Command::new("rustc").arg("--version").current_dir(root))?;
        Ok(Self {
            rustc: rustc.trim().to_owned(),
            kernels: names.lines().map(str::to_owned).zip(counts).collect(),
        })
    }

    fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} cannot be understood", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let written: Value = serde_json::from_str(text)?;
        let rustc = written["rustc"].as_str().context("no `rustc`")?.to_owned();
        let kernels = written["instructions"].as_object().context("no `instructions`")?;
        let kernels = kernels.iter().map(|(name, count)| {
            Ok((name.clone(), count.as_u64().with_context(|| format!("`{name}` has no count"))?))
        });
        Ok(Self { rustc, kernels: kernels.collect::<Result<_>>()? })
    }

    fn text(&self) -> String {
        let kernels: Map<String, Value> =
            self.kernels.iter().map(|(name, count)| (name.clone(), json!(count))).collect();
        format!("{:#}\n", json!({ "rustc": self.rustc, "instructions": kernels }))
    }

    fn count(&self, kernel: &str) -> Option<u64> {
        self.kernels.iter().find_map(|(name, count)| (name == kernel).then_some(*count))
    }

    fn beside(&self, written: &Self) -> Result<Compared> {
        if let Some((name, _)) = written.kernels.iter().find(|(name, _)| self.count(name).is_none())
        {
            bail!(
                "`{name}` is written down in {FILE} and was not counted\n\
                 hint: a CPU without AVX2, FMA and F16C cannot; else write the kernels down anew: \
                 `cargo xtask instructions --record`"
            );
        }
        let same = self.rustc == written.rustc;
        let tolerance = if same { SAME_COMPILER } else { OTHER_COMPILER };
        let mut compared = Compared { tolerance, lines: Vec::new(), more: 0, fewer: 0 };
        for (name, now) in &self.kernels {
            let before = written.count(name).with_context(|| {
                format!(
                    "`{name}` is not in {FILE}\n\
                     hint: write it down: `cargo xtask instructions --record`"
                )
            })?;
            let change = *now as f64 / before as f64 - 1.0;
            let mark = match change {
                _ if change > tolerance => {
                    compared.more += 1;
                    "  MORE"
                }
                _ if change < -tolerance => {
                    compared.fewer += 1;
                    "  fewer"
                }
                _ => "",
            };
            let percent = change * 100.0;
            compared
                .lines
                .push(format!("{name:<40} {before:>10} {now:>10} {percent:>+7.2} %{mark}"));
        }
        Ok(compared)
    }
}

/// What has been counted beside what is written down.
struct Compared {
    tolerance: f64,
    lines: Vec<String>,
    /// How many kernels execute more than tolerated.
    more: usize,
    fewer: usize,
}

/// Of each dump that was made at the end of a call; the last one is made at the end of the program.
fn totals(dumps: &str) -> Result<Vec<u64>> {
    let mut totals = Vec::new();
    let mut of_a_call = false;
    for line in dumps.lines() {
        if let Some(trigger) = line.strip_prefix("desc: Trigger: ") {
            of_a_call = trigger.starts_with("--dump-after=");
        } else if let Some(total) = line.strip_prefix("totals: ").filter(|_| of_a_call) {
            totals.push(total.trim().parse().with_context(|| format!("no number: `{line}`"))?);
        }
    }
    Ok(totals)
}

const FILE: &str = "crates/base-mlx-simd/instructions.json";
/// The function within which is counted.
const COUNTED: &str = "instructions::counted_call";
/// What the C library does differently on another system is far less, and what a kernel does by mistake is mostly more.
const SAME_COMPILER: f64 = 0.03;
/// Another compiler chooses other instructions, a little better or worse.
const OTHER_COMPILER: f64 = 0.1;

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rustc: &str, kernels: &[(&str, u64)]) -> Counts {
        let kernels = kernels.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Counts { rustc: rustc.to_owned(), kernels }
    }

    #[test]
    fn what_is_written_is_read_again_in_its_order() {
        let taken = counts("rustc 1", &[("swiglu", 3), ("add", 12_345_678_901)]);
        let read = Counts::parse(&taken.text()).unwrap();
        assert_eq!((read.rustc, read.kernels), (taken.rustc, taken.kernels));
    }

    #[test]
    fn more_than_tolerated_is_found_and_so_is_less() {
        let written = counts("rustc 1", &[("a", 1000), ("b", 1000), ("c", 1000), ("d", 1000)]);
        let now = [("a", 1029), ("b", 1031), ("c", 971), ("d", 890)];
        let compared = counts("rustc 1", &now).beside(&written).unwrap();
        assert_eq!((compared.more, compared.fewer), (1, 1));
        assert!(compared.lines[1].ends_with("+3.10 %  MORE"), "{:?}", compared.lines);
        let other = counts("rustc 2", &now).beside(&written).unwrap();
        assert_eq!((other.more, other.fewer, other.tolerance), (0, 1, OTHER_COMPILER));
    }

    #[test]
    fn a_kernel_that_only_one_side_has_is_an_error() {
        let (one, two) = (counts("r", &[("a", 1)]), counts("r", &[("a", 1), ("b", 2)]));
        for (counted, written, why) in
            [(&one, &two, "`b` is written down"), (&two, &one, "`b` is not in")]
        {
            let error = counted.beside(written).map(|_| ()).unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn only_dumps_of_calls_count() {
        let dump = |trigger, total| format!("part: 1\ndesc: Trigger: {trigger}\ntotals: {total}\n");
        let dumps =
            [dump("--dump-after=f", 17), dump("--dump-after=f", 4), dump("Program termination", 0)];
        assert_eq!(totals(&dumps.concat()).unwrap(), [17, 4]);
        assert!(totals(&dump("--dump-after=f", 17).replace("17", "17 4")).is_err());
    }
}
