use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;

use super::pooling::Pooling;
use super::queue::Queue;
use super::runner::EncoderRunner;
use super::sentence::Sentence;
use super::{Encoder, EncoderInfo, Purpose};
use crate::backend::{Backend, KvFormat};
use crate::engine::EngineOptions;
use crate::engine::device::{Device, Runner};
use crate::engine::memory::Wish;
use crate::engine::start::{AnyBackend, enter};
use crate::models;
use crate::text::Text;
use crate::weights::{Checkpoint, Config, LoadError};

/// Behind [`Encoder::start`].
pub(super) fn encoder(
    path: &Path,
    name: &str,
    device: &Device,
    options: &EngineOptions,
) -> Result<Encoder, LoadError> {
    let (jobs, incoming) = channel();
    let queue = Queue::new(incoming);
    let place = Place { path, name, device, options };
    let Loaded { runner, text, sentence, info } = match device.backend() {
        AnyBackend::Cpu(backend) => {
            // Nothing is kept for long, so it is kept as it is. Rounded products turn a vector by less than a thousandth.
            load(&backend.rounding_to_gain().with_kv(KvFormat::F32), place, queue)?
        }
        AnyBackend::Mlx(backend) => load(backend, place, queue)?,
    };
    let port = device.thread().add(runner);
    Ok(Encoder {
        port,
        jobs,
        text: Arc::new(text),
        sentence: Arc::new(sentence),
        info: Arc::new(info),
    })
}

struct Loaded {
    runner: Box<dyn Runner>,
    text: Text,
    sentence: Sentence,
    info: EncoderInfo,
}

/// What is to be loaded, and where.
struct Place<'a> {
    path: &'a Path,
    name: &'a str,
    device: &'a Device,
    options: &'a EngineOptions,
}

fn load<B: Backend>(
    backend: &B,
    Place { path, name, device, options }: Place,
    queue: Queue,
) -> Result<Loaded, LoadError> {
    let checkpoint = Checkpoint::open(path)?;
    let purpose = Purpose::of_checkpoint(&checkpoint)?;
    let sentence = match purpose {
        Purpose::Generate => {
            let is = "it writes texts, and makes no vectors of them";
            return Err(LoadError::WrongPurpose { path: path.to_owned(), is });
        }
        Purpose::Embed => Sentence::told(path, checkpoint.gguf())?.unwrap_or_default(),
        Purpose::Rank => {
            Sentence { pooling: Pooling::First, normalize: false, ..Sentence::default() }
        }
    };
    let backend = backend.for_model(checkpoint.dtype(), None)?;
    let config = checkpoint.config();
    let of_family = models::longest_text(config)?;
    let trained = models::context(config)?;
    let longest = options.context.map_or(trained, |context| context.min(trained));
    let layers = match of_family {
        Some(_) => Vec::new(),
        None => {
            let layers = models::layers(&checkpoint)?;
            is_causal(config)?;
            layers
        }
    };
    // What can be computed in pieces lets others have their turns between them.
    let most = if layers.is_empty() { STEP_TOKENS } else { 0 };
    let step_tokens = options.step_tokens.unwrap_or_else(|| backend.step_tokens().max(most)).max(1);
    let on_disk: u64 = checkpoint.tensors().map(|tensor| tensor.bytes as u64).sum();
    // What cannot be computed in pieces makes a step of its own length.
    let rows = if layers.is_empty() { step_tokens.max(longest) } else { step_tokens };
    let workspace = rows * row_bytes(config)?;
    let fixed = on_disk as usize + workspace;
    let position: usize = layers.iter().map(|&layer| backend.kv_bytes(layer)).sum();
    let wish = match position {
        0 => Wish { fixed, position: 1, context: 1, most: 1 },
        position => Wish { fixed, position, context: longest, most: longest + step_tokens },
    };
    let room = enter(device, wish)?;
    // A large vocabulary takes as long to read as the weights of a small model.
    let (text, encoder) = std::thread::scope(|scope| {
        let text = scope.spawn(|| Text::load(&checkpoint));
        let encoder = match of_family {
            Some(_) => models::load_encoder(&checkpoint, &backend),
            None => models::load_states(&checkpoint, &backend)
                .map(|model| models::EncoderModel { model, scorer: None }),
        };
        (text.join().unwrap_or_else(|panic| resume_unwind(panic)), encoder)
    });
    let (text, encoder) = (text?, encoder?);
    device.ledger().weigh(&room, workspace + encoder.model.step_bytes().max(on_disk as usize))?;
    let info = EncoderInfo {
        name: name.to_owned(),
        family: config.model_type()?.to_owned(),
        purpose,
        trained,
        longest: if layers.is_empty() { longest } else { room.promised() },
        dimensions: if purpose == Purpose::Rank { 1 } else { hidden_size(config)? },
        normalized: sentence.normalize,
        knows_pairs: config.optional_count("type_vocab_size")? != Some(1),
        vocab_size: config.count("vocab_size")?,
        bytes: on_disk,
        prompts: sentence.prompts.clone(),
        default_prompt: sentence.default_prompt.clone(),
    };
    let runner = EncoderRunner {
        name: name.to_owned(),
        backend,
        encoder,
        pooling: sentence.pooling,
        normalize: sentence.normalize,
        step_tokens,
        room,
        queue,
        begun: Vec::new(),
        paused: None,
    };
    Ok(Loaded { runner: Box::new(runner), text, sentence, info })
}

/// Fails if the config says that tokens of a decoder see those behind them, or that it is computed by code of its own.
fn is_causal(config: &Config) -> Result<(), LoadError> {
    for (key, supported) in [("is_causal", true), ("use_bidirectional_attention", false)] {
        if config.bool_or(key, supported)? != supported {
            let what = format!("is {}, only {supported} is supported of decoders", !supported);
            return Err(config.error(key, &what));
        }
    }
    match config.get("auto_map").and_then(|map| map.get("AutoModel")) {
        None => Ok(()),
        Some(class) => {
            let what = format!("names the class {class}, which may compute something else");
            Err(config.error("auto_map", &what))
        }
    }
}

/// Bytes that a layer has of a token at once, roughly.
fn row_bytes(config: &Config) -> Result<usize, LoadError> {
    let inner =
        config.optional_count("n_inner")?.map_or_else(|| config.count("intermediate_size"), Ok);
    Ok((8 * hidden_size(config)? + 3 * inner?) * size_of::<f32>())
}

fn hidden_size(config: &Config) -> Result<usize, LoadError> {
    config.optional_count("n_embd")?.map_or_else(|| config.count("hidden_size"), Ok)
}

/// Of the CPU, where a product by few rows reads its weights as often as one by many.
const STEP_TOKENS: usize = 512;
