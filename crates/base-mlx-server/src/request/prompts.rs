use base_mlx_core::TokenId;
use serde_json::Value;

use super::Object;
use crate::error::ApiError;

/// A text of the request, as text or in the model's tokens.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// The texts that a field has, at most so many: a string, an array of strings, an array of tokens, or an array of those.
pub(crate) fn prompts(
    fields: &Object,
    param: &'static str,
    most: usize,
) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |message: &str| ApiError::invalid(param, format!("`{param}` {message}"));
    let expected = "is not a string, an array of strings, an array of tokens or an array of those";
    let Some(given) = fields.get(param) else { return Err(wrong("is missing")) };
    let prompts = match given.value() {
        Value::String(text) => vec![Prompt::Text(text.clone())],
        Value::Array(items) if items.is_empty() => return Err(wrong("is an empty array")),
        Value::Array(items) if items[0].is_number() => {
            vec![Prompt::Tokens(tokens(items).ok_or_else(|| wrong(expected))?)]
        }
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Some(Prompt::Text(text.clone())),
                Value::Array(items) => tokens(items).map(Prompt::Tokens),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| wrong(expected))?,
        _ => return Err(wrong(expected)),
    };
    if prompts.len() > most {
        let count = prompts.len();
        return Err(wrong(&format!("has {count} texts, at most {most} are taken")));
    }
    Ok(prompts)
}

fn tokens(items: &[Value]) -> Option<Vec<TokenId>> {
    items.iter().map(|item| item.as_u64().and_then(|token| token.try_into().ok())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn point_47_prompts_come_in_four_forms() {
        let text = |text: &str| Prompt::Text(text.into());
        let prompts = |given: Value| {
            let body = json!({ "prompt": given });
            prompts(&Object::body(body.as_object().unwrap()), "prompt", 3)
        };
        assert_eq!(prompts(json!("a")).unwrap(), [text("a")]);
        assert_eq!(prompts(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(
            prompts(json!([[1], [2, 3]])).unwrap(),
            [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]
        );
        for wrong in [
            json!(null),
            json!([]),
            json!([1, "a"]),
            json!([-1]),
            json!({}),
            json!([[1.5]]),
            json!(["a", "b", "c", "d"]),
        ] {
            assert_eq!(prompts(wrong).unwrap_err().envelope()["error"]["param"], "prompt");
        }
    }
}
