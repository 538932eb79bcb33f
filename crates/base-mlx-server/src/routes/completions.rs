use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use base_mlx_core::TokenId;
use base_mlx_core::engine::GenerateRequest;
use base_mlx_core::grammar::Constraint;
use base_mlx_core::text::output::{OutputFormat, Rule, Wanted};
use base_mlx_core::text::{AddSpecial, Opening, Tokenizer};

use crate::App;
use crate::dialects::Dialect;
use crate::dialects::Header;
use crate::dialects::completions::Completions;
use crate::dialects::logprobs::Offsets;
use crate::error::ApiError;
use crate::events::{Answer, Choice, Echo, echoed, fold, joined, opened};
use crate::model::Writer;
use crate::models::blocking;
use crate::request::{
    Defaults, JsonObject, Known, Parameters, Prompt, content_rule, in_range, prompts, refuse,
};
use crate::routes::{check_length, draft_name, in_background, json, respond, warnings};
use crate::running::Running;

/// `POST /v1/completions`
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    mut running: Running,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let completion = Arc::new(CompletionRequest::parse(&body)?);
    let background = in_background(&headers, &body)?;
    let draft = draft_name(query.as_deref(), &completion.parameters.draft)?;
    let parameters = &completion.parameters;
    let (name, keep_alive) = (parameters.model.as_deref(), parameters.keep_alive);
    let model = app.models.writer(name, keep_alive, &mut running).await?;
    let draft = app.models.draft(draft, &model, &mut running).await?;
    let prepared = {
        let (model, completion) = (Arc::clone(&model), Arc::clone(&completion));
        blocking(move || completion.prepare(&model)).await??
    };
    let (requests, echoes): (Vec<GenerateRequest>, Vec<Echo>) = prepared.into_iter().unzip();
    // All have the same.
    let constraint = requests.first().and_then(|request| request.constraint.as_ref());
    let left_out = constraint.map_or(Vec::new(), |constraint| constraint.warnings().to_vec());
    let tokenizer = &model.engine.text().tokenizer;
    // What is held to a grammar has no space but what that says.
    let opening = |request: &GenerateRequest| match request.constraint {
        Some(_) => Opening::default(),
        None => tokenizer.opening_after(&request.prompt),
    };
    let openings: Vec<Opening> = requests.iter().map(opening).collect();
    // Of the choices that are given out, not of all candidates.
    let offsets = echoes.iter().zip(&openings).flat_map(|(echo, opening)| {
        let offsets = Offsets::new(tokenizer, echo, opening.clone());
        std::iter::repeat_n(offsets, parameters.choices)
    });
    let mut dialect = Completions {
        header: Header::new("cmpl-", model.called.clone()),
        logprobs: completion.logprobs.is_some(),
        include_usage: parameters.include_usage,
        offsets: offsets.collect(),
    };
    let prompts = requests.len();
    let scored: Vec<usize> = echoes.iter().map(|echo| echo.scored_tokens).collect();
    let candidates = completion.best_of;
    let generations = requests.into_iter().map(|request| {
        model.engine.generate(GenerateRequest { draft: draft.clone(), background, ..request })
    });
    let wrong = |error| ApiError::generating(error, Completions::PROMPT);
    let generations = generations.collect::<Result<Vec<_>, _>>().map_err(wrong)?;
    let openings = openings.into_iter();
    let openings = openings.flat_map(|opening| std::iter::repeat_n(opening, candidates));
    let mut events = opened(joined(generations, candidates, running), openings.collect());
    if completion.echo {
        events = echoed(events, echoes, candidates);
    }
    let mut response = if candidates == parameters.choices {
        respond(&app, parameters, events, prompts, dialect, async |_| None).await?
    } else {
        let answer = fold(events, prompts * candidates).await.map_err(wrong)?;
        json(dialect.answer(best(answer, candidates, parameters.choices, &scored)))
    };
    warnings::tell(&mut response, &left_out);
    Ok(response)
}

struct CompletionRequest {
    parameters: Parameters,
    prompts: Vec<Prompt>,
    echo: bool,
    logprobs: Option<usize>,
    /// Answers generated for each prompt, of which `parameters.choices` are given out.
    best_of: usize,
    /// What each answer is held to.
    content: Option<(String, Rule)>,
}

impl CompletionRequest {
    fn parse(body: &JsonObject) -> Result<Self, ApiError> {
        refuse(body, &[Known::EVERYWHERE, Known::OF_COMPLETIONS])?;
        let fields = body.fields();
        let echo = fields.flag("echo")?.unwrap_or(false);
        // An answer of no tokens makes sense for who wants the prompt scored.
        let mut parameters = Parameters::parse(body, if echo { 0 } else { 1 })?;
        parameters.max_tokens = parameters.max_tokens.or(Some(DEFAULT_MAX_TOKENS));
        let fewest = parameters.choices as i64;
        let best_of = in_range("best_of", fields.whole("best_of")?, fewest..=MOST_CANDIDATES)?;
        let best_of = best_of.map_or(parameters.choices, |best_of| best_of as usize);
        if parameters.stream && best_of > parameters.choices {
            let message = "`best_of` more than `n` cannot be streamed";
            return Err(ApiError::invalid("best_of", message));
        }
        let prompts = prompts(&body.fields(), "prompt", MOST_PROMPTS)?;
        if prompts.len() * best_of > MOST_SEQUENCES {
            let message = format!(
                "{} prompts with {best_of} answers each are more than {MOST_SEQUENCES} answers",
                prompts.len()
            );
            return Err(ApiError::invalid("prompt", message));
        }
        Ok(Self {
            prompts,
            echo,
            logprobs: in_range("logprobs", fields.whole("logprobs")?, 0..=5)?
                .map(|top| top as usize),
            best_of,
            content: content_rule(body)?,
            parameters,
        })
    }

    /// Each prompt's request, and its echo.
    fn prepare(&self, model: &Writer) -> Result<Vec<(GenerateRequest, Echo)>, ApiError> {
        let constraint = self.constraint(model)?;
        let defaults = model.defaults();
        let prepare = |prompt| {
            let (mut request, echo) = self.prepare_one(prompt, model, &defaults)?;
            request.constraint = constraint.clone();
            Ok((request, echo))
        };
        self.prompts.iter().map(prepare).collect()
    }

    /// A plain text has no thoughts and no calls, whatever the model would make of a conversation.
    fn constraint(&self, model: &Writer) -> Result<Option<Constraint>, ApiError> {
        let Some(content) = &self.content else { return Ok(None) };
        let wanted = Wanted { content: Some(content.clone()), ..Wanted::default() };
        let grammar = OutputFormat::default().shape(&wanted).grammar;
        let compiled = grammar.map(|grammar| model.engine.compile(&grammar));
        compiled.transpose().map_err(ApiError::grammar)
    }

    fn prepare_one(
        &self,
        prompt: &Prompt,
        model: &Writer,
        defaults: &Defaults,
    ) -> Result<(GenerateRequest, Echo), ApiError> {
        let tokenizer = &model.engine.text().tokenizer;
        let (tokens, text, added) = match prompt {
            Prompt::Text(text) => {
                let tokens = tokenizer.encode(text, AddSpecial::Yes);
                let own = tokenizer.encode(text, AddSpecial::No).len();
                let added = tokens.len().saturating_sub(own);
                (tokens, text.clone(), added)
            }
            Prompt::Tokens(tokens) => {
                let unknown = tokens.iter().find(|token| **token as usize >= defaults.vocab_size);
                if let Some(token) = unknown {
                    let size = defaults.vocab_size;
                    let message =
                        format!("`prompt` has token {token}, the vocabulary has {size} tokens");
                    return Err(ApiError::invalid("prompt", message));
                }
                (tokens.clone(), spelled(tokenizer, tokens), 0)
            }
        };
        check_length(Completions::PROMPT, tokens.len(), model.engine.info().context)?;
        let score_prompt = self.echo && self.logprobs.is_some();
        let scored_tokens = if score_prompt { tokens.len() - added } else { 0 };
        // Candidates are compared by their log probabilities.
        let logprobs = self.logprobs.or((self.best_of > self.parameters.choices).then_some(0));
        let mut request = self.parameters.request(tokens, logprobs, defaults)?;
        request.choices = self.best_of;
        request.score_prompt = score_prompt;
        if self.content.is_none() {
            request.output = model.engine.text().output.plain_parser();
        }
        Ok((request, Echo { text: text.into(), scored_tokens }))
    }
}

/// A prompt of tokens as text: what was asked to be seen again is seen whole, special tokens too.
fn spelled(tokenizer: &Tokenizer, tokens: &[TokenId]) -> String {
    let bytes: Vec<u8> =
        tokens.iter().flat_map(|token| tokenizer.token_bytes(*token)).copied().collect();
    let begins_plainly = tokens.first().is_some_and(|token| !tokenizer.is_special(*token));
    let skipped = if begins_plainly { tokenizer.opening_after(&[]).skip(&bytes) } else { 0 };
    String::from_utf8_lossy(&bytes[skipped..]).into_owned()
}

/// Of each prompt's candidates the `kept` whose tokens were most probable on average, the best first.
fn best(answer: Answer, candidates: usize, kept: usize, scored: &[usize]) -> Answer {
    let mut all = answer.choices.into_iter();
    let mut choices = Vec::with_capacity(scored.len() * kept);
    for scored in scored {
        let mut group: Vec<Choice> = all.by_ref().take(candidates).collect();
        let mean = |choice: &Choice| {
            let own = choice.logprobs.get(*scored..).unwrap_or_default();
            own.iter().map(|entry| entry.logprob).sum::<f32>() / own.len().max(1) as f32
        };
        group.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        choices.extend(group.into_iter().take(kept));
    }
    Answer { choices, usage: answer.usage }
}

/// What the API's reference says; chat answers have no such limit.
const DEFAULT_MAX_TOKENS: usize = 16;
const MOST_CANDIDATES: i64 = 128;
const MOST_PROMPTS: usize = 256;
/// One request's share of a queue that all clients wait in.
const MOST_SEQUENCES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use base_mlx_core::engine::{FinishReason, TokenLogprob, Usage};

    #[test]
    fn point_47_best_of_keeps_the_most_probable_of_each_prompt() {
        let choice = |text: &str, logprobs: &[f32]| Choice {
            text: text.into(),
            logprobs: logprobs
                .iter()
                .map(|&logprob| TokenLogprob { token: 0, bytes: vec![], logprob, top: vec![] })
                .collect(),
            reason: FinishReason::Stop,
            ..Choice::default()
        };
        let choices = vec![
            choice("worse", &[-1.0, -2.0]),
            choice("better", &[-1.0]),
            choice("best", &[f32::NAN, -0.1]),
            choice("bad", &[f32::NAN, -9.0]),
        ];
        let answer = Answer { choices, usage: Usage::default() };
        let kept = best(answer, 2, 1, &[0, 1]);
        let texts: Vec<&str> = kept.choices.iter().map(|choice| choice.text.as_str()).collect();
        assert_eq!(texts, ["better", "best"]);
    }
}
