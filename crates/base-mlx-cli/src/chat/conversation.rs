use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use base_mlx_core::TokenId;
use base_mlx_core::engine::{Draft, Engine, Event, FinishReason, GenerateRequest, Usage};
use base_mlx_core::text::output::{OutputParser, Wanted};
use base_mlx_core::text::{AddSpecial, ChatInput, Opening};
use base_mlx_server::Preset;
use futures_util::{Stream, StreamExt};
use serde_json::{Map, Value, json};

use super::Parameters;

/// The messages so far, and the model that answers them.
pub(crate) struct Conversation {
    draft: Draft,
    engine: Engine,
    /// What counts where the parameters say nothing.
    preset: Preset,
    pub(crate) parameters: Parameters,
    messages: Vec<Value>,
}

/// How an answer went.
pub(crate) struct Outcome {
    pub(crate) reason: Option<FinishReason>,
    pub(crate) usage: Option<Usage>,
    /// From the request to the first text.
    pub(crate) first: Duration,
    /// From the first text to the end.
    pub(crate) rest: Duration,
}

impl Conversation {
    pub(crate) fn new(
        engine: Engine,
        draft: Draft,
        preset: Preset,
        parameters: Parameters,
    ) -> Self {
        Self { engine, draft, preset, parameters, messages: Vec::new() }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(crate) fn reset(&mut self) {
        self.messages.clear();
    }

    /// Writes the answer to `out` as it comes. What was said stays in the conversation even if `stop` cut it short;
    /// after an error the message is forgotten.
    pub(crate) async fn ask(
        &mut self,
        message: &str,
        out: &mut impl Write,
        stop: impl Future,
    ) -> Result<Outcome> {
        self.messages.push(json!({ "role": "user", "content": message }));
        let result = self.answer(out, stop).await;
        match &result {
            Ok((_, said)) => self.messages.push(json!({ "role": "assistant", "content": said })),
            Err(_) => self.messages.truncate(self.messages.len() - 1),
        }
        result.map(|(outcome, _)| outcome)
    }

    async fn answer(&self, out: &mut impl Write, stop: impl Future) -> Result<(Outcome, String)> {
        let generation = self.engine.generate(self.request()?)?;
        let begun = Instant::now();
        let mut answer = Answer { opening: self.opening(), ..Answer::default() };
        let result = tokio::select! {
            biased;
            _ = stop => Ok(()),
            result = answer.follow(generation, out) => result,
        };
        result?;
        let first = answer.first.map_or_else(|| begun.elapsed(), |first| first - begun);
        let rest = begun.elapsed() - first;
        let outcome = Outcome { reason: answer.reason, usage: answer.usage, first, rest };
        Ok((outcome, answer.said))
    }

    fn request(&self) -> Result<GenerateRequest> {
        let (prompt, output) = self.prompt()?;
        Ok(GenerateRequest {
            prompt,
            choices: 1,
            sampling: self.parameters.sampling(&self.preset),
            max_tokens: self.parameters.max_tokens(&self.preset),
            stop: self.parameters.stop(&self.preset).to_vec(),
            ignore_end: false,
            score_prompt: false,
            background: false,
            draft: self.draft.clone(),
            output,
            constraint: None,
            thinking: None,
            streamed: true,
        })
    }

    /// Of an answer, which is a text of its own where there is a template, else goes on with the text.
    fn opening(&self) -> Opening {
        let text = self.engine.text();
        match &text.template {
            Some(_) => text.tokenizer.opening_after(&[]),
            None => Opening::default(),
        }
    }

    /// And what reads the answer. A model without a chat template was not made for conversations; it continues the text.
    fn prompt(&self) -> Result<(Vec<TokenId>, OutputParser)> {
        let text = self.engine.text();
        let system = self.parameters.system(&self.preset);
        if let Some(error) = &text.template_error {
            return Err(error.clone()).context("the model's chat template is broken");
        }
        let Some(template) = &text.template else {
            let said = self.messages.iter().filter_map(|message| message["content"].as_str());
            let all: Vec<_> = system.into_iter().chain(said).collect();
            let prompt = text.tokenizer.encode(&all.join("\n"), AddSpecial::Yes);
            return Ok((prompt, OutputParser::plain()));
        };
        let system = system.map(|text| json!({ "role": "system", "content": text }));
        let messages = Value::from_iter(system.into_iter().chain(self.messages.iter().cloned()));
        let rendered = template
            .render(&ChatInput {
                messages: &messages,
                tools: None,
                add_generation_prompt: true,
                kwargs: &Map::new(),
            })
            .context("the model's chat template does not take this conversation")?;
        let opened = text.output.opens_thoughts(&rendered);
        let wanted = Wanted { opened, may_think: true, ..Wanted::default() };
        Ok((text.tokenizer.encode(&rendered, AddSpecial::No), text.output.shape(&wanted).parser))
    }
}

/// What has arrived of an answer.
#[derive(Default)]
struct Answer {
    opening: Opening,
    said: String,
    /// Thoughts were shown last.
    thinks: bool,
    first: Option<Instant>,
    reason: Option<FinishReason>,
    usage: Option<Usage>,
}

impl Answer {
    /// To the usage, which ends every answer that did not fail.
    async fn follow(
        &mut self,
        mut generation: impl Stream<Item = Event> + Unpin,
        out: &mut impl Write,
    ) -> Result<()> {
        while let Some(event) = generation.next().await {
            match event {
                Event::Text { mut text, .. } => {
                    text.drain(..self.opening.skip(text.as_bytes()));
                    self.end_thoughts()?;
                    self.first.get_or_insert_with(Instant::now);
                    self.said += &text;
                    out.write_all(text.as_bytes())?;
                    out.flush()?;
                }
                Event::Reasoning { text, .. } => {
                    self.first.get_or_insert_with(Instant::now);
                    self.show_thought(&text)?;
                }
                // No tool was offered.
                Event::ToolStart { .. } | Event::ToolArgs { .. } => {}
                Event::Finish { reason, .. } => {
                    self.end_thoughts()?;
                    self.reason = Some(reason);
                }
                Event::Usage(usage) => {
                    self.usage = Some(usage);
                    return Ok(());
                }
                Event::Error(error) => return Err(error.into()),
                // Was not asked for.
                Event::Begun(_) | Event::Prompt { .. } => {}
            }
        }
        bail!("the answer broke off")
    }

    /// For people only: the answer is what is not thought.
    fn show_thought(&mut self, text: &str) -> io::Result<()> {
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            self.thinks = true;
            write!(stderr, "{DIM}{text}{PLAIN}")?;
        }
        Ok(())
    }

    fn end_thoughts(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.thinks) { write!(io::stderr(), "\n\n") } else { Ok(()) }
    }
}

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_without_an_end_is_a_failure() {
        let follow = async |events: Vec<Event>| {
            let mut answer = Answer::default();
            let mut out = Vec::new();
            let result = answer.follow(futures_util::stream::iter(events), &mut out).await;
            result.map(|()| String::from_utf8(out).unwrap()).map_err(|error| error.to_string())
        };
        let finish = || Event::Finish { choice: 0, reason: FinishReason::Stop };
        let usage = || Event::Usage(Usage::default());
        assert_eq!(follow(vec![finish(), usage()]).await, Ok(String::new()));
        let broken = Err("the answer broke off".to_owned());
        assert_eq!(follow(vec![finish()]).await, broken);
        assert_eq!(follow(vec![]).await, broken);
    }
}
