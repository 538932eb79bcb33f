use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use etcetera::BaseStrategy;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::runtime::Runtime;

use super::Conversation;
use super::input::{Command, Message};

/// Talks until the user leaves. `after` is told how each answer went.
pub(crate) fn talk(
    conversation: &mut Conversation,
    runtime: &Runtime,
    after: impl Fn(&super::Outcome) -> io::Result<()>,
) -> Result<()> {
    let mut editor = DefaultEditor::new().context("cannot use this terminal")?;
    let history = history_file();
    if let Some(file) = &history {
        // There is none the first time.
        let _ = editor.load_history(file);
    }
    writeln!(io::stdout(), "{}, /help shows what can be done", conversation.engine().info().name)?;
    let mut message = Message::default();
    loop {
        let line = match editor.readline(if message.is_open() { "... " } else { ">>> " }) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                message.take();
                writeln!(io::stdout(), "(/bye or Ctrl-D leaves)")?;
                continue;
            }
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error).context("cannot read from this terminal"),
        };
        let command = if message.is_open() { None } else { Command::parse(&line) };
        if command.is_some() {
            let _ = editor.add_history_entry(&line);
        }
        match command {
            Some(Command::Bye) => break,
            Some(command) => obey(command, conversation)?,
            None => {
                let Some(text) = message.push(&line).filter(|text| !text.trim().is_empty()) else {
                    continue;
                };
                let _ = editor.add_history_entry(&text);
                answer(&text, conversation, runtime, &after)?;
            }
        }
    }
    if let Some(file) = &history {
        save(&mut editor, file)?;
    }
    Ok(())
}

/// Ctrl-C ends the answer, not the program.
fn answer(
    text: &str,
    conversation: &mut Conversation,
    runtime: &Runtime,
    after: &impl Fn(&super::Outcome) -> io::Result<()>,
) -> Result<()> {
    let mut stdout = io::stdout();
    let asked = runtime.block_on(async {
        let interrupted = tokio::signal::ctrl_c();
        conversation.ask(text, &mut stdout, interrupted).await
    });
    writeln!(stdout)?;
    match asked {
        Ok(outcome) => {
            if outcome.reason.is_none() {
                writeln!(stdout, "(stopped)")?;
            }
            after(&outcome)?;
        }
        Err(error) => {
            writeln!(
                stdout,
                "error: {}\nhint: /reset begins a new conversation",
                crate::with_causes(&error)
            )?;
        }
    }
    Ok(())
}

fn obey(command: Command, conversation: &mut Conversation) -> Result<()> {
    let mut stdout = io::stdout();
    match command {
        Command::Help => stdout.write_all(HELP.as_bytes())?,
        Command::Reset => {
            conversation.reset();
            writeln!(stdout, "the conversation begins anew")?;
        }
        Command::Show => {
            let info = conversation.engine().info();
            writeln!(stdout, "model {} ({}, context {})", info.name, info.family, info.context)?;
            writeln!(stdout, "messages {}", conversation.len())?;
            for line in conversation.parameters.lines() {
                writeln!(stdout, "{line}")?;
            }
        }
        Command::Set { name, value } => match conversation.parameters.set(name, value) {
            Ok(()) => writeln!(stdout, "{name} is {value}")?,
            Err(error) => writeln!(stdout, "{error}")?,
        },
        Command::Unknown(word) => {
            writeln!(stdout, "there is no command /{word}\nhint: /help lists them")?;
        }
        Command::Bye => {}
    }
    Ok(())
}

fn history_file() -> Option<PathBuf> {
    let folders = etcetera::base_strategy::Xdg::new().ok()?;
    Some(folders.state_dir()?.join("base-mlx/history"))
}

fn save(editor: &mut DefaultEditor, file: &PathBuf) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    editor.save_history(file).with_context(|| format!("cannot write {}", file.display()))
}

const HELP: &str = "\
/set NAME VALUE   set temperature, top_k, top_p, min_p, seed, max_tokens, stop, system, …
/show             show the model and what is set
/reset            begin a new conversation
/bye              leave; so does Ctrl-D
Ctrl-C            stop the answer
A backslash at the end of a line continues the message; so does \"\"\" until the next \"\"\".
";
