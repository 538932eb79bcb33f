//! Answers of the engine, folded so that they can be compared to the last bit.

use std::sync::LazyLock;

use base_mlx_core::engine::{
    Cached, Device, DeviceKind, DeviceOptions, Engine, Event, FinishReason, GenerateRequest,
    Generation, Usage,
};

/// One for all engines of a test file, as compute threads of several would fight.
pub(crate) static DEVICE: LazyLock<Device> = LazyLock::new(|| {
    let kind = DeviceKind::Cpu;
    Device::start(DeviceOptions { kind, ..DeviceOptions::default() }).unwrap()
});

/// An answer, folded: what each choice says with the log probabilities' bits, and why it ended.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) texts: Vec<String>,
    pub(crate) logprobs: Vec<Vec<(u32, u32, usize)>>,
    pub(crate) prompt_logprobs: Vec<u32>,
    pub(crate) reasons: Vec<Option<FinishReason>>,
    /// Of each choice: what it thought, and its calls, name and arguments.
    pub(crate) thoughts: Vec<String>,
    pub(crate) calls: Vec<Vec<(String, String)>>,
    pub(crate) usage: Usage,
    pub(crate) cached: Cached,
}

/// What of it was cached is nobody's affair but the clock's.
impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        let usage = |answer: &Self| Usage { cached_tokens: 0, ..answer.usage };
        let parts = |answer: &Self| (answer.texts.clone(), answer.logprobs.clone());
        let ends = |answer: &Self| (answer.prompt_logprobs.clone(), answer.reasons.clone());
        let others = |answer: &Self| (answer.thoughts.clone(), answer.calls.clone());
        usage(self) == usage(other)
            && others(self) == others(other)
            && parts(self) == parts(other)
            && ends(self) == ends(other)
    }
}

pub(crate) fn fold(generation: Generation) -> Answer {
    fold_begun(Cached::default(), generation)
}

/// The rest of one whose first event was taken.
pub(crate) fn fold_begun(cached: Cached, mut generation: Generation) -> Answer {
    let mut answer = Answer { cached, ..Answer::default() };
    let mut ended = false;
    while let Some(event) = generation.next_blocking() {
        assert!(!ended, "{event:?} after the last event");
        match event {
            Event::Begun(cached) => answer.cached = cached,
            Event::Text { choice, text, logprobs } => {
                answer.grow(choice);
                assert_eq!(answer.reasons[choice], None, "text after the end of its choice");
                answer.texts[choice].push_str(&text);
                let entries = logprobs.iter();
                answer.logprobs[choice]
                    .extend(entries.map(|e| (e.token, e.logprob.to_bits(), e.top.len())));
            }
            Event::Prompt { logprobs, .. } => {
                answer.prompt_logprobs = logprobs.iter().map(|e| e.logprob.to_bits()).collect();
            }
            Event::Reasoning { choice, text } => {
                answer.grow(choice);
                answer.thoughts[choice].push_str(&text);
            }
            Event::ToolStart { choice, call, name } => {
                answer.grow(choice);
                assert_eq!(answer.calls[choice].len(), call);
                answer.calls[choice].push((name, String::new()));
            }
            Event::ToolArgs { choice, call, text } => {
                let calls = &mut answer.calls[choice];
                assert_eq!(calls.len(), call + 1);
                calls[call].1.push_str(&text);
            }
            Event::Finish { choice, reason } => {
                answer.grow(choice);
                assert_eq!(answer.reasons[choice].replace(reason), None, "a choice ends once");
            }
            Event::Usage(usage) => {
                assert_eq!(usage.cached_tokens, answer.cached.tokens);
                answer.usage = usage;
                ended = true;
            }
            Event::Error(error) => panic!("{error}"),
        }
    }
    assert!(ended, "the stream broke off");
    answer
}

impl Answer {
    fn grow(&mut self, choice: usize) {
        let choices = self.texts.len().max(choice + 1);
        self.texts.resize_with(choices, String::new);
        self.logprobs.resize_with(choices, Vec::new);
        self.reasons.resize(choices, None);
        self.thoughts.resize_with(choices, String::new);
        self.calls.resize_with(choices, Vec::new);
    }
}

pub(crate) fn run(engine: &Engine, request: GenerateRequest) -> Answer {
    fold(engine.generate(request).unwrap())
}
