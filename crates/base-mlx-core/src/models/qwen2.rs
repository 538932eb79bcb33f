//! Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671): a Llama whose queries, keys and values have a bias.

use crate::backend::Backend;
use crate::nn::{Bias, Windows};
use crate::weights::{Config, LoadError, Loader};

use super::LanguageModel;
use super::decoder::Sizes;
use super::llama::{self, Biases};

pub(super) fn load<B: Backend>(loader: &Loader<B>) -> Result<Box<dyn LanguageModel<B>>, LoadError> {
    let sizes = Sizes::read(loader.config())?;
    let windows = windows(loader.config(), sizes.num_hidden_layers)?;
    llama::build(loader, &sizes, &windows, Biases { qkv: Bias::Yes, o: Bias::No })
}

/// How far back each layer of a Qwen looks. Its configs state a `sliding_window` that counts only together with
/// `use_sliding_window`, and then from layer `max_window_layers` on.
pub(super) fn windows(config: &Config, layers: usize) -> Result<Windows, LoadError> {
    if !config.bool_or("use_sliding_window", false)? {
        return Ok(Windows::none());
    }
    let first = match config.get("max_window_layers") {
        None if config.get("layer_types").is_some() => 0,
        None => return Err(config.error("max_window_layers", "is missing")),
        Some(value) => value.as_u64().map(|first| first as usize).ok_or_else(|| {
            config.error("max_window_layers", &format!("is {value}, expected a whole number"))
        })?,
    };
    Windows::read(config, layers, Some(first))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_window_counts_only_when_it_is_used() {
        let three = |config| {
            let windows = windows(&of(config), 3).map_err(|error| error.to_string())?;
            Ok::<_, String>([0, 1, 2].map(|layer| windows.of(layer)))
        };
        let unused =
            json!({"sliding_window": 9, "use_sliding_window": false, "max_window_layers": 1});
        assert_eq!(three(unused), Ok([None; 3]));
        let used = json!({"sliding_window": 9, "use_sliding_window": true, "max_window_layers": 1});
        assert_eq!(three(used), Ok([None, Some(9), Some(9)]));
        let all = json!({"sliding_window": 9, "use_sliding_window": true, "max_window_layers": 0});
        assert_eq!(three(all), Ok([Some(9); 3]));
        assert_eq!(
            three(json!({"sliding_window": 9, "use_sliding_window": true})),
            Err("`max_window_layers` in config.json is missing".into())
        );
    }

    fn of(config: Value) -> Config {
        let Value::Object(values) = config else { panic!("{config} is no object") };
        Config::new(Path::new("config.json"), values)
    }
}
