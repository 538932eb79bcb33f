use base_mlx_core::TokenId;
use base_mlx_core::backend::{Backend, MlxDevice};
use base_mlx_core::models;
use base_mlx_core::tensor::Dtype;
use base_mlx_core::weights::Checkpoint;
use safetensors::SafeTensors;

use crate::device::{device, on_mlx};
use crate::support::encoders::agree_with_transformers;
use crate::support::golden::{Golden, VARIANTS, alone, folder, in_company, load, relative_error};

#[test]
fn every_family_agrees_with_mlx_lm_in_f32() {
    agrees(Dtype::F32);
}

#[test]
fn every_family_agrees_with_mlx_lm_in_f16() {
    agrees(Dtype::F16);
}

#[test]
fn every_family_agrees_with_mlx_lm_in_bf16() {
    agrees(Dtype::BF16);
}

fn agrees(dtype: Dtype) {
    on_mlx(move |backend| {
        let backend = backend.for_model(dtype, None).unwrap();
        let mut wrong = Vec::new();
        for name in VARIANTS {
            let golden = Golden::read(name);
            let model = load(&folder(name), &backend);
            let whole = alone(&backend, &*model, &golden.tokens);
            let error = relative_error(&whole, &golden.logits);
            println!("{dtype} {name:20} {error:.1e}");
            wrong.extend(
                (error > tolerance(dtype, name) || error.is_nan())
                    .then(|| format!("{name}: {error:e}")),
            );
        }
        assert!(wrong.is_empty(), "{dtype}: too far from mlx-lm: {wrong:#?}");
    });
}

#[test]
fn every_encoder_agrees_with_transformers() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        on_mlx(move |backend| {
            let backend = backend.for_model(dtype, None).unwrap();
            // Their layers norm what they have added up, so that rounding is not small beside it.
            let tolerances = ["encoder", "quantised"].map(|name| 2.0 * tolerance(dtype, name));
            agree_with_transformers(&backend, tolerances);
        });
    }
}

/// MLX chooses its kernels by the number of rows, so here it is the same but for rounding.
#[test]
fn chunks_in_company_give_the_logits_of_running_alone_in_f32() {
    alone_and_in_company(Dtype::F32);
}

/// Own kernels on CUDA compute in 16 bits only.
#[test]
fn chunks_in_company_give_the_logits_of_running_alone_in_f16() {
    alone_and_in_company(Dtype::F16);
}

fn alone_and_in_company(dtype: Dtype) {
    on_mlx(move |backend| {
        let backend = &backend.for_model(dtype, None).unwrap();
        for name in VARIANTS {
            let golden = Golden::read(name);
            let model = load(&folder(name), backend);
            let backwards: Vec<TokenId> = golden.tokens.iter().rev().copied().collect();
            let sequences =
                [&golden.tokens[..], &backwards, &golden.tokens[..17], &backwards[5..6]];
            let together = in_company(backend, &*model, &sequences);
            for (i, (tokens, together)) in sequences.iter().zip(&together).enumerate() {
                let error = relative_error(together, &alone(backend, &*model, tokens));
                assert!(error <= tolerance(dtype, name), "{name}, sequence {i}: {error:e}");
            }
        }
    });
}

/// About twice what an operation is allowed is what the layers of these models add up to, in F32 no more than on the other
/// backends. Quantised ones in BF16 on MLX's CPU device can hardly be judged: their logic is in F16 and F32.
fn tolerance(dtype: Dtype, name: &str) -> f32 {
    let quantised = ["every_width", "quantised"].iter().any(|kind| name.ends_with(kind));
    match (dtype, quantised && device() == MlxDevice::Cpu) {
        (Dtype::F32, _) => 1e-4,
        (Dtype::F16, false) => 8e-3,
        (Dtype::F16, true) => 2e-2,
        (Dtype::BF16, false) => 6e-2,
        (Dtype::BF16, true) => 2e-1,
        (other, _) => panic!("activations of {other}"),
    }
}

#[test]
fn a_parameter_beyond_float16_is_an_error_that_names_it() {
    on_mlx(|backend| {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("beyond-float16");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::copy(folder("llama/tied").join("config.json"), path.join("config.json")).unwrap();
        let file = std::fs::read(folder("llama/tied").join("model.safetensors")).unwrap();
        // A norm's weight goes to the device as a tensor, a matrix as a weight.
        for name in ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"] {
            let mut file = file.clone();
            let tensors = SafeTensors::deserialize(&file).unwrap();
            let tensor = tensors.tensor(name).unwrap();
            assert_eq!(tensor.dtype(), safetensors::Dtype::F32);
            let start = tensor.data().as_ptr() as usize - file.as_ptr() as usize;
            file[start..start + 4].copy_from_slice(&1e5_f32.to_le_bytes());
            std::fs::write(path.join("model.safetensors"), &file).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let loaded = models::load(&checkpoint, &backend.for_model(Dtype::F16, None).unwrap());
            let error = loaded.err().unwrap().to_string();
            assert!(error.contains(&format!("the value 100000 in tensor `{name}`")), "{error}");
            assert!(
                models::load(&checkpoint, &backend.for_model(Dtype::BF16, None).unwrap()).is_ok()
            );
        }
    });
}
