use std::time::{Duration, Instant};

use base_mlx_core::grammar::GrammarError;
use base_mlx_core::text::output::Rule;
use serde_json::{Value, json};

use Outcome::{Compiles, Refused, Slow, TooComplex};

use crate::vocabulary::{Vocabulary, json as rule};

/// None of it takes long, neither a grammar nor its masks.
#[test]
fn what_is_hostile_costs_little() {
    let vocabulary = Vocabulary::smollm2();
    let mut slowest = (Duration::ZERO, "");
    let mut slowest_mask = slowest;
    for (expected, name, rule) in rules() {
        let (took, made) = loop {
            let started = Instant::now();
            let made = vocabulary.compile(rule.clone());
            // Late ones before it still keep their workers.
            if !matches!(made, Err(GrammarError::Busy(_))) {
                break (started.elapsed(), made);
            }
        };
        slowest = slowest.max((took, name));
        assert!(took < Duration::from_secs(20), "{name} took {took:?}");
        let outcome = match &made {
            Ok(_) => Compiles,
            Err(GrammarError::TooComplex { message, .. }) if message.contains("takes longer") => {
                Slow
            }
            Err(GrammarError::TooComplex { .. }) => TooComplex,
            Err(GrammarError::Unsupported { .. } | GrammarError::Invalid { .. }) => Refused,
            Err(error) => panic!("{name}: {error}"),
        };
        let is_expected = outcome == expected || outcome == Slow || expected == Slow;
        assert!(is_expected, "{name}: {outcome:?}, not {expected:?}: {:?}", made.err());
        let Ok(mut constraint) = made else { continue };
        // A few steps; what is too much for a step breaks.
        for _ in 0..8 {
            let started = Instant::now();
            let made = constraint.allowed();
            let took = started.elapsed();
            slowest_mask = slowest_mask.max((took, name));
            assert!(took < Duration::from_secs(5), "a mask of {name} took {took:?}");
            let Ok(mask) = made else { break };
            let allowed = vocabulary.allowed(&mask);
            if constraint.accept(allowed[allowed.len() / 2]).is_err() || constraint.is_over() {
                break;
            }
        }
    }
    println!("slowest: {slowest:?}, of masks {slowest_mask:?}");
}

/// What becomes of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Compiles,
    TooComplex,
    /// No grammar at all, or not one that can be guaranteed.
    Refused,
    /// One or the other, as fast as the machine is; on a slow one it is any rule's outcome.
    Slow,
}

fn rules() -> Vec<(Outcome, &'static str, Rule)> {
    let schema = |outcome, name, schema: Value| (outcome, name, rule(&schema, true));
    let regex = |outcome, name, regex: &str| (outcome, name, Rule::Regex(regex.to_owned()));
    let lark = |outcome, name, lark: String| (outcome, name, Rule::Lark(lark));
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
            Compiles,
            "doubling references",
            chain(30, |to| json!({ "allOf": [{ "$ref": to }, { "$ref": to }] })),
        ),
        schema(TooComplex, "a product of anyOf", product("anyOf", 12)),
        schema(Refused, "a product of oneOf", product("oneOf", 12)),
        schema(TooComplex, "a long chain of references", chain(20_000, |to| json!({ "$ref": to }))),
        schema(
            TooComplex,
            "a long chain of objects",
            chain(10_000, |to| json!({ "type": "object", "properties": { "x": { "$ref": to } } })),
        ),
        schema(
            TooComplex,
            "a long chain of intersections",
            chain(5_000, |to| json!({ "type": "object", "$ref": to })),
        ),
        schema(Refused, "a circle", json!({ "$ref": "#" })),
        schema(
            Compiles,
            "deep objects",
            nested(200, |inner| json!({ "properties": { "a": inner }, "required": ["a"] })),
        ),
        schema(
            Compiles,
            "deep choices",
            nested(200, |inner| json!({ "anyOf": [inner, { "type": "null" }] })),
        ),
        schema(
            TooComplex,
            "many values",
            json!({ "enum": (0..100_000).map(|at| format!("value {}", at * 7919 % 1_000_003)).collect::<Vec<_>>() }),
        ),
        schema(TooComplex, "many numbers", json!({ "enum": (0..100_000).collect::<Vec<_>>() })),
        schema(
            Compiles,
            "as many items as one likes",
            json!({ "type": "array", "items": integer, "minItems": 1_000_000_000 }),
        ),
        schema(
            Compiles,
            "at most so many",
            json!({ "type": "array", "items": integer, "maxItems": 1_000_000_000 }),
        ),
        schema(Compiles, "a long string", json!({ "type": "string", "minLength": 1_000_000 })),
        schema(
            Compiles,
            "a string of any length",
            json!({ "type": "string", "maxLength": 1_000_000_000 }),
        ),
        schema(
            Compiles,
            "a counted pattern",
            json!({ "type": "string", "pattern": "^(a{1,1000}b){1,1000}$" }),
        ),
        schema(
            TooComplex,
            "many counted patterns",
            json!({ "allOf": (0..20).map(|at| json!({ "type": "string", "pattern": format!("a.{{{at},{}}}b", at + 50) })).collect::<Vec<_>>() }),
        ),
        schema(
            TooComplex,
            "many properties, one of them",
            json!({ "type": "object", "properties": names(2000, integer.clone()), "minProperties": 1, "additionalProperties": false }),
        ),
        schema(
            TooComplex,
            "many properties",
            json!({ "type": "object", "properties": names(10_000, integer.clone()) }),
        ),
        schema(
            Refused,
            "many patterns of names",
            json!({ "type": "object", "patternProperties": (0..40).map(|at| (format!("a.{{{at},{}}}b", at + 30), integer.clone())).collect::<serde_json::Map<_, _>>() }),
        ),
        schema(
            Compiles,
            "many alternatives",
            json!({ "anyOf": (0..3000).map(|at| json!({ "type": "object", "properties": { "k": { "const": format!("v{at}") } }, "required": ["k"] })).collect::<Vec<_>>() }),
        ),
        schema(
            Compiles,
            "many exclusive alternatives",
            json!({ "oneOf": (0..2000).map(|at| json!({ "type": "object", "properties": { "k": { "const": format!("v{at}") } }, "required": ["k"] })).collect::<Vec<_>>() }),
        ),
        schema(
            TooComplex,
            "a multiple of much",
            json!({ "type": "integer", "multipleOf": 4_294_967_291_u32 }),
        ),
        schema(Refused, "a multiple of little", json!({ "type": "number", "multipleOf": 1e-300 })),
        schema(TooComplex, "a long constant", json!({ "const": "x".repeat(1_000_000) })),
        schema(
            TooComplex,
            "a long identifier",
            json!({ "$id": "x".repeat(1_000_000), "x": vec![0; 400_000] }),
        ),
        schema(
            TooComplex,
            "long names of much",
            json!({ "properties": { "x".repeat(1_000_000): { "anyOf": vec![json!({}); 30_000] } } }),
        ),
        schema(TooComplex, "braces", json!({ "pattern": "}".repeat(2_000_000) })),
        regex(Compiles, "counts in counts", "(a{1,1000}){1,1000}"),
        regex(Compiles, "counts of choices", "((a|b){1,1000}c?){1,1000}"),
        regex(Compiles, "a far past", "(?s:.*)a(?s:.{1000})"),
        regex(Compiles, "an exponential automaton", "[ab]*a[ab]{24}c"),
        regex(Compiles, "many letters", r"(\p{L}{1,1000}\p{N}){1,100}"),
        lark(Compiles, "ambiguity", "start: a\na: a a a | a a | \"x\"+ | \"y\" | ".to_owned()),
        lark(Refused, "nothing ever", "start: start start".to_owned()),
        lark(Refused, "a token of itself", "start: A\nA: \"x\" A | \"y\"".to_owned()),
        lark(
            Compiles,
            "a long chain of rules",
            (0..8000).map(|at| format!("a{at}: a{}\n", at + 1)).collect::<String>()
                + "a8000: \"x\"\nstart: a0",
        ),
        lark(
            Compiles,
            "doubling rules",
            (0..60).map(|at| format!("a{at}: a{0} a{0}\n", at + 1)).collect::<String>()
                + "a60: \"x\"\nstart: a0",
        ),
        lark(
            Slow,
            "doubling tokens",
            (0..60).map(|at| format!("A{at}: A{0} A{0}\n", at + 1)).collect::<String>()
                + "A60: \"x\"\nstart: A0",
        ),
        lark(
            Compiles,
            "counts of counts",
            "start: ((\"a\"{1,30000} \"b\"?){1,30000} \"c\"?){1,30000}".to_owned(),
        ),
        lark(
            Refused,
            "a schema",
            "start: %json { \"pattern\": \"^(a{1,1000}b){1,1000}$\" }".to_owned(),
        ),
        lark(
            TooComplex,
            "brackets in a line",
            format!("start: {}\"a\"{}", "(".repeat(20_000), ")".repeat(20_000)),
        ),
        lark(
            Refused,
            "brackets",
            format!("start: {}\"a\"{}", "(\n".repeat(20_000), ")\n".repeat(20_000)),
        ),
        lark(
            Compiles,
            "complements",
            "start: A\nA: ~(/(a|b)*a(a|b){12}/) & ~(/.*x.{10}y/) & /.{1,200}/".to_owned(),
        ),
        lark(
            Compiles,
            "what may be nothing, again and again",
            "start: a*\na: b*\nb: c*\nc: d* e*\nd: \"x\"*\ne: \"x\"*".to_owned(),
        ),
        (
            Slow,
            "many choices",
            Rule::Choice(
                (0..60_000).map(|at| format!("choice {}", at * 7919 % 1_000_003)).collect(),
            ),
        ),
    ]
}
