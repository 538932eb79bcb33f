//! What was found on this machine, what is wrong with it, and what to do. Nobody but this machine is asked.

mod machine;
mod outside;
mod stores;

use std::fmt;
use std::io::{self, Write};

use anyhow::{Result, bail};
use base_mlx_core::store::{Store, StoreOptions};
use clap::Args;

use crate::config::{ConfigFile, Place};
use crate::models;

/// Say what is found on this machine, and what is wrong with it
///
/// Looks at devices, the folders of models, disk and settings. Asks nobody outside of this machine. Fails if something
/// is wrong.
#[derive(Args)]
pub(crate) struct Arguments {}

pub(crate) fn run(place: &Place) -> Result<()> {
    let mut report = Report::default();
    report.section("base-mlx");
    let version = env!("CARGO_PKG_VERSION");
    report.ok(format!("version {version}, {} on {}", std::env::consts::ARCH, std::env::consts::OS));
    let file = match ConfigFile::read(place) {
        Ok(file) => {
            report.ok(match ConfigFile::place(place).filter(|path| path.exists()) {
                Some(path) => format!("config file {}", path.display()),
                None => "no config file, so every setting has its default".to_owned(),
            });
            file
        }
        Err(error) => {
            report.wrong(
                crate::with_causes(&error),
                "correct the file, or name another with --config",
            );
            ConfigFile::default()
        }
    };
    report.section("machine");
    machine::look(&mut report);
    report.section("models");
    let store = models::store(place, &file).unwrap_or_else(|error| {
        let hint = "create it, or name another with --models-dir";
        report.wrong(crate::with_causes(&error), hint);
        Store::open(StoreOptions { models_dir: None, ..StoreOptions::from_env() })
    });
    stores::look(&store, &mut report);
    report.section("disk");
    stores::look_at_disks(&store, &mut report);
    report.section("pulling");
    outside::look_at_sources(store.options(), &mut report);
    report.section("serving");
    outside::look_at_port(&file, &mut report);

    let mut stdout = io::stdout();
    write!(stdout, "{report}")?;
    stdout.flush()?;
    match report.wrong_count() {
        0 => Ok(()),
        1 => bail!("1 thing is wrong"),
        count => bail!("{count} things are wrong"),
    }
}

/// What was found, in the order in which it is told.
#[derive(Default)]
struct Report {
    lines: Vec<Line>,
}

enum Line {
    Section(&'static str),
    Ok(String),
    /// Nothing is wrong, but one may wonder.
    Note(String),
    /// And what to do.
    Wrong(String, String),
}

impl Report {
    fn section(&mut self, title: &'static str) {
        self.lines.push(Line::Section(title));
    }

    fn ok(&mut self, what: impl Into<String>) {
        self.lines.push(Line::Ok(what.into()));
    }

    fn note(&mut self, what: impl Into<String>) {
        self.lines.push(Line::Note(what.into()));
    }

    fn wrong(&mut self, what: impl Into<String>, hint: impl Into<String>) {
        self.lines.push(Line::Wrong(what.into(), hint.into()));
    }

    fn wrong_count(&self) -> usize {
        self.lines.iter().filter(|line| matches!(line, Line::Wrong(..))).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What follows a first line stands below its text.
        let indented = |text: &str| text.replace('\n', "\n         ");
        for (index, line) in self.lines.iter().enumerate() {
            match line {
                Line::Section(title) if index == 0 => writeln!(f, "{title}")?,
                Line::Section(title) => writeln!(f, "\n{title}")?,
                Line::Ok(what) => writeln!(f, "  ok     {}", indented(what))?,
                Line::Note(what) => writeln!(f, "  note   {}", indented(what))?,
                Line::Wrong(what, hint) => {
                    writeln!(f, "  wrong  {}\n         hint: {}", indented(what), indented(hint))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_comes_with_what_to_do() {
        let mut report = Report::default();
        report.section("a");
        report.ok("fine");
        report.section("b");
        report.note("so so");
        report.wrong("bad\nvery", "mend it");
        let text = report.to_string();
        let expected = "a\n  ok     fine\n\nb\n  note   so so\n  wrong  bad\n         very\n         hint: mend it\n";
        assert_eq!((text.as_str(), report.wrong_count()), (expected, 1));
    }
}
