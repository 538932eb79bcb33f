use std::path::Path;

use serde::Deserialize;

use crate::weights::LoadError;

/// How a model's makers would sample from it: what `generation_config.json` says. A request that leaves a parameter
/// out gets these values, then the API's own defaults.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct SamplingDefaults {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// Of the model at `path`. A GGUF file and a folder without the file have none.
    pub(super) fn load(path: &Path) -> Result<Self, LoadError> {
        let path = path.join("generation_config.json");
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|source| LoadError::Io { path: path.clone(), source })?;
        let defaults: Self = serde_json::from_str(&text)
            .map_err(|error| LoadError::Damaged { path, what: error.to_string() })?;
        Ok(defaults.sound())
    }

    /// Without values outside the ranges that requests are held to.
    fn sound(self) -> Self {
        Self {
            temperature: self.temperature.filter(|value| (0.0..=2.0).contains(value)),
            top_k: self.top_k,
            top_p: self.top_p.filter(|&value| value > 0.0 && value <= 1.0),
            min_p: self.min_p.filter(|value| (0.0..=1.0).contains(value)),
            repetition_penalty: self
                .repetition_penalty
                .filter(|&value| value > 0.0 && value <= 10.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_config_gives_the_defaults_that_are_in_range() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"do_sample": true, "temperature": 0.7, "top_k": 20, "top_p": 1.5, "eos_token_id": [1, 2]}"#;
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
