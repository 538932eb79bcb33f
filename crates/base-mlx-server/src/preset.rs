use base_mlx_core::engine::SamplingDefaults;
use base_mlx_core::sample::range::{self, Range};
use base_mlx_core::store::Extras;

/// What a request or a conversation has that leaves it open: the word of the tool that keeps the model, then that of
/// the model's makers. All of it lies in the ranges that requests are held to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Preset {
    pub sampling: SamplingDefaults,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub seed: Option<u64>,
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    /// Of conversations without a system message.
    pub system: Option<String>,
}

impl Preset {
    /// A value out of range counts as absent: no hint is worth refusing a model for.
    pub fn new(extras: &Extras, makers: &SamplingDefaults) -> Self {
        let given = &extras.parameters;
        let within = |value: Option<f64>, range: Range| {
            value.filter(|value| range.contains(*value)).map(|value| value as f32)
        };
        let top_k = given.top_k.map(|top_k| top_k.max(0) as usize);
        Self {
            sampling: SamplingDefaults {
                temperature: within(given.temperature, range::TEMPERATURE).or(makers.temperature),
                top_k: top_k.or(makers.top_k),
                top_p: within(given.top_p, range::TOP_P).or(makers.top_p),
                min_p: within(given.min_p, range::MIN_P).or(makers.min_p),
                repetition_penalty: within(given.repeat_penalty, range::REPETITION_PENALTY)
                    .or(makers.repetition_penalty),
            },
            presence_penalty: within(given.presence_penalty, range::PENALTY),
            frequency_penalty: within(given.frequency_penalty, range::PENALTY),
            // -1 stands for another one each time.
            seed: given.seed.and_then(|seed| u64::try_from(seed).ok()),
            max_tokens: given
                .num_predict
                .and_then(|most| usize::try_from(most).ok())
                .filter(|most| *most > 0),
            stop: given
                .stop
                .iter()
                .filter(|text| !text.is_empty())
                .take(MOST_STOPS)
                .cloned()
                .collect(),
            system: extras.system.clone(),
        }
    }
}

/// As many as a request may have.
pub(crate) const MOST_STOPS: usize = 1024;

#[cfg(test)]
mod tests {
    use base_mlx_core::store::Parameters;

    use super::*;

    #[test]
    fn the_keepers_word_beats_the_makers_where_it_is_in_range() {
        let makers =
            SamplingDefaults { temperature: Some(0.6), top_k: Some(20), ..Default::default() };
        let parameters = Parameters {
            temperature: Some(9.0),
            top_k: Some(-1),
            min_p: Some(0.1),
            seed: Some(-1),
            num_predict: Some(-2),
            stop: vec!["END".to_owned(), String::new()],
            ..Parameters::default()
        };
        let preset = Preset::new(&Extras { parameters, ..Extras::default() }, &makers);
        assert_eq!((preset.sampling.temperature, preset.sampling.top_k), (Some(0.6), Some(0)));
        assert_eq!(
            (preset.sampling.min_p, preset.seed, preset.max_tokens),
            (Some(0.1), None, None)
        );
        assert_eq!(preset.stop, ["END"]);
    }
}
