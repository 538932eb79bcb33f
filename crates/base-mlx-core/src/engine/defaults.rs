use std::path::Path;

use crate::sample::range::{self, Range};
use crate::weights::{Config, LoadError};

/// How a model's makers would sample from it: what `generation_config.json` says. A request that leaves a parameter
/// out gets these values, then the API's own defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// Of the model at `path`. A GGUF file and a folder without the file have none, and a value outside the range that
    /// requests are held to counts as absent: no hint is worth refusing a model for.
    pub(super) fn load(path: &Path) -> Result<Self, LoadError> {
        let path = path.join("generation_config.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        let config = Config::read(&path)?;
        let number = |key: &str| config.get(key).and_then(|value| value.as_f64());
        let within = |key: &str, range: Range| {
            number(key).filter(|value| range.contains(*value)).map(|found| found as f32)
        };
        Ok(Self {
            temperature: within("temperature", range::TEMPERATURE),
            top_k: number("top_k").filter(|value| *value >= 0.0).map(|value| value as usize),
            top_p: within("top_p", range::TOP_P),
            min_p: within("min_p", range::MIN_P),
            repetition_penalty: within("repetition_penalty", range::REPETITION_PENALTY),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_config_gives_the_defaults_that_are_in_range() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"temperature": 0.7, "top_k": 20.0, "top_p": 1.5, "min_p": "a", "eos_token_id": [1]}"#;
        std::fs::write(folder.path().join("generation_config.json"), text).unwrap();
        let found = SamplingDefaults::load(folder.path()).unwrap();
        let expected =
            SamplingDefaults { temperature: Some(0.7), top_k: Some(20), ..Default::default() };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_model_without_one_has_no_defaults() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(SamplingDefaults::load(folder.path()).unwrap(), SamplingDefaults::default());
        let file = folder.path().join("model.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(SamplingDefaults::load(&file).unwrap(), SamplingDefaults::default());
    }
}
