use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::time::Duration;

use base_mlx_core::TokenId;
use base_mlx_core::engine::{Draft, GenerateRequest, SamplingDefaults};
use base_mlx_core::sample::SamplingParams;
use base_mlx_core::sample::range::{self, Range};
use base_mlx_core::text::output::OutputParser;
use serde_json::Value;

use crate::Preset;
use crate::error::ApiError;
use crate::preset::MOST_STOPS;
use crate::request::{Field, JsonObject, Object};

/// How to generate: what chat and plain completions say in the same words, checked.
#[derive(Clone, Debug)]
pub(crate) struct Parameters {
    /// `None` is the server's own model.
    pub model: Option<String>,
    /// Who drafts; `None` is the server's own choice.
    pub draft: Option<DraftName>,
    /// How long the model is to stay in memory after its last use.
    pub keep_alive: Option<KeepAlive>,
    pub stream: bool,
    pub include_usage: bool,
    pub choices: usize,
    stop: Option<Vec<String>>,
    pub max_tokens: Option<usize>,
    ignore_end: bool,
    /// What the request leaves open is the model's to say.
    seed: Option<u64>,
    sampling: SamplingDefaults,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Vec<(TokenId, f32)>,
}

/// What a model says about itself that requests depend on.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    pub vocab_size: usize,
    pub preset: Preset,
}

impl Parameters {
    /// `least_tokens` is the smallest `max_tokens` that makes sense.
    pub(crate) fn parse(body: &JsonObject, least_tokens: u64) -> Result<Self, ApiError> {
        let fields = body.fields();
        let stream = fields.flag("stream")?.unwrap_or(false);
        let stream_options = fields.object("stream_options")?;
        if stream_options.is_some() && !stream {
            return Err(ApiError::invalid(
                "stream_options",
                "`stream_options` is only allowed with `stream: true`",
            ));
        }
        let include_usage = stream_options.map(|options| options.flag("include_usage"));
        let choices = in_range("n", fields.whole("n")?, 1..=MOST_CHOICES)?;
        let most_tokens = fields.whole("max_tokens")?;
        let penalty = |param| within(&fields, param, range::PENALTY);
        Ok(Self {
            model: fields.text("model")?.map(str::to_owned),
            draft: fields.text("draft_model")?.map(DraftName::from),
            keep_alive: KeepAlive::parse(&fields)?,
            stream,
            include_usage: include_usage.transpose()?.flatten().unwrap_or(false),
            choices: choices.unwrap_or(1) as usize,
            stop: fields.get("stop").map(stop_strings).transpose()?,
            max_tokens: max_tokens("max_tokens", most_tokens, least_tokens)?,
            ignore_end: fields.flag("ignore_eos")?.unwrap_or(false),
            seed: fields.get("seed").map(|seed| fold_seed(&seed)).transpose()?,
            sampling: SamplingDefaults {
                temperature: within(&fields, "temperature", range::TEMPERATURE)?,
                top_k: in_range("top_k", fields.whole("top_k")?, -1..=i64::MAX)?
                    .map(|given| given.max(0) as usize),
                top_p: within(&fields, "top_p", range::TOP_P)?,
                min_p: within(&fields, "min_p", range::MIN_P)?,
                repetition_penalty: repetition_penalty(&fields)?,
            },
            presence_penalty: penalty("presence_penalty")?,
            frequency_penalty: penalty("frequency_penalty")?,
            logit_bias: fields.object("logit_bias")?.map_or(Ok(Vec::new()), logit_bias)?,
        })
    }

    /// What the engine is to do with one prompt.
    /// Who drafts is decided elsewhere.
    pub(crate) fn request(
        &self,
        prompt: Vec<TokenId>,
        logprobs: Option<usize>,
        defaults: &Defaults,
    ) -> Result<GenerateRequest, ApiError> {
        let vocab_size = defaults.vocab_size;
        if let Some((token, _)) =
            self.logit_bias.iter().find(|(token, _)| *token as usize >= vocab_size)
        {
            return Err(ApiError::invalid(
                "logit_bias",
                format!("`logit_bias` names token {token}, the vocabulary has {vocab_size} tokens"),
            ));
        }
        let banned: BTreeSet<TokenId> =
            self.logit_bias.iter().filter(|bias| bias.1 <= BAN).map(|bias| bias.0).collect();
        if banned.len() >= vocab_size {
            let message = format!("`logit_bias` bans all {vocab_size} tokens of the vocabulary");
            return Err(ApiError::invalid("logit_bias", message));
        }
        let preset = &defaults.preset;
        let (given, model) = (&self.sampling, &preset.sampling);
        let penalty = |given: Option<f32>, model: Option<f32>| given.or(model).unwrap_or(0.0);
        Ok(GenerateRequest {
            prompt,
            choices: self.choices,
            sampling: SamplingParams {
                temperature: given.temperature.or(model.temperature).unwrap_or(1.0),
                top_k: given.top_k.or(model.top_k).unwrap_or(0),
                top_p: given.top_p.or(model.top_p).unwrap_or(1.0),
                min_p: given.min_p.or(model.min_p).unwrap_or(0.0),
                repetition_penalty: given
                    .repetition_penalty
                    .or(model.repetition_penalty)
                    .unwrap_or(1.0),
                presence_penalty: penalty(self.presence_penalty, preset.presence_penalty),
                frequency_penalty: penalty(self.frequency_penalty, preset.frequency_penalty),
                logit_bias: self.logit_bias.clone(),
                seed: self.seed.or(preset.seed).unwrap_or_else(random_seed),
                logprobs,
            },
            max_tokens: self.max_tokens.or(preset.max_tokens),
            stop: self.stop.as_ref().unwrap_or(&preset.stop).clone(),
            ignore_end: self.ignore_end,
            score_prompt: false,
            background: false,
            draft: Draft::Nobody,
            output: OutputParser::plain(),
            constraint: None,
            thinking: None,
            streamed: self.stream,
        })
    }
}

/// How long a model stays in memory after its last use, as Ollama's requests say it; `None` is as long as there is room.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct KeepAlive(pub Option<Duration>);

impl KeepAlive {
    /// `keep_alive`: seconds, or a number with its unit; less than 0 is as long as there is room.
    pub(crate) fn parse(fields: &Object) -> Result<Option<Self>, ApiError> {
        let Some(given) = fields.get("keep_alive") else { return Ok(None) };
        let seconds = match given.value() {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => seconds(text),
            _ => None,
        };
        let wrong = || {
            let message = "`keep_alive` is not a number of seconds or a text like \"10m\"";
            ApiError::invalid("keep_alive", message)
        };
        let seconds = seconds.filter(|seconds| seconds.is_finite()).ok_or_else(wrong)?;
        // So long that it does not matter.
        let seconds = seconds.min(1e9);
        Ok(Some(Self((seconds >= 0.0).then(|| Duration::from_secs_f64(seconds)))))
    }
}

/// Of a text like `90`, `90s`, `1.5h`.
fn seconds(text: &str) -> Option<f64> {
    let units = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)];
    units
        .into_iter()
        .find_map(|(unit, seconds)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * seconds))
}

/// Who guesses at the tokens of an answer, as requests and users say it.
#[derive(Clone, Debug, PartialEq)]
pub enum DraftName {
    /// `none`
    Nobody,
    /// `prompt-lookup`
    PromptLookup,
    /// A model's name.
    Model(String),
}

impl From<&str> for DraftName {
    fn from(name: &str) -> Self {
        match name {
            "none" | "" => Self::Nobody,
            "prompt-lookup" => Self::PromptLookup,
            model => Self::Model(model.to_owned()),
        }
    }
}

/// A number that is there must lie in the range; NaN lies in none.
pub(crate) fn in_range<T: PartialOrd + Copy + Display>(
    param: &str,
    given: Option<T>,
    range: RangeInclusive<T>,
) -> Result<Option<T>, ApiError> {
    match given {
        Some(value) if !range.contains(&value) => Err(ApiError::invalid(
            param,
            format!("`{param}` is {value}, expected {} to {}", range.start(), range.end()),
        )),
        given => Ok(given),
    }
}

pub(crate) fn max_tokens(
    param: &str,
    given: Option<i64>,
    least: u64,
) -> Result<Option<usize>, ApiError> {
    given
        .map(|given| {
            let enough = u64::try_from(given).ok().filter(|given| *given >= least);
            enough.map(|given| given as usize).ok_or_else(|| {
                ApiError::invalid(param, format!("`{param}` is {given}, expected {least} or more"))
            })
        })
        .transpose()
}

fn within(fields: &Object, param: &str, range: Range) -> Result<Option<f32>, ApiError> {
    match fields.number(param)? {
        Some(value) if !range.contains(value) => {
            Err(ApiError::invalid(param, format!("`{param}` is {value}, expected {range}")))
        }
        given => Ok(given.map(|value| value as f32)),
    }
}

/// One parameter of two names; the other is llama.cpp's and Ollama's.
fn repetition_penalty(fields: &Object) -> Result<Option<f32>, ApiError> {
    let penalty = within(fields, "repetition_penalty", range::REPETITION_PENALTY)?;
    let alias = within(fields, "repeat_penalty", range::REPETITION_PENALTY)?;
    match (penalty, alias) {
        (Some(penalty), Some(alias)) if penalty != alias => Err(ApiError::invalid(
            "repeat_penalty",
            format!(
                "`repeat_penalty` is {alias}, and `repetition_penalty`, which means the same, is {penalty}"
            ),
        )),
        (penalty, alias) => Ok(penalty.or(alias)),
    }
}

fn stop_strings(given: Field) -> Result<Vec<String>, ApiError> {
    let strings: Option<Vec<String>> = match given.value() {
        Value::String(string) => Some(vec![string.clone()]),
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    let strings = strings.ok_or_else(|| {
        ApiError::invalid("stop", "`stop` is neither a string nor an array of strings")
    })?;
    if strings.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "`stop` contains an empty string"));
    }
    if strings.len() > MOST_STOPS {
        return Err(ApiError::invalid(
            "stop",
            format!("`stop` has {} strings, at most {MOST_STOPS} are taken", strings.len()),
        ));
    }
    // Every choice has its own copy.
    let bytes: usize = strings.iter().map(String::len).sum();
    if bytes > MOST_STOP_BYTES {
        let message =
            format!("`stop` has {bytes} bytes in all, at most {MOST_STOP_BYTES} are taken");
        return Err(ApiError::invalid("stop", message));
    }
    Ok(strings)
}

fn logit_bias(given: Object) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let given: BTreeMap<&str, Field> = given.entries().collect();
    if given.len() > MOST_BIASES {
        let count = given.len();
        let message = format!("`logit_bias` names {count} tokens, at most {MOST_BIASES} are taken");
        return Err(ApiError::invalid("logit_bias", message));
    }
    given
        .into_iter()
        .map(|(key, bias)| {
            let token = key.parse::<TokenId>().map_err(|_| {
                ApiError::invalid(
                    "logit_bias",
                    format!("`logit_bias` names {key:?}, expected a token's number"),
                )
            })?;
            let bias = bias.number()?;
            in_range("logit_bias", Some(bias), -100.0..=100.0)?;
            Ok((token, bias as f32))
        })
        .collect()
}

/// Any 64-bit integer, signed or not; two seeds that differ stay different.
fn fold_seed(seed: &Field) -> Result<u64, ApiError> {
    let value = seed.value();
    let folded = value.as_i64().map(|seed| seed as u64).or_else(|| value.as_u64());
    folded.ok_or_else(|| seed.wrong("a 64-bit integer"))
}

/// The standard library's hasher is keyed from the system's randomness.
fn random_seed() -> u64 {
    RandomState::new().hash_one(uuid::Uuid::now_v7())
}

/// The bias that leaves a token no chance.
const BAN: f32 = -100.0;
const MOST_CHOICES: i64 = 128;
const MOST_STOP_BYTES: usize = 16 * 1024;
const MOST_BIASES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Parameters, ApiError> {
        Parameters::parse(&JsonObject::parse(body.as_bytes()).unwrap(), 1)
    }

    fn wrong(body: &str) -> String {
        let error = parse(body).expect_err(body);
        assert_eq!(error.status(), 400, "{body}");
        error.envelope()["error"]["param"].as_str().unwrap().to_owned()
    }

    fn request(body: &str, preset: Preset) -> GenerateRequest {
        let defaults = Defaults { vocab_size: 100, preset };
        parse(body).unwrap().request(vec![1], None, &defaults).unwrap()
    }

    fn sampling(body: &str) -> SamplingParams {
        let makers = SamplingDefaults { temperature: Some(0.7), ..Default::default() };
        request(body, Preset { sampling: makers, ..Preset::default() }).sampling
    }

    #[test]
    fn point_02_the_wrong_parameter_is_named() {
        let bodies = [
            (r#"{"temperature":2.1}"#, "temperature"),
            (r#"{"temperature":-0.1}"#, "temperature"),
            (r#"{"temperature":"hot"}"#, "temperature"),
            (r#"{"top_p":0}"#, "top_p"),
            (r#"{"top_p":1e-60}"#, "top_p"),
            (r#"{"top_p":1.01}"#, "top_p"),
            (r#"{"top_k":-2}"#, "top_k"),
            (r#"{"min_p":1.5}"#, "min_p"),
            (r#"{"repetition_penalty":0}"#, "repetition_penalty"),
            (r#"{"repeat_penalty":0}"#, "repeat_penalty"),
            (r#"{"repeat_penalty":1.1,"repetition_penalty":1.2}"#, "repeat_penalty"),
            (r#"{"presence_penalty":2.5}"#, "presence_penalty"),
            (r#"{"frequency_penalty":-2.5}"#, "frequency_penalty"),
            (r#"{"n":0}"#, "n"),
            (r#"{"n":129}"#, "n"),
            (r#"{"n":-1}"#, "n"),
            (r#"{"max_tokens":0}"#, "max_tokens"),
            (r#"{"max_tokens":-1}"#, "max_tokens"),
            (r#"{"max_tokens":1.5}"#, "max_tokens"),
            (r#"{"seed":1.5}"#, "seed"),
            (r#"{"seed":"1"}"#, "seed"),
            (r#"{"stop":""}"#, "stop"),
            (r#"{"stop":["a",""]}"#, "stop"),
            (r#"{"stop":[1]}"#, "stop"),
            (r#"{"stream":"yes"}"#, "stream"),
            (r#"{"stream_options":{}}"#, "stream_options"),
            (
                r#"{"stream":true,"stream_options":{"include_usage":1}}"#,
                "stream_options.include_usage",
            ),
            (r#"{"logit_bias":{"x":1}}"#, "logit_bias"),
            (r#"{"logit_bias":{"1":101}}"#, "logit_bias"),
            (r#"{"logit_bias":{"1":"1"}}"#, "logit_bias.1"),
            (r#"{"model":5}"#, "model"),
        ];
        for (body, param) in bodies {
            assert_eq!(wrong(body), param, "{body}");
        }
    }

    #[test]
    fn null_is_absence() {
        let all_null = r#"{"model":null,"stream":null,"stream_options":null,"n":null,"stop":null,
            "max_tokens":null,"seed":null,"temperature":null,"top_k":null,"top_p":null,"min_p":null,
            "repetition_penalty":null,"presence_penalty":null,"frequency_penalty":null,"logit_bias":null}"#;
        let parameters = parse(all_null).unwrap();
        assert_eq!(
            (parameters.stream, parameters.choices, parameters.max_tokens),
            (false, 1, None)
        );
        assert_eq!(parameters.sampling, SamplingDefaults::default());
        assert!(parameters.stop.is_none() && parameters.logit_bias.is_empty());
    }

    #[test]
    fn point_51_any_64_bit_seed_is_taken_and_its_absence_is_random() {
        let seed = |text: &str| sampling(&format!(r#"{{"seed":{text}}}"#)).seed;
        assert_eq!(seed("7"), 7);
        assert_eq!(seed("-1"), u64::MAX);
        assert_eq!(seed("-9223372036854775808"), 1 << 63);
        assert_eq!(seed("18446744073709551615"), u64::MAX);
        assert_ne!(seed("null"), seed("null"));
    }

    #[test]
    fn point_52_the_model_decides_what_the_request_leaves_open() {
        assert_eq!(sampling("{}").temperature, 0.7);
        assert_eq!(sampling(r#"{"temperature":0}"#).temperature, 0.0);
        assert_eq!(sampling(r#"{"top_k":-1}"#).top_k, 0);
        assert_eq!(sampling("{}").top_p, 1.0);
    }

    #[test]
    fn point_52_what_is_kept_beside_the_model_counts_where_the_request_says_nothing() {
        let preset = || Preset {
            presence_penalty: Some(0.5),
            seed: Some(7),
            max_tokens: Some(20),
            stop: vec!["END".to_owned()],
            ..Preset::default()
        };
        let open = request("{}", preset());
        assert_eq!((open.sampling.seed, open.sampling.presence_penalty), (7, 0.5));
        assert_eq!((open.max_tokens, open.stop.as_slice()), (Some(20), &["END".to_owned()][..]));
        let said = r#"{"seed":8,"presence_penalty":0,"max_tokens":3,"stop":[]}"#;
        let said = request(said, preset());
        assert_eq!((said.sampling.seed, said.sampling.presence_penalty), (8, 0.0));
        assert_eq!((said.max_tokens, said.stop.len()), (Some(3), 0));
    }

    #[test]
    fn point_53_a_bias_outside_the_vocabulary_is_refused() {
        assert_eq!(sampling(r#"{"logit_bias":{"99":-100}}"#).logit_bias, [(99, -100.0)]);
        let defaults = Defaults { vocab_size: 100, preset: Preset::default() };
        let error = parse(r#"{"logit_bias":{"100":1}}"#).unwrap().request(vec![1], None, &defaults);
        assert_eq!(error.unwrap_err().envelope()["error"]["param"], "logit_bias");
    }

    #[test]
    fn point_53_a_ban_of_the_whole_vocabulary_is_refused() {
        let defaults = Defaults { vocab_size: 2, preset: Preset::default() };
        let ask = |body| parse(body).unwrap().request(vec![1], None, &defaults);
        let error = ask(r#"{"logit_bias":{"0":-100,"1":-100}}"#).unwrap_err();
        assert_eq!(error.envelope()["error"]["param"], "logit_bias");
        // One token, twice.
        assert!(ask(r#"{"logit_bias":{"0":-100,"00":-100}}"#).is_ok());
        assert!(ask(r#"{"logit_bias":{"0":-100,"1":-99}}"#).is_ok());
    }

    #[test]
    fn point_63_a_repetition_penalty_has_two_names() {
        for body in [
            r#"{"repetition_penalty":1.5}"#,
            r#"{"repeat_penalty":1.5}"#,
            r#"{"repeat_penalty":1.5,"repetition_penalty":1.5}"#,
        ] {
            assert_eq!(sampling(body).repetition_penalty, 1.5);
        }
    }

    #[test]
    fn what_every_choice_keeps_has_a_largest_size() {
        let stop = |bytes: usize| format!(r#"{{"stop":["a","{}"]}}"#, "b".repeat(bytes - 1));
        assert!(parse(&stop(16 * 1024)).is_ok());
        assert_eq!(wrong(&stop(16 * 1024 + 1)), "stop");
        let bias = |tokens: usize| {
            let tokens: Vec<String> = (0..tokens).map(|token| format!(r#""{token}":1"#)).collect();
            format!(r#"{{"logit_bias":{{{}}}}}"#, tokens.join(","))
        };
        assert!(parse(&bias(1024)).is_ok());
        assert_eq!(wrong(&bias(1025)), "logit_bias");
    }

    #[test]
    fn point_19_stop_is_a_string_or_an_array() {
        let stop = |body| request(body, Preset::default()).stop;
        assert_eq!(stop(r#"{"stop":"a"}"#), ["a"]);
        assert_eq!(stop(r#"{"stop":["a","b","c","d","e"]}"#).len(), 5);
        assert!(stop(r#"{"stop":[]}"#).is_empty());
    }
}
