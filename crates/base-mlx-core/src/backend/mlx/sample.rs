use base_mlx_sys::{Array, CudaLaunch, Dtype};

use super::MlxBackend;
use super::array::MlxArray;
use super::device::{Device, built};
use super::kernels::{Float, Kernel};
use crate::backend::{Draw, NO_TOKEN};
use crate::tensor::Tensor;

/// A token for each row, as `sample::choose` would choose it but for rounding.
pub(super) fn choose(
    backend: &MlxBackend,
    logits: &Tensor<MlxBackend>,
    vocab_size: usize,
    rows: &[Draw],
) -> MlxArray {
    let device = backend.device();
    assert_eq!(logits.rows(), rows.len(), "a draw for each row");
    let shape = [logits.rows(), logits.width()];
    let all = built(logits.array().value(device).reshape(&shape));
    if let Some(tokens) = device.sample(&all, vocab_size, rows) {
        return MlxArray::known(tokens);
    }
    let x = built(all.slice(&[0, 0], &[rows.len(), vocab_size]));
    let x = clean(&built(x.astype(Dtype::F32)));
    let best = built(built(x.argmax(-1)).astype(Dtype::U32));
    let tokens = if rows.iter().all(|row| row.temperature <= 0.0) {
        best
    } else {
        let drawn = draw(&x, rows);
        let greedy = column(rows, |row| if row.temperature <= 0.0 { 1.0 } else { 0.0 });
        let greedy = built(built(greedy.reshape(&[rows.len()])).astype(Dtype::Bool));
        built(Array::select(&greedy, &best, &drawn))
    };
    // A row without a finite logit has nothing to choose.
    let largest = built(built(x.max(-1)).reshape(&[rows.len()]));
    let lowest = built(Array::scalar(f32::MIN, Dtype::F32));
    let some = built(lowest.less_equal(&largest));
    let none = built(Array::from_u32(&[NO_TOKEN], &[1]));
    MlxArray::known(built(Array::select(&some, &tokens, &none)))
}

impl Device {
    /// In one kernel, where own kernels run and have room for the vocabulary.
    fn sample(&self, logits: &Array, vocab_size: usize, rows: &[Draw]) -> Option<Array> {
        let kernels = self.kernels.as_ref().filter(|_| vocab_size <= MOST_VOCAB)?;
        let padded = logits.shape()[1];
        let number = |of: fn(&Draw) -> f32| rows.iter().map(move |row| of(row).to_bits());
        let draws: Vec<u32> = number(|row| row.temperature)
            .chain(number(|row| row.top_p))
            .chain(number(|row| row.min_p))
            .chain(number(|row| row.uniform))
            .chain(rows.iter().map(|row| row.top_k))
            .collect();
        let draws = kernels.upload(&draws, &[5, rows.len()]);
        let dtype = Float::of(built(logits.dtype()));
        let launch = CudaLaunch {
            grid: [rows.len() as u32, 1, 1],
            block: [1024, 1, 1],
            cluster: 1,
            shared_memory: 0,
            addresses: &[],
            numbers: &[],
            outputs: [(&[rows.len()][..], Dtype::U32)],
        };
        let kernel = Kernel::Sample { dtype, vocab_size, padded };
        #[allow(unsafe_code)]
        // SAFETY: as `launch_sample` wants them.
        let [tokens] = unsafe { kernels.launch(kernel, &[logits, &draws], launch) };
        Some(tokens)
    }
}

/// Logits that are finite or −∞, as `sample::choose` makes them first.
fn clean(x: &Array) -> Array {
    let below_all = built(Array::scalar(f32::NEG_INFINITY, Dtype::F32));
    // NaN alone is not itself.
    let x = built(Array::select(&built(x.equal(x)), x, &below_all));
    built(x.minimum(&built(Array::scalar(f32::MAX, Dtype::F32))))
}

/// By a random number in the running sum of the weights that the filters keep, in the order of ids.
fn draw(x: &Array, rows: &[Draw]) -> Array {
    let temperature =
        column(rows, |row| if row.temperature <= 0.0 { 1.0 } else { row.temperature });
    let largest = built(x.max(-1));
    let scaled = built(built(x.subtract(&largest)).divide(&temperature));
    let mut weights = built(scaled.exp());
    let zero = built(Array::scalar(0.0, Dtype::F32));
    if rows.iter().any(|row| row.top_k > 0 || row.top_p < 1.0) {
        let keep = best_of(x, &weights, rows);
        weights = built(Array::select(&keep, &weights, &zero));
    }
    if rows.iter().any(|row| row.min_p > 0.0) {
        // The best token's weight is 1.
        let keep = built(column(rows, |row| row.min_p).less_equal(&weights));
        weights = built(Array::select(&keep, &weights, &zero));
    }
    let has_weight = built(zero.less(&weights));
    // A GPU adds them up in parts, so they may fall a little where nothing is added.
    let sums = built(Array::select(&has_weight, &built(weights.cumsum(-1)), &zero));
    let all = built(sums.max(-1));
    let target = built(all.multiply(&column(rows, |row| row.uniform)));
    // Rounding may put the target on the sum of all; the last token with weight is then meant.
    let almost = built(all.multiply(&built(Array::scalar(1.0 - f32::EPSILON, Dtype::F32))));
    let target = built(target.minimum(&almost));
    let beyond = built(built(target.less(&sums)).astype(Dtype::U32));
    built(built(beyond.argmax(-1)).astype(Dtype::U32))
}

/// Bool `[rows, vocab]`: what top_k, then top_p of what that left, keep.
fn best_of(x: &Array, weights: &Array, rows: &[Draw]) -> Array {
    let vocab = x.shape()[1];
    let order = built(built(x.negative()).argsort(-1));
    #[allow(unsafe_code)]
    // SAFETY: a sort's places are places.
    let sorted = built(unsafe { weights.take_along_axis(&order, -1) });
    let places =
        built(built(Array::arange(0.0, vocab as f32, 1.0, Dtype::F32)).reshape(&[1, vocab]));
    let most = column(rows, |row| if row.top_k == 0 { vocab as f32 } else { row.top_k as f32 });
    let first = built(places.less(&most));
    let zero = built(Array::scalar(0.0, Dtype::F32));
    let sorted = built(Array::select(&first, &sorted, &zero));
    let sums = built(sorted.cumsum(-1));
    let limit = built(built(sums.max(-1)).multiply(&column(rows, |row| row.top_p)));
    // A token stays if those before it do not reach the limit.
    let before = built(sums.subtract(&sorted));
    let unlimited = column(rows, |row| if row.top_p < 1.0 { 0.0 } else { 1.0 });
    let unlimited = built(unlimited.astype(Dtype::Bool));
    let within = built(built(before.less(&limit)).logical_or(&unlimited));
    let kept = built(built(within.logical_and(&first)).astype(Dtype::I32));
    let count = built(built(kept.sum(-1)).maximum(&built(Array::scalar(1.0, Dtype::I32))));
    let last = built(count.subtract(&built(Array::scalar(1.0, Dtype::I32))));
    let last = built(last.astype(Dtype::U32));
    #[allow(unsafe_code)]
    // SAFETY: at least one token and at most all of them are kept.
    let (last_id, last_logit) = unsafe {
        let id = built(order.take_along_axis(&last, -1));
        (id.clone(), built(x.take_along_axis(&id, -1)))
    };
    let ids = built(built(Array::arange(0.0, vocab as f32, 1.0, Dtype::U32)).reshape(&[1, vocab]));
    let better = built(last_logit.less(x));
    let equal = built(built(x.equal(&last_logit)).logical_and(&built(ids.less_equal(&last_id))));
    built(better.logical_or(&equal))
}

/// F32 `[rows, 1]`
fn column(rows: &[Draw], of: impl Fn(&Draw) -> f32) -> Array {
    let values: Vec<f32> = rows.iter().map(of).collect();
    built(Array::from_f32(&values, &[rows.len(), 1]))
}

/// What `Sample` of `cuda/sample.cuh` can count: for each of its 32 warps 2^13 weights, and what is left of a segment.
const MOST_VOCAB: usize = 32 * (8192 + 255);
