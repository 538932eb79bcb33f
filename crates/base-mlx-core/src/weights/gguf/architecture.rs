use serde_json::{Map, Number, Value as Json, json};

use super::{Gguf, Metadata, Value};
use crate::weights::entry::{ParseError, damaged};

/// How a GGUF architecture differs from the Hugging Face checkpoint it was made from. An architecture that is not in
/// [`ARCHITECTURES`] still opens, under the common names; whether its family is known is for `models` to say.
#[derive(Debug)]
pub struct Architecture {
    /// What `general.architecture` says.
    name: &'static str,
    /// What config.json calls the family.
    model_type: &'static str,
    /// The rows of q and k are reordered so that the pairs of a rotation are neighbours.
    pub(super) interleaved_rope: bool,
    /// Names that differ from [`LAYER_NAMES`].
    layer_names: &'static [(&'static str, &'static str)],
}

/// Mistral's files, and those of many others, say `llama`.
static ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", model_type: "llama", interleaved_rope: true, layer_names: &[] },
    Architecture { name: "qwen2", model_type: "qwen2", interleaved_rope: false, layer_names: &[] },
    Architecture { name: "qwen3", model_type: "qwen3", interleaved_rope: false, layer_names: &[] },
];

static UNKNOWN: Architecture =
    Architecture { name: "", model_type: "", interleaved_rope: false, layer_names: &[] };

/// GGUF's names and those of `model.layers.N`, without `.weight` and `.bias`.
const LAYER_NAMES: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const MODEL_NAMES: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

impl Architecture {
    pub fn of(metadata: &Metadata) -> &'static Self {
        let name = metadata.str("general.architecture").unwrap_or_default();
        ARCHITECTURES.iter().find(|known| known.name == name).unwrap_or(&UNKNOWN)
    }

    /// `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`. A name nobody knows stays as it is.
    pub fn tensor_name(&self, name: &str) -> String {
        self.translate(name).unwrap_or_else(|| name.to_owned())
    }

    fn translate(&self, name: &str) -> Option<String> {
        let (stem, kind) = name.rsplit_once('.')?;
        let Some(layer) = stem.strip_prefix("blk.") else {
            return Some(format!("{}.{kind}", lookup(MODEL_NAMES, stem)?));
        };
        let (layer, part) = layer.split_once('.')?;
        let part = lookup(self.layer_names, part).or_else(|| lookup(LAYER_NAMES, part))?;
        Some(format!("model.layers.{layer}.{part}.{kind}"))
    }
}

fn lookup<'a>(table: &[(&str, &'a str)], name: &str) -> Option<&'a str> {
    table.iter().find(|(from, _)| *from == name).map(|(_, to)| *to)
}

/// What config.json would say.
pub fn config(gguf: &Gguf) -> Result<Map<String, Json>, ParseError> {
    let metadata = &gguf.metadata;
    let Some(name) = metadata.str("general.architecture") else {
        return damaged("`general.architecture` is missing or not a string".into());
    };
    let known = Architecture::of(metadata);
    let model_type = if known.model_type.is_empty() { name } else { known.model_type };
    let mut config = Map::new();
    config.insert("model_type".into(), model_type.into());
    for (from, to) in KEYS {
        let key =
            if from.starts_with("tokenizer.") { (*from).into() } else { format!("{name}.{from}") };
        if let Some(value) = number(metadata, &key)? {
            config.insert((*to).into(), Json::Number(value));
        }
    }

    // What GGUF leaves out when it is the usual value.
    let count = |config: &Map<String, Json>, key| config.get(key).and_then(Json::as_u64);
    let heads = count(&config, "num_attention_heads");
    if let (None, Some(heads)) = (config.get("num_key_value_heads"), heads) {
        config.insert("num_key_value_heads".into(), heads.into());
    }
    if let (None, Some(hidden), Some(heads @ 1..)) =
        (config.get("head_dim"), count(&config, "hidden_size"), heads)
    {
        config.insert("head_dim".into(), (hidden / heads).into());
    }
    config.entry("rope_theta").or_insert(json!(10000.0));
    if let Some(scaling) = rope_scaling(metadata, name)? {
        config.insert("rope_scaling".into(), scaling);
    }
    let rotary =
        number(metadata, &format!("{name}.rope.dimension_count"))?.and_then(|n| n.as_u64());
    if let (Some(rotary), Some(head_dim @ 1..)) = (rotary, count(&config, "head_dim"))
        && rotary != head_dim
    {
        config.insert("partial_rotary_factor".into(), json!(rotary as f64 / head_dim as f64));
    }

    // What the tensors themselves say.
    let tensor = |name: &str| gguf.tensors.iter().find(|entry| entry.name == name);
    if let Some(table) = tensor("token_embd.weight") {
        config.insert("vocab_size".into(), table.shape[0].into());
    }
    config.insert("tie_word_embeddings".into(), tensor("output.weight").is_none().into());
    config.insert("attention_bias".into(), tensor("blk.0.attn_q.bias").is_some().into());
    config.insert("mlp_bias".into(), tensor("blk.0.ffn_up.bias").is_some().into());
    Ok(config)
}

/// Keys below the architecture's name (but for the tokenizer's), and config.json's words for them.
const KEYS: &[(&str, &str)] = &[
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("feed_forward_length", "intermediate_size"),
    ("context_length", "max_position_embeddings"),
    ("rope.freq_base", "rope_theta"),
    ("tokenizer.ggml.bos_token_id", "bos_token_id"),
    ("tokenizer.ggml.eos_token_id", "eos_token_id"),
];

/// The number at `key`. Where a file has one number for each layer, all must be the same.
fn number(metadata: &Metadata, key: &str) -> Result<Option<Number>, ParseError> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    let number = match value {
        Value::F32(number) => Number::from_f64((*number).into()),
        Value::F64(number) => Number::from_f64(*number),
        Value::Array(array) => {
            let numbers = array.integers().unwrap_or_default();
            if numbers.windows(2).any(|pair| pair[0] != pair[1]) {
                return Err(ParseError::Unsupported {
                    what: format!("`{key}` with a different number for each layer"),
                    hint: "supported are models whose layers are all alike".into(),
                });
            }
            numbers.first().map(|&number| number.into())
        }
        _ => value.integer().and_then(Number::from_i128),
    };
    match number {
        Some(number) => Ok(Some(number)),
        None => damaged(format!("`{key}` is {value:?}, expected a number")),
    }
}

/// Llama 3's own scheme is not here: its factors are the tensor `rope_freqs.weight`.
fn rope_scaling(metadata: &Metadata, name: &str) -> Result<Option<Json>, ParseError> {
    let find = |key: &str| number(metadata, &format!("{name}.rope.{key}"));
    let mut scaling = Map::new();
    match (metadata.str(&format!("{name}.rope.scaling.type")), find("scale_linear")?) {
        (Some("none"), _) | (None, None) => return Ok(None),
        (Some(kind), _) => scaling.insert("rope_type".into(), kind.into()),
        // What linear scaling was called in early files.
        (None, Some(factor)) => {
            scaling.insert("factor".into(), Json::Number(factor));
            scaling.insert("rope_type".into(), "linear".into())
        }
    };
    for (from, to) in [
        ("scaling.factor", "factor"),
        ("scaling.original_context_length", "original_max_position_embeddings"),
        ("scaling.attn_factor", "attention_factor"),
    ] {
        if let Some(value) = find(from)? {
            scaling.insert(to.into(), Json::Number(value));
        }
    }
    Ok(Some(Json::Object(scaling)))
}
