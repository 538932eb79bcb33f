//! The chain against a naive twin: everything in double precision, a full sort, one filter after the other.

use proptest::prelude::*;

use super::*;
use crate::TokenId;

/// The tokens that may be drawn with their probabilities, best first.
fn twin(
    logits: &[f32],
    params: &SamplingParams,
    prompt: &[TokenId],
    answer: &[TokenId],
) -> Vec<(TokenId, f64)> {
    let mut adjusted: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    for (token, logit) in adjusted.iter_mut().enumerate() {
        let token = token as TokenId;
        let count = answer.iter().filter(|&&other| other == token).count();
        if count > 0 || prompt.contains(&token) {
            let penalty = f64::from(params.repetition_penalty);
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
        if count > 0 {
            *logit -= f64::from(params.presence_penalty);
        }
        *logit -= f64::from(params.frequency_penalty) * count as f64;
        for &(_, bias) in params.logit_bias.iter().filter(|&&(other, _)| other == token) {
            *logit = if bias <= -100.0 { f64::NEG_INFINITY } else { *logit + f64::from(bias) };
        }
    }
    let temperature = f64::from(params.temperature);
    let mut ranked: Vec<(TokenId, f64)> =
        (0..).zip(adjusted).filter(|(_, logit)| logit.is_finite()).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let Some(&(_, best)) = ranked.first() else { return ranked };
    for (_, logit) in &mut ranked {
        *logit = ((*logit - best) / temperature).exp();
    }
    if params.top_k > 0 {
        ranked.truncate(params.top_k);
    }
    normalise(&mut ranked);
    let mut before = 0.0;
    if params.top_p < 1.0 {
        let count = ranked
            .iter()
            .take_while(|(_, probability)| {
                let needed = before < f64::from(params.top_p);
                before += probability;
                needed
            })
            .count();
        ranked.truncate(count.max(1));
    }
    let least = ranked[0].1 * f64::from(params.min_p);
    ranked.retain(|&(_, probability)| probability >= least);
    normalise(&mut ranked);
    ranked
}

fn normalise(ranked: &mut [(TokenId, f64)]) {
    let all: f64 = ranked.iter().map(|(_, x)| x).sum();
    ranked.iter_mut().for_each(|(_, x)| *x /= all);
}

fn history(prompt: &[TokenId], answer: &[TokenId]) -> History {
    let mut history = History::new(prompt);
    answer.iter().for_each(|&token| history.push(token));
    history
}

/// How often each token comes out over many positions, against the twin's probabilities.
fn draws_follow(logits: &[f32], params: &SamplingParams, prompt: &[TokenId], answer: &[TokenId]) {
    const DRAWS: usize = 2000;
    let expected = twin(logits, params, prompt, answer);
    let history = history(prompt, answer);
    let mut counts = vec![0usize; logits.len()];
    for position in 0..DRAWS {
        counts[choose(logits, params, &history, position, None).unwrap().token as usize] += 1;
    }
    for (token, &count) in counts.iter().enumerate() {
        let probability =
            expected.iter().find(|&&(other, _)| other as usize == token).map_or(0.0, |&(_, p)| p);
        let mean = probability * DRAWS as f64;
        // Six standard deviations, and as many draws for the skew of the rare ones.
        let allowed = 6.0 * (mean * (1.0 - probability)).sqrt() + 6.0;
        assert!(
            (count as f64 - mean).abs() <= allowed,
            "token {token}: {count} draws, expected {mean}"
        );
        assert!(count == 0 || probability > 0.0, "token {token} was filtered out");
    }
}

fn any_params() -> impl Strategy<Value = SamplingParams> {
    let filters = (
        prop_oneof![Just(0), 1usize..12],
        prop_oneof![Just(1.0f32), 0.0f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..0.6],
    );
    let penalties = (
        prop_oneof![Just(1.0f32), 0.5f32..2.0],
        prop_oneof![Just(0.0f32), -2.0f32..2.0],
        prop_oneof![Just(0.0f32), -2.0f32..2.0],
    );
    let bias = prop::collection::vec((0u32..40, prop_oneof![Just(-100.0f32), -5.0f32..5.0]), 0..4);
    (0.1f32..3.0, filters, penalties, bias, any::<u64>()).prop_map(
        |(temperature, filters, penalties, logit_bias, seed)| SamplingParams {
            temperature,
            top_k: filters.0,
            top_p: filters.1,
            min_p: filters.2,
            repetition_penalty: penalties.0,
            presence_penalty: penalties.1,
            frequency_penalty: penalties.2,
            logit_bias,
            seed,
            logprobs: None,
        },
    )
}

fn any_logits(size: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
    // Whole numbers make ties; the others, the usual case.
    prop_oneof![
        prop::collection::vec((-4i8..4).prop_map(f32::from), size.clone()),
        prop::collection::vec(-12.0f32..12.0, size),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tokens_come_as_often_as_the_twin_says(
        logits in any_logits(6..40),
        params in any_params(),
        prompt in prop::collection::vec(0u32..40, 0..6),
        answer in prop::collection::vec(0u32..40, 0..6),
    ) {
        prop_assume!(!on_an_edge(&logits, &params, &prompt, &answer));
        draws_follow(&logits, &params, &prompt, &answer);
    }

    #[test]
    fn greedy_takes_the_twins_first(
        logits in any_logits(1..400),
        params in any_params(),
        prompt in prop::collection::vec(0u32..40, 0..6),
    ) {
        let params = SamplingParams { temperature: 0.0, logprobs: Some(0), ..params };
        let judged = SamplingParams { temperature: 1.0, top_k: 1, ..params.clone() };
        let chosen = choose(&logits, &params, &history(&prompt, &[]), 0, None);
        let expected = twin(&logits, &judged, &prompt, &[]).first().map(|&(token, _)| token);
        prop_assert_eq!(chosen.ok().map(|chosen| chosen.token), expected);
    }

    #[test]
    fn log_probabilities_are_the_models_own(
        logits in any_logits(1..700),
        params in any_params(),
        top in 0usize..21,
    ) {
        let params = SamplingParams { logprobs: Some(top), logit_bias: vec![(0, -1.0)], ..params };
        let chosen = choose(&logits, &params, &history(&[0], &[0]), 3, None).unwrap();
        let all: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let exact = |token: TokenId| f64::from(logits[token as usize]) - all.ln();
        let got = chosen.logprob.unwrap();
        prop_assert!((f64::from(got.logprob) - exact(chosen.token)).abs() < 1e-5);
        prop_assert_eq!(got, score(&logits, chosen.token, top));
        let mut order: Vec<TokenId> = (0..logits.len() as TokenId).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        order.truncate(top);
        let got = score(&logits, 0, top);
        prop_assert_eq!(got.top.iter().map(|&(token, _)| token).collect::<Vec<_>>(), order);
        for (token, logprob) in got.top {
            prop_assert!((f64::from(logprob) - exact(token)).abs() < 1e-5);
        }
    }

    /// Selection of parts against sorting all, where vocabularies are large enough for it to matter.
    #[test]
    fn filters_keep_what_sorting_keeps(
        seed in any::<u64>(),
        size in 1usize..5000,
        spread in prop_oneof![Just(0.0f32), 0.1f32..30.0],
        top_k in prop_oneof![Just(0usize), 1usize..200, 1usize..6000],
        top_p in prop_oneof![Just(1.0f32), 0.0f32..1.0, 0.9f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..1.0],
    ) {
        let logits: Vec<f32> = (0..size).map(|i| random::uniform(seed, i) as f32 * spread).collect();
        let params = SamplingParams { temperature: 0.8, top_k, top_p, min_p, ..SamplingParams::default() };
        prop_assume!(!on_an_edge(&logits, &params, &[], &[]));
        let maximum = softmax::maximum(&logits);
        let kept: Vec<TokenId> = chain::filter(&logits, &params, maximum).into_iter().map(|(token, _)| token).collect();
        let mut expected: Vec<TokenId> = twin(&logits, &params, &[], &[]).into_iter().map(|(token, _)| token).collect();
        expected.sort_unstable();
        prop_assert_eq!(kept, expected);
    }

    #[test]
    fn whatever_the_logits_a_choice_is_one_that_is_allowed(
        logits in prop::collection::vec(prop_oneof![any::<f32>(), Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)], 0..50),
        params in any_params(),
        temperature in prop_oneof![Just(0.0f32), Just(f32::MIN_POSITIVE), Just(2.0f32)],
        allowed in prop::collection::vec(any::<bool>(), 50),
    ) {
        let mut mask = Mask::new(50);
        (0..50).filter(|&token| allowed[token as usize]).for_each(|token| mask.allow(token));
        let params = SamplingParams { temperature, logprobs: Some(3), ..params };
        let banned = |token: TokenId| params.logit_bias.contains(&(token, -100.0));
        let possible = (0..).zip(&logits).filter(|&(token, logit)| {
            !logit.is_nan() && *logit > f32::NEG_INFINITY && mask.allows(token) && !banned(token)
        });
        match choose(&logits, &params, &history(&[1, 2], &[2, 3]), 0, Some(&mask)) {
            Ok(chosen) => {
                prop_assert!(possible.map(|(token, _)| token).any(|token| token == chosen.token));
                let logprob = chosen.logprob.unwrap();
                prop_assert!(logprob.logprob <= 0.0);
                prop_assert!(logprob.top.iter().all(|(_, logprob)| *logprob <= 0.0));
            }
            Err(NoTokenLeft) => prop_assert_eq!(possible.count(), 0),
        }
    }
}

/// Would the twin's filters keep another set if they were a hair narrower or wider? Then both are right.
fn on_an_edge(
    logits: &[f32],
    params: &SamplingParams,
    prompt: &[TokenId],
    answer: &[TokenId],
) -> bool {
    let kept = |factor: f32| {
        let params = SamplingParams {
            top_p: params.top_p * factor,
            min_p: params.min_p * factor,
            ..params.clone()
        };
        twin(logits, &params, prompt, answer).len()
    };
    [1.0 - 1e-5, 1.0 + 1e-5].into_iter().any(|factor| kept(factor) != kept(1.0))
}

#[test]
fn a_bias_of_minus_100_bans_at_every_temperature() {
    let logits = [1000.0, 0.0, 1.0];
    for temperature in [0.0, 0.5, 2.0] {
        let params = SamplingParams {
            temperature,
            logit_bias: vec![(0, -100.0)],
            ..SamplingParams::default()
        };
        for position in 0..200 {
            let chosen = choose(&logits, &params, &History::new(&[]), position, None).unwrap();
            assert_ne!(chosen.token, 0);
        }
    }
    let all = SamplingParams {
        logit_bias: vec![(0, -100.0), (1, -101.0), (2, -100.0)],
        ..SamplingParams::default()
    };
    assert_eq!(choose(&logits, &all, &History::new(&[]), 0, None), Err(NoTokenLeft));
}

#[test]
fn a_tiny_top_p_keeps_the_best_token() {
    let logits = [0.0, 3.0, 3.0, 1.0];
    for top_p in [0.0, f32::MIN_POSITIVE, 1e-6] {
        let params = SamplingParams { top_p, ..SamplingParams::default() };
        for position in 0..100 {
            assert_eq!(
                choose(&logits, &params, &History::new(&[]), position, None).unwrap().token,
                1
            );
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_ignores_filters_and_seed() {
    let logits = [f32::NAN, 0.0, 2.0, 2.0, -1.0];
    for seed in 0..10 {
        let params = SamplingParams {
            temperature: 0.0,
            top_p: 0.01,
            min_p: 0.5,
            top_k: 3,
            seed,
            ..SamplingParams::default()
        };
        assert_eq!(
            choose(&logits, &params, &History::new(&[]), seed as usize, None).unwrap().token,
            2
        );
    }
}

#[test]
fn the_repetition_penalty_sees_the_prompt_and_the_others_only_the_answer() {
    let logits = [2.0, 1.5, 1.0, -1.0];
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let choice = |params: &SamplingParams, answer: &[TokenId]| {
        choose(&logits, params, &history(&[0], answer), 0, None).unwrap().token
    };
    assert_eq!(choice(&greedy, &[]), 0);
    assert_eq!(choice(&SamplingParams { repetition_penalty: 1.5, ..greedy.clone() }, &[]), 1);
    assert_eq!(choice(&SamplingParams { presence_penalty: 1.9, ..greedy.clone() }, &[]), 0);
    assert_eq!(choice(&SamplingParams { presence_penalty: 0.6, ..greedy.clone() }, &[0]), 1);
    assert_eq!(choice(&SamplingParams { presence_penalty: 0.4, ..greedy.clone() }, &[0, 0, 0]), 0);
    assert_eq!(choice(&SamplingParams { frequency_penalty: 0.4, ..greedy }, &[0, 0]), 1);
}

/// Users keep seeds; an answer must not change with a new version.
#[test]
fn seeded_choices_keep_their_meaning() {
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 20.0).collect();
    let plain = SamplingParams { seed: 42, temperature: 0.8, ..SamplingParams::default() };
    let filtered = SamplingParams { top_k: 40, top_p: 0.95, min_p: 0.05, ..plain.clone() };
    let tokens = |params: &SamplingParams| {
        (0..6)
            .map(|position| {
                choose(&logits, params, &History::new(&[]), position, None).unwrap().token
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(tokens(&plain), [469, 330, 660, 671, 838, 292]);
    assert_eq!(tokens(&filtered), [434, 322, 636, 636, 838, 292]);
}
