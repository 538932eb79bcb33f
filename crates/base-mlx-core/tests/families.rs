//! Every family against mlx-lm, on the tiny checkpoints of `golden/`, which `cargo xtask golden families` makes.
//!
//! A family is right when its logits are within [`TOLERANCE`] of mlx-lm's, whichever backend computes them ([`ROUNDED`] where
//! it rounds activations), and when a sequence's bits are the same whole and alone as in chunks and in company.

#![allow(clippy::unwrap_used, reason = "all of it is test code, its helpers too")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use base_mlx_core::TokenId;
use base_mlx_core::backend::{Backend, CpuBackend, KvFormat, ReferenceBackend};
use base_mlx_core::models::{self, LanguageModel};
use base_mlx_core::weights::{Checkpoint, LoadError};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use support::golden::{Golden, VARIANTS, alone, bits, folder, in_company, load, relative_error};

/// The largest difference of two logits, as a part of the largest logit.
const TOLERANCE: f32 = 1e-4;

/// The same for the CPU, which multiplies by quantised weights in 8-bit integers. Few values of a tiny model of random
/// weights are there to even that out; what it does to real ones, `perplexity.rs` measures.
const ROUNDED: f32 = 8e-2;

#[test]
fn the_reference_backend_agrees_with_mlx_lm() {
    agree_with_mlx_lm(&ReferenceBackend, TOLERANCE);
}

#[test]
fn the_cpu_backend_agrees_with_mlx_lm() {
    agree_with_mlx_lm(&CpuBackend::new(2).with_kv(KvFormat::F32), ROUNDED);
}

fn agree_with_mlx_lm<B: Backend>(backend: &B, of_quantised: f32) {
    let mut worst = Vec::new();
    for name in VARIANTS {
        let golden = Golden::read(name);
        let model = load(&folder(name), backend);
        let error = relative_error(&alone(backend, &*model, &golden.tokens), &golden.logits);
        println!("{name:20} {error:.1e}");
        let checkpoint = Checkpoint::open(&folder(name)).unwrap();
        let quantised = checkpoint.tensors().any(|tensor| tensor.kind.starts_with("affine"));
        let tolerance = if quantised { of_quantised } else { TOLERANCE };
        worst.extend((error > tolerance || error.is_nan()).then(|| format!("{name}: {error:e}")));
    }
    assert!(worst.is_empty(), "too far from mlx-lm: {worst:#?}");
}

/// A golden that stays right when its point is taken away would prove nothing.
#[test]
fn the_goldens_notice_what_they_are_there_for() {
    let backend = ReferenceBackend;
    let yarn = json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 64,
                      "attention_factor": 1});
    for (name, key, value) in [
        ("llama/tied", "rms_norm_eps", json!(1e-3)),
        ("llama/llama3_rope", "rope_scaling", Value::Null),
        ("llama/linear_rope", "rope_scaling", Value::Null),
        ("llama/yarn_rope", "rope_scaling", Value::Null),
        ("llama/yarn_rope", "rope_scaling", yarn),
        ("llama/mistral", "sliding_window", Value::Null),
        ("llama/mistral", "sliding_window", json!(8)),
        ("llama/layer_types", "layer_types", Value::Null),
        ("qwen2/tied", "rope_theta", json!(900000.0)),
    ] {
        let golden = Golden::read(name);
        let model = Altered::new(name).config(key, value.clone()).load().unwrap();
        let error = relative_error(&alone(&backend, &*model, &golden.tokens), &golden.logits);
        assert!(error > 2.0 * TOLERANCE, "{name} with {key} {value}: only {error:e}");
    }
}

#[test]
fn a_gguf_file_gives_the_logits_of_its_twin() {
    let backend = CpuBackend::new(2).with_kv(KvFormat::F32);
    let golden = Golden::read("llama/llama3_rope");
    let twin = load(&folder("llama/llama3_rope").join("twin.gguf"), &backend);
    let error = relative_error(&alone(&backend, &*twin, &golden.tokens), &golden.logits);
    assert!(error <= TOLERANCE, "{error:e}");
}

#[test]
fn chunks_in_company_give_the_bits_of_running_alone_on_the_cpu() {
    bits_in_company_are_those_alone(&CpuBackend::new(2));
}

#[test]
fn chunks_in_company_give_the_bits_of_running_alone_on_the_reference() {
    bits_in_company_are_those_alone(&ReferenceBackend);
}

fn bits_in_company_are_those_alone<B: Backend>(backend: &B) {
    for name in VARIANTS {
        let golden = Golden::read(name);
        let model = load(&folder(name), backend);
        let backwards: Vec<TokenId> = golden.tokens.iter().rev().copied().collect();
        let sequences = [&golden.tokens[..], &backwards, &golden.tokens[..17], &backwards[5..6]];
        let together = in_company(backend, &*model, &sequences);
        for (i, (tokens, together)) in sequences.iter().zip(&together).enumerate() {
            let alone = alone(backend, &*model, tokens);
            assert_eq!(bits(&alone), bits(together), "{name}, sequence {i}");
        }
    }
}

#[test]
fn a_family_nobody_knows_is_an_error_that_lists_those_we_know() {
    let checkpoint = Altered::new("llama/tied").config("model_type", json!("mamba9"));
    assert_eq!(
        checkpoint.error(),
        "FOLDER: family `mamba9` is not supported\n\
         hint: supported are llama, mistral, qwen2, qwen3, bert, nomic_bert, xlm-roberta"
    );
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    let checkpoint = Altered::new("qwen3/tied").without("model.layers.1.self_attn.k_norm.weight");
    assert_eq!(checkpoint.error(), "FOLDER has no tensor `model.layers.1.self_attn.k_norm.weight`");
    let checkpoint = Altered::new("llama/tied").config("attention_bias", json!(true));
    assert_eq!(checkpoint.error(), "FOLDER has no tensor `model.layers.0.self_attn.q_proj.bias`");
}

#[test]
fn a_tensor_of_another_shape_is_named_with_both_shapes() {
    let error = Altered::new("llama/tied").config("intermediate_size", json!(80)).error();
    let expected = "tensor `model.layers.0.mlp.gate_proj.weight` in FOLDER/model.safetensors has \
                    shape [64, 64], expected [80, 64]";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_tensor_that_the_family_does_not_use_is_an_error() {
    // A Qwen2 that calls itself a Llama has biases left over.
    let error = Altered::new("qwen2/tied").config("model_type", json!("llama")).error();
    assert_eq!(
        error,
        "FOLDER has 6 tensors that family `llama` does not use, the first is \
         `model.layers.0.self_attn.k_proj.bias`"
    );
}

#[test]
fn tensors_known_to_be_of_no_use_may_be_there() {
    let altered = Altered::new("llama/tied")
        .with("lm_head.weight", &[64, 64])
        .with("model.layers.1.self_attn.rotary_emb.inv_freq", &[8]);
    assert_eq!(altered.load().map(drop).map_err(|error| error.to_string()), Ok(()));
}

#[test]
fn without_the_key_a_head_of_its_own_decides_about_tying() {
    let backend = ReferenceBackend;
    for name in ["llama/tied", "llama/untied"] {
        let golden = Golden::read(name);
        let altered = Altered::new(name).config("tie_word_embeddings", Value::Null);
        let model = altered.load().unwrap();
        let error = relative_error(&alone(&backend, &*model, &golden.tokens), &golden.logits);
        assert!(error <= TOLERANCE, "{name}: {error:e}");
    }
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let error =
        |key, value| Altered::new("llama/untied").config(key, value).error().replace("FOLDER/", "");
    assert_eq!(
        error("num_key_value_heads", json!(3)),
        "`num_key_value_heads` in config.json is 3, expected a divisor of num_attention_heads, 4"
    );
    assert_eq!(
        error("head_dim", json!(33)),
        "`head_dim` in config.json is 33, expected an even number up to 65536"
    );
    assert_eq!(
        error("hidden_act", json!("gelu")),
        "`hidden_act` in config.json is \"gelu\", which is not supported\n\
         hint: supported is \"silu\""
    );
    assert_eq!(error("hidden_size", Value::Null), "`hidden_size` in config.json is missing");
    assert_eq!(
        error("rms_norm_eps", json!(-1)),
        "`rms_norm_eps` in config.json is -1, expected at least 0"
    );
    let odd = Altered::new("llama/tied").config("num_attention_heads", json!(6)).error();
    assert_eq!(
        odd.replace("FOLDER/", ""),
        "`hidden_size` in config.json is 64, not a multiple of num_attention_heads, 6"
    );
}

#[test]
fn numbers_too_large_end_before_they_take_memory() {
    let error = Altered::new("llama/tied").config("num_hidden_layers", json!(1 << 30)).error();
    assert_eq!(error, "FOLDER has no tensor `model.layers.2.input_layernorm.weight`");
    let error = Altered::new("llama/tied").config("head_dim", json!(1 << 30)).error();
    assert_eq!(
        error,
        "`head_dim` in FOLDER/config.json is 1073741824, expected an even number up to 65536"
    );
}

#[test]
fn a_step_reads_all_parameters_but_an_embedding_that_is_not_the_head() {
    let tied = Altered::new("llama/tied");
    let all: usize = tied.tensors.values().map(|(_, _, data)| data.len()).sum();
    assert_eq!(tied.load().unwrap().step_bytes(), all);
    let untied = tied.config("tie_word_embeddings", json!(false)).with("lm_head.weight", &[64, 64]);
    assert_eq!(untied.load().unwrap().step_bytes(), all);
}

/// A copy of a variant with one file, to be spoilt.
struct Altered {
    config: Value,
    tensors: BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>,
}

impl Altered {
    fn new(name: &str) -> Self {
        let config = std::fs::read(folder(name).join("config.json")).unwrap();
        let file = std::fs::read(folder(name).join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let owned = |(name, view): (String, TensorView)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        Self {
            config: serde_json::from_slice(&config).unwrap(),
            tensors: tensors.tensors().into_iter().map(owned).collect(),
        }
    }

    fn config(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn without(mut self, tensor: &str) -> Self {
        self.tensors.remove(tensor).expect("the tensor is there to be removed");
        self
    }

    fn with(mut self, tensor: &str, shape: &[usize]) -> Self {
        let data = vec![0; 4 * shape.iter().product::<usize>()];
        self.tensors.insert(tensor.to_owned(), (safetensors::Dtype::F32, shape.to_vec(), data));
        self
    }

    fn load(&self) -> Result<Box<dyn LanguageModel<ReferenceBackend>>, LoadError> {
        self.load_from(tempfile::tempdir().unwrap().path())
    }

    /// The message, with the folder's path replaced by a word.
    fn error(&self) -> String {
        let folder = tempfile::tempdir().unwrap();
        let error = self.load_from(folder.path()).map(drop).unwrap_err();
        error.to_string().replace(&*folder.path().to_string_lossy(), "FOLDER")
    }

    fn load_from(
        &self,
        folder: &Path,
    ) -> Result<Box<dyn LanguageModel<ReferenceBackend>>, LoadError> {
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let file = folder.join("model.safetensors");
        safetensors::serialize_to_file(views, None, &file).unwrap();
        models::load(&Checkpoint::open(folder)?, &ReferenceBackend)
    }
}
