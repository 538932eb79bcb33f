use base_mlx_core::backend::{Backend, Draw, MlxBackend, NO_TOKEN};
use base_mlx_core::sample::{History, SamplingParams, choose, uniform};
use base_mlx_core::tensor::{HostArray, Shape, Tensor};

use crate::device::on_mlx;
use crate::support::dice::Dice;

const VOCAB: usize = 3001;
/// Rows of logits are longer than the vocabulary.
const PADDED: usize = 3008;

fn on_device(backend: &MlxBackend, logits: &[f32], rows: &[Draw]) -> Vec<u32> {
    let shape = [rows.len(), PADDED];
    let array = backend.upload(HostArray::from_f32(&shape, logits)).unwrap();
    let logits = Tensor::new(backend, array, Shape::new(&shape));
    let tokens = backend.choose(&logits, VOCAB, rows);
    backend.download(&tokens).unwrap().to_u32()
}

fn on_host(logits: &[f32], draw: &Draw, seed: u64, position: usize) -> u32 {
    let Draw { temperature, top_k, top_p, min_p, .. } = *draw;
    let top_k = top_k as usize;
    let params =
        SamplingParams { temperature, top_k, top_p, min_p, seed, ..SamplingParams::default() };
    choose(&logits[..VOCAB], &params, &History::new(&[]), position, None).unwrap().token
}

#[test]
fn the_device_chooses_what_the_host_would() {
    on_mlx(|backend| {
        let mut dice = Dice(5);
        let (mut same, mut all) = (0, 0);
        for round in 0..40 {
            let kinds = [
                Draw::GREEDY,
                Draw { temperature: 1.0, ..Draw::GREEDY },
                Draw { temperature: 0.7, top_k: 20, ..Draw::GREEDY },
                Draw { temperature: 1.3, top_p: 0.9, ..Draw::GREEDY },
                Draw { temperature: 0.8, min_p: 0.05, ..Draw::GREEDY },
                Draw { temperature: 0.9, top_k: 50, top_p: 0.8, min_p: 0.1, ..Draw::GREEDY },
                Draw { temperature: 1.0, top_k: 1, ..Draw::GREEDY },
            ];
            let draws: Vec<Draw> = kinds
                .iter()
                .enumerate()
                .map(|(row, kind)| Draw { uniform: uniform(row as u64, round) as f32, ..*kind })
                .collect();
            let mut logits: Vec<f32> =
                dice.floats(draws.len() * PADDED).iter().map(|x| x * 12.0).collect();
            for row in logits.chunks_mut(PADDED) {
                // What lies beyond the vocabulary must not be looked at.
                row[VOCAB..].fill(1000.0);
                // Equals, of which the first counts where one is taken.
                row[77] = 12.5;
                row[1999] = 12.5;
            }
            let found = on_device(backend, &logits, &draws);
            for (row, draw) in draws.iter().enumerate() {
                let expected = on_host(&logits[row * PADDED..], draw, row as u64, round);
                all += 1;
                same += usize::from(found[row] == expected);
                if draw.temperature == 0.0 || draw.top_k == 1 {
                    assert_eq!((found[row], expected), (77, 77), "round {round}, {draw:?}");
                }
            }
        }
        // A random number that falls on the edge of two tokens may fall to either side by rounding.
        assert!(same * 100 >= all * 99, "{same} of {all} tokens are the host's");
    });
}

#[test]
fn where_no_token_is_left_none_is_chosen() {
    on_mlx(|backend| {
        let mut logits = vec![f32::NEG_INFINITY; 2 * PADDED];
        logits[PADDED + 9] = 1.0;
        let draws = [Draw { temperature: 1.0, ..Draw::GREEDY }, Draw::GREEDY];
        assert_eq!(on_device(backend, &logits, &draws), [NO_TOKEN, 9]);
    });
}

#[test]
fn a_logit_that_is_no_number_is_never_chosen_and_an_infinite_one_always() {
    on_mlx(|backend| {
        let kinds = [
            Draw::GREEDY,
            Draw { temperature: 1.0, ..Draw::GREEDY },
            Draw { temperature: 0.5, top_k: 3, top_p: 0.9, min_p: 0.01, ..Draw::GREEDY },
        ];
        for (nans, infinite) in [(&[0, 5][..], &[][..]), (&[], &[7]), (&[6], &[7, 2001])] {
            let mut row = Dice(8).floats(PADDED);
            nans.iter().for_each(|&place: &usize| row[place] = f32::NAN);
            infinite.iter().for_each(|&place: &usize| row[place] = f32::INFINITY);
            for round in 0..5 {
                let draws = kinds.map(|kind| Draw { uniform: uniform(3, round) as f32, ..kind });
                let expected = draws.map(|draw| on_host(&row, &draw, 3, round));
                assert_eq!(on_device(backend, &row.repeat(draws.len()), &draws), expected);
            }
        }
    });
}
