//! Real templates against Python's jinja2, byte for byte.

use std::collections::BTreeMap;
use std::sync::Arc;

use base_mlx_core::text::{ChatInput, ChatTemplate, Clock};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::files;

/// Where the outcome is known to differ: template, conversations, why.
const KNOWN: &[(&str, &[&str], &str)] = &[
    ("CohereForAI-c4ai-command-r-plus-tool_use", WITHOUT_TOOLS, NONE),
    ("LFM2.5-8B-A1B", &["calls"], NONE),
    ("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", WITHOUT_TOOLS, NONE),
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", WITHOUT_TOOLS, NONE),
    ("llama-cpp-deepseek-r1", &["tools", "calls"], GENERATOR),
    ("meetkai-functionary-medium-v3.1", &["tools", "calls"], ESCAPED),
];
const WITHOUT_TOOLS: &[&str] =
    &["question", "turns", "finished", "parallel calls as strings", "thoughts"];
const NONE: &str = "Python fails to iterate over `none`; here there is nothing in it";
const GENERATOR: &str = "Python fails to turn a generator into JSON; here it is a list";
const ESCAPED: &str = "Python escapes JSON for HTML when a string joins it; a model wants it plain";

#[test]
fn real_templates_write_what_python_writes() {
    let conversations = files::golden("conversations.json");
    let expected = files::golden("templates.json");
    let sources = files::template_sources();
    assert_eq!(sources.len(), expected.as_object().unwrap().len());

    let (mut equal, mut different) = (0, Vec::new());
    for (name, source) in sources {
        let sources = BTreeMap::from([("default".to_owned(), source)]);
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let special = special.map(|(name, token)| (name.to_owned(), token.to_owned()));
        let template = ChatTemplate::compile(sources, BTreeMap::from(special), clock()).unwrap();
        for (conversation, expected) in expected[&name].as_object().unwrap() {
            let outcome = outcome(&template, &conversations[conversation]);
            if outcome == *expected {
                equal += 1;
            } else {
                println!("{name} · {conversation}: {expected} in Python, {outcome} here");
                different.push((name.clone(), conversation.clone()));
            }
        }
    }
    let known = KNOWN.iter().flat_map(|(name, conversations, _why)| {
        conversations.iter().map(|conversation| (name.to_string(), conversation.to_string()))
    });
    assert_eq!(different, known.collect::<Vec<_>>());
    assert_eq!(equal + different.len(), 560);
}

/// The length and the beginning of the hash of what was written, or `error`.
fn outcome(template: &ChatTemplate, conversation: &Value) -> String {
    let written = template.render_unchanged(&ChatInput {
        messages: &conversation["messages"],
        tools: conversation.get("tools"),
        add_generation_prompt: conversation["add_generation_prompt"].as_bool().unwrap(),
        kwargs: conversation["kwargs"].as_object().unwrap(),
    });
    match written {
        Ok(text) => {
            let hash = Sha256::digest(&text);
            let hash: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{} {hash}", text.len())
        }
        Err(_) => "error".to_owned(),
    }
}

fn clock() -> Clock {
    let now = jiff::civil::date(2026, 3, 7).at(9, 5, 3, 0).to_zoned(jiff::tz::TimeZone::UTC);
    let now = now.unwrap();
    Arc::new(move || now.clone())
}
