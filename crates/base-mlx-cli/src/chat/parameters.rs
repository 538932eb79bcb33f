use std::hash::{BuildHasher, RandomState};

use anyhow::{Result, bail};
use base_mlx_core::sample::SamplingParams;
use base_mlx_core::sample::range::{self, Range};
use base_mlx_server::Preset;
use clap::Args;

/// What the user set; the rest is the word of who keeps or made the model, then ours.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Parameters {
    /// Randomness, 0 to 2; 0 takes the most probable token [default: the model's, or 0.7]
    #[arg(long, value_parser = temperature)]
    temperature: Option<f32>,
    /// Choose among the K most probable tokens, 0 for all
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose among the tokens that make up this share of the probability
    #[arg(long, value_name = "P", value_parser = top_p)]
    top_p: Option<f32>,
    /// Choose among tokens at least this times as probable as the best
    #[arg(long, value_name = "P", value_parser = min_p)]
    min_p: Option<f32>,
    /// Above 1: avoid what prompt or answer have said already
    #[arg(long, value_name = "FACTOR", value_parser = repetition_penalty)]
    repetition_penalty: Option<f32>,
    /// Above 0: avoid tokens that the answer has
    #[arg(long, value_name = "PENALTY", value_parser = penalty, allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Above 0: avoid tokens the more often the answer has them
    #[arg(long, value_name = "PENALTY", value_parser = penalty, allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// The same seed gives the same answer [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Most tokens of an answer [default: what the context leaves]
    #[arg(long, value_name = "TOKENS", value_parser = crate::config::count)]
    max_tokens: Option<usize>,
    /// End the answer before this text; may be given again
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    stop: Vec<String>,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

impl Parameters {
    pub(crate) const NAMES: &str = "temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, \
         frequency_penalty, seed, max_tokens, stop, system";

    /// Sets one by name, as `/set` does.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let result = match name.replace('-', "_").as_str() {
            "temperature" => temperature(value).map(|value| self.temperature = Some(value)),
            "top_k" => whole(value).map(|value| self.top_k = Some(value)),
            "top_p" => top_p(value).map(|value| self.top_p = Some(value)),
            "min_p" => min_p(value).map(|value| self.min_p = Some(value)),
            "repetition_penalty" => {
                repetition_penalty(value).map(|value| self.repetition_penalty = Some(value))
            }
            "presence_penalty" => penalty(value).map(|value| self.presence_penalty = Some(value)),
            "frequency_penalty" => penalty(value).map(|value| self.frequency_penalty = Some(value)),
            "seed" => whole(value).map(|value| self.seed = Some(value)),
            "max_tokens" => crate::config::count(value).map(|value| self.max_tokens = Some(value)),
            "stop" if value.is_empty() => Err("expected a text".to_owned()),
            "stop" => {
                self.stop = vec![value.to_owned()];
                Ok(())
            }
            "system" => {
                self.system = Some(value.to_owned());
                Ok(())
            }
            _ => bail!("there is no parameter `{name}`\nhint: there are {}", Self::NAMES),
        };
        match result {
            Ok(()) => Ok(()),
            Err(why) => bail!("`{name}` cannot be `{value}`: {why}"),
        }
    }

    /// Those that are set, one a line.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut add = |name: &str, value: Option<String>| {
            lines.extend(value.map(|value| format!("{name} {value}")));
        };
        add("temperature", self.temperature.map(|value| value.to_string()));
        add("top_k", self.top_k.map(|value| value.to_string()));
        add("top_p", self.top_p.map(|value| value.to_string()));
        add("min_p", self.min_p.map(|value| value.to_string()));
        add("repetition_penalty", self.repetition_penalty.map(|value| value.to_string()));
        add("presence_penalty", self.presence_penalty.map(|value| value.to_string()));
        add("frequency_penalty", self.frequency_penalty.map(|value| value.to_string()));
        add("seed", self.seed.map(|value| value.to_string()));
        add("max_tokens", self.max_tokens.map(|value| value.to_string()));
        for stop in &self.stop {
            add("stop", Some(stop.clone()));
        }
        add("system", self.system.clone());
        lines
    }

    pub(crate) fn sampling(&self, preset: &Preset) -> SamplingParams {
        let (ours, model) = (SamplingParams::default(), &preset.sampling);
        let penalty = |set: Option<f32>, model: Option<f32>, ours| set.or(model).unwrap_or(ours);
        SamplingParams {
            temperature: self.temperature.or(model.temperature).unwrap_or(TEMPERATURE),
            top_k: self.top_k.or(model.top_k).unwrap_or(ours.top_k),
            top_p: self.top_p.or(model.top_p).unwrap_or(ours.top_p),
            min_p: self.min_p.or(model.min_p).unwrap_or(ours.min_p),
            repetition_penalty: self
                .repetition_penalty
                .or(model.repetition_penalty)
                .unwrap_or(ours.repetition_penalty),
            presence_penalty: penalty(
                self.presence_penalty,
                preset.presence_penalty,
                ours.presence_penalty,
            ),
            frequency_penalty: penalty(
                self.frequency_penalty,
                preset.frequency_penalty,
                ours.frequency_penalty,
            ),
            // The state of a new hasher is the standard library's only source of randomness.
            seed: self.seed.or(preset.seed).unwrap_or_else(|| RandomState::new().hash_one(0)),
            ..ours
        }
    }

    pub(crate) fn max_tokens(&self, preset: &Preset) -> Option<usize> {
        self.max_tokens.or(preset.max_tokens)
    }

    pub(crate) fn stop<'a>(&'a self, preset: &'a Preset) -> &'a [String] {
        if self.stop.is_empty() { &preset.stop } else { &self.stop }
    }

    /// An empty one stands for none at all.
    pub(crate) fn system<'a>(&'a self, preset: &'a Preset) -> Option<&'a str> {
        self.system.as_deref().or(preset.system.as_deref()).filter(|text| !text.is_empty())
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, range::TEMPERATURE)
}

fn top_p(text: &str) -> Result<f32, String> {
    number(text, range::TOP_P)
}

fn min_p(text: &str) -> Result<f32, String> {
    number(text, range::MIN_P)
}

fn repetition_penalty(text: &str) -> Result<f32, String> {
    number(text, range::REPETITION_PENALTY)
}

fn penalty(text: &str) -> Result<f32, String> {
    number(text, range::PENALTY)
}

fn number(text: &str, range: Range) -> Result<f32, String> {
    match text.parse() {
        Ok(value) if range.contains(value) => Ok(value as f32),
        _ => Err(format!("expected a number, {range}")),
    }
}

fn whole<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "expected a whole number of at least 0".to_owned())
}

/// Of a conversation with a model whose makers name none. The API's own default, 1, makes small models ramble.
const TEMPERATURE: f32 = 0.7;

#[cfg(test)]
mod tests {
    use base_mlx_core::engine::SamplingDefaults;

    use super::*;

    #[test]
    fn every_parameter_can_be_set_and_is_shown() {
        let mut parameters = Parameters::default();
        for name in Parameters::NAMES.split(", ") {
            parameters.set(name, "1").unwrap();
        }
        let names: Vec<_> = parameters
            .lines()
            .iter()
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect();
        assert_eq!(names.join(", "), Parameters::NAMES);
        let sampling = parameters.sampling(&Preset::default());
        assert_eq!((sampling.temperature, sampling.top_k, sampling.seed), (1.0, 1, 1));
    }

    #[test]
    fn a_value_out_of_range_is_refused_and_changes_nothing() {
        let mut parameters = Parameters::default();
        for (name, value) in [
            ("temperature", "NaN"),
            ("top_p", "0"),
            ("seed", "-1"),
            ("max_tokens", "0"),
            ("stop", ""),
        ] {
            let error = parameters.set(name, value).unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{name}` cannot be `{value}`: ")), "{error}");
        }
        assert_eq!(parameters.lines(), [""; 0]);
        let error = parameters.set("temprature", "1").unwrap_err().to_string();
        assert!(error.contains("hint: there are temperature"), "{error}");
    }

    #[test]
    fn the_users_word_beats_the_makers() {
        let sampling =
            SamplingDefaults { temperature: Some(0.6), top_k: Some(20), ..Default::default() };
        let (system, stop) = (Some("Be brief.".to_owned()), vec!["END".to_owned()]);
        let makers = Preset { sampling, system, stop, ..Preset::default() };
        let mut parameters = Parameters::default();
        assert_eq!(parameters.system(&makers), Some("Be brief."));
        assert_eq!(parameters.stop(&makers), ["END"]);
        parameters.set("temperature", "0.2").unwrap();
        let sampling = parameters.sampling(&makers);
        assert_eq!((sampling.temperature, sampling.top_k), (0.2, 20));
        parameters.set("system", "").unwrap();
        parameters.set("stop", "x").unwrap();
        assert_eq!(parameters.system(&makers), None);
        assert_eq!(parameters.stop(&makers), ["x"]);
    }
}
