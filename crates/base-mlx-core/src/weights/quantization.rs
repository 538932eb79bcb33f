use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{Config, LoadError};

/// What config.json's `quantization` says, in the words of mlx-lm: settings for all layers, and by name the layers
/// that differ.
#[derive(Clone, Debug, Default)]
pub(super) struct Quantization {
    default: Option<Affine>,
    /// `None` is a layer that was left dense.
    layers: HashMap<String, Option<Affine>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Affine {
    pub(super) bits: u32,
    pub(super) group_size: usize,
}

impl Quantization {
    pub(super) fn read(config: &Config) -> Result<Self, LoadError> {
        let Some(settings) = config.get(KEY) else {
            return match config.get("quantization_config").and_then(|it| it.get("quant_method")) {
                None => Ok(Self::default()),
                Some(method) => Err(LoadError::Unsupported {
                    path: config.path().to_owned(),
                    what: format!("quantisation {method}"),
                    hint: "get an MLX or a GGUF version of this model".into(),
                }),
            };
        };
        let Value::Object(settings) = settings else {
            return Err(config.error(KEY, &format!("is {settings}, expected an object")));
        };
        let default = affine(config, KEY, settings, None)?;
        let mut layers = HashMap::new();
        for (name, value) in settings {
            let layer = match value {
                Value::Bool(false) => None,
                Value::Bool(true) => Some(default),
                Value::Object(own) => {
                    Some(affine(config, &format!("{KEY}.{name}"), own, Some(default))?)
                }
                _ => continue,
            };
            layers.insert(name.clone(), layer);
        }
        Ok(Self { default: Some(default), layers })
    }

    /// The settings of the layer of this name; `None` if it is dense.
    pub(super) fn of(&self, layer: &str) -> Option<Affine> {
        self.layers.get(layer).copied().unwrap_or(self.default)
    }
}

fn affine(
    config: &Config,
    key: &str,
    settings: &Map<String, Value>,
    default: Option<Affine>,
) -> Result<Affine, LoadError> {
    if let Some(mode) = settings.get("mode").filter(|mode| *mode != "affine") {
        return Err(LoadError::Unsupported {
            path: config.path().to_owned(),
            what: format!("quantisation mode {mode} in `{key}`"),
            hint: "supported is \"affine\"".into(),
        });
    }
    let number = |field: &str, allowed: &[u64], default: Option<u64>| {
        let name = format!("{key}.{field}");
        match settings.get(field).map_or(default, Value::as_u64) {
            Some(number) if allowed.contains(&number) => Ok(number),
            _ => {
                let found = settings.get(field).map_or("missing".into(), Value::to_string);
                Err(config.error(&name, &format!("is {found}, expected one of {allowed:?}")))
            }
        }
    };
    Ok(Affine {
        bits: number("bits", &BITS, default.map(|it| it.bits.into()))? as u32,
        group_size: number("group_size", &GROUP_SIZES, default.map(|it| it.group_size as u64))?
            as usize,
    })
}

const KEY: &str = "quantization";
const BITS: [u64; 6] = [2, 3, 4, 5, 6, 8];
const GROUP_SIZES: [u64; 3] = [32, 64, 128];
