use base_mlx_core::backend::Backend;
use base_mlx_core::tensor::Dtype;

use crate::device::{Made, on_mlx, tolerance};
use crate::support::ops::{Case, Kind, far_from_reference, table};

#[test]
fn every_row_of_the_table_agrees_with_the_reference_in_f32() {
    agrees(Dtype::F32);
}

#[test]
fn every_row_of_the_table_agrees_with_the_reference_in_f16() {
    agrees(Dtype::F16);
}

#[test]
fn every_row_of_the_table_agrees_with_the_reference_in_bf16() {
    agrees(Dtype::BF16);
}

fn agrees(activations: Dtype) {
    on_mlx(move |backend| {
        let backend = backend.for_model(activations, None).unwrap();
        let mut worst = 0.0_f64;
        let mut wrong = Vec::new();
        for (seed, case) in table().into_iter().enumerate() {
            let far = far_from_reference(&backend, &case, seed as u64, activations);
            worst = worst.max(far);
            let made = match case {
                Case::Attend { .. } | Case::AttendWithin { .. } => Made::ByAttention,
                Case::Linear { weight: Kind::Affine { .. }, .. } => Made::ByQuantised,
                _ => Made::Directly,
            };
            // MLX takes the inverse of a rope's frequencies, which costs angles of thousands of radians their last bits.
            let angles = matches!(case, Case::Rope { .. }) && activations == Dtype::F32;
            let allowed = tolerance(activations, made) * if angles { 8.0 } else { 1.0 };
            if far >= allowed || far.is_nan() {
                wrong.push(format!("{case:?}: {far:e}"));
            }
        }
        println!("{activations}: at most {worst:.1e} from the reference");
        assert!(wrong.is_empty(), "{activations}: {} rows: {wrong:#?}", wrong.len());
    });
}
