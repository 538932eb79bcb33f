//! Tool calls, by a model whose chat template knows tools and by one whose does not.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::{MODEL, SERVER, capital, content, streamed, user, with};

/// Knows tools.
const QWEN: &str = "qwen2.5-coder-0.5b";

fn weather() -> Value {
    json!({ "type": "function", "function": {
        "name": "get_weather", "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": { "type": "string", "maxLength": 20 },
                "unit": { "type": "string", "enum": ["celsius", "fahrenheit"] },
            },
            "required": ["city", "unit"], "additionalProperties": false,
        },
    } })
}

fn clock() -> Value {
    json!({ "type": "function", "function": {
        "name": "server.clock", "description": "The time of a city.",
        "parameters": {
            "type": "object", "properties": { "city": { "type": "string", "maxLength": 20 } },
            "required": ["city"], "additionalProperties": false,
        },
    } })
}

/// Greedy, with both tools.
fn ask(choice: Value) -> Value {
    json!({
        "model": QWEN, "temperature": 0, "max_tokens": 120,
        "messages": user("What is the weather in Paris, in celsius?"),
        "tools": [weather(), clock()], "tool_choice": choice,
    })
}

fn named(name: &str) -> Value {
    json!({ "type": "function", "function": { "name": name } })
}

fn allowed(mode: &str, name: &str) -> Value {
    json!({ "type": "allowed_tools", "allowed_tools": { "mode": mode, "tools": [named(name)] } })
}

/// The calls of a message, each with its name and its arguments.
#[track_caller]
fn calls(answer: &Value) -> Vec<(String, Value)> {
    let calls = answer["choices"][0]["message"]["tool_calls"].as_array();
    let calls = calls.unwrap_or_else(|| panic!("no calls in {answer}")).iter();
    calls
        .map(|call| {
            let function = &call["function"];
            let arguments = function["arguments"].as_str().unwrap();
            (
                function["name"].as_str().unwrap().to_owned(),
                serde_json::from_str(arguments).unwrap_or_else(|_| panic!("{arguments}")),
            )
        })
        .collect()
}

fn finish(answer: &Value) -> &str {
    answer["choices"][0]["finish_reason"].as_str().unwrap()
}

#[test]
fn point_31_calls_stand_in_the_message_and_content_is_null() {
    let answer = SERVER.chat(ask(json!("required"))).ok();
    let message = &answer["choices"][0]["message"];
    let keys: Vec<&String> = message.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["role", "content", "tool_calls", "refusal", "annotations"]);
    assert_eq!(message["content"], json!(null));
    let call = &message["tool_calls"][0];
    let keys: Vec<&String> = call.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "type", "function"]);
    assert_eq!(call["type"], "function");
    assert_eq!(
        calls(&answer)[0],
        ("get_weather".to_owned(), json!({ "city": "Paris", "unit": "celsius" }))
    );
    assert_eq!(finish(&answer), "tool_calls");
    let plain = SERVER.chat(with(capital(), json!({ "max_tokens": 1 }))).ok();
    assert!(plain["choices"][0]["message"].get("tool_calls").is_none());
}

#[test]
fn point_32_33_a_streamed_call_says_its_name_and_id_once() {
    let whole = SERVER.chat(ask(json!("required"))).ok();
    let reply = SERVER.chat(with(ask(json!("required")), json!({ "stream": true })));
    let chunks = reply.chunks();
    let mut put_together: Vec<(String, String)> = Vec::new();
    let mut ids = HashSet::new();
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        for call in
            choice["delta"].get("tool_calls").and_then(Value::as_array).into_iter().flatten()
        {
            assert_eq!(choice["finish_reason"], json!(null));
            let index = call["index"].as_u64().unwrap() as usize;
            let function = &call["function"];
            let keys: Vec<&String> = call.as_object().unwrap().keys().collect();
            let arguments = function["arguments"].as_str().unwrap();
            if index == put_together.len() {
                assert_eq!(keys, ["index", "id", "type", "function"]);
                assert_eq!((&call["type"], arguments), (&json!("function"), ""));
                let id = call["id"].as_str().unwrap().strip_prefix("call_").unwrap();
                assert!(id.len() == 24 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
                assert!(ids.insert(id.to_owned()));
                put_together.push((function["name"].as_str().unwrap().to_owned(), String::new()));
            } else {
                assert_eq!(keys, ["index", "function"]);
                assert_eq!(function.as_object().unwrap().len(), 1);
                assert_eq!(index, put_together.len() - 1, "calls come one after another");
                put_together[index].1.push_str(arguments);
            }
        }
    }
    // Point 17.
    let expected: Vec<(String, String)> = whole["choices"][0]["message"]["tool_calls"]
        .as_array()
        .unwrap()
        .iter()
        .map(|call| {
            let text = |key: &str| call["function"][key].as_str().unwrap().to_owned();
            (text("name"), text("arguments"))
        })
        .collect();
    assert_eq!(put_together, expected);
    assert_eq!(streamed(&chunks, 0), "");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("tool_calls")));
    let pieces = chunks.len();
    assert!(pieces > 8, "arguments come as they are written, not in {pieces} chunks");
}

#[test]
fn point_34_none_shows_the_tools_and_calls_none() {
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let none = SERVER.chat(ask(json!("none"))).ok();
    assert!(none["choices"][0]["message"].get("tool_calls").is_none());
    assert!(!content(&none).is_empty());
    assert_ne!(finish(&none), "tool_calls");
    // Whatever may be called, the prompt is the same, and so is its place in the cache.
    for choice in
        [json!("auto"), json!("required"), named("server.clock"), allowed("auto", "get_weather")]
    {
        let body = with(ask(choice.clone()), json!({ "max_tokens": 1 }));
        assert_eq!(prompt(&SERVER.chat(body).ok()), prompt(&none), "{choice}");
    }
    let body = json!({ "model": QWEN, "messages": ask(json!(null))["messages"], "max_tokens": 1 });
    assert!(prompt(&SERVER.chat(body).ok()) < prompt(&none));
}

#[test]
fn point_34_named_required_and_allowed_tools_are_called() {
    let names = |choice: Value| -> HashSet<String> {
        let answer = SERVER.chat(ask(choice)).ok();
        calls(&answer).into_iter().map(|(name, _)| name).collect()
    };
    let only = |name: &str| HashSet::from([name.to_owned()]);
    assert_eq!(names(named("server.clock")), only("server.clock"));
    assert_eq!(names(allowed("required", "server.clock")), only("server.clock"));
    assert!(!names(json!("required")).is_empty());
    // What has nothing to do with the tools is called for all the same.
    let unasked = with(ask(json!("required")), json!({ "messages": user("Say hello.") }));
    assert!(!calls(&SERVER.chat(unasked).ok()).is_empty());
}

#[test]
fn point_34_a_choice_without_its_tool_is_refused() {
    for choice in [named("no_such_tool"), allowed("auto", "no_such_tool"), json!("sometimes")] {
        assert_eq!(SERVER.chat(ask(choice)).error(400)["param"], "tool_choice");
    }
    for choice in [json!("auto"), json!("required"), named("f")] {
        let error = SERVER.chat(with(capital(), json!({ "tool_choice": choice }))).error(400);
        assert_eq!(error["param"], "tool_choice");
    }
}

#[test]
fn point_35_one_call_is_one_call() {
    let body = json!({
        "messages": user("What are the weather and the time in Paris, Rome and Oslo?"),
        "parallel_tool_calls": false,
    });
    let answer = SERVER.chat(with(ask(json!("required")), body)).ok();
    assert_eq!(calls(&answer).len(), 1);
    assert_eq!(finish(&answer), "tool_calls");
    // It ended by itself and was not cut.
    assert!(answer["usage"]["completion_tokens"].as_u64() < Some(60), "{answer}");
}

#[test]
fn point_22_a_named_call_finishes_with_stop() {
    let answer = SERVER.chat(ask(named("get_weather"))).ok();
    assert_eq!(calls(&answer).len(), 1);
    assert_eq!(finish(&answer), "stop");
    let reply = SERVER.chat(with(ask(named("get_weather")), json!({ "stream": true })));
    assert_eq!(reply.chunks().last().unwrap()["choices"][0]["finish_reason"], "stop");
    // Point 21: cut off is cut off.
    let cut = SERVER.chat(with(ask(named("get_weather")), json!({ "max_tokens": 12 }))).ok();
    assert_eq!(finish(&cut), "length");
    let cut = SERVER.chat(with(ask(json!("required")), json!({ "max_tokens": 12 }))).ok();
    assert_eq!(finish(&cut), "length");
}

#[test]
fn point_36_arguments_are_what_the_schema_says() {
    let schema = json!({
        "type": "object",
        "properties": {
            "count": { "type": "integer", "minimum": 1, "maximum": 99 },
            "ratio": { "type": "number" },
            "exact": { "type": "boolean" },
            "nothing": { "type": "null" },
            "kinds": { "type": "array", "items": { "enum": ["a", "b"] }, "minItems": 1, "maxItems": 2 },
        },
        "required": ["count", "ratio", "exact", "nothing", "kinds"], "additionalProperties": false,
    });
    let tool = |strict: bool| {
        let function = json!({ "name": "measure", "strict": strict, "parameters": schema });
        json!([{ "type": "function", "function": function }])
    };
    for (seed, strict) in [(1, true), (2, true), (3, false)] {
        let fields = json!({
            "tools": tool(strict), "seed": seed, "temperature": 0.3, "parallel_tool_calls": false,
            "messages": user("Measure with a count of 7, a ratio of 0.5, exactly, of kind a."),
        });
        let answer = SERVER.chat(with(ask(json!("required")), fields)).ok();
        let (name, arguments) = calls(&answer).remove(0);
        assert_eq!(name, "measure");
        let keys: Vec<&String> = arguments.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["count", "ratio", "exact", "nothing", "kinds"]);
        assert!((1..=99).contains(&arguments["count"].as_i64().unwrap()), "{arguments}");
        assert!(arguments["ratio"].is_number() && arguments["exact"].is_boolean());
        assert!(arguments["nothing"].is_null());
        let kinds = arguments["kinds"].as_array().unwrap();
        assert!(kinds.iter().all(|kind| kind == "a" || kind == "b") && !kinds.is_empty());
    }
    let empty = json!([{ "type": "function", "function": { "name": "ping" } }]);
    let answer = SERVER.chat(with(ask(json!("required")), json!({ "tools": empty }))).ok();
    assert_eq!(calls(&answer)[0], ("ping".to_owned(), json!({})));
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], "{}");
}

#[test]
fn point_37_names_are_checked_and_dots_are_let_be() {
    let with_name = |name: &str| {
        let tools = json!([{ "type": "function", "function": { "name": name } }]);
        SERVER.chat(with(capital(), json!({ "tools": tools, "max_tokens": 1 })))
    };
    for name in ["", "get weather", "a/b", "größe", &"x".repeat(65)] {
        assert_eq!(with_name(name).error(400)["param"], "tools[0].function.name", "{name:?}");
    }
    with_name("mcp.server-1_tool").ok();
    let twice = json!({ "tools": [clock(), clock()] });
    let error = SERVER.chat(with(capital(), twice)).error(400);
    assert_eq!(error["param"], "tools[1].function.name");
    let web = json!({ "tools": [{ "type": "web_search" }] });
    assert_eq!(SERVER.chat(with(capital(), web)).error(400)["param"], "tools[0].type");
}

#[test]
fn point_38_marks_never_show_in_the_content() {
    for (question, most) in [
        ("What is the weather in Paris, in celsius?", 120),
        ("Say \"Let me look.\" and then look up the weather in Paris, in celsius.", 120),
        ("Explain in one sentence what a <tool_call> is.", 40),
        // Cut off in the middle of whatever it is.
        ("What is the weather in Paris, in celsius?", 2),
        ("What is the weather in Paris, in celsius?", 5),
        ("What is the weather in Paris, in celsius?", 9),
    ] {
        let fields = json!({ "messages": user(question), "max_tokens": most });
        let body = with(ask(json!("auto")), fields);
        let whole = SERVER.chat(body.clone()).ok();
        let text = whole["choices"][0]["message"]["content"].as_str().unwrap_or_default();
        let called = whole["choices"][0]["message"].get("tool_calls").is_some();
        assert!(!called || !text.contains("<tool_call>"), "{whole}");
        assert!(!text.ends_with("<tool_"), "{whole}");
        assert_eq!(called && finish(&whole) != "length", finish(&whole) == "tool_calls", "{whole}");
        // Point 17.
        let chunks = SERVER.chat(with(body, json!({ "stream": true }))).chunks();
        assert_eq!(streamed(&chunks, 0), text);
    }
}

#[test]
fn point_20_stops_do_not_end_calls() {
    let function = json!({ "name": "say", "parameters": {
        "type": "object", "properties": { "word": { "enum": ["STOP"] } }, "required": ["word"],
        "additionalProperties": false,
    } });
    let fields = json!({
        "tools": [{ "type": "function", "function": function }],
        "stop": ["STOP", "tool", "name", "{"], "messages": user("Say it."),
    });
    let body = with(ask(named("say")), fields);
    assert_eq!(calls(&SERVER.chat(body).ok()), [("say".to_owned(), json!({ "word": "STOP" }))]);
}

#[test]
fn point_28_several_calls_and_their_results_are_read_back() {
    let call = |id: &str, city: &str, arguments: Value| {
        let arguments = with(json!({ "city": city }), arguments).to_string();
        json!({ "id": id, "type": "function", "function": { "name": "get_weather", "arguments": arguments } })
    };
    let conversation = json!([
        { "role": "user", "content": "What is the weather in Paris and in Rome?" },
        { "role": "assistant", "content": null, "tool_calls": [
            call("call_1", "Paris", json!({ "unit": "celsius" })), call("call_2", "Rome", json!({})),
        ] },
        { "role": "tool", "tool_call_id": "call_1", "content": "17 degrees, rain" },
        { "role": "tool", "tool_call_id": "call_2", "content": "29 degrees, sun" },
        { "role": "user", "content": "Tell me about both in one sentence." },
    ]);
    for model in [QWEN, MODEL] {
        let body =
            json!({ "model": model, "messages": conversation, "max_tokens": 60, "temperature": 0 });
        let answer = SERVER.chat(body).ok();
        let text = content(&answer);
        assert!(text.contains("17") || text.contains("29"), "{model}: {text}");
    }
}

#[test]
fn tools_reach_a_model_whose_template_knows_none() {
    let fields = |choice: &str| json!({ "model": MODEL, "tool_choice": choice, "parallel_tool_calls": false });
    let answer = SERVER.chat(with(ask(json!(null)), fields("required"))).ok();
    assert_eq!(calls(&answer)[0].0, "get_weather");
    assert_eq!(finish(&answer), "tool_calls");
    let none = SERVER.chat(with(ask(json!(null)), fields("none"))).ok();
    assert!(none["choices"][0]["message"].get("tool_calls").is_none());
    let with_tools = none["usage"]["prompt_tokens"].as_u64().unwrap();
    let body = json!({ "messages": ask(json!(null))["messages"], "max_tokens": 1 });
    let without = SERVER.chat(body).ok()["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(with_tools > without + 100, "{with_tools} and {without}");
}

#[test]
fn functions_of_old_are_called_as_of_old() {
    let function = weather()["function"].clone();
    let body = json!({
        "model": QWEN, "temperature": 0, "max_tokens": 80, "functions": [function],
        "function_call": { "name": "get_weather" },
        "messages": user("What is the weather in Paris, in celsius?"),
    });
    let answer = SERVER.chat(body.clone()).ok();
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], json!(null));
    assert_eq!(message["function_call"]["name"], "get_weather");
    let arguments: Value =
        serde_json::from_str(message["function_call"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments["unit"], "celsius");
    assert!(message.get("tool_calls").is_none());
    let chunks = SERVER.chat(with(body, json!({ "stream": true }))).chunks();
    let pieces = chunks.iter().filter_map(|chunk| {
        chunk["choices"][0]["delta"].get("function_call")?["arguments"].as_str()
    });
    assert_eq!(message["function_call"]["arguments"], pieces.collect::<String>());
}

#[test]
fn what_is_cached_is_told_with_tools_too() {
    let body = |question: &str| {
        with(ask(json!("auto")), json!({ "messages": user(question), "max_tokens": 1 }))
    };
    SERVER.chat(body("What is the weather in Lima, where the sea is cold?")).ok();
    let again = SERVER.chat(body("What is the weather in Lima, where the sea is warm?"));
    let told = again.header("x-base-mlx-cache").unwrap();
    assert!(
        told.contains("reason=first-difference@") && told.contains("(message 1, user)"),
        "{told}"
    );
}

#[test]
fn point_29_an_image_is_refused_by_a_model_of_text() {
    let part = |url: Value| {
        json!([{ "role": "user", "content": [
        { "type": "text", "text": "What is this?" }, { "type": "image_url", "image_url": url },
    ] }])
    };
    for url in [
        json!({ "url": "data:image/png;base64,AA==", "detail": "low" }),
        json!("http://127.0.0.1/a.png"),
    ] {
        for stream in [false, true] {
            let body = json!({ "messages": part(url.clone()), "stream": stream });
            let error = SERVER.chat(body).error(400);
            assert_eq!(error["param"], "messages[0].content[1].type");
        }
    }
}
