use std::sync::Mutex;

use base_mlx_sys::{Array, Dtype};

use super::MlxBackend;
use super::array::{MlxArray, Recipe, Turned};
use super::device::{Device, built, locked};
use crate::backend::Rope;
use crate::tensor::Tensor;

pub(super) fn rope(
    backend: &MlxBackend,
    x: &Tensor<MlxBackend>,
    positions: &Tensor<MlxBackend>,
    rope: &Rope,
) -> MlxArray {
    assert_eq!(x.rows(), positions.rows(), "rope: x {:?}", x.shape());
    let turned = Turned {
        x: x.array().clone(),
        shape: [x.rows(), x.shape().dim(1), x.width()],
        positions: positions.array().clone(),
        rope: rope.clone(),
    };
    backend.device().offer(Recipe::Rope(turned))
}

impl Device {
    /// `[tokens, heads, head_dim]`
    pub(super) fn rope(&self, Turned { x, shape, positions, rope }: &Turned) -> Array {
        let [tokens, heads, head_dim] = *shape;
        // MLX rotates the tokens of a batch's entries by one offset each: here every token is an entry.
        let x = built(x.value(self).reshape(&[tokens, heads, 1, head_dim]));
        let offset = built(positions.value(self).astype(Dtype::I32));
        let rotary = 2 * rope.inv_freq.len();
        let turned = built(x.rope(rotary as i32, 1.0, &offset, &self.frequencies(rope)));
        let turned = match rope.attention_factor {
            1.0 => turned,
            // It tempers what is rotated, not the rest.
            factor => {
                let factor = built(Array::scalar(factor, built(turned.dtype())));
                let all = [tokens, heads, 1, head_dim];
                let front = built(turned.slice(&[0; 4], &[tokens, heads, 1, rotary]));
                let front = built(front.multiply(&factor));
                if rotary == head_dim {
                    front
                } else {
                    let rest = built(turned.slice(&[0, 0, 0, rotary], &all));
                    built(Array::concatenate(&[&front, &rest], 3))
                }
            }
        };
        built(turned.reshape(shape))
    }

    /// As MLX wants them: the inverse of radians per position.
    pub(super) fn frequencies(&self, rope: &Rope) -> Array {
        self.frequencies.get(rope, |rope| {
            let inverse: Vec<f32> = rope.inv_freq.iter().map(|f| 1.0 / f).collect();
            built(Array::from_f32(&inverse, &[inverse.len()]))
        })
    }
}

/// A rope's numbers on the device. A model has one or two ropes.
#[derive(Default)]
pub(super) struct Frequencies(Mutex<Vec<(Rope, Array)>>);

impl Frequencies {
    pub(super) fn get(&self, rope: &Rope, make: impl FnOnce(&Rope) -> Array) -> Array {
        let mut known = locked(&self.0);
        let same =
            |(known, _): &&(Rope, Array)| std::sync::Arc::ptr_eq(&known.inv_freq, &rope.inv_freq);
        if let Some((_, array)) = known.iter().find(same) {
            return array.clone();
        }
        let array = make(rope);
        known.truncate(MOST - 1);
        known.insert(0, (rope.clone(), array.clone()));
        array
    }
}

/// Ropes of models that are gone must not pile up.
const MOST: usize = 16;
