//! Any template may refuse or fail, but soon, and without taking the process along.

#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use base_mlx_core::text::{ChatInput, ChatTemplate, SpecialTokens};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|source: String| {
    let sources = BTreeMap::from([("default".to_owned(), source)]);
    let clock = Arc::new(|| jiff::Timestamp::UNIX_EPOCH.to_zoned(jiff::tz::TimeZone::UTC));
    let Ok(template) = ChatTemplate::compile(sources, SpecialTokens::new(), clock) else { return };
    let call = json!({ "id": "call00001", "type": "function",
        "function": { "name": "f", "arguments": "{\"a\": [1, 2.5, null]}" } });
    let messages = json!([
        { "role": "system", "content": "s" },
        { "role": "user", "content": [{ "type": "text", "text": "u" }] },
        { "role": "assistant", "content": null, "tool_calls": [call] },
        { "role": "tool", "tool_call_id": "call00001", "content": "t" },
    ]);
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": {} } }]);
    let input = ChatInput {
        messages: &messages,
        tools: Some(&tools),
        add_generation_prompt: true,
        kwargs: &serde_json::Map::new(),
    };
    let _ = template.render(&input);
    let _ = template.render_unchanged(&input);
});
