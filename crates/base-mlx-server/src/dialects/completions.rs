use base_mlx_core::engine::{Event, Usage};
use serde::Serialize;

use crate::dialects::chat::reason_name;
use crate::dialects::logprobs::{LegacyLogprobs, Offsets};
use crate::dialects::usage::UsageBody;
use crate::dialects::{Dialect, FINGERPRINT, Header};
use crate::events::Answer;

/// `text_completion`, whose chunks have the same form as the whole.
#[derive(Debug)]
pub(crate) struct Completions {
    pub header: Header,
    /// Were log probabilities asked for?
    pub logprobs: bool,
    /// Was the usage asked for at the end of the stream?
    pub include_usage: bool,
    /// Of each choice.
    pub offsets: Vec<Offsets>,
}

impl Completions {
    fn write(&self, choices: Vec<Choice>, usage: Option<Option<Usage>>) -> String {
        let body = Body {
            id: &self.header.id,
            object: "text_completion",
            created: self.header.created,
            model: &self.header.model,
            system_fingerprint: FINGERPRINT,
            choices,
            usage: usage.map(|usage| usage.map(UsageBody::from)),
        };
        serde_json::to_string(&body).expect("a completion has string keys only")
    }
}

impl Dialect for Completions {
    const PROMPT: &'static str = "prompt";

    fn answer(&mut self, answer: Answer) -> String {
        let mut choices = Vec::with_capacity(answer.choices.len());
        for (index, choice) in answer.choices.into_iter().enumerate() {
            choices.push(Choice {
                index,
                logprobs: self
                    .logprobs
                    .then(|| LegacyLogprobs::new(choice.logprobs, &mut self.offsets[index])),
                text: choice.text,
                finish_reason: Some(reason_name(choice.reason)),
            });
        }
        self.write(choices, Some(Some(answer.usage)))
    }

    fn opening(&self) -> Vec<String> {
        Vec::new()
    }

    fn chunk(&mut self, event: Event) -> Option<String> {
        let choice = match event {
            Event::Text { choice, text, logprobs } => Choice {
                index: choice,
                text,
                logprobs: self
                    .logprobs
                    .then(|| LegacyLogprobs::new(logprobs, &mut self.offsets[choice])),
                finish_reason: None,
            },
            Event::Finish { choice, reason } => Choice {
                index: choice,
                text: String::new(),
                logprobs: None,
                finish_reason: Some(reason_name(reason)),
            },
            Event::Usage(usage) => {
                return self.include_usage.then(|| self.write(Vec::new(), Some(Some(usage))));
            }
            // A plain text is neither thought nor call.
            Event::Reasoning { .. } | Event::ToolStart { .. } | Event::ToolArgs { .. } => {
                return None;
            }
            Event::Begun(_) | Event::Prompt { .. } | Event::Error(_) => return None,
        };
        Some(self.write(vec![choice], self.include_usage.then_some(None)))
    }
}

#[derive(Serialize)]
struct Body<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<Choice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<LegacyLogprobs>,
    finish_reason: Option<&'static str>,
}

#[cfg(test)]
mod tests {
    use base_mlx_core::engine::FinishReason;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn chunks_have_text_then_a_finish_then_the_usage() {
        let header = Header { id: "cmpl-1".into(), created: 5, model: "m".into() };
        let mut completions = Completions {
            header,
            logprobs: false,
            include_usage: true,
            offsets: vec![Offsets::default()],
        };
        let mut chunk =
            |event| -> Value { serde_json::from_str(&completions.chunk(event).unwrap()).unwrap() };
        let text = chunk(Event::Text { choice: 0, text: "a".into(), logprobs: vec![] });
        assert_eq!(
            text,
            json!({
                "id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m",
                "system_fingerprint": FINGERPRINT,
                "choices": [{ "index": 0, "text": "a", "logprobs": null, "finish_reason": null }],
                "usage": null,
            })
        );
        let finish = chunk(Event::Finish { choice: 0, reason: FinishReason::Stop });
        assert_eq!(finish["choices"][0]["finish_reason"], "stop");
        let last = chunk(Event::Usage(Usage::default()));
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["total_tokens"], 0);
    }
}
