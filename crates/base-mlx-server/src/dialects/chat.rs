use base_mlx_core::engine::{Event, FinishReason, Usage};
use serde::Serialize;

use crate::dialects::logprobs::ChatLogprobs;
use crate::dialects::usage::UsageBody;
use crate::dialects::{Dialect, FINGERPRINT, Header};
use crate::events::Answer;

/// `chat.completion` and its chunks.
#[derive(Debug)]
pub(crate) struct Chat {
    pub header: Header,
    pub choices: usize,
    /// Were log probabilities asked for?
    pub logprobs: bool,
    /// Was the usage asked for at the end of the stream?
    pub include_usage: bool,
    /// Did it come behind all others?
    pub background: bool,
}

impl Chat {
    fn write(&self, choice: Option<ChunkChoice>, usage: Option<Usage>) -> String {
        let chunk = Chunk {
            id: &self.header.id,
            object: "chat.completion.chunk",
            created: self.header.created,
            model: &self.header.model,
            system_fingerprint: FINGERPRINT,
            choices: choice.into_iter().collect(),
            usage: self.include_usage.then(|| usage.map(UsageBody::from)),
        };
        serde_json::to_string(&chunk).expect("a chunk has string keys only")
    }
}

impl Dialect for Chat {
    const PROMPT: &'static str = "messages";

    fn answer(&mut self, answer: Answer) -> String {
        let choices = answer.choices.into_iter().enumerate().map(|(index, choice)| Choice {
            index,
            message: Message {
                role: "assistant",
                content: choice.text,
                refusal: None,
                annotations: [],
            },
            logprobs: self.logprobs.then(|| ChatLogprobs::new(choice.logprobs)),
            finish_reason: reason_name(choice.reason),
        });
        let completion = Completion {
            id: &self.header.id,
            object: "chat.completion",
            created: self.header.created,
            model: &self.header.model,
            choices: choices.collect(),
            usage: answer.usage.into(),
            service_tier: if self.background { "flex" } else { "default" },
            system_fingerprint: FINGERPRINT,
        };
        serde_json::to_string(&completion).expect("a completion has string keys only")
    }

    fn opening(&self) -> Vec<String> {
        let role = |index| ChunkChoice {
            index,
            delta: Delta { role: Some("assistant"), content: Some(String::new()) },
            logprobs: None,
            finish_reason: None,
        };
        (0..self.choices).map(|index| self.write(Some(role(index)), None)).collect()
    }

    fn chunk(&mut self, event: Event) -> Option<String> {
        let choice = match event {
            Event::Text { choice, text, logprobs } => ChunkChoice {
                index: choice,
                delta: Delta { role: None, content: Some(text) },
                logprobs: self.logprobs.then(|| ChatLogprobs::new(logprobs)),
                finish_reason: None,
            },
            Event::Finish { choice, reason } => ChunkChoice {
                index: choice,
                delta: Delta::default(),
                logprobs: None,
                finish_reason: Some(reason_name(reason)),
            },
            Event::Usage(usage) => {
                return self.include_usage.then(|| self.write(None, Some(usage)));
            }
            Event::Reasoning { .. } | Event::ToolStart { .. } | Event::ToolArgs { .. } => {
                return None;
            }
            Event::Begun(_) | Event::Prompt { .. } | Event::Error(_) => return None,
        };
        Some(self.write(Some(choice), None))
    }
}

pub(super) fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice>,
    usage: UsageBody,
    service_tier: &'static str,
    system_fingerprint: &'static str,
}

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
    annotations: [(); 0],
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: Vec<ChunkChoice>,
    /// Absent if not asked for, null on all chunks but the last otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::events::Choice as Folded;

    fn chat(include_usage: bool) -> Chat {
        let header = Header { id: "chatcmpl-1".into(), created: 5, model: "m".into() };
        Chat { header, choices: 2, logprobs: false, include_usage, background: false }
    }

    fn value(text: String) -> Value {
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn point_10_11_18_each_choice_has_its_role_content_and_finish_chunks() {
        let mut chat = chat(false);
        let roles: Vec<Value> = chat.opening().into_iter().map(value).collect();
        assert_eq!(
            roles[1],
            json!({
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m",
                "system_fingerprint": FINGERPRINT,
                "choices": [{ "index": 1, "delta": { "role": "assistant", "content": "" },
                    "logprobs": null, "finish_reason": null }],
            })
        );
        let text = Event::Text { choice: 1, text: "hi\n\"".into(), logprobs: vec![] };
        assert_eq!(
            value(chat.chunk(text).unwrap())["choices"],
            json!([{ "index": 1, "delta": { "content": "hi\n\"" }, "logprobs": null, "finish_reason": null }])
        );
        let finish = Event::Finish { choice: 0, reason: FinishReason::Length };
        assert_eq!(
            value(chat.chunk(finish).unwrap())["choices"],
            json!([{ "index": 0, "delta": {}, "logprobs": null, "finish_reason": "length" }])
        );
    }

    #[test]
    fn point_12_usage_is_absent_or_null_until_the_last_chunk() {
        let usage =
            Usage { prompt_tokens: 3, cached_tokens: 2, completion_tokens: 4, reasoning_tokens: 1 };
        assert_eq!(chat(false).chunk(Event::Usage(usage)), None);
        assert!(value(chat(false).opening().remove(0)).get("usage").is_none());

        let mut with_usage = chat(true);
        assert_eq!(value(with_usage.opening().remove(0))["usage"], json!(null));
        let last = value(with_usage.chunk(Event::Usage(usage)).unwrap());
        assert_eq!(last["choices"], json!([]));
        assert_eq!(
            last["usage"],
            json!({
                "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7,
                "prompt_tokens_details": { "cached_tokens": 2 },
                "completion_tokens_details": { "reasoning_tokens": 1 },
            })
        );
    }

    #[test]
    fn a_whole_answer_has_the_keys_that_strict_clients_want() {
        let choice = Folded { text: "hi".into(), logprobs: vec![], reason: FinishReason::Stop };
        let answer = Answer { choices: vec![choice], usage: Usage::default() };
        let body = value(chat(false).answer(answer));
        assert_eq!(
            body["choices"],
            json!([{
                "index": 0,
                "message": { "role": "assistant", "content": "hi", "refusal": null, "annotations": [] },
                "logprobs": null, "finish_reason": "stop",
            }])
        );
    }
}
