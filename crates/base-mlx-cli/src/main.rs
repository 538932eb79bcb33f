//! The command `base-mlx`: reads flags, variables and the config file, and leaves the work to the engine, the server
//! and the store. Data goes to stdout, everything else to stderr.

mod chat;
mod commands;
mod config;
mod models;
mod progress;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands::{bench, completions, doctor, embed, list, pull, rm, run, serve, show};
use crate::config::{ConfigFile, Place};

/// Run language models on this machine
#[derive(Parser)]
#[command(name = "base-mlx", version, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Arguments),
    Run(run::Arguments),
    Embed(embed::Arguments),
    Pull(pull::Arguments),
    List(list::Arguments),
    Show(show::Arguments),
    Rm(rm::Arguments),
    Bench(bench::Arguments),
    Doctor(doctor::Arguments),
    Completions(completions::Arguments),
}

fn main() -> ExitCode {
    match dispatch(arguments()) {
        Ok(()) => ExitCode::SUCCESS,
        // `base-mlx … | head` is no failure of ours.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Not even this may panic when stderr is gone.
            let _ = writeln!(io::stderr(), "error: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Arguments {
    let mut command = config::without_empty_variables(Arguments::command());
    let matches = command.get_matches_mut();
    Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

fn dispatch(arguments: Arguments) -> Result<()> {
    if let Command::Completions(arguments) = arguments.command {
        return completions::run(arguments);
    }
    if let Command::Doctor(_) = arguments.command {
        return doctor::run(&arguments.place);
    }
    let file = ConfigFile::read(&arguments.place)?;
    let store = models::store(&arguments.place, &file)?;
    match arguments.command {
        Command::Serve(arguments) => serve::run(arguments, &file, &store),
        Command::Run(arguments) => run::run(arguments, &file, &store),
        Command::Embed(arguments) => embed::run(&arguments, &file, &store),
        Command::Pull(arguments) => pull::run(&arguments, &store),
        Command::List(arguments) => list::run(&arguments, &store),
        Command::Show(arguments) => show::run(&arguments, &store),
        Command::Rm(arguments) => rm::run(&arguments, &store),
        Command::Bench(arguments) => bench::run(arguments, &file, &store),
        Command::Completions(_) | Command::Doctor(_) => unreachable!("read no config and have run"),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}

/// The error and its causes, without those that an error's own text repeats.
fn with_causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match &*text {
        "" => cause,
        text if text.ends_with(&cause) => text.to_owned(),
        text => format!("{text}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use base_mlx_core::store::StoreError;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_cause_is_named_once() {
        let path = "/x".into();
        let source = io::ErrorKind::PermissionDenied.into();
        let error = anyhow::Error::from(StoreError::Io { action: "read", path, source });
        let error = error.context("no model");
        assert_eq!(with_causes(&error), "no model: cannot read /x: permission denied");
    }
}
