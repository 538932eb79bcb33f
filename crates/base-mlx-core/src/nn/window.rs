use serde_json::Value;

use crate::weights::{Config, LoadError};

/// How far back each layer looks.
#[derive(Clone, Debug, PartialEq)]
pub struct Windows {
    window: Option<usize>,
    sliding: Sliding,
}

/// Which layers have the window; the others look all the way.
#[derive(Clone, Debug, PartialEq)]
enum Sliding {
    /// From a layer's number on. Not a list, since config.json may name any number of layers.
    From(usize),
    Listed(Vec<bool>),
}

impl Windows {
    /// Every layer looks all the way.
    pub fn none() -> Self {
        Self { window: None, sliding: Sliding::From(0) }
    }

    /// The window of `sliding_window`, for the layers that `layer_types` lists; without that list, for those from
    /// `first` on.
    pub fn read(
        config: &Config,
        num_hidden_layers: usize,
        first: Option<usize>,
    ) -> Result<Self, LoadError> {
        let window = config.optional_count("sliding_window")?;
        let Some(types) = config.get("layer_types") else {
            return Ok(match first {
                Some(first) => Self { window, sliding: Sliding::From(first) },
                None => Self::none(),
            });
        };
        let types = types.as_array().map(Vec::as_slice).unwrap_or_default();
        if types.len() != num_hidden_layers {
            let what = format!("has {} entries, expected {num_hidden_layers}", types.len());
            return Err(config.error("layer_types", &what));
        }
        let slides = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") if window.is_some() => Ok(true),
            Some("sliding_attention") => {
                Err(config.error("sliding_window", "is missing, but `layer_types` asks for it"))
            }
            _ => Err(config.error("layer_types", &format!("has {kind}, which is not supported"))),
        };
        let listed = types.iter().map(slides).collect::<Result<_, _>>()?;
        Ok(Self { window, sliding: Sliding::Listed(listed) })
    }

    /// The window of the layer with this number, or `None` if it looks all the way.
    pub fn of(&self, layer: usize) -> Option<usize> {
        self.window.filter(|_| match &self.sliding {
            Sliding::From(first) => layer >= *first,
            Sliding::Listed(listed) => listed[layer],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[test]
    fn layer_types_decide_before_the_familys_rule() {
        let two = |config: Value, first| {
            let windows = Windows::read(&of(config), 2, first).map_err(|e| e.to_string())?;
            Ok::<_, String>([windows.of(0), windows.of(1)])
        };
        assert_eq!(two(json!({}), Some(0)), Ok([None, None]));
        assert_eq!(two(json!({"sliding_window": 4}), Some(0)), Ok([Some(4), Some(4)]));
        assert_eq!(two(json!({"sliding_window": 4}), Some(1)), Ok([None, Some(4)]));
        assert_eq!(two(json!({"sliding_window": 4}), None), Ok([None, None]));
        let types = json!(["full_attention", "sliding_attention"]);
        let listed = json!({"sliding_window": 4, "layer_types": types});
        assert_eq!(two(listed.clone(), Some(0)), Ok([None, Some(4)]));
        assert_eq!(two(listed, None), Ok([None, Some(4)]));
        let error = |config| two(config, None).unwrap_err();
        assert_eq!(
            error(json!({"layer_types": types})),
            "`sliding_window` in config.json is missing, but `layer_types` asks for it"
        );
        assert_eq!(
            error(json!({"layer_types": ["full_attention"]})),
            "`layer_types` in config.json has 1 entries, expected 2"
        );
        assert_eq!(
            error(json!({"layer_types": ["full_attention", "linear_attention"]})),
            "`layer_types` in config.json has \"linear_attention\", which is not supported"
        );
    }

    fn of(config: Value) -> Config {
        let Value::Object(values) = config else { panic!("{config} is no object") };
        Config::new(Path::new("config.json"), values)
    }
}
