use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base_mlx_core::engine::{EncodeError, Encoder, Purpose};
use base_mlx_core::store::{DEFAULT_ENCODER, Store};
use clap::Args;

use crate::config::{Compute, ConfigFile};
use crate::models;

/// Turn texts into vectors
///
/// Prints a JSON array for each text, a line each, in their order.
#[derive(Args)]
pub(crate) struct Arguments {
    #[arg(required_unless_present = "file")]
    texts: Vec<String>,
    /// A text a line; `-` is stdin
    #[arg(long, value_name = "PATH", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// An alias, `owner/name` on the hub, a folder or a GGUF file; pulled if missing
    #[arg(long, default_value = DEFAULT_ENCODER)]
    model: String,
    /// Which of the model's own prompts stands before each text, such as query
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,
    /// Only so many values of each vector, for models that were trained for it
    #[arg(long, value_name = "COUNT")]
    dimensions: Option<usize>,
    #[command(flatten)]
    compute: Compute,
}

pub(crate) fn run(arguments: &Arguments, file: &ConfigFile, store: &Store) -> Result<()> {
    let model = models::find_or_pull(store, &arguments.model)?;
    let device = arguments.compute.start_device(file, store)?;
    let options = arguments.compute.engine(file);
    let encoder = Encoder::start(&model.path, &model.name, &device, &options)?;
    ensure!(
        encoder.info().purpose == Purpose::Embed,
        "{} scores pairs of texts, and makes no vectors of them\nhint: it answers at /v1/rerank",
        model.name
    );
    let prompt = encoder.info().prompt(arguments.prompt_name.as_deref())?;
    let all = encoder.info().dimensions;
    let dimensions = arguments.dimensions.unwrap_or(all);
    ensure!(
        (1..=all).contains(&dimensions),
        "--dimensions is {dimensions}, the model's vectors have {all}"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut stdout = io::stdout().lock();
    let mut first = 1;
    let mut texts = arguments.texts()?;
    loop {
        // What comes before a text that is wrong is printed all the same.
        let (mut some, mut wrong) = (Vec::new(), None);
        for text in texts.by_ref().take(AT_ONCE) {
            match text {
                Ok(text) => some.push(text),
                Err(error) => {
                    wrong = Some(error);
                    break;
                }
            }
        }
        if some.is_empty() {
            return wrong.map_or(Ok(()), Err);
        }
        let encodable = some.iter().map(|text| encoder.text(text, prompt, None)).collect();
        let vectors = runtime.block_on(encoder.encode(encodable));
        for vector in vectors.map_err(|error| with_place(error, first))? {
            let vector = encoder.info().shortened(vector, dimensions);
            serde_json::to_writer(&mut stdout, &vector)?;
            writeln!(stdout)?;
        }
        if let Some(error) = wrong {
            return Err(error);
        }
        first += some.len();
    }
}

impl Arguments {
    /// One after the other; an empty one is an error.
    fn texts(&self) -> Result<Box<dyn Iterator<Item = Result<String>> + '_>> {
        let Some(path) = &self.file else {
            let texts = self.texts.iter().enumerate();
            return Ok(Box::new(texts.map(|(index, text)| not_empty(text.clone(), index + 1))));
        };
        let reader: Box<dyn BufRead> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            let file = File::open(path);
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            Box::new(BufReader::new(file))
        };
        let line = move |(index, line): (usize, io::Result<String>)| {
            let line = line.with_context(|| format!("cannot read {}", path.display()))?;
            not_empty(line, index + 1)
        };
        Ok(Box::new(reader.lines().enumerate().map(line)))
    }
}

fn not_empty(text: String, number: usize) -> Result<String> {
    ensure!(!text.is_empty(), "text {number} is empty");
    Ok(text)
}

/// With the text's number among all, `first` being that of the first one of these.
fn with_place(error: EncodeError, first: usize) -> EncodeError {
    match error {
        EncodeError::Empty { text } => EncodeError::Empty { text: text + first },
        EncodeError::TooLong { text, tokens, longest } => {
            EncodeError::TooLong { text: text + first, tokens, longest }
        }
        EncodeError::UnknownToken { text, token, vocab_size } => {
            EncodeError::UnknownToken { text: text + first, token, vocab_size }
        }
        other => other,
    }
}

/// So many texts are in memory together.
const AT_ONCE: usize = 1024;
