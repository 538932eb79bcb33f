//! The events of one HTTP request: those of its generations as one stream, and their fold into one answer. Encoders
//! of all dialects, streaming or not, read from here.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base_mlx_core::engine::{Cached, Event, FinishReason, GenerateError, TokenLogprob, Usage};
use base_mlx_core::text::Opening;
use futures_util::stream::{self, SelectAll, Stream, StreamExt};

use crate::running::Running;

/// The last event is `Usage` or `Error`, whatever happens. Dropping the stream cancels the generations.
pub(crate) type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// Generations of `choices` each, one after another in numbering and all at once in time. Usage comes once, summed.
pub(crate) fn joined<G>(generations: Vec<G>, choices: usize, running: Running) -> Events
where
    G: Stream<Item = Event> + Send + Unpin + 'static,
{
    let open = generations.len();
    let numbered = generations.into_iter().enumerate().map(|(index, generation)| {
        let numbered = generation.map(move |event| renumbered(event, index * choices));
        Box::pin(numbered) as Events
    });
    let joined = Joined { events: numbered.collect(), open, usage: Usage::default(), running };
    Box::pin(stream::unfold(Some(joined), async |joined| joined?.next().await))
}

struct Joined {
    events: SelectAll<Events>,
    /// Generations that have not ended.
    open: usize,
    usage: Usage,
    running: Running,
}

impl Joined {
    async fn next(mut self) -> Option<(Event, Option<Self>)> {
        loop {
            let event = tokio::select! {
                // Of a slow client's events there is always one more to send.
                biased;
                () = self.running.stopped() => Some(Event::Error(GenerateError::ShuttingDown)),
                event = self.events.next() => event,
            };
            match event {
                Some(Event::Usage(part)) => {
                    self.usage.prompt_tokens += part.prompt_tokens;
                    self.usage.cached_tokens += part.cached_tokens;
                    self.usage.completion_tokens += part.completion_tokens;
                    self.usage.reasoning_tokens += part.reasoning_tokens;
                    self.open -= 1;
                    if self.open == 0 {
                        return Some((Event::Usage(self.usage), None));
                    }
                }
                Some(event @ Event::Error(_)) => return Some((event, None)),
                Some(event) => return Some((event, Some(self))),
                None => {
                    let error = GenerateError::Failed("it ended without a word".into());
                    return Some((Event::Error(error), None));
                }
            }
        }
    }
}

/// Waits until all generations have begun, which may take them a while in the queue, but no longer than `patience`. Gives
/// what each found cached, in the order in which they began, and all events that are left; an error that came before.
pub(crate) async fn begun(
    mut events: Events,
    generations: usize,
    patience: Duration,
) -> Result<(Vec<Cached>, Events), GenerateError> {
    let (mut cached, mut others) = (Vec::new(), Vec::new());
    let end = tokio::time::sleep(patience);
    tokio::pin!(end);
    while cached.len() < generations {
        let event = tokio::select! {
            event = events.next() => event,
            () = &mut end => break,
        };
        match event {
            Some(Event::Begun(found)) => cached.push(found),
            Some(Event::Error(error)) => return Err(error),
            Some(event) => others.push(event),
            None => break,
        }
    }
    Ok((cached, Box::pin(stream::iter(others).chain(events))))
}

/// A whole answer: what a client that does not stream gets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub choices: Vec<Choice>,
    pub usage: Usage,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub text: String,
    pub logprobs: Vec<TokenLogprob>,
    /// What the model thought before.
    pub reasoning: String,
    pub calls: Vec<Call>,
    pub reason: FinishReason,
}

/// A call of a function.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub name: String,
    /// A JSON object, as the model wrote it.
    pub arguments: String,
}

impl Default for Choice {
    /// Before anything has come of it.
    fn default() -> Self {
        let (text, reasoning) = (String::new(), String::new());
        let (logprobs, calls) = (Vec::new(), Vec::new());
        Self { text, logprobs, reasoning, calls, reason: FinishReason::Length }
    }
}

pub(crate) async fn fold(mut events: Events, choices: usize) -> Result<Answer, GenerateError> {
    let choices = vec![Choice::default(); choices];
    let mut answer = Answer { choices, usage: Usage::default() };
    while let Some(event) = events.next().await {
        match event {
            Event::Begun(_) | Event::Prompt { .. } => {}
            Event::Text { choice, text, logprobs } => {
                let choice = &mut answer.choices[choice];
                choice.text.push_str(&text);
                choice.logprobs.extend(logprobs);
            }
            Event::Reasoning { choice, text } => answer.choices[choice].reasoning.push_str(&text),
            Event::ToolStart { choice, name, .. } => {
                answer.choices[choice].calls.push(Call { name, arguments: String::new() });
            }
            Event::ToolArgs { choice, call, text } => {
                answer.choices[choice].calls[call].arguments.push_str(&text);
            }
            Event::Finish { choice, reason } => answer.choices[choice].reason = reason,
            Event::Usage(usage) => answer.usage = usage,
            Event::Error(error) => return Err(error),
        }
    }
    Ok(answer)
}

/// Takes away the space that a tokenizer put before the text of each choice, thoughts or not.
pub(crate) fn opened(events: Events, mut openings: Vec<Opening>) -> Events {
    Box::pin(events.filter_map(move |mut event| {
        let mut empty = false;
        match &mut event {
            Event::Text { choice, text, logprobs } => {
                text.drain(..openings[*choice].skip(text.as_bytes()));
                empty = text.is_empty() && logprobs.is_empty();
            }
            Event::Reasoning { choice, text } => {
                text.drain(..openings[*choice].skip(text.as_bytes()));
                empty = text.is_empty();
            }
            // The mark before a call had the space.
            Event::ToolStart { choice, .. } => openings[*choice] = Opening::default(),
            _ => {}
        }
        std::future::ready((!empty).then_some(event))
    }))
}

/// A prompt that its answers begin with.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    pub text: Arc<str>,
    /// The last this many of the prompt's log probabilities belong to its text; the tokenizer put the tokens before
    /// them there.
    pub scored_tokens: usize,
}

/// Puts each prompt in front of its answers.
pub(crate) fn echoed(events: Events, echoes: Vec<Echo>, choices: usize) -> Events {
    let mut scores: Vec<Vec<TokenLogprob>> = vec![Vec::new(); echoes.len()];
    let mut begun = vec![false; echoes.len() * choices];
    Box::pin(events.flat_map(move |mut event| {
        let mut echo = None;
        match &mut event {
            Event::Prompt { choice, logprobs } => {
                let (prompt, mut logprobs) = (*choice / choices, std::mem::take(logprobs));
                let added = logprobs.len().saturating_sub(echoes[prompt].scored_tokens);
                scores[prompt] = logprobs.split_off(added);
            }
            Event::Text { choice, .. } | Event::Finish { choice, .. } => {
                let (choice, prompt) = (*choice, *choice / choices);
                if !std::mem::replace(&mut begun[choice], true) {
                    let (text, logprobs) =
                        (echoes[prompt].text.to_string(), scores[prompt].clone());
                    echo = Some(Event::Text { choice, text, logprobs });
                }
            }
            Event::Reasoning { .. } | Event::ToolStart { .. } | Event::ToolArgs { .. } => {}
            Event::Begun(_) | Event::Usage(_) | Event::Error(_) => {}
        }
        stream::iter(echo.into_iter().chain([event]))
    }))
}

fn renumbered(mut event: Event, first: usize) -> Event {
    match &mut event {
        Event::Prompt { choice, .. }
        | Event::Text { choice, .. }
        | Event::Reasoning { choice, .. }
        | Event::ToolStart { choice, .. }
        | Event::ToolArgs { choice, .. }
        | Event::Finish { choice, .. } => {
            *choice += first;
        }
        Event::Begun(_) | Event::Usage(_) | Event::Error(_) => {}
    }
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::running::Gate;

    fn text(choice: usize, text: &str) -> Event {
        Event::Text { choice, text: text.into(), logprobs: Vec::new() }
    }

    fn finish(choice: usize) -> Event {
        Event::Finish { choice, reason: FinishReason::Stop }
    }

    fn usage(prompt_tokens: usize, completion_tokens: usize) -> Event {
        Event::Usage(Usage { prompt_tokens, completion_tokens, ..Usage::default() })
    }

    fn events(generations: Vec<Vec<Event>>, choices: usize) -> Events {
        let running = Gate::new(1).enter().unwrap();
        joined(generations.into_iter().map(stream::iter).collect(), choices, running)
    }

    #[tokio::test]
    async fn point_17_the_fold_holds_what_the_stream_holds() {
        let generations = vec![
            vec![text(0, "a"), text(1, "x"), text(0, " b"), finish(1), finish(0), usage(3, 4)],
            vec![text(1, "y"), text(0, "c"), finish(0), finish(1), usage(5, 6)],
        ];
        let streamed: Vec<Event> = events(generations.clone(), 2).collect().await;
        assert_eq!(streamed.last(), Some(&usage(8, 10)));
        assert_eq!(streamed.iter().filter(|event| matches!(event, Event::Usage(_))).count(), 1);

        let answer = fold(events(generations, 2), 4).await.unwrap();
        let texts: Vec<&str> = answer.choices.iter().map(|choice| choice.text.as_str()).collect();
        assert_eq!(texts, ["a b", "x", "c", "y"]);
    }

    #[tokio::test]
    async fn point_47_the_echo_comes_first_and_once_in_each_choice() {
        let scored = |bytes: &[u8]| TokenLogprob {
            token: 0,
            bytes: bytes.to_vec(),
            logprob: -1.0,
            top: Vec::new(),
        };
        let prompt = Event::Prompt { choice: 0, logprobs: vec![scored(b"<s>"), scored(b"hi")] };
        let generation = vec![
            prompt,
            text(0, " a"),
            text(1, " b"),
            text(0, " c"),
            finish(0),
            finish(1),
            usage(2, 3),
        ];
        let echo = Echo { text: "hi".into(), scored_tokens: 1 };
        let events = echoed(events(vec![generation], 2), vec![echo], 2);
        let answer = fold(events, 2).await.unwrap();
        let texts: Vec<&str> = answer.choices.iter().map(|choice| choice.text.as_str()).collect();
        assert_eq!(texts, ["hi a c", "hi b"]);
        assert_eq!(answer.choices[1].logprobs, [scored(b"hi")]);
    }

    #[tokio::test]
    async fn a_generation_that_just_ends_is_an_error() {
        let streamed: Vec<Event> = events(vec![vec![text(0, "a")]], 1).collect().await;
        assert!(matches!(streamed.last(), Some(Event::Error(GenerateError::Failed(_)))));
        assert!(fold(events(vec![vec![text(0, "a")]], 1), 1).await.is_err());
    }

    #[tokio::test]
    async fn what_was_cached_is_known_before_the_first_text_and_nothing_is_lost() {
        let cached = |tokens| Cached { tokens, prompt_tokens: 9, ..Cached::default() };
        let first = vec![Event::Begun(cached(1)), text(0, "a"), finish(0), usage(9, 1)];
        let second = vec![Event::Begun(cached(2)), text(0, "b"), finish(0), usage(9, 1)];
        let patience = Duration::from_secs(60);
        let (found, rest) =
            begun(events(vec![first.clone(), second], 1), 2, patience).await.unwrap();
        assert_eq!(found.iter().map(|found| found.tokens).sum::<usize>(), 3);
        let answer = fold(rest, 2).await.unwrap();
        assert_eq!((answer.choices[0].text.as_str(), answer.usage.prompt_tokens), ("a", 18));

        let silent = stream::pending::<Event>().boxed();
        let waiting = joined(vec![silent], 1, Gate::new(1).enter().unwrap());
        let (found, _) = begun(waiting, 1, Duration::from_millis(5)).await.unwrap();
        assert!(found.is_empty());

        let failed = GenerateError::Failed("x".into());
        let waiting = events(vec![vec![Event::Error(failed.clone())]], 1);
        assert_eq!(begun(waiting, 1, patience).await.err(), Some(failed));
    }

    #[tokio::test]
    async fn an_error_ends_the_other_generations_too() {
        let failed = Event::Error(GenerateError::Failed("x".into()));
        let streamed: Vec<Event> =
            events(vec![vec![failed.clone()], vec![text(0, "a"), usage(1, 1)]], 1).collect().await;
        assert_eq!(streamed.last(), Some(&failed));
    }

    #[tokio::test]
    async fn answers_end_when_the_grace_time_is_over() {
        let silent = stream::pending::<Event>().boxed();
        let talking = stream::repeat(text(0, "a")).boxed();
        for endless in [silent, talking] {
            let gate = Gate::new(1);
            let events = joined(vec![endless], 1, gate.enter().unwrap());
            gate.close(Duration::ZERO).await;
            let streamed: Vec<Event> = events.take(2).collect().await;
            assert_eq!(streamed, [Event::Error(GenerateError::ShuttingDown)]);
        }
    }

    #[tokio::test]
    async fn point_16_an_answer_that_nobody_waits_for_ends_its_generations() {
        let gate = Gate::new(1);
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let generation = Box::pin(stream::poll_fn(move |context| receiver.poll_recv(context)));
        let answer = tokio::spawn(fold(joined(vec![generation], 1, gate.enter().unwrap()), 1));
        // The second has room only when the first was taken, so the answer has begun.
        sender.send(text(0, "a")).await.unwrap();
        sender.send(text(0, "b")).await.unwrap();
        answer.abort();
        sender.closed().await;
        assert!(answer.await.unwrap_err().is_cancelled());
        assert!(gate.enter().is_ok());
    }
}
