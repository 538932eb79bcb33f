//! The door to a running model: [`Engine`] takes requests and gives streams of [`Event`]s. Behind it one thread per
//! device runs the loop: plan, forward, choose, commit.
//!
//! The scheduler and the sequence hold no tensor, clock, thread or await, so a seed replays them. May import
//! everything else in this crate but `store`.

mod answer;
mod choice;
mod compute;
mod defaults;
mod device;
mod disk;
mod draft;
mod encoder;
mod event;
mod generation;
mod held;
mod log;
mod memory;
mod metrics;
mod pace;
mod prefix;
mod request;
mod runner;
mod scheduler;
mod sequence;
#[cfg(test)]
mod simulation;
mod start;
mod stop;
mod stored;

pub use crate::backend::KvFormat;
pub use defaults::SamplingDefaults;
pub use device::Device;
pub use disk::{KvDisk, KvDiskError};
pub use draft::Draft;
pub use encoder::{Encodable, EncodeError, Encoder, EncoderInfo, Purpose, UnknownPrompt};
pub use event::{Event, FinishReason, GenerateError, TokenLogprob, TopLogprob, Usage};
pub use generation::Generation;
pub use prefix::{Evicted, Found, Keep, KeptId, PrefixIndex};
pub use request::{GenerateRequest, Thinking};
pub use scheduler::{
    Dropped, Finished, Fork, Limits, Outcome, Plan, PlannedSpan, Refused, Scheduler, Source,
};
pub use sequence::{Cached, Sequence, SequenceId, Uncached};
pub use start::{DeviceKind, DeviceOptions};

use std::any::Any;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::mpsc::unbounded_channel;

use self::device::Port;
use self::log::RequestLog;
use self::runner::Submission;
use crate::grammar::{Constraint, GrammarError, Grammars};
use crate::text::Text;
use crate::text::output::GrammarSource;
use crate::weights::LoadError;

/// How a model is run.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Most tokens of one sequence, prompt and answer; `None`, or more than the model's, is the model's own limit. Half of
    /// the memory that is free when the model is loaded is the limit in any case.
    pub context: Option<usize>,
    /// Most sequences computed at once; more wait.
    pub parallel: usize,
    /// Most tokens computed in one step. More of them share the reading of the weights, fewer let running answers
    /// wait less for a prompt beside them. `None` is what suits the device.
    pub step_tokens: Option<usize>,
    /// Most bytes of keys and values over all sequences; `None` is what `parallel` full contexts need, as far as the device's
    /// memory goes.
    pub kv_bytes: Option<usize>,
    /// Most bytes of these that stay after their answers, for prompts that begin alike; running answers come first. `None`
    /// is all that those leave, 0 keeps none.
    pub prefix_bytes: Option<usize>,
    /// How many tokens drafts have; `None` is as many as are worth their time, which is measured.
    pub draft_tokens: Option<usize>,
    /// Most answers that wait for their turn; what comes on top is refused.
    pub queue: usize,
    /// How long a request may wait for its turn; `None` is as long as it likes.
    pub max_wait: Option<Duration>,
    /// What keys and values are kept as; `None` is what suits the device.
    pub kv_format: Option<KvFormat>,
    /// Where they outlive their place in memory.
    pub kv_disk: Option<KvDisk>,
    /// How the model writes calls, whatever its chat template says; `None` is what that says.
    pub tool_format: Option<String>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            context: None,
            parallel: 8,
            step_tokens: None,
            kv_bytes: None,
            prefix_bytes: None,
            draft_tokens: None,
            queue: 1024,
            max_wait: None,
            kv_format: None,
            kv_disk: None,
            tool_format: None,
        }
    }
}

/// What is known of a loaded model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// The id it was loaded under.
    pub name: String,
    /// `model_type` of its config.
    pub family: String,
    /// Most tokens of one sequence, prompt and answer.
    pub context: usize,
    /// The same of the model wherever there is room.
    pub trained: usize,
    pub vocab_size: usize,
    /// Bytes of the weights on disk.
    pub bytes: u64,
    /// Bytes of parameters that a step reads, however few its tokens.
    pub step_bytes: u64,
    /// Bytes that a sequence remembers of each token, and reads again for each token after it that sees it.
    pub kv_bytes_per_token: u64,
    /// What they are kept as; `None` if that has no name here.
    pub kv_format: Option<KvFormat>,
    pub sampling: SamplingDefaults,
}

/// A loaded model. Clones share it; it leaves the device when the last one and the last answer are gone.
#[derive(Clone)]
pub struct Engine {
    port: Arc<Port>,
    /// A `DraftModel` of the device's backend.
    draft_model: Arc<dyn Any + Send + Sync>,
    text: Arc<Text>,
    info: Arc<ModelInfo>,
    grammars: Arc<LazyGrammars>,
}

/// Made in the background while the model's first requests may already run.
type LazyGrammars = LazyLock<
    Result<Grammars, GrammarError>,
    Box<dyn FnOnce() -> Result<Grammars, GrammarError> + Send>,
>;

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_tuple("Engine").field(&self.info.name).finish()
    }
}

impl Engine {
    /// Loads the model at `path` (a folder or a `.gguf` file) for `device`. Blocks while it reads; running answers of
    /// other models go on meanwhile.
    pub fn start(
        path: &Path,
        name: &str,
        device: &Device,
        options: EngineOptions,
    ) -> Result<Self, LoadError> {
        start::engine(path, name, device, options)
    }

    /// Starts an answer. Errors known before the first token are returned here.
    pub fn generate(&self, mut request: GenerateRequest) -> Result<Generation, GenerateError> {
        let (prompt, context) = (request.prompt.len(), self.info.context);
        if prompt == 0 {
            return Err(GenerateError::PromptEmpty);
        }
        if prompt >= context {
            return Err(GenerateError::PromptTooLong { prompt, context });
        }
        // A tokenizer may know more tokens than the model has rows for.
        let vocab_size = self.info.vocab_size;
        if let Some(&token) = request.prompt.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(GenerateError::UnknownToken { token, vocab_size });
        }
        let draft_model = match &request.draft {
            Draft::Model(draft) => Some(self.drafted_by(draft)?),
            Draft::Nobody | Draft::PromptLookup => None,
        };
        let (events, receiver) = unbounded_channel();
        let log = RequestLog::new(&self.info.name, request.streamed);
        // Made here, as the device's thread has other things to do.
        let constraint = request.constraint.take();
        let constraints = constraint
            .map(|constraint| vec![constraint; request.choices.max(1)])
            .unwrap_or_default();
        let submission = Submission { request, constraints, draft_model, events, log };
        let request = self.port.submit(submission)?;
        Ok(Generation::new(receiver, self.port.clone(), request))
    }

    /// Fails if `draft` cannot draft for this model: where a token does not mean the same to both, or where they are on
    /// different devices.
    pub fn check_draft(&self, draft: &Engine) -> Result<(), GenerateError> {
        self.drafted_by(draft).map(|_| ())
    }

    fn drafted_by(&self, draft: &Engine) -> Result<Arc<dyn Any + Send + Sync>, GenerateError> {
        let unfit = |why: String| {
            let (draft, model) = (draft.info.name.clone(), self.info.name.clone());
            Err(GenerateError::DraftUnfit { draft, model, why })
        };
        if !self.port.same_device(&draft.port) {
            return unfit("they are on different devices".to_owned());
        }
        match self.text.tokenizer.difference(&draft.text.tokenizer) {
            None => Ok(Arc::clone(&draft.draft_model)),
            Some(token) => unfit(format!("token {token} is not the same in both vocabularies")),
        }
    }

    /// A grammar for this model's answers. Blocks for as long as compiling takes, and right after the model was loaded until
    /// its vocabulary is ready for grammars, a second at most.
    pub fn compile(&self, source: &GrammarSource) -> Result<Constraint, GrammarError> {
        LazyLock::force(&self.grammars).as_ref().map_err(GrammarError::clone)?.compile(source)
    }

    pub fn text(&self) -> &Text {
        &self.text
    }

    pub fn info(&self) -> &ModelInfo {
        &self.info
    }
}
