use base_mlx_core::engine::{Event, FinishReason, Usage};
use serde::Serialize;

use crate::ReasoningField;
use crate::dialects::logprobs::ChatLogprobs;
use crate::dialects::message::{CallsAs, CallsBody, ReasoningBody};
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
    /// Where the model's thoughts are told.
    pub reasoning: ReasoningField,
    /// Did the request name the function to call?
    pub named: bool,
    pub calls: CallsAs,
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

    fn finish_reason(&self, reason: FinishReason) -> &'static str {
        match reason {
            // Who names a function knows that it is called: OpenAI says nothing new there.
            FinishReason::ToolCalls if self.named => "stop",
            FinishReason::ToolCalls if self.calls == CallsAs::FunctionCall => "function_call",
            reason => reason_name(reason),
        }
    }
}

impl Dialect for Chat {
    const PROMPT: &'static str = "messages";

    fn answer(&mut self, answer: Answer) -> String {
        let choices = answer.choices.into_iter().enumerate().map(|(index, choice)| Choice {
            index,
            message: Message {
                role: "assistant",
                content: (choice.calls.is_empty() || !choice.text.is_empty())
                    .then_some(choice.text),
                thoughts: ReasoningBody::new(choice.reasoning, self.reasoning),
                calls: CallsBody::whole(choice.calls, self.calls),
                refusal: None,
                annotations: [],
            },
            logprobs: self.logprobs.then(|| ChatLogprobs::new(choice.logprobs)),
            finish_reason: self.finish_reason(choice.reason),
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
        let role = |index| {
            let content = Some(String::new());
            let delta = Delta { role: Some("assistant"), content, ..Delta::default() };
            ChunkChoice::new(index, delta)
        };
        (0..self.choices).map(|index| self.write(Some(role(index)), None)).collect()
    }

    fn chunk(&mut self, event: Event) -> Option<String> {
        let choice = match event {
            Event::Text { choice, text, logprobs } => ChunkChoice {
                logprobs: self.logprobs.then(|| ChatLogprobs::new(logprobs)),
                ..ChunkChoice::new(choice, Delta { content: Some(text), ..Delta::default() })
            },
            Event::Reasoning { choice, text } => {
                let thoughts = ReasoningBody::new(text, self.reasoning);
                ChunkChoice::new(choice, Delta { thoughts, ..Delta::default() })
            }
            Event::ToolStart { choice, call, name } => {
                let calls = CallsBody::begun(call, name, self.calls);
                ChunkChoice::new(choice, Delta { calls, ..Delta::default() })
            }
            Event::ToolArgs { choice, call, text } => {
                let calls = CallsBody::more(call, text, self.calls);
                ChunkChoice::new(choice, Delta { calls, ..Delta::default() })
            }
            Event::Finish { choice, reason } => ChunkChoice {
                finish_reason: Some(self.finish_reason(reason)),
                ..ChunkChoice::new(choice, Delta::default())
            },
            Event::Usage(usage) => {
                return self.include_usage.then(|| self.write(None, Some(usage)));
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
    /// Null if the answer is nothing but calls.
    content: Option<String>,
    #[serde(flatten)]
    thoughts: ReasoningBody,
    #[serde(flatten)]
    calls: CallsBody,
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
    #[serde(flatten)]
    thoughts: ReasoningBody,
    #[serde(flatten)]
    calls: CallsBody,
}

impl ChunkChoice {
    fn new(index: usize, delta: Delta) -> Self {
        Self { index, delta, logprobs: None, finish_reason: None }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::events::{Call, Choice as Folded};

    fn chat(include_usage: bool) -> Chat {
        let header = Header { id: "chatcmpl-1".into(), created: 5, model: "m".into() };
        Chat {
            header,
            choices: 2,
            logprobs: false,
            include_usage,
            background: false,
            reasoning: ReasoningField::default(),
            named: false,
            calls: CallsAs::ToolCalls,
        }
    }

    fn value(text: String) -> Value {
        serde_json::from_str(&text).unwrap()
    }

    fn whole(chat: &mut Chat, choice: Folded) -> Value {
        value(chat.answer(Answer { choices: vec![choice], usage: Usage::default() }))
    }

    fn delta(chat: &mut Chat, event: Event) -> Value {
        value(chat.chunk(event).unwrap())["choices"][0].clone()
    }

    /// An answer that thinks, speaks and calls, as a whole; without the ids of its calls.
    fn called(chat: &mut Chat, text: &str) -> Value {
        let call = |name: &str| Call { name: name.into(), arguments: "{}".into() };
        let choice = Folded {
            text: text.into(),
            reasoning: "hm".into(),
            calls: vec![call("f"), call("g")],
            reason: FinishReason::ToolCalls,
            ..Folded::default()
        };
        let mut choice = whole(chat, choice)["choices"][0].take();
        let calls = choice["message"].get_mut("tool_calls").and_then(Value::as_array_mut);
        for call in calls.into_iter().flatten() {
            let id = call["id"].take();
            assert!(id.as_str().unwrap().starts_with("call_"));
        }
        choice
    }

    #[test]
    fn point_31_a_message_of_calls_has_null_for_content() {
        let function = |name: &str| json!({ "id": null, "type": "function", "function": { "name": name, "arguments": "{}" } });
        assert_eq!(
            called(&mut chat(false), ""),
            json!({
                "index": 0,
                "message": { "role": "assistant", "content": null, "reasoning_content": "hm",
                    "tool_calls": [function("f"), function("g")], "refusal": null, "annotations": [] },
                "logprobs": null, "finish_reason": "tool_calls",
            })
        );
        // Point 38.
        assert_eq!(called(&mut chat(false), "Well.")["message"]["content"], "Well.");
    }

    #[test]
    fn point_22_a_named_call_ends_with_stop_and_one_of_old_with_its_own_word() {
        let named = Chat { named: true, ..chat(false) };
        let old = Chat { calls: CallsAs::FunctionCall, ..chat(false) };
        for (mut chat, reason) in [(named, "stop"), (old, "function_call")] {
            assert_eq!(called(&mut chat, "")["finish_reason"], reason);
            let finish = |reason| Event::Finish { choice: 0, reason };
            let finished = delta(&mut chat, finish(FinishReason::ToolCalls));
            assert_eq!(finished["finish_reason"], reason);
            let cut = delta(&mut chat, finish(FinishReason::Length));
            assert_eq!(cut["finish_reason"], "length");
        }
    }

    #[test]
    fn point_32_a_calls_name_and_id_are_said_once() {
        let mut chat = chat(false);
        let start = |call, name: &str| Event::ToolStart { choice: 1, call, name: name.into() };
        let args = |call, text: &str| Event::ToolArgs { choice: 1, call, text: text.into() };
        for call in [0, 1] {
            let mut begun = delta(&mut chat, start(call, "f"));
            let id = begun["delta"]["tool_calls"][0]["id"].take();
            assert!(id.as_str().unwrap().starts_with("call_"));
            let function = json!({ "name": "f", "arguments": "" });
            let first =
                json!({ "index": call, "id": null, "type": "function", "function": function });
            assert_eq!(
                begun,
                json!({ "index": 1, "delta": { "tool_calls": [first] }, "logprobs": null, "finish_reason": null })
            );
            let more = json!({ "index": call, "function": { "arguments": "{\"a" } });
            assert_eq!(
                delta(&mut chat, args(call, "{\"a"))["delta"],
                json!({ "tool_calls": [more] })
            );
        }
        let mut old = Chat { calls: CallsAs::FunctionCall, ..chat };
        assert_eq!(
            delta(&mut old, start(0, "f"))["delta"],
            json!({ "function_call": { "name": "f", "arguments": "" } })
        );
        assert_eq!(
            delta(&mut old, args(0, "{}"))["delta"],
            json!({ "function_call": { "arguments": "{}" } })
        );
        let message = called(&mut old, "")["message"].take();
        assert_eq!(message["function_call"], json!({ "name": "f", "arguments": "{}" }));
        assert!(message.get("tool_calls").is_none());
    }

    #[test]
    fn point_48_thoughts_have_one_name_or_the_other_or_both() {
        for (field, names) in [
            (ReasoningField::ReasoningContent, vec!["reasoning_content"]),
            (ReasoningField::Reasoning, vec!["reasoning"]),
            (ReasoningField::Both, vec!["reasoning_content", "reasoning"]),
        ] {
            let mut chat = Chat { reasoning: field, ..chat(false) };
            let thought = Event::Reasoning { choice: 0, text: "hm".into() };
            let delta = delta(&mut chat, thought)["delta"].take();
            let keys: Vec<&String> = delta.as_object().unwrap().keys().collect();
            assert_eq!(keys, names);
            assert!(delta.as_object().unwrap().values().all(|text| text == "hm"));
            let message = called(&mut chat, "")["message"].take();
            for name in ["reasoning_content", "reasoning"] {
                let expected = names.contains(&name).then(|| json!("hm"));
                assert_eq!(message.get(name), expected.as_ref());
            }
        }
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
        let choice = Folded { text: "hi".into(), reason: FinishReason::Stop, ..Folded::default() };
        let body = whole(&mut chat(false), choice);
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
