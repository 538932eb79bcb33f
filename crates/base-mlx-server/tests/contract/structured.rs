//! Answers that are held to a schema or a grammar.

use serde_json::{Value, json};

use crate::support::{SERVER, capital, content, streamed, user, with};

const QWEN: &str = "qwen2.5-coder-0.5b";

fn schema_of(name: &str, schema: Value, strict: bool) -> Value {
    let given = json!({ "name": name, "schema": schema, "strict": strict });
    json!({ "type": "json_schema", "json_schema": given })
}

/// Asks for something of that schema.
fn ask(schema: Value) -> Value {
    json!({
        "messages": user("Make something up."), "max_tokens": 200, "temperature": 0,
        "response_format": schema_of("thing", schema, true),
    })
}

/// The answer's content, as JSON.
#[track_caller]
fn made(answer: &Value) -> Value {
    let text = content(answer);
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn finish(answer: &Value) -> &str {
    answer["choices"][0]["finish_reason"].as_str().unwrap()
}

#[test]
fn point_39_malformed_formats_are_named() {
    for (format, path) in [
        (json!(5), "response_format"),
        (json!({ "type": "yaml" }), "response_format.type"),
        (json!({ "type": "json_schema" }), "response_format.json_schema"),
        (
            json!({ "type": "json_schema", "json_schema": { "schema": {} } }),
            "response_format.json_schema.name",
        ),
        (
            json!({ "type": "json_schema", "json_schema": { "name": "n" } }),
            "response_format.json_schema.schema",
        ),
        (schema_of("n", json!({ "type": "strig" }), true), "response_format.json_schema.schema"),
        (
            schema_of("n", json!({ "$ref": "#/$defs/none" }), true),
            "response_format.json_schema.schema",
        ),
    ] {
        for stream in [false, true] {
            let body = json!({ "response_format": format, "stream": stream });
            let error = SERVER.chat(with(capital(), body)).error(400);
            assert_eq!(error["param"], "response_format", "{error}");
            assert!(error["message"].as_str().unwrap().contains(path), "{error}");
            assert_eq!(error["type"], "invalid_request_error");
        }
    }
    let text = json!({ "response_format": { "type": "text" } });
    assert_eq!(
        content(&SERVER.chat(with(capital(), text)).ok()),
        content(&SERVER.chat(capital()).ok())
    );
}

#[test]
fn point_39_a_json_object_is_one_object() {
    let fields = json!({
        "messages": user("Describe Paris as a JSON object with its country and whether it is a capital."),
        "response_format": { "type": "json_object" }, "max_tokens": 200,
    });
    let answer = SERVER.chat(with(capital(), with(fields, json!({ "model": QWEN })))).ok();
    assert_eq!(finish(&answer), "stop");
    assert!(made(&answer).is_object());
}

#[test]
fn point_40_the_answer_is_what_the_schema_says_in_its_order() {
    let schema = json!({
        "type": "object",
        "properties": {
            "zeta": { "type": "integer", "minimum": -5, "maximum": 500 },
            "alpha": { "type": "string", "maxLength": 12 },
            "mid": { "type": "array", "items": { "type": "integer", "maximum": 99, "minimum": 0 }, "maxItems": 3 },
            "kind": { "enum": ["a", 2, null] },
        },
        "required": ["zeta", "alpha", "mid", "kind"],
        "additionalProperties": false,
    });
    for seed in 1..6 {
        let fields = json!({ "seed": seed, "temperature": 1.0 });
        let body = with(ask(schema.clone()), fields);
        let answer = SERVER.chat(body.clone()).ok();
        let value = made(&answer);
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["zeta", "alpha", "mid", "kind"]);
        assert!((-5..=500).contains(&value["zeta"].as_i64().unwrap()), "{value}");
        assert!(value["alpha"].as_str().unwrap().chars().count() <= 12, "{value}");
        let numbers = value["mid"].as_array().unwrap();
        assert!(numbers.iter().all(Value::is_i64) && numbers.len() <= 3, "{value}");
        assert!([json!("a"), json!(2), json!(null)].contains(&value["kind"]));
        assert_eq!(finish(&answer), "stop");
        // Point 17.
        let chunks = SERVER.chat(with(body, json!({ "stream": true }))).chunks();
        assert_eq!(streamed(&chunks, 0), content(&answer));
    }
}

#[test]
fn point_40_the_answer_ends_only_where_the_grammar_may() {
    // The end token would be the model's first choice long before.
    let fields = json!({ "grammar": { "regex": "(one|two|three)( (one|two|three)){30}" }, "max_tokens": 100 });
    let answer = SERVER.chat(with(capital(), fields)).ok();
    assert_eq!(content(&answer).split(' ').count(), 31);
    assert_eq!(finish(&answer), "stop");
}

#[test]
fn point_41_what_is_cut_says_so() {
    let schema = json!({ "type": "object", "properties": { "name": { "type": "string", "minLength": 40 } }, "required": ["name"] });
    let answer = SERVER.chat(with(ask(schema), json!({ "max_tokens": 5 }))).ok();
    assert_eq!(finish(&answer), "length");
    let text = content(&answer);
    assert!(text.starts_with("{\"name\"") && serde_json::from_str::<Value>(text).is_err());
}

#[test]
fn point_42_a_grammar_that_allows_nothing_is_an_error() {
    // All that the grammar allows is banned.
    let bans: Value = (0..SERVER_VOCABULARY)
        .filter(|&token| crate::support::TEXT.tokenizer.token_bytes(token).contains(&b'x'))
        .map(|token| (token.to_string(), json!(-100)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert!(bans.as_object().unwrap().len() > 1);
    let body =
        json!({ "messages": user("Hi."), "grammar": { "choice": ["x"] }, "logit_bias": bans });
    let error = SERVER.chat(body.clone()).error(500);
    assert_eq!(error["type"], "server_error");
    let streamed = SERVER.chat(with(body, json!({ "stream": true })));
    if streamed.status == 200 {
        let data = streamed.data();
        assert!(data.last().unwrap().contains("\"error\""), "{data:?}");
        assert!(!data.iter().any(|data| data.contains("\"stop\"")), "{data:?}");
    } else {
        streamed.error(500);
    }
}

#[test]
fn point_43_schemas_of_apples_clients_compile() {
    let generable = json!({
        "title": "Itinerary", "type": "object", "additionalProperties": false,
        "x-order": ["title", "days", "mood"],
        "properties": {
            "title": { "type": "string", "description": "An exciting name.", "maxLength": 10 },
            "days": { "type": "array", "items": { "$ref": "#/$defs/DayPlan" }, "minItems": 1, "maxItems": 2 },
            "mood": { "type": "string", "enum": ["größer", "кот", "🙂"] },
        },
        "required": ["title", "days", "mood"],
        "$defs": { "DayPlan": {
            "title": "DayPlan", "type": "object", "additionalProperties": false,
            "properties": {
                "stars": { "type": "integer", "minimum": 1, "maximum": 5 },
                "price": { "type": "number", "minimum": 0, "maximum": 10 },
            },
            "required": ["stars", "price"],
        } },
    });
    let day = json!({ "$ref": "#/$defs/DayPlan", "$defs": generable["$defs"] });
    for (schema, check) in [
        (
            generable,
            (|made| {
                made["days"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|day| (1..=5).contains(&day["stars"].as_i64().unwrap()))
                    && ["größer", "кот", "🙂"].contains(&made["mood"].as_str().unwrap())
            }) as fn(&Value) -> bool,
        ),
        (day, |made| (0.0..=10.0).contains(&made["price"].as_f64().unwrap())),
        (
            json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 9 }, "minItems": 2, "maxItems": 3 }),
            |made| (2..=3).contains(&made.as_array().unwrap().len()),
        ),
        (json!({ "type": "string", "enum": ["größer", "кот"] }), |made| {
            made == "größer" || made == "кот"
        }),
        (json!({ "type": "integer", "minimum": 1, "maximum": 10 }), |made| {
            (1..=10).contains(&made.as_i64().unwrap())
        }),
        (json!({ "type": "boolean" }), Value::is_boolean),
    ] {
        let answer = SERVER.chat(ask(schema.clone())).ok();
        assert_eq!(finish(&answer), "stop", "{schema}");
        assert!(check(&made(&answer)), "{}", content(&answer));
    }
}

#[test]
fn point_43b_a_schema_does_not_forbid_calls() {
    let tool = json!({ "type": "function", "function": { "name": "get_weather", "parameters": {
        "type": "object", "properties": { "city": { "type": "string", "maxLength": 20 } },
        "required": ["city"], "additionalProperties": false,
    } } });
    let ask = |question: &str, choice: Value| {
        SERVER.chat(json!({
            "model": QWEN, "temperature": 0, "max_tokens": 150, "messages": user(question),
            "tools": [tool], "tool_choice": choice, "response_format": { "type": "json_object" },
            "parallel_tool_calls": false,
        }))
    };
    let question = "What is the weather in Paris? Answer in JSON.";
    let called = ask(question, json!("required")).ok();
    assert_eq!(called["choices"][0]["message"]["tool_calls"][0]["function"]["name"], "get_weather");
    assert_eq!(finish(&called), "tool_calls");
    let answered = ask(question, json!("none")).ok();
    assert!(made(&answered).is_object());
    for question in [question, "Say hello in JSON."] {
        let free = ask(question, json!("auto")).ok();
        let message = &free["choices"][0]["message"];
        assert_eq!(finish(&free) == "tool_calls", message["content"].is_null(), "{free}");
        if !message["content"].is_null() {
            assert!(made(&free).is_object());
        }
    }
}

#[test]
fn point_44_a_message_has_the_keys_of_strict_clients() {
    let answer = SERVER.chat(ask(json!({ "type": "boolean" }))).ok();
    let message = answer["choices"][0]["message"].as_object().unwrap();
    assert_eq!(message["refusal"], json!(null));
    assert_eq!(message["annotations"], json!([]));
}

#[test]
fn point_63_grammars_have_the_names_of_other_servers() {
    let schema = json!({ "type": "object", "properties": { "city": { "enum": ["Paris", "Rome"] } }, "required": ["city"], "additionalProperties": false });
    let lark = "start: \"Paris\" | \"Rome\"";
    for (fields, expected) in [
        (json!({ "grammar": { "regex": "Par[ij]s|Rome" } }), "Paris"),
        (json!({ "grammar": { "choice": ["Rome", "Paris"] } }), "Paris"),
        (json!({ "grammar": { "lark": lark } }), "Paris"),
        (json!({ "grammar": lark }), "Paris"),
        (json!({ "guided_regex": "Par[ij]s|Rome" }), "Paris"),
        (json!({ "guided_choice": ["Rome", "Paris"] }), "Paris"),
        (json!({ "guided_grammar": lark }), "Paris"),
        (json!({ "structured_outputs": { "regex": "Par[ij]s|Rome" } }), "Paris"),
        (json!({ "structured_outputs": { "choice": ["Rome", "Paris"] } }), "Paris"),
        (json!({ "structured_outputs": { "grammar": lark } }), "Paris"),
        (json!({ "guided_json": schema }), "{\"city\": \"Paris\"}"),
        (json!({ "json_schema": schema }), "{\"city\": \"Paris\"}"),
        (json!({ "structured_outputs": { "json": schema } }), "{\"city\": \"Paris\"}"),
    ] {
        let answer = SERVER.chat(with(capital(), fields.clone())).ok();
        assert_eq!((content(&answer), finish(&answer)), (expected, "stop"), "{fields}");
        let body = with(
            fields.clone(),
            json!({ "prompt": "The capital of France is ", "temperature": 0 }),
        );
        let completed = SERVER.complete(body).ok();
        assert_eq!(completed["choices"][0]["text"], expected, "{fields}");
    }
}

#[test]
fn point_63_what_is_no_grammar_is_named() {
    for (fields, param) in [
        (json!({ "grammar": "root ::= \"a\"" }), "grammar"),
        (json!({ "grammar": { "regex": "(" } }), "grammar.regex"),
        (json!({ "grammar": { "lark": "start: nothing" } }), "grammar.lark"),
        (json!({ "grammar": { "regex": "a", "choice": ["a"] } }), "grammar"),
        (
            json!({ "guided_regex": "a", "response_format": { "type": "json_object" } }),
            "guided_regex",
        ),
    ] {
        let error = SERVER.chat(with(capital(), fields.clone())).error(400);
        assert_eq!(error["param"], param, "{error}");
        let error = SERVER.complete(with(fields, json!({ "prompt": "a" }))).error(400);
        assert_eq!(error["param"], param, "{error}");
    }
}

#[test]
fn what_cannot_be_guaranteed_is_told_and_refused_if_strict() {
    let schema = json!({ "type": "object", "properties": { "age": { "type": "integer", "not": { "const": 5 }, "maximum": 9, "minimum": 0 } }, "required": ["age"] });
    let lenient =
        json!({ "response_format": schema_of("n", schema.clone(), false), "max_tokens": 30 });
    for stream in [false, true] {
        let reply =
            SERVER.chat(with(capital(), with(lenient.clone(), json!({ "stream": stream }))));
        assert_eq!(reply.status, 200, "{}", reply.text());
        let warning = reply.header("x-base-mlx-warning").unwrap();
        assert!(warning.contains("/properties/age") && warning.contains("not"), "{warning}");
    }
    assert_eq!(SERVER.chat(capital()).header("x-base-mlx-warning"), None);
    let strict = json!({ "response_format": schema_of("n", schema.clone(), true) });
    let error = SERVER.chat(with(capital(), strict)).error(400);
    assert_eq!(error["param"], "response_format");
    assert!(error["message"].as_str().unwrap().contains("/properties/age"), "{error}");
    let function = json!({ "name": "f", "strict": true, "parameters": schema });
    let tools = json!({ "tools": [{ "type": "function", "function": function }] });
    let error = SERVER.chat(with(capital(), tools)).error(400);
    assert_eq!(error["param"], "tools[0].function.parameters");
}

#[test]
fn what_is_too_complex_is_refused() {
    let regex = format!("{}a{}", "(".repeat(2000), ")".repeat(2000));
    let reply = SERVER.chat(with(capital(), json!({ "grammar": { "regex": regex } })));
    assert_eq!(reply.error(400)["param"], "grammar.regex");
}

/// Tokens of the shared model.
const SERVER_VOCABULARY: u32 = 49_152;
