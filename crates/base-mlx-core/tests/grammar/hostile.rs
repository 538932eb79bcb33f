use std::time::{Duration, Instant};

use base_mlx_core::text::output::Rule;
use serde_json::{Value, json};

use crate::vocabulary::{Vocabulary, json as rule};

/// Each compiles and lets masks be computed, or is an error; none of it takes long.
#[test]
fn what_is_hostile_costs_little() {
    let vocabulary = Vocabulary::smollm2();
    let mut slowest = (Duration::ZERO, "");
    for (name, rule) in rules() {
        let started = Instant::now();
        let made = vocabulary.compile(rule);
        let took = started.elapsed();
        slowest = slowest.max((took, name));
        assert!(took < Duration::from_secs(4), "{name} took {took:?}");
        let Ok(mut constraint) = made else { continue };
        // A few steps; what is too much for a step breaks.
        for _ in 0..8 {
            let started = Instant::now();
            let Ok(mask) = constraint.allowed() else { break };
            assert!(
                started.elapsed() < Duration::from_secs(1),
                "a mask of {name} took {:?}",
                started.elapsed()
            );
            let allowed = vocabulary.allowed(&mask);
            if constraint.accept(allowed[allowed.len() / 2]).is_err() || constraint.is_over() {
                break;
            }
        }
    }
    println!("slowest: {slowest:?}");
}

fn rules() -> Vec<(&'static str, Rule)> {
    let schema = |name, schema: Value| (name, rule(&schema, true));
    let regex = |name, regex: &str| (name, Rule::Regex(regex.to_owned()));
    let lark = |name, lark: String| (name, Rule::Lark(lark));
    let nested = |levels: usize, outer: fn(Value) -> Value| {
        (0..levels).fold(json!({ "type": "integer" }), |inner, _| outer(inner))
    };
    let chain = |length: usize, link: fn(String) -> Value| {
        let links = (0..length).map(|at| (format!("a{at}"), link(format!("#/$defs/a{}", at + 1))));
        let mut definitions: serde_json::Map<String, Value> = links.collect();
        definitions.insert(format!("a{length}"), json!({ "type": "object" }));
        json!({ "$ref": "#/$defs/a0", "$defs": definitions })
    };
    let product = |keyword: &str, factors: usize| {
        let option = |factor: usize, option: usize| {
            let name = format!("p{factor}");
            json!({ "type": "object", "properties": { &name: { "const": option } }, "required": [name] })
        };
        let factor =
            |factor| json!({ keyword: (0..4).map(|at| option(factor, at)).collect::<Vec<_>>() });
        json!({ "allOf": (0..factors).map(factor).collect::<Vec<_>>() })
    };
    let names = |count: usize, value: Value| -> Value {
        (0..count)
            .map(|at| (format!("p{at}"), value.clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let integer = json!({ "type": "integer" });
    vec![
        schema(
            "doubling references",
            chain(30, |to| json!({ "allOf": [{ "$ref": to }, { "$ref": to }] })),
        ),
        schema("a product of anyOf", product("anyOf", 12)),
        schema("a product of oneOf", product("oneOf", 12)),
        schema("a long chain of references", chain(20_000, |to| json!({ "$ref": to }))),
        schema(
            "a long chain of objects",
            chain(10_000, |to| json!({ "type": "object", "properties": { "x": { "$ref": to } } })),
        ),
        schema(
            "a long chain of intersections",
            chain(5_000, |to| json!({ "type": "object", "$ref": to })),
        ),
        schema("a circle", json!({ "$ref": "#" })),
        schema(
            "deep objects",
            nested(200, |inner| json!({ "properties": { "a": inner }, "required": ["a"] })),
        ),
        schema(
            "deep choices",
            nested(200, |inner| json!({ "anyOf": [inner, { "type": "null" }] })),
        ),
        schema(
            "many values",
            json!({ "enum": (0..100_000).map(|at| format!("value {}", at * 7919 % 1_000_003)).collect::<Vec<_>>() }),
        ),
        schema("many numbers", json!({ "enum": (0..100_000).collect::<Vec<_>>() })),
        schema(
            "as many items as one likes",
            json!({ "type": "array", "items": integer, "minItems": 1_000_000_000 }),
        ),
        schema(
            "at most so many",
            json!({ "type": "array", "items": integer, "maxItems": 1_000_000_000 }),
        ),
        schema("a long string", json!({ "type": "string", "minLength": 1_000_000 })),
        schema("a string of any length", json!({ "type": "string", "maxLength": 1_000_000_000 })),
        schema(
            "a counted pattern",
            json!({ "type": "string", "pattern": "^(a{1,1000}b){1,1000}$" }),
        ),
        schema(
            "many counted patterns",
            json!({ "allOf": (0..20).map(|at| json!({ "type": "string", "pattern": format!("a.{{{at},{}}}b", at + 50) })).collect::<Vec<_>>() }),
        ),
        schema(
            "many properties, one of them",
            json!({ "type": "object", "properties": names(2000, integer.clone()), "minProperties": 1, "additionalProperties": false }),
        ),
        schema(
            "many properties",
            json!({ "type": "object", "properties": names(10_000, integer.clone()) }),
        ),
        schema(
            "many patterns of names",
            json!({ "type": "object", "patternProperties": (0..40).map(|at| (format!("a.{{{at},{}}}b", at + 30), integer.clone())).collect::<serde_json::Map<_, _>>() }),
        ),
        schema(
            "many alternatives",
            json!({ "anyOf": (0..3000).map(|at| json!({ "type": "object", "properties": { "k": { "const": format!("v{at}") } }, "required": ["k"] })).collect::<Vec<_>>() }),
        ),
        schema(
            "many exclusive alternatives",
            json!({ "oneOf": (0..2000).map(|at| json!({ "type": "object", "properties": { "k": { "const": format!("v{at}") } }, "required": ["k"] })).collect::<Vec<_>>() }),
        ),
        schema("a multiple of much", json!({ "type": "integer", "multipleOf": 4_294_967_291_u32 })),
        schema("a multiple of little", json!({ "type": "number", "multipleOf": 1e-300 })),
        schema("a long constant", json!({ "const": "x".repeat(1_000_000) })),
        regex("counts in counts", "(a{1,1000}){1,1000}"),
        regex("counts of choices", "((a|b){1,1000}c?){1,1000}"),
        regex("a far past", "(?s:.*)a(?s:.{1000})"),
        regex("an exponential automaton", "[ab]*a[ab]{24}c"),
        regex("many letters", r"(\p{L}{1,1000}\p{N}){1,100}"),
        lark("ambiguity", "start: a\na: a a a | a a | \"x\"+ | \"y\" | ".to_owned()),
        lark("nothing ever", "start: start start".to_owned()),
        lark("a token of itself", "start: A\nA: \"x\" A | \"y\"".to_owned()),
        lark(
            "a long chain of rules",
            (0..8000).map(|at| format!("a{at}: a{}\n", at + 1)).collect::<String>()
                + "a8000: \"x\"\nstart: a0",
        ),
        lark(
            "doubling rules",
            (0..60).map(|at| format!("a{at}: a{0} a{0}\n", at + 1)).collect::<String>()
                + "a60: \"x\"\nstart: a0",
        ),
        lark(
            "doubling tokens",
            (0..60).map(|at| format!("A{at}: A{0} A{0}\n", at + 1)).collect::<String>()
                + "A60: \"x\"\nstart: A0",
        ),
        lark(
            "counts of counts",
            "start: ((\"a\"{1,30000} \"b\"?){1,30000} \"c\"?){1,30000}".to_owned(),
        ),
        lark("brackets", format!("start: {}\"a\"{}", "(\n".repeat(20_000), ")\n".repeat(20_000))),
        lark(
            "complements",
            "start: A\nA: ~(/(a|b)*a(a|b){12}/) & ~(/.*x.{10}y/) & /.{1,200}/".to_owned(),
        ),
        lark(
            "what may be nothing, again and again",
            "start: a*\na: b*\nb: c*\nc: d* e*\nd: \"x\"*\ne: \"x\"*".to_owned(),
        ),
        (
            "many choices",
            Rule::Choice(
                (0..60_000).map(|at| format!("choice {}", at * 7919 % 1_000_003)).collect(),
            ),
        ),
    ]
}
