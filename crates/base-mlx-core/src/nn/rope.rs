use std::f64::consts::TAU;

use serde_json::{Map, Value};

use crate::backend::{Backend, Rope};
use crate::weights::{Config, LoadError, Loader};

/// The rope that config.json asks for, under `rope_theta` with `rope_scaling`, or under `rope_parameters` with both.
/// `loader` stands at the checkpoint's root, where GGUF files keep their own factors.
pub fn rope<B: Backend>(loader: &Loader<B>, head_dim: usize) -> Result<Rope, LoadError> {
    let factors = loader.optional_host(FACTORS)?;
    from_config(loader.config(), head_dim, factors.as_deref())
}

fn from_config(
    config: &Config,
    head_dim: usize,
    factors: Option<&[f32]>,
) -> Result<Rope, LoadError> {
    let parameters = Settings::under("rope_parameters", config)?;
    let scaling = Settings::under("rope_scaling", config)?;
    let theta = match config.optional_f32("rope_theta")? {
        Some(theta) => f64::from(theta),
        None => parameters.optional("rope_theta")?.unwrap_or(DEFAULT_THETA),
    };
    let settings = if scaling.values.is_some() { scaling } else { parameters };
    refuse_other_layouts(&settings)?;
    if theta <= 1.0 {
        return Err(config.error("rope_theta", &format!("is {theta}, expected more than 1")));
    }
    let plain: Vec<f64> =
        (0..head_dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / head_dim as f64)).collect();

    let (mut inv_freq, attention_factor) = match settings.kind()? {
        "default" => (plain, 1.0),
        "linear" => {
            let factor = settings.positive("factor")?;
            (plain.iter().map(|f| f / factor).collect(), 1.0)
        }
        "llama3" => (llama3(&plain, &settings)?, 1.0),
        "yarn" => yarn(&plain, &settings, theta)?,
        other => {
            let what = format!("has type `{other}`, which is not supported{SUPPORTED}");
            return Err(config.error(settings.key, &what));
        }
    };
    if let Some(factors) = factors {
        if factors.len() != inv_freq.len() || factors.iter().any(|f| !f.is_finite() || *f <= 0.0) {
            let what = format!("is not {} factors greater than 0", inv_freq.len());
            return Err(config.error(FACTORS, &what));
        }
        inv_freq.iter_mut().zip(factors).for_each(|(f, factor)| *f /= f64::from(*factor));
    }
    if !attention_factor.is_finite() || inv_freq.iter().any(|f| !f.is_finite() || *f <= 0.0) {
        return Err(settings.error("gives frequencies that are not finite numbers greater than 0"));
    }
    let inv_freq = inv_freq.iter().map(|f| *f as f32).collect();
    Ok(Rope { inv_freq, attention_factor: attention_factor as f32 })
}

/// Interleaved pairs and heads rotated in part would run with the code here, and be wrong.
fn refuse_other_layouts(settings: &Settings) -> Result<(), LoadError> {
    let config = settings.config;
    if config.bool_or("rope_traditional", false)? {
        return Err(config.error("rope_traditional", "is true, which is not supported"));
    }
    let part = match config.optional_f32("partial_rotary_factor")? {
        Some(part) => Some(f64::from(part)),
        None => settings.optional("partial_rotary_factor")?,
    };
    match part {
        None | Some(1.0) => Ok(()),
        Some(part) => {
            let what = format!("is {part}, only 1 is supported");
            Err(config.error("partial_rotary_factor", &what))
        }
    }
}

/// Llama 3.1: slow pairs are stretched by `factor`, fast ones kept, those between blended by their wavelength.
fn llama3(plain: &[f64], settings: &Settings) -> Result<Vec<f64>, LoadError> {
    let factor = settings.positive("factor")?;
    let low = settings.positive("low_freq_factor")?;
    let high = settings.positive("high_freq_factor")?;
    let context = settings.positive("original_max_position_embeddings")?;
    if low >= high {
        let what = format!("has low_freq_factor {low}, expected less than high_freq_factor {high}");
        return Err(settings.error(&what));
    }
    let blend = |f: &f64| {
        let turns = context * f / TAU; // within the original context
        let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        f * (keep + (1.0 - keep) / factor)
    };
    Ok(plain.iter().map(blend).collect())
}

/// YaRN: as above with a ramp over the pairs' numbers, and attention tempered by the stretch. (Peng et al. 2023,
/// arXiv:2309.00071)
fn yarn(plain: &[f64], settings: &Settings, theta: f64) -> Result<(Vec<f64>, f64), LoadError> {
    let factor = settings.positive("factor")?;
    let context = settings.positive("original_max_position_embeddings")?;
    let beta_fast = settings.optional("beta_fast")?.unwrap_or(32.0);
    let beta_slow = settings.optional("beta_slow")?.unwrap_or(1.0);
    if settings.get("truncate") == Some(&Value::Bool(false)) {
        return Err(settings.error("has `truncate` false, which is not supported"));
    }

    let pairs = plain.len() as f64;
    let pair_turning = |turns: f64| pairs * (context / (turns * TAU)).ln() / theta.ln();
    let low = pair_turning(beta_fast).floor().max(0.0);
    let high = pair_turning(beta_slow).ceil().min(2.0 * pairs - 1.0);
    let width = if high == low { 0.001 } else { high - low };
    let blend = |(pair, f): (usize, &f64)| {
        let stretch = ((pair as f64 - low) / width).clamp(0.0, 1.0);
        f * (1.0 - stretch + stretch / factor)
    };
    let inv_freq = plain.iter().enumerate().map(blend).collect();

    let tempered = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    let mscale = settings.optional("mscale")?.unwrap_or(1.0);
    let mscale_all_dim = settings.optional("mscale_all_dim")?.unwrap_or(0.0);
    let attention_factor = settings.optional("attention_factor")?;
    let attention_factor =
        attention_factor.unwrap_or_else(|| tempered(mscale) / tempered(mscale_all_dim));
    Ok((inv_freq, attention_factor))
}

/// The object that describes the rope, and the key it stands under. Nothing there is a rope with nothing special.
struct Settings<'a> {
    config: &'a Config,
    key: &'static str,
    values: Option<&'a Map<String, Value>>,
}

impl<'a> Settings<'a> {
    fn under(key: &'static str, config: &'a Config) -> Result<Self, LoadError> {
        let values = match config.get(key) {
            None => None,
            Some(Value::Object(values)) => Some(values),
            Some(other) => {
                return Err(config.error(key, &format!("is {other}, expected an object")));
            }
        };
        // One rope for each type of layer: objects within the object.
        if values.is_some_and(|values| values.values().any(Value::is_object)) {
            let what = "has a rope for each type of layer, which is not supported";
            return Err(config.error(key, what));
        }
        Ok(Self { config, key, values })
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.values?.get(name).filter(|value| !value.is_null())
    }

    fn kind(&self) -> Result<&str, LoadError> {
        let Some(kind) = self.get("rope_type").or_else(|| self.get("type")) else {
            return Ok("default");
        };
        kind.as_str().ok_or_else(|| self.error(&format!("has type {kind}, expected a string")))
    }

    fn optional(&self, name: &str) -> Result<Option<f64>, LoadError> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.error(&format!("has `{name}` {value}, expected a number"))),
            },
        }
    }

    fn positive(&self, name: &str) -> Result<f64, LoadError> {
        match self.optional(name)? {
            Some(number) if number > 0.0 => Ok(number),
            Some(number) => {
                Err(self.error(&format!("has `{name}` {number}, expected more than 0")))
            }
            None => Err(self.error(&format!("has no `{name}`"))),
        }
    }

    fn error(&self, what: &str) -> LoadError {
        self.config.error(self.key, what)
    }
}

/// What the checkpoints' own configuration classes take where the key is absent.
const DEFAULT_THETA: f64 = 10_000.0;
const FACTORS: &str = "rope_freqs.weight";
const SUPPORTED: &str = "\nhint: supported are default, linear, llama3, yarn";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    #[test]
    fn theta_may_stand_in_either_place() {
        let plain = of(json!({"rope_theta": 100.0}), None).unwrap();
        assert_eq!(*plain.inv_freq, [1.0, 100f32.powf(-0.5)]);
        assert_eq!(plain.attention_factor, 1.0);
        let nested = json!({"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}});
        assert_eq!(of(nested, None).unwrap(), plain);
        let both = json!({"rope_scaling": {"type": "linear", "factor": 1.0},
                          "rope_parameters": {"rope_theta": 100.0}});
        assert_eq!(of(both, None).unwrap(), plain);
    }

    #[test]
    fn factors_of_the_file_divide_the_frequencies() {
        let rope = of(json!({"rope_theta": 4.0}), Some(&[1.0, 8.0])).unwrap();
        assert_eq!(*rope.inv_freq, [1.0, 0.0625]);
        let wrong = of(json!({"rope_theta": 4.0}), Some(&[1.0])).unwrap_err().to_string();
        assert_eq!(wrong, "`rope_freqs.weight` in config.json is not 2 factors greater than 0");
    }

    #[test]
    fn what_is_not_known_is_an_error_that_names_it() {
        let error = |config| of(config, None).unwrap_err().to_string();
        assert_eq!(
            error(json!({"rope_scaling": {"rope_type": "longrope", "factor": 2}})),
            "`rope_scaling` in config.json has type `longrope`, which is not supported\n\
             hint: supported are default, linear, llama3, yarn"
        );
        assert_eq!(
            error(json!({"rope_scaling": {"type": "linear"}})),
            "`rope_scaling` in config.json has no `factor`"
        );
        assert_eq!(
            error(json!({"rope_scaling": {"type": "linear", "factor": 0}})),
            "`rope_scaling` in config.json has `factor` 0, expected more than 0"
        );
        assert_eq!(
            error(json!({"rope_scaling": {"type": "linear", "factor": "4"}})),
            "`rope_scaling` in config.json has `factor` \"4\", expected a number"
        );
        assert_eq!(
            error(json!({"rope_scaling": "linear"})),
            "`rope_scaling` in config.json is \"linear\", expected an object"
        );
        assert_eq!(
            error(json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})),
            "`rope_parameters` in config.json has a rope for each type of layer, which is not supported"
        );
        assert_eq!(
            error(json!({"rope_theta": 0})),
            "`rope_theta` in config.json is 0, expected more than 1"
        );
        assert_eq!(
            error(json!({"rope_traditional": true})),
            "`rope_traditional` in config.json is true, which is not supported"
        );
        assert_eq!(
            error(json!({"rope_parameters": {"partial_rotary_factor": 0.5}})),
            "`partial_rotary_factor` in config.json is 0.5, only 1 is supported"
        );
        assert_eq!(
            error(json!({"rope_scaling": {"type": "yarn", "factor": 4, "beta_fast": 0,
                                          "original_max_position_embeddings": 64, "beta_slow": 0}})),
            "`rope_scaling` in config.json gives frequencies that are not finite numbers greater than 0"
        );
        assert_eq!(
            error(json!({"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 4,
                         "high_freq_factor": 4, "original_max_position_embeddings": 8192}})),
            "`rope_scaling` in config.json has low_freq_factor 4, expected less than high_freq_factor 4"
        );
    }

    fn of(config: Value, factors: Option<&[f32]>) -> Result<Rope, LoadError> {
        let Value::Object(values) = config else { panic!("{config} is no object") };
        from_config(&Config::new(Path::new("config.json"), values), 4, factors)
    }
}
