use std::collections::BTreeMap;
use std::io::{self, Write};

use anyhow::Result;
use base_mlx_core::store::{Bytes, ModelDir, OwnTemplate, Parameters, Store};
use base_mlx_core::text::Text;
use base_mlx_core::weights::Checkpoint;
use clap::Args;
use serde_json::{Value, json};

use super::list::write_aligned;

/// Show what a model is made of
#[derive(Args)]
pub(crate) struct Arguments {
    name: String,
    /// Only the chat template
    #[arg(long, conflicts_with = "json")]
    template: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, store: &Store) -> Result<()> {
    let model = store.find(&arguments.name)?;
    let checkpoint = Checkpoint::open(&model.path)?;
    let text = Text::load(&checkpoint)?;
    let mut stdout = io::stdout();
    let template = text.template.as_ref().map(|template| template.source());
    if arguments.template {
        anyhow::ensure!(
            template.is_some(),
            "{} has no chat template{}",
            model.name,
            foreign(&model)
        );
        writeln!(stdout, "{}", template.unwrap_or_default())?;
        return Ok(());
    }
    let config = checkpoint.config();
    let config: Vec<_> =
        CONFIG.iter().filter_map(|&key| Some((key, config.get(key)?.clone()))).collect();
    let mut kinds: BTreeMap<String, Kind> = BTreeMap::new();
    for tensor in checkpoint.tensors() {
        let kind = kinds.entry(tensor.kind).or_default();
        kind.tensors += 1;
        kind.bytes += tensor.bytes as u64;
    }
    let parameters = parameters(&model.extras.parameters);
    if arguments.json {
        let tensors = kinds.iter().map(
            |(name, kind)| json!({ "kind": name, "tensors": kind.tensors, "bytes": kind.bytes }),
        );
        let object = json!({
            "name": model.name,
            "path": model.path,
            "bytes": model.bytes,
            "config": config.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<serde_json::Map<_, _>>(),
            "end_tokens": text.end_tokens,
            "chat_template": template,
            "source": model.source.to_string(),
            "system": model.extras.system,
            "parameters": parameters.iter().cloned().collect::<serde_json::Map<_, _>>(),
            "tensors": tensors.collect::<Vec<_>>(),
        });
        writeln!(stdout, "{object:#}")?;
        return Ok(());
    }
    let no_template = format!("none{}", foreign(&model));
    let mut table = vec![
        ["name".to_owned(), model.name],
        ["kept by".to_owned(), model.source.to_string()],
        ["path".to_owned(), model.path.display().to_string()],
        ["size".to_owned(), Bytes(model.bytes).to_string()],
    ];
    for (key, value) in config {
        table.push([key.to_owned(), value.to_string()]);
    }
    let ends = text.end_tokens.iter().map(|&token| {
        let name = String::from_utf8_lossy(text.tokenizer.token_bytes(token));
        format!("{token} {name}")
    });
    table.push(["end tokens".to_owned(), ends.collect::<Vec<_>>().join(", ")]);
    let template = match template {
        Some(source) => format!("{} characters (--template prints it)", source.chars().count()),
        None => no_template,
    };
    table.push(["chat template".to_owned(), template]);
    let system = model.extras.system.map(|text| ("system".to_owned(), Value::from(text)));
    for (name, value) in system.into_iter().chain(parameters) {
        table.push([name, value.to_string()]);
    }
    write_aligned(&mut stdout, &table)?;
    writeln!(stdout)?;
    let mut table = vec![["KIND", "TENSORS", "SIZE"].map(str::to_owned)];
    for (name, kind) in kinds {
        table.push([name, kind.tensors.to_string(), Bytes(kind.bytes).to_string()]);
    }
    write_aligned(&mut stdout, &table)?;
    Ok(())
}

/// That there is one, but none that could be read.
fn foreign(model: &ModelDir) -> &'static str {
    match model.extras.template {
        OwnTemplate::Absent => "",
        OwnTemplate::Go => {
            " in its GGUF file; Ollama's own, in Go's template language, is not read"
        }
    }
}

/// What is kept beside the model for requests that leave it open, in Ollama's words.
fn parameters(given: &Parameters) -> Vec<(String, Value)> {
    let values = [
        ("temperature", given.temperature.map(Value::from)),
        ("top_k", given.top_k.map(Value::from)),
        ("top_p", given.top_p.map(Value::from)),
        ("min_p", given.min_p.map(Value::from)),
        ("repeat_penalty", given.repeat_penalty.map(Value::from)),
        ("presence_penalty", given.presence_penalty.map(Value::from)),
        ("frequency_penalty", given.frequency_penalty.map(Value::from)),
        ("seed", given.seed.map(Value::from)),
        ("num_predict", given.num_predict.map(Value::from)),
        ("stop", (!given.stop.is_empty()).then(|| Value::from(given.stop.clone()))),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

#[derive(Default)]
struct Kind {
    tensors: usize,
    bytes: u64,
}

/// What people compare models by, in the spelling of `config.json`.
const CONFIG: &[&str] = &[
    "model_type",
    "max_position_embeddings",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "rope_theta",
    "rope_scaling",
    "rms_norm_eps",
    "tie_word_embeddings",
    "quantization",
];
