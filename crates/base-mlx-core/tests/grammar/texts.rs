use base_mlx_core::grammar::GrammarError;
use base_mlx_core::text::output::{Part, Rule, Spacing};
use serde_json::{Value, json};

use crate::vocabulary::{Vocabulary, json as rule, source};

/// What a schema lets through, beside what it does not.
fn check(vocabulary: &Vocabulary, rule: Rule, allowed: &[&str], forbidden: &[&str]) {
    let constraint = vocabulary.compile(rule.clone()).unwrap();
    for text in allowed {
        assert!(vocabulary.lets_through(&constraint, text), "{rule:?} forbids {text:?}");
    }
    for text in forbidden {
        assert!(!vocabulary.lets_through(&constraint, text), "{rule:?} allows {text:?}");
    }
}

#[test]
fn white_space_comes_in_short_runs() {
    let vocabulary = Vocabulary::smollm2();
    let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" }, "b": {} }, "required": ["a", "b"] });
    let spaces = |count: usize| format!("{{{}\"a\":1,\"b\":2}}", " ".repeat(count));
    let allowed =
        [&spaces(0), &spaces(1), &spaces(24), "{\n  \"a\": 1,\n  \"b\": [\n    null\n  ]\n}"];
    let forbidden = [&spaces(25), &spaces(60), " {\"a\":1,\"b\":2}"];
    check(&vocabulary, rule(&schema, true), &allowed, &forbidden);
    let compact = Rule::Json { schema, strict: true, spacing: Spacing::Compact };
    check(
        &vocabulary,
        compact,
        &["{\"a\": 1, \"b\": 2}"],
        &["{\"a\":1,\"b\":2}", "{ \"a\": 1, \"b\": 2}"],
    );
}

#[test]
fn numbers_are_finite() {
    let vocabulary = Vocabulary::smollm2();
    let long = "9".repeat(18);
    let (longer, fraction) = ("9".repeat(19), format!("0.{}", "1".repeat(18)));
    for schema in [
        json!({ "type": "number" }),
        json!({}),
        json!({ "anyOf": [{ "type": "number" }, { "type": "null" }] }),
        json!({ "type": ["number", "string", "object"] }),
    ] {
        let allowed = ["0", "-1.5e-7", "1e99", &long, "0.12345678901234567"];
        let forbidden = ["1e999", "-1E+100", &longer, &fraction, "01", "NaN", "Infinity", "+1"];
        check(&vocabulary, rule(&schema, true), &allowed, &forbidden);
    }
    let schema = json!({ "type": "array", "items": { "type": "integer", "minimum": 5 } });
    check(
        &vocabulary,
        rule(&schema, true),
        &[&format!("[5,{long}]")],
        &["[4]", "[5.0]", &format!("[{longer}]")],
    );
}

#[test]
fn properties_come_in_the_order_of_the_schema() {
    let vocabulary = Vocabulary::smollm2();
    let [ab, ba] = [r#"{"a":1,"b":2}"#, r#"{"b":2,"a":1}"#];
    let of = |names: [&str; 2]| {
        let properties = names.map(|name| (name.to_owned(), json!({ "type": "integer" })));
        let properties = Value::Object(properties.into_iter().collect());
        json!({ "type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": false })
    };
    // Equal as values, and asked for in turn.
    for _ in 0..2 {
        check(&vocabulary, rule(&of(["a", "b"]), true), &[ab], &[ba]);
        check(&vocabulary, rule(&of(["b", "a"]), true), &[ba], &[ab]);
    }
}

#[test]
fn a_name_in_another_spelling_is_no_other_name() {
    let vocabulary = Vocabulary::smollm2();
    let schema = json!({
        "type": "object", "properties": { "a": { "type": "integer" } }, "additionalProperties": { "type": "string" },
    });
    check(
        &vocabulary,
        rule(&schema, true),
        &[r#"{"a":1,"b":"x"}"#],
        &[r#"{"\u0061":"x"}"#, r#"{"a":"x"}"#],
    );
}

#[test]
fn names_of_special_tokens_are_texts_within_strings() {
    for model in ["smollm2.gguf", "llama.cpp/models/ggml-vocab-llama-spm.gguf"] {
        let vocabulary = Vocabulary::new(model);
        let constraint =
            vocabulary.strict(&json!({ "enum": ["<|im_end|>", "</s>", "<s>"] })).unwrap();
        for text in [r#""<|im_end|>""#, r#""</s>""#, r#""<s>""#] {
            assert!(vocabulary.lets_through(&constraint, text), "{model} {text}");
        }
        for seed in 0..20 {
            let tokens = vocabulary.walk(&constraint, seed, 100).unwrap();
            assert!(tokens.iter().all(|&token| !vocabulary.tokenizer.is_hidden(token)));
            serde_json::from_slice::<Value>(&vocabulary.bytes(&tokens)).unwrap();
        }
    }
}

#[test]
fn a_sentence_piece_vocabulary_puts_no_space_before() {
    let vocabulary = Vocabulary::new("llama.cpp/models/ggml-vocab-llama-spm.gguf");
    let schema = json!({ "type": "object", "properties": { "名前": { "enum": ["ä", "b c"] } }, "required": ["名前"], "additionalProperties": false });
    check(
        &vocabulary,
        rule(&schema, true),
        &[r#"{"名前":"ä"}"#, r#"{"名前":"b c"}"#],
        &[r#" {"名前":"ä"}"#],
    );
    for seed in 0..20 {
        let tokens = vocabulary.walk(&vocabulary.strict(&schema).unwrap(), seed, 100).unwrap();
        let value: Value = serde_json::from_slice(&vocabulary.bytes(&tokens)).unwrap();
        assert!(["ä", "b c"].contains(&value["名前"].as_str().unwrap()));
    }
}

#[test]
fn the_whole_text_matches_a_regex() {
    let vocabulary = Vocabulary::smollm2();
    let regex = |regex: &str| Rule::Regex(regex.to_owned());
    check(&vocabulary, regex("[0-9]{3}"), &["123"], &["12", "1234", " 123"]);
    check(&vocabulary, regex("^[0-9]{3}$"), &["123"], &["12", "1234"]);
    check(&vocabulary, regex(r"a/b|c\\$"), &["a/b", "c\\"], &["a", "c"]);
    check(&vocabulary, regex("^a|[|]$"), &["a", "|"], &["ab", "b|"]);
    check(&vocabulary, regex("a*"), &["", "aaa"], &["b"]);
    check(&vocabulary, regex("ä+\n"), &["ää\n"], &["ä"]);
}

#[test]
fn a_choice_is_one_of_its_texts() {
    let vocabulary = Vocabulary::smollm2();
    let choice = |texts: &[&str]| Rule::Choice(texts.iter().map(|&text| text.to_owned()).collect());
    let texts = ["a", "ab", "", "q\"uote\\", "new\nline", "é", "/x/", "<|im_end|>", "\u{7f}\u{1}"];
    check(&vocabulary, choice(&texts), &texts, &["b", "abc", "new", "a "]);
    for nothing in [&[][..], &[""]] {
        let error = vocabulary.compile(choice(nothing)).unwrap_err();
        assert_eq!(error.to_string(), "field is not a grammar: there is nothing to choose from");
    }
}

#[test]
fn errors_of_grammars_say_where_in_one_line() {
    let vocabulary = Vocabulary::smollm2();
    for (rule, words) in [
        (Rule::Lark("start: a b\na: \"x\"\nb: %%".to_owned()), "3("),
        (Rule::Lark("start: nowhere".to_owned()), "nowhere"),
        (Rule::Lark("begin: \"x\"".to_owned()), "start"),
        (Rule::Lark("start: <|nothing|>".to_owned()), "<|nothing|>"),
        (Rule::Lark("start[max_tokens=5]: /.*/".to_owned()), "`max_tokens`"),
        (Rule::Regex("(unclosed".to_owned()), "unclosed"),
        // Nothing would check the schema.
        (Rule::Lark("start: %json { \"type\": \"integer\" }".to_owned()), "`%json`"),
        (Rule::Lark("start: %lark { start: %json {} }".to_owned()), "`%json`"),
    ] {
        let error = vocabulary.compile(rule.clone()).unwrap_err();
        let GrammarError::Invalid { origin, message } = &error else { panic!("{rule:?}: {error}") };
        assert_eq!(origin, "field");
        assert!(message.contains(words), "{rule:?}: {message}");
        assert!(!message.contains('\n') && !message.contains("<state>"), "{message}");
    }
}

#[test]
fn what_the_compiler_refuses_is_named_by_its_pointer() {
    let vocabulary = Vocabulary::smollm2();
    for (schema, pointer) in [
        (
            json!({ "properties": { "x": { "oneOf": [{ "type": "object" }, { "required": ["a"] }] } } }),
            "/properties/x/oneOf",
        ),
        (
            json!({ "$ref": "#/definitions/a", "definitions": { "a": { "items": {
                "type": "object", "properties": { "b": {} }, "maxProperties": 3,
            } } } }),
            "/definitions/a/items/maxProperties",
        ),
        (json!({ "items": { "type": "string", "pattern": "[a" } }), "/items/pattern"),
        (
            json!({ "type": "array", "items": [{ "type": "integer", "minimum": 3, "maximum": 2 }], "minItems": 1 }),
            "/items/0/minimum",
        ),
    ] {
        let error = vocabulary.strict(&schema).unwrap_err();
        let GrammarError::Unsupported { pointer: found, .. } = &error else {
            panic!("{schema}: {error}")
        };
        assert_eq!(found, pointer, "{error}");
    }
    let schema = json!({ "oneOf": [{ "type": "object" }, { "required": ["a"] }] });
    let lenient = vocabulary.compile(rule(&schema, false)).unwrap();
    assert!(
        lenient.warnings()[0].starts_with("field: /oneOf is not guaranteed"),
        "{:?}",
        lenient.warnings()
    );
}

#[test]
fn what_is_left_out_is_told_once() {
    let vocabulary = Vocabulary::smollm2();
    let mut of_two = source(rule(&json!({ "not": {} }), false));
    of_two.parts.push(Part { name: "again".to_owned(), ..of_two.parts[0].clone() });
    of_two.lark = "start: @part | @again".to_owned();
    let constraint = vocabulary.grammars.compile(&of_two).unwrap();
    assert_eq!(constraint.warnings(), ["field: /not is left out: not supported"]);
}

#[test]
fn names_of_users_are_not_about_size() {
    let vocabulary = Vocabulary::smollm2();
    for name in ["rate_limit", "fuel", "too_deep"] {
        let error = vocabulary.compile(Rule::Lark(format!("start: {name}"))).unwrap_err();
        assert!(matches!(error, GrammarError::Invalid { .. }), "{error}");
    }
}
