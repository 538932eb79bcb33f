use serde_json::{Value, json};

use crate::vocabulary::Vocabulary;

/// Schemas as `@Generable` types make them.
#[test]
fn generable_types_compile_and_hold() {
    let vocabulary = Vocabulary::smollm2();
    let cases: [(Value, &[&str], &[&str]); 6] = [
        (
            json!({
                "title": "Person", "type": "object", "additionalProperties": false,
                "required": ["name", "home"], "x-order": ["name", "age", "home"],
                "properties": {
                    "name": { "type": "string", "description": "As in the passport" },
                    "age": { "type": "integer", "minimum": 0, "maximum": 150 },
                    "home": { "$ref": "#/$defs/Address" },
                },
                "$defs": { "Address": {
                    "title": "Address", "type": "object", "additionalProperties": false,
                    "required": ["city"],
                    "properties": { "city": { "type": "string" }, "zip": { "type": "string", "pattern": "^[0-9]{5}$" } },
                } },
            }),
            &[
                r#"{"name":"A","age":150,"home":{"city":"B","zip":"01234"}}"#,
                r#"{"name":"A","home":{"city":"B"}}"#,
            ],
            &[
                r#"{"name":"A","age":151,"home":{"city":"B"}}"#,
                r#"{"home":{"city":"B"},"name":"A"}"#,
                r#"{"name":"A","home":{"city":"B"},"more":1}"#,
                r#"{"name":"A","home":{"city":"B","zip":"123456"}}"#,
            ],
        ),
        (
            json!({ "$ref": "#/$defs/Node", "$defs": { "Node": {
                "type": "object", "required": ["value"], "additionalProperties": false,
                "properties": { "value": { "type": "number" }, "next": { "$ref": "#/$defs/Node" } },
            } } }),
            &[r#"{"value":1,"next":{"value":-2.5e3,"next":{"value":0}}}"#],
            &[r#"{"value":1,"next":{}}"#],
        ),
        (
            json!({ "type": "array", "minItems": 1, "maxItems": 3, "items": { "type": "string", "enum": ["Größe", "日本", "👍🏽"] } }),
            &[r#"["Größe"]"#, r#"["日本","👍🏽","Größe"]"#],
            &["[]", r#"["Grösse"]"#, r#"["日本","日本","日本","日本"]"#, r#"["日"]"#],
        ),
        (json!({ "type": "string" }), &[r#""a""#, r#""\"\n""#], &["1", r#""a"#, "\"\n\""]),
        (json!({ "type": "boolean" }), &["true", "false"], &["null", "True"]),
        (
            json!({ "type": "number", "minimum": -1.5, "exclusiveMaximum": 2 }),
            &["-1.5", "1.999", "0"],
            &["-1.51", "2", "2.0", "1e3"],
        ),
    ];
    for (schema, valid, invalid) in cases {
        let constraint = vocabulary.strict(&schema).unwrap();
        for text in valid {
            assert!(vocabulary.lets_through(&constraint, text), "{schema} forbids {text}");
        }
        for text in invalid {
            assert!(!vocabulary.lets_through(&constraint, text), "{schema} allows {text}");
        }
    }
}
