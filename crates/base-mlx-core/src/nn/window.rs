use serde_json::Value;

use crate::weights::{Config, LoadError};

/// How far back each layer looks; `None` is all the way. `layer_types` decides where it is given, else `slides` says
/// which layers have the window of `sliding_window`, if that is set.
pub fn windows(
    config: &Config,
    num_hidden_layers: usize,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, LoadError> {
    let window = config.optional_count("sliding_window")?;
    let Some(types) = config.get("layer_types") else {
        return Ok((0..num_hidden_layers).map(|i| window.filter(|_| slides(i))).collect());
    };
    let types = types.as_array().map(Vec::as_slice).unwrap_or_default();
    if types.len() != num_hidden_layers {
        let what = format!("has {} entries, expected {num_hidden_layers}", types.len());
        return Err(config.error("layer_types", &what));
    }
    let of_type = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") => match window {
            Some(window) => Ok(Some(window)),
            None => {
                Err(config.error("sliding_window", "is missing, but `layer_types` asks for it"))
            }
        },
        _ => Err(config.error("layer_types", &format!("has {kind}, which is not supported"))),
    };
    types.iter().map(of_type).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[test]
    fn layer_types_decide_before_the_familys_rule() {
        let two = |config: Value| windows(&of(config), 2, |i| i == 0).map_err(|e| e.to_string());
        assert_eq!(two(json!({})), Ok(vec![None, None]));
        assert_eq!(two(json!({"sliding_window": 4})), Ok(vec![Some(4), None]));
        let types = json!(["full_attention", "sliding_attention"]);
        assert_eq!(
            two(json!({"sliding_window": 4, "layer_types": types})),
            Ok(vec![None, Some(4)])
        );
        assert_eq!(
            two(json!({"layer_types": types})),
            Err("`sliding_window` in config.json is missing, but `layer_types` asks for it".into())
        );
        assert_eq!(
            two(json!({"layer_types": ["full_attention"]})),
            Err("`layer_types` in config.json has 1 entries, expected 2".into())
        );
        assert_eq!(
            two(json!({"layer_types": ["full_attention", "linear_attention"]})),
            Err("`layer_types` in config.json has \"linear_attention\", which is not supported"
                .into())
        );
    }

    fn of(config: Value) -> Config {
        let Value::Object(values) = config else { panic!("{config} is no object") };
        Config::new(Path::new("config.json"), values)
    }
}
