use std::io::{self, IsTerminal, Read, Write};

use anyhow::{Context, Result, bail};
use base_mlx_core::engine::{Device, Draft, Engine, EngineOptions};
use base_mlx_core::store::{OwnTemplate, Store};
use base_mlx_server::{DraftName, Preset};
use clap::Args;

use crate::chat::{self, Conversation, Outcome, Parameters};
use crate::config::{Compute, ConfigFile};
use crate::models;

/// Ask a model, or chat with it
///
/// What is piped in is the prompt, or follows it after a blank line. Without either a chat begins on a terminal.
#[derive(Args)]
pub(crate) struct Arguments {
    /// An alias, `owner/name` on the hub, a folder, a .gguf file or a model of Ollama's; pulled if missing
    model: String,
    prompt: Option<String>,
    #[command(flatten)]
    parameters: Parameters,
    #[command(flatten)]
    compute: Compute,
    /// Who guesses at the answer to make it faster: a small model's name, or prompt-lookup [default: none]
    #[arg(long, env = "BASE_MLX_DRAFT", value_name = "NAME")]
    draft: Option<String>,
    /// Tell on stderr how long it took, and on what
    #[arg(long, short)]
    verbose: bool,
}

pub(crate) fn run(arguments: Arguments, file: &ConfigFile, store: &Store) -> Result<()> {
    let prompt = arguments.prompt()?;
    let model = models::find_or_pull(store, &arguments.model)?;
    let device = arguments.compute.start_device(file, store)?;
    let options = EngineOptions { parallel: 1, ..arguments.compute.engine(file) };
    let engine = Engine::start(&model.path, &model.name, &device, options.clone())?;
    if engine.text().template.is_none() && model.extras.template == OwnTemplate::Go {
        writeln!(io::stderr(), "warning: {} {NO_TEMPLATE}", model.name)?;
    }
    let draft = arguments.draft.as_ref().or(file.draft.as_ref());
    let draft = match draft.map_or(DraftName::Nobody, |name| DraftName::from(&name[..])) {
        DraftName::Nobody => Draft::Nobody,
        DraftName::PromptLookup => Draft::PromptLookup,
        DraftName::Model(name) => {
            let model = models::find_or_pull(store, &name)?;
            let draft = Engine::start(&model.path, &model.name, &device, options)?;
            engine.check_draft(&draft)?;
            Draft::Model(draft)
        }
    };
    let preset = Preset::new(&model.extras, &engine.info().sampling);
    let mut conversation = Conversation::new(engine, draft, preset, arguments.parameters);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot listen to signals")?;
    let verbose = arguments.verbose;
    let after = |outcome: &Outcome| if verbose { report(outcome, &device) } else { Ok(()) };
    let Some(prompt) = prompt else { return chat::talk(&mut conversation, &runtime, after) };

    let mut stdout = io::stdout();
    let outcome =
        runtime.block_on(conversation.ask(&prompt, &mut stdout, std::future::pending::<()>()))?;
    writeln!(stdout)?;
    after(&outcome)?;
    Ok(())
}

impl Arguments {
    /// `None` asks for a chat.
    fn prompt(&self) -> Result<Option<String>> {
        if io::stdin().is_terminal() {
            return Ok(self.prompt.clone());
        }
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("cannot read stdin")?;
        match (&self.prompt, text.trim_end()) {
            (None, "") => bail!(
                "the prompt on stdin is empty\nhint: base-mlx run {} \"a question\"",
                self.model
            ),
            (None, piped) => Ok(Some(piped.to_owned())),
            (Some(prompt), "") => Ok(Some(prompt.clone())),
            (Some(prompt), piped) => Ok(Some(format!("{prompt}\n\n{piped}"))),
        }
    }
}

fn report(outcome: &Outcome, device: &Device) -> io::Result<()> {
    let Some(usage) = outcome.usage else { return Ok(()) };
    let mut stderr = io::stderr();
    let rate =
        |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    let (first, rest) = (outcome.first.as_secs_f64(), outcome.rest.as_secs_f64());
    let (prompt, answer) = (usage.prompt_tokens, usage.completion_tokens);
    let computed = prompt.saturating_sub(usage.cached_tokens);
    writeln!(stderr, "prompt: {prompt} tokens, {first:.2} s, {:.1} tok/s", rate(computed, first))?;
    // The first token comes with the prompt's time.
    let later = answer.saturating_sub(1);
    writeln!(stderr, "answer: {answer} tokens, {rest:.2} s, {:.1} tok/s", rate(later, rest))?;
    writeln!(stderr, "device: {}", device.describe())
}

/// Said of a model, after its name.
pub(super) const NO_TEMPLATE: &str = "has no chat template in its GGUF file (`tokenizer.chat_template`), and Ollama's own, written \
     in Go's template language, is not read: it goes on with your text as it is";
