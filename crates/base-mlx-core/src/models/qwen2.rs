//! Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv:2407.10671): a Llama whose queries, keys and values have a bias.

use crate::backend::{Attend, Backend, Rope};
use crate::nn::{Bias, Linear, Windows, rope};
use crate::step::Step;
use crate::tensor::Tensor;
use crate::weights::{Config, LoadError, Loader};

use super::LanguageModel;
use super::decoder::{self, Decoder, Sizes};

pub(super) fn load<B: Backend>(loader: &Loader<B>) -> Result<Box<dyn LanguageModel<B>>, LoadError> {
    let sizes = Sizes::read(loader.config())?;
    let rope = rope(loader, sizes.head_dim)?;
    let windows = windows(loader.config(), sizes.num_hidden_layers)?;
    let decoder = Decoder::load(loader, &sizes, |loader, layer| {
        Ok(Attention {
            q_proj: Linear::load(loader, "q_proj", sizes.q_proj(), Bias::Yes)?,
            k_proj: Linear::load(loader, "k_proj", sizes.kv_proj(), Bias::Yes)?,
            v_proj: Linear::load(loader, "v_proj", sizes.kv_proj(), Bias::Yes)?,
            o_proj: Linear::load(loader, "o_proj", sizes.o_proj(), Bias::No)?,
            head_dim: sizes.head_dim,
            rope: rope.clone(),
            layer,
            how: Attend { scale: sizes.scale(), window: windows.of(layer) },
        })
    })?;
    Ok(Box::new(decoder))
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

struct Attention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    o_proj: Linear<B>,
    head_dim: usize,
    rope: Rope,
    layer: usize,
    how: Attend,
}

impl<B: Backend> decoder::Attention<B> for Attention<B> {
    fn forward(&self, x: &Tensor<B>, step: &mut Step<B>) -> Tensor<B> {
        let q = self.q_proj.forward(x, step).split_heads(self.head_dim); // [tokens, heads, head_dim]
        let k = self.k_proj.forward(x, step).split_heads(self.head_dim); // [tokens, kv_heads, head_dim]
        let v = self.v_proj.forward(x, step).split_heads(self.head_dim);
        let (q, k) = (q.rope(&step.positions, &self.rope), k.rope(&step.positions, &self.rope));
        let seen = step.attend(self.layer, &q, &k, &v, self.how).merge_heads();
        self.o_proj.forward(&seen, step)
    }
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
