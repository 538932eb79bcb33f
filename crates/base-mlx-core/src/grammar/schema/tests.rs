use super::*;

fn prepared(schema: Value) -> Value {
    prepare(&schema, true, "field").unwrap().schema
}

/// The error in strict mode, and what is left without with its warnings.
fn refused(schema: Value) -> (String, Value, Vec<String>) {
    let error = prepare(&schema, true, "field").unwrap_err();
    assert!(matches!(error, GrammarError::Unsupported { .. }), "{error}");
    let lenient = prepare(&schema, false, "field").unwrap();
    (error.to_string(), lenient.schema, lenient.warnings)
}

#[test]
fn a_keyword_that_cannot_be_guaranteed_is_named_by_its_pointer() {
    let schema =
        json!({ "type": "object", "properties": { "a/b": { "not": { "type": "string" } } } });
    let (error, schema, warnings) = refused(schema);
    assert_eq!(error, "field cannot be guaranteed: /properties/a~1b/not: not supported");
    assert_eq!(schema, json!({ "type": "object", "properties": { "a/b": {} } }));
    assert_eq!(warnings, ["field: /properties/a~1b/not is left out: not supported"]);
    for (keyword, value) in [
        ("uniqueItems", json!(true)),
        ("contains", json!({})),
        ("propertyNames", json!({ "maxLength": 3 })),
        ("dependentRequired", json!({ "a": ["b"] })),
        ("dependentSchemas", json!({ "a": {} , "b": false })),
        ("dependencies", json!({ "a": ["b"] })),
        ("unevaluatedProperties", json!(false)),
        ("unevaluatedItems", json!({ "type": "string" })),
        ("$dynamicRef", json!("#node")),
        ("format", json!("iri")),
        ("pattern", json!("(?=a)")),
        ("$ref", json!("https://example.com/other.json")),
        ("const", json!(9007199254740993_u64)),
        ("enum", json!(["a", "hello\u{0}there"])),
        ("minimum", json!(1e300)),
    ] {
        let (error, ..) = refused(json!({ "items": { keyword: value } }));
        assert!(error.contains(&format!(": /items/{keyword}: ")), "{error}");
    }
    let (error, ..) = refused(json!({ "if": {}, "then": false }));
    assert!(error.contains(": /if: "), "{error}");
}

#[test]
fn a_keyword_that_says_nothing_goes_without_a_word() {
    let schema = json!({
        "title": "a", "x-guidance": { "lenient": true }, "nullable": true, "uniqueItems": false,
        "if": {}, "dependencies": {}, "propertyNames": { "type": "string" }, "unevaluatedItems": true,
        "minContains": 2, "format": "password", "type": ["object", "string"],
    });
    assert_eq!(prepared(schema), json!({ "type": ["object", "string"] }));
    assert_eq!(
        prepared(json!({ "type": "integer", "format": "int32" })),
        json!({ "type": "integer" })
    );
}

#[test]
fn a_malformed_schema_is_an_error_in_both_modes() {
    for (schema, place) in [
        (json!({ "type": 5 }), "/type"),
        (json!({ "type": "strin" }), "/type"),
        (json!({ "type": [] }), "/type"),
        (json!({ "required": "x" }), "/required"),
        (json!({ "required": [1] }), "/required"),
        (json!({ "enum": [] }), "/enum"),
        (json!({ "properties": [] }), "/properties"),
        (json!({ "properties": { "a": 5 } }), "/properties/a"),
        (json!({ "items": { "minLength": -1 } }), "/items/minLength"),
        (json!({ "minimum": "1" }), "/minimum"),
        (json!({ "multipleOf": 0 }), "/multipleOf"),
        (json!({ "pattern": 1 }), "/pattern"),
        (json!({ "format": 1 }), "/format"),
        (json!({ "anyOf": [] }), "/anyOf"),
        (json!({ "allOf": {} }), "/allOf"),
        (json!({ "$ref": 1 }), "/$ref"),
        (json!([]), "the whole"),
    ] {
        for strict in [true, false] {
            let error = prepare(&schema, strict, "field").unwrap_err();
            let GrammarError::Invalid { message, .. } = &error else { panic!("{schema}: {error}") };
            assert!(message.starts_with(&format!("{place}: expected ")), "{message}");
        }
    }
}

#[test]
fn references_lead_to_definitions_of_ours() {
    let schema = json!({
        "$id": "https://example.com/tree.json",
        "properties": {
            "whole": { "$ref": "#" },
            "encoded": { "$ref": "#/$defs/a%20b~1c" },
            "named": { "$ref": "#leaf" },
            "absolute": { "$ref": "https://example.com/tree.json#/$defs/leaf" },
            "inner": { "$ref": "inner.json#/$defs/x" },
        },
        "$defs": {
            "a b/c": { "type": "null" },
            "leaf": { "$anchor": "leaf", "type": "integer" },
            "inner": {
                "$id": "inner.json",
                "$ref": "#/$defs/x",
                "$defs": { "x": { "type": "boolean", "items": { "$ref": "#/$defs/x" } } },
            },
            "never": { "not": {} },
        },
    });
    let written = prepared(schema);
    let target = |name: &str| {
        let reference = written["properties"][name]["$ref"].as_str().unwrap();
        written.pointer(&reference[1..]).unwrap().clone()
    };
    assert_eq!(target("whole")["properties"], written["properties"]);
    assert_eq!(target("encoded"), json!({ "type": "null" }));
    assert_eq!(target("named"), json!({ "type": "integer" }));
    assert_eq!(target("absolute"), json!({ "type": "integer" }));
    let inner = written["properties"]["inner"]["$ref"].clone();
    assert_eq!(target("inner"), json!({ "type": "boolean", "items": { "$ref": inner } }));
    // What nothing refers to is not looked at.
    assert_eq!(written["$defs"].as_object().unwrap().len(), 4);
}

#[test]
fn older_drafts_become_the_newest() {
    let schema = json!({
        "$schema": "http://json-schema.org/draft-04/schema#",
        "id": "https://example.com/old.json",
        "items": [{ "minimum": 3, "exclusiveMinimum": true }, { "maximum": 3, "exclusiveMaximum": false }],
        "additionalItems": { "$ref": "#/definitions/x" },
        "definitions": { "x": { "type": "string" } },
    });
    let expected = json!({
        "prefixItems": [{ "minimum": 3.0, "exclusiveMinimum": 3.0 }, { "maximum": 3.0 }],
        "items": { "$ref": "#/$defs/0" },
        "$defs": { "0": { "type": "string" } },
    });
    assert_eq!(prepared(schema), expected);
}

#[test]
fn bounds_that_floats_do_not_have_keep_a_little_more() {
    let bounds = json!({ "minimum": 9007199254740993_i64, "maximum": 9007199254740993_i64 });
    let expected = json!({ "minimum": 9007199254740994.0, "maximum": 9007199254740992.0 });
    assert_eq!(prepared(bounds), expected);
    let bounds = json!({ "minimum": i64::MIN, "maximum": u64::MAX });
    assert_eq!(prepared(bounds), json!({ "minimum": -1e18, "maximum": 1e18 }));
}

#[test]
fn regexes_of_javascript_are_spelled_anew() {
    for (javascript, ours) in [
        (r"^a\/b$", r"^a\/b$"),
        (".", r"[^\n\r\u{2028}\u{2029}]"),
        ("[.]", "[.]"),
        (r"[^[\]&&~-]", r"[^\[\]\&\&\~-]"),
        ("[a--z]", r"[a\--z]"),
        ("[^]", "(?s:.)"),
        ("${a}", r"$\{a\}"),
        ("a{2}b{1,}", "a{2}b{1,}"),
        (r"\p{L}\u{41}", r"\p{L}\u{41}"),
        (r"\u0041\x41[\cA\0]", r"\u{41}\x41[\x01\x00]"),
        (r"\s[\S]", r"[^\S\u{85}][[^\s\u{feff}]]"),
        (r"\ud83d\ude00", r"\u{1f600}"),
        (r"\_\-\<\@", r"\_\-<\@"),
        (r"\{3}a{2}}", r"\{3\}a{2}\}"),
        ("a{,3}{3,", r"a\{,3\}\{3,"),
        (r"\x+f\u+12f", "x+fu+12f"),
        (r"[\x7f\u{1}]\x0a", r"[\x7f\u{1}]\x0a"),
        ("(?<name>a)(?:b)", "(?<name>a)(?:b)"),
    ] {
        assert_eq!(pattern::translated(javascript).as_deref(), Ok(ours), "{javascript}");
    }
    for refused in [
        "(?=a)", "(?!a)", "(?<=a)", "(?<!a)", r"(a)\1", r"\bword", "[]", "\\", "\\0", "\\v",
        "\u{1}", r"\x01", r"\u0001", r"\u{1}", "\u{7f}", r"\x7f", r"\u007f", r"\u{7f}",
    ] {
        pattern::translated(refused).unwrap_err();
    }
}

#[test]
fn what_would_fill_the_memory_is_too_complex() {
    let too_complex = |schema: Value, words: &str| {
        for strict in [true, false] {
            let error = prepare(&schema, strict, "field").unwrap_err();
            assert!(matches!(error, GrammarError::TooComplex { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    };
    let long = "x".repeat(1_000_000);
    too_complex(json!({ "$id": long, "x": vec![0; 400_000] }), "identifier");
    too_complex(json!({ "properties": { &long: { "$anchor": "x" } } }), "identifier");
    let named: Vec<Value> = (0..2000).map(|at| json!({ "$id": format!("{at}") })).collect();
    too_complex(json!({ "$defs": named }), "have identifiers");
    let many = json!({ "anyOf": vec![json!({}); 1000] });
    too_complex(json!({ "properties": { &long: many } }), "names");
    let keywords: Map<String, Value> = (0..1000).map(|at| (at.to_string(), json!(0))).collect();
    too_complex(json!({ "properties": { &long: keywords } }), "names");
    too_complex(json!({ "pattern": "}".repeat(1_000_000) }), "pattern");
}

#[test]
fn warnings_come_to_an_end() {
    let schema = json!({ "anyOf": vec![json!({ "not": {} }); 1000] });
    let warnings = prepare(&schema, false, "field").unwrap().warnings;
    assert_eq!(warnings.len(), 101);
    assert_eq!(warnings[100], "field: more is left out");
}

#[test]
fn percents_without_digits_are_themselves() {
    let schema = json!({ "$ref": "#/$defs/%+1", "$defs": { "%+1": { "type": "null" } } });
    assert_eq!(prepared(schema)["$defs"]["0"], json!({ "type": "null" }));
}
