use base_mlx_core::text::output::{Rule, Spacing};
use base_mlx_core::text::parse_json;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::request::{Field, JsonObject, Object};

/// What the visible text of an answer is held to, and the path of the field that says so; `None` is any text. There are
/// several ways to say it, of OpenAI and of other servers, and one of them counts: two at once are an error.
pub(crate) fn content_rule(body: &JsonObject) -> Result<Option<(String, Rule)>, ApiError> {
    let fields = body.fields();
    let mut found: Option<(String, Rule)> = None;
    let ways: [(&str, Way); 8] = [
        ("response_format", response_format),
        ("grammar", grammar),
        ("structured_outputs", structured_outputs),
        ("guided_json", schema),
        ("guided_regex", regex),
        ("guided_choice", choice),
        ("guided_grammar", lark),
        ("json_schema", schema),
    ];
    for (key, way) in ways {
        let Some(field) = fields.get(key) else { continue };
        let Some(rule) = way(&field).map_err(ApiError::of_response_format)? else { continue };
        if let Some((first, _)) = &found {
            let message = format!("`{first}` and `{}` are given, and only one can be", rule.0);
            return Err(ApiError::invalid(key, message));
        }
        found = Some(rule);
    }
    Ok(found)
}

/// Reads one way of saying it; `None` if it asks for nothing.
type Way = fn(&Field) -> Result<Option<(String, Rule)>, ApiError>;

fn response_format(format: &Field) -> Result<Option<(String, Rule)>, ApiError> {
    let fields = format.object()?;
    let kind = fields.need("type", FORMATS)?;
    match kind.text()? {
        "text" => Ok(None),
        "json_object" => match fields.get("schema") {
            // As llama.cpp has it.
            Some(given) => schema(&given),
            None => Ok(Some((format.path().to_owned(), any_object()))),
        },
        "json_schema" => {
            let given =
                fields.need("json_schema", "an object with `name` and `schema`")?.object()?;
            check_name(&given.need("name", "a string")?)?;
            let strict = given.flag("strict")?.unwrap_or(false);
            let schema = given.need("schema", "a JSON schema")?;
            json(&schema, schema.value().clone(), strict).map(Some)
        }
        "structural_tag" => {
            let message = format!("`{}` is `structural_tag`, which is not supported", kind.path());
            Err(ApiError::unsupported(kind.path(), message))
        }
        other => {
            let message = format!("`{}` is {other:?}, expected {FORMATS}", kind.path());
            Err(ApiError::invalid(kind.path(), message))
        }
    }
}

/// Our own field: `{"regex"}`, `{"choice"}` or `{"lark"}`, or the Lark alone.
fn grammar(given: &Field) -> Result<Option<(String, Rule)>, ApiError> {
    if given.value().is_string() {
        return lark(given);
    }
    let ways: [(&str, Way); 3] = [("regex", regex), ("choice", choice), ("lark", lark)];
    one_of(&given.object()?, &ways)
}

/// vLLM's.
fn structured_outputs(given: &Field) -> Result<Option<(String, Rule)>, ApiError> {
    let ways: [(&str, Way); 6] = [
        ("json", schema),
        ("regex", regex),
        ("choice", choice),
        ("grammar", lark),
        ("json_object", |given| Ok(given.flag()?.then(|| (given.path().to_owned(), any_object())))),
        ("structural_tag", |given| {
            let message = format!("`{}` is not supported", given.path());
            Err(ApiError::unsupported(given.path(), message))
        }),
    ];
    one_of(&given.object()?, &ways)
}

/// Exactly one of these keys must be there.
fn one_of(fields: &Object, ways: &[(&str, Way)]) -> Result<Option<(String, Rule)>, ApiError> {
    let given: Vec<_> =
        ways.iter().filter_map(|(key, way)| fields.get(key).map(|field| (field, way))).collect();
    match &given[..] {
        [(field, way)] => way(field),
        _ => {
            let keys: Vec<String> = ways.iter().map(|(key, _)| format!("`{key}`")).collect();
            let path = fields.path();
            let message =
                format!("`{path}` has {} of {}, expected one", given.len(), keys.join(", "));
            Err(ApiError::invalid(path, message))
        }
    }
}

/// A schema, or its JSON text.
fn schema(given: &Field) -> Result<Option<(String, Rule)>, ApiError> {
    let value = match given.value() {
        Value::String(text) => parse_json(text.as_bytes()).map_err(|error| {
            let message = format!("`{}` is not valid JSON: {error}", given.path());
            ApiError::invalid(given.path(), message)
        })?,
        value => value.clone(),
    };
    json(given, value, false).map(Some)
}

fn json(given: &Field, schema: Value, strict: bool) -> Result<(String, Rule), ApiError> {
    if !schema.is_object() && !schema.is_boolean() {
        return Err(given.wrong("a JSON schema"));
    }
    Ok((given.path().to_owned(), Rule::Json { schema, strict, spacing: Spacing::Compact }))
}

fn any_object() -> Rule {
    let schema = json!({ "type": "object" });
    Rule::Json { schema, strict: false, spacing: Spacing::Flexible }
}

fn regex(given: &Field) -> Result<Option<(String, Rule)>, ApiError> {
    let regex = not_empty(given)?;
    Ok(Some((given.path().to_owned(), Rule::Regex(regex.to_owned()))))
}

fn choice(given: &Field) -> Result<Option<(String, Rule)>, ApiError> {
    let texts = given.list()?;
    if texts.is_empty() {
        let message = format!("`{}` is empty, expected texts to choose from", given.path());
        return Err(ApiError::invalid(given.path(), message));
    }
    let texts = texts.iter().map(|text| not_empty(text).map(str::to_owned));
    Ok(Some((given.path().to_owned(), Rule::Choice(texts.collect::<Result<_, _>>()?))))
}

fn lark(given: &Field) -> Result<Option<(String, Rule)>, ApiError> {
    let lark = not_empty(given)?;
    if lark.contains("::=") {
        let message = format!(
            "`{}` looks like GBNF, which is not supported\n\
             hint: write it in Lark (`name: \"a\" | /b+/`), or give a JSON schema",
            given.path()
        );
        return Err(ApiError::invalid(given.path(), message));
    }
    Ok(Some((given.path().to_owned(), Rule::Lark(lark.to_owned()))))
}

fn not_empty<'a>(given: &Field<'a>) -> Result<&'a str, ApiError> {
    match given.text()? {
        "" => {
            let message = format!("`{}` is an empty string", given.path());
            Err(ApiError::invalid(given.path(), message))
        }
        text => Ok(text),
    }
}

fn check_name(name: &Field) -> Result<(), ApiError> {
    let text = name.text()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    let message =
        format!("`{}` is {text:?}, expected 1 to 64 letters, digits, `_` or `-`", name.path());
    Err(ApiError::invalid(name.path(), message))
}

const FORMATS: &str = "`text`, `json_object` or `json_schema`";

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<Option<(String, Rule)>, ApiError> {
        content_rule(&JsonObject::parse(body.to_string().as_bytes()).unwrap())
    }

    fn wrong(body: &Value) -> (String, String) {
        let error = parse(body).expect_err(&body.to_string());
        assert_eq!(error.status(), 400, "{body}");
        let param = error.envelope()["error"]["param"].as_str().unwrap().to_owned();
        (param, error.to_string())
    }

    fn found(body: &Value) -> (String, Rule) {
        parse(body).unwrap().unwrap()
    }

    fn held(schema: Value, strict: bool) -> Rule {
        Rule::Json { schema, strict, spacing: Spacing::Compact }
    }

    #[test]
    fn point_39_response_formats_are_read_and_malformed_ones_named() {
        let format = |format: Value| json!({ "response_format": format });
        assert_eq!(parse(&format(json!(null))).unwrap(), None);
        assert_eq!(parse(&format(json!({ "type": "text" }))).unwrap(), None);
        assert_eq!(
            found(&format(json!({ "type": "json_object" }))),
            ("response_format".into(), any_object())
        );
        let object = json!({ "type": "object" });
        let given = json!({ "name": "n", "schema": object, "strict": true });
        assert_eq!(
            found(&format(json!({ "type": "json_schema", "json_schema": given }))),
            ("response_format.json_schema.schema".into(), held(object.clone(), true))
        );
        assert_eq!(
            found(&format(json!({ "type": "json_object", "schema": object }))),
            ("response_format.schema".into(), held(object.clone(), false))
        );
        let schema = |given: Value| json!({ "type": "json_schema", "json_schema": given });
        for (given, path) in [
            (json!(5), "response_format"),
            (json!({}), "response_format.type"),
            (json!({ "type": "xml" }), "response_format.type"),
            (json!({ "type": "structural_tag" }), "response_format.type"),
            (json!({ "type": "json_schema" }), "response_format.json_schema"),
            (schema(json!({ "schema": object })), "response_format.json_schema.name"),
            (schema(json!({ "name": "", "schema": object })), "response_format.json_schema.name"),
            (schema(json!({ "name": "a b", "schema": {} })), "response_format.json_schema.name"),
            (schema(json!({ "name": "n" })), "response_format.json_schema.schema"),
            (schema(json!({ "name": "n", "schema": [] })), "response_format.json_schema.schema"),
            (schema(json!({ "name": "n", "schema": "{}" })), "response_format.json_schema.schema"),
            (
                schema(json!({ "name": "n", "schema": {}, "strict": 1 })),
                "response_format.json_schema.strict",
            ),
        ] {
            let (param, message) = wrong(&format(given.clone()));
            assert_eq!(param, "response_format", "{given}");
            assert!(message.contains(path), "{given}: {message}");
        }
    }

    #[test]
    fn point_63_grammars_have_the_names_of_other_servers_too() {
        let schema = json!({ "type": "array" });
        let choice = || Rule::Choice(vec!["a".into(), "b".into()]);
        let regex = || Rule::Regex("a+".into());
        let lark = || Rule::Lark("start: \"a\"".into());
        let cases = [
            (json!({ "grammar": { "regex": "a+" } }), "grammar.regex", regex()),
            (json!({ "grammar": { "choice": ["a", "b"] } }), "grammar.choice", choice()),
            (json!({ "grammar": { "lark": "start: \"a\"" } }), "grammar.lark", lark()),
            (json!({ "grammar": "start: \"a\"" }), "grammar", lark()),
            (json!({ "guided_json": schema }), "guided_json", held(schema.clone(), false)),
            (
                json!({ "guided_json": schema.to_string() }),
                "guided_json",
                held(schema.clone(), false),
            ),
            (json!({ "guided_regex": "a+" }), "guided_regex", regex()),
            (json!({ "guided_choice": ["a", "b"] }), "guided_choice", choice()),
            (json!({ "guided_grammar": "start: \"a\"" }), "guided_grammar", lark()),
            (json!({ "json_schema": schema }), "json_schema", held(schema.clone(), false)),
            (
                json!({ "structured_outputs": { "json": schema } }),
                "structured_outputs.json",
                held(schema.clone(), false),
            ),
            (
                json!({ "structured_outputs": { "regex": "a+", "choice": null } }),
                "structured_outputs.regex",
                regex(),
            ),
            (
                json!({ "structured_outputs": { "choice": ["a", "b"], "backend": "x" } }),
                "structured_outputs.choice",
                choice(),
            ),
            (
                json!({ "structured_outputs": { "grammar": "start: \"a\"" } }),
                "structured_outputs.grammar",
                lark(),
            ),
            (
                json!({ "structured_outputs": { "json_object": true } }),
                "structured_outputs.json_object",
                any_object(),
            ),
        ];
        for (body, origin, rule) in cases {
            assert_eq!(found(&body), (origin.to_owned(), rule), "{body}");
        }
        assert_eq!(
            parse(&json!({ "structured_outputs": { "json_object": false } })).unwrap(),
            None
        );
        assert_eq!(parse(&json!({ "grammar": null, "guided_json": null })).unwrap(), None);
    }

    #[test]
    fn only_one_grammar_can_be_given() {
        for (body, param) in [
            (json!({ "grammar": { "regex": "a", "choice": ["a"] } }), "grammar"),
            (json!({ "grammar": {} }), "grammar"),
            (json!({ "structured_outputs": { "regex": "a", "json": {} } }), "structured_outputs"),
            (json!({ "guided_regex": "a", "guided_choice": ["a"] }), "guided_choice"),
            (
                json!({ "response_format": { "type": "json_object" }, "grammar": { "regex": "a" } }),
                "grammar",
            ),
        ] {
            assert_eq!(wrong(&body).0, param, "{body}");
        }
        let body = json!({ "response_format": { "type": "text" }, "grammar": { "regex": "a" } });
        assert_eq!(found(&body).0, "grammar.regex");
    }

    #[test]
    fn what_is_no_grammar_is_named() {
        for (body, param) in [
            (json!({ "grammar": 5 }), "grammar"),
            (json!({ "grammar": "" }), "grammar"),
            (json!({ "grammar": { "regex": "" } }), "grammar.regex"),
            (json!({ "grammar": { "regex": ["a"] } }), "grammar.regex"),
            (json!({ "grammar": { "choice": [] } }), "grammar.choice"),
            (json!({ "grammar": { "choice": ["a", ""] } }), "grammar.choice[1]"),
            (json!({ "grammar": { "choice": [1] } }), "grammar.choice[0]"),
            (json!({ "guided_json": "{" }), "guided_json"),
            (json!({ "guided_json": 5 }), "guided_json"),
            (
                json!({ "structured_outputs": { "structural_tag": "x" } }),
                "structured_outputs.structural_tag",
            ),
        ] {
            assert_eq!(wrong(&body).0, param, "{body}");
        }
        for body in [
            json!({ "grammar": "root ::= \"a\"" }),
            json!({ "grammar": { "lark": "root ::= \"a\"" } }),
            json!({ "guided_grammar": "root ::= \"a\"" }),
        ] {
            let (_, message) = wrong(&body);
            assert!(message.contains("GBNF") && message.contains("Lark"), "{message}");
        }
    }
}
