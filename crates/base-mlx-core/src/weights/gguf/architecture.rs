use std::collections::BTreeMap;

use serde_json::{Map, Number, Value as Json, json};

use super::{Gguf, Metadata, Value};
use crate::weights::entry::{Entry, ParseError, damaged};

/// How a GGUF architecture differs from the Hugging Face checkpoint it was made from. An architecture that is not in
/// [`ARCHITECTURES`] still opens, under the decoders' names; whether its family is known is for `models` to say.
#[derive(Debug)]
pub struct Architecture {
    /// What `general.architecture` says.
    name: &'static str,
    /// What config.json calls the family.
    model_type: &'static str,
    /// The MLP's function where the family has several: a file does not name it, and llama.cpp has one for each.
    hidden_act: Option<&'static str>,
    /// The rows of q and k are reordered so that the pairs of a rotation are neighbours.
    pub(super) interleaved_rope: bool,
    names: &'static Names,
    /// Matrices that can have a single row.
    maybe_single_rows: &'static [&'static str],
}

/// Mistral's files, and those of many others, say `llama`; XLM-RoBERTa's say `bert`, and have lost the rows of places that
/// no token is at, which makes them one.
static ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "llama", model_type: "llama", interleaved_rope: true, ..UNKNOWN },
    Architecture { name: "qwen2", model_type: "qwen2", ..UNKNOWN },
    Architecture { name: "qwen3", model_type: "qwen3", ..UNKNOWN },
    Architecture {
        name: "bert",
        model_type: "bert",
        hidden_act: Some("gelu"),
        names: &BERT,
        maybe_single_rows: &[TOKEN_TYPES, SCORE],
        ..UNKNOWN
    },
    Architecture {
        name: "nomic-bert",
        model_type: "nomic_bert",
        names: &NOMIC_BERT,
        maybe_single_rows: &[TOKEN_TYPES, SCORE],
        ..UNKNOWN
    },
];

/// One row for each text of a pair, or one for all that a model knows.
const TOKEN_TYPES: &str = "token_types.weight";
/// The last layer of a head.
const SCORE: &str = "cls.output.weight";

const UNKNOWN: Architecture = Architecture {
    name: "",
    model_type: "",
    hidden_act: None,
    interleaved_rope: false,
    names: &DECODERS,
    maybe_single_rows: &[],
};

/// GGUF's names and those of the Hugging Face layout, without `.weight` and `.bias`.
#[derive(Debug)]
struct Names {
    model: &'static [(&'static str, &'static str)],
    /// What stands before a layer's number.
    layers: &'static str,
    layer: &'static [(&'static str, &'static str)],
}

static DECODERS: Names = Names {
    model: &[
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    layers: "model.layers",
    layer: &[
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
    ],
};

static BERT: Names = Names {
    model: &[
        ("token_embd", "embeddings.word_embeddings"),
        ("position_embd", "embeddings.position_embeddings"),
        ("token_types", "embeddings.token_type_embeddings"),
        ("token_embd_norm", "embeddings.LayerNorm"),
        ("cls", "pooler.dense"),
        ("cls.output", "classifier"),
    ],
    layers: "encoder.layer",
    layer: &[
        ("attn_q", "attention.self.query"),
        ("attn_k", "attention.self.key"),
        ("attn_v", "attention.self.value"),
        ("attn_output", "attention.output.dense"),
        ("attn_output_norm", "attention.output.LayerNorm"),
        ("ffn_up", "intermediate.dense"),
        ("ffn_down", "output.dense"),
        ("layer_output_norm", "output.LayerNorm"),
    ],
};

static NOMIC_BERT: Names = Names {
    model: &[
        ("token_embd", "embeddings.word_embeddings"),
        ("token_types", "embeddings.token_type_embeddings"),
        ("token_embd_norm", "emb_ln"),
    ],
    layers: "encoder.layers",
    layer: &[
        ("attn_qkv", "attn.Wqkv"),
        ("attn_output", "attn.out_proj"),
        ("attn_output_norm", "norm1"),
        ("ffn_up", "mlp.fc11"),
        ("ffn_gate", "mlp.fc12"),
        ("ffn_down", "mlp.fc2"),
        ("layer_output_norm", "norm2"),
    ],
};

impl Architecture {
    pub fn of(metadata: &Metadata) -> &'static Self {
        let name = metadata.str("general.architecture").unwrap_or_default();
        ARCHITECTURES.iter().find(|known| known.name == name).unwrap_or(&UNKNOWN)
    }

    /// `blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`. A name nobody knows stays as it is.
    pub fn tensor_name(&self, name: &str) -> String {
        self.translate(name).unwrap_or_else(|| name.to_owned())
    }

    /// ggml counts no dimension beyond the last that is more than 1, so that what its tools have rewritten has lost those
    /// of a matrix with one row.
    pub(super) fn restore_shape(&self, entry: &mut Entry) {
        if entry.shape.len() == 1 && self.maybe_single_rows.contains(&entry.name.as_str()) {
            entry.shape.insert(0, 1);
        }
    }

    fn translate(&self, name: &str) -> Option<String> {
        let (stem, kind) = name.rsplit_once('.')?;
        let Some(layer) = stem.strip_prefix("blk.") else {
            return Some(format!("{}.{kind}", lookup(self.names.model, stem)?));
        };
        let (layer, part) = layer.split_once('.')?;
        let part = lookup(self.names.layer, part)?;
        Some(format!("{}.{layer}.{part}.{kind}", self.names.layers))
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

    let causal = metadata.told_bool(&format!("{name}.attention.causal"));
    if let Some(causal) = causal.map_err(ParseError::Damaged)? {
        config.insert("is_causal".into(), causal.into());
    }

    // What GGUF leaves out when it is the usual value.
    if let Some(hidden_act) = known.hidden_act {
        config.insert("hidden_act".into(), hidden_act.into());
    }
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
    if let Some(table) = tensor(TOKEN_TYPES) {
        config.insert("type_vocab_size".into(), table.shape[0].into());
    }
    if let Some(labels) = labels(gguf, name)? {
        config.insert("architectures".into(), json!([format!("{model_type}{SCORES}")]));
        config.insert("num_labels".into(), labels.into());
    }
    config.insert("tie_word_embeddings".into(), tensor("output.weight").is_none().into());
    config.insert("attention_bias".into(), tensor("blk.0.attn_q.bias").is_some().into());
    config.insert("mlp_bias".into(), tensor("blk.0.ffn_up.bias").is_some().into());
    Ok(config)
}

/// Where a file has what config.json has under a key: in metadata, or in a tensor.
pub(super) fn config_spelling(metadata: &Metadata) -> BTreeMap<&'static str, String> {
    let name = metadata.str("general.architecture").unwrap_or_default();
    let below = [("is_causal", "attention.causal"), ("rope_scaling", "rope.scaling.type")];
    let below = below.into_iter().chain(KEYS.iter().map(|&(from, to)| (to, from)));
    let spelled = below.map(|(key, from)| {
        (
            key,
            if from.starts_with("tokenizer.") { from.to_owned() } else { format!("{name}.{from}") },
        )
    });
    let elsewhere = [
        ("model_type", "general.architecture"),
        ("vocab_size", "token_embd.weight"),
        ("type_vocab_size", TOKEN_TYPES),
        ("architectures", SCORE),
        ("id2label", SCORE),
        ("num_labels", SCORE),
    ];
    spelled.chain(elsewhere.map(|(key, from)| (key, from.to_owned()))).collect()
}

/// How many scores a cross-encoder gives; `None` if it is none. Not every file that has a head says what it is for.
fn labels(gguf: &Gguf, name: &str) -> Result<Option<usize>, ParseError> {
    let tensor = |name: &str| gguf.tensors.iter().find(|entry| entry.name == name);
    let pooling = gguf.metadata.told_u64(&format!("{name}.pooling_type"));
    let pooling = pooling.map_err(ParseError::Damaged)?;
    let (dense, out) = (tensor("cls.weight"), tensor(SCORE));
    match (pooling, dense, out) {
        (Some(RANK), Some(_), Some(out)) | (None, Some(_), Some(out)) => Ok(Some(out.shape[0])),
        (Some(RANK), ..) | (None, Some(_), None) | (None, None, Some(_)) => {
            Err(ParseError::Unsupported {
                what: "a cross-encoder without both layers of a head, `cls` and `cls.output`,"
                    .into(),
                hint: "converters leave the first out of BERT's, and Qwen3-Reranker has none; \
                       take a folder of safetensors"
                    .into(),
            })
        }
        _ => Ok(None),
    }
}

/// `pooling_type` of what scores pairs of texts.
const RANK: u64 = 4;

/// How config.json ends the name of such a class.
const SCORES: &str = "ForSequenceClassification";

/// Keys below the architecture's name (but for the tokenizer's), and config.json's words for them.
const KEYS: &[(&str, &str)] = &[
    ("embedding_length", "hidden_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
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
        None => damaged(format!("`{key}` is {}, expected a number", value.shown())),
    }
}

/// Llama 3's own scheme is not here: its factors are the tensor `rope_freqs.weight`.
fn rope_scaling(metadata: &Metadata, name: &str) -> Result<Option<Json>, ParseError> {
    let find = |key: &str| number(metadata, &format!("{name}.rope.{key}"));
    let mut scaling = Map::new();
    let kind = metadata.told_str(&format!("{name}.rope.scaling.type"));
    match (kind.map_err(ParseError::Damaged)?, find("scale_linear")?) {
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
