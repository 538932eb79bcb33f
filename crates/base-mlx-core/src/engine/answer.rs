use std::collections::VecDeque;

use super::event::{Event, FinishReason, TokenLogprob};
use super::stop::{Passed, StopStrings};
use crate::TokenId;
use crate::text::Decoder;
use crate::text::output::{Output, OutputParser};

/// Turns the tokens of one choice into events. Text leaves as soon as it is certain: incomplete characters, what may still
/// become a mark of the model's format, and what may still become a stop string wait. Log probabilities leave with the
/// visible text that they belong to; what is not visible text takes its own along.
#[derive(Clone, Debug)]
pub(super) struct Answer<D> {
    choice: usize,
    decoder: D,
    parser: OutputParser,
    stop: StopStrings,
    end_tokens: Vec<TokenId>,
    /// Entries of which it is not known whether their text is visible, in order, by bytes of all text.
    unread: VecDeque<Waiting>,
    /// Entries whose visible text is not out, in order, by bytes of visible text.
    waiting: VecDeque<Waiting>,
    /// Bytes of text that tokens made.
    decoded: usize,
    /// Bytes of visible text, and those of them that are out.
    visible: usize,
    out: usize,
    /// Bytes before the visible text that came last that are not visible.
    skipped: usize,
    /// Nothing has come since that is not visible.
    is_visible: bool,
    calls: usize,
    complete_calls: usize,
    stopped: bool,
}

/// Makes text of tokens: complete characters only, the rest when it is known that nothing follows.
pub(super) trait Decode {
    fn push(&mut self, token: TokenId) -> String;
    fn finish(&mut self) -> String;
    fn is_within_character(&self) -> bool;
}

impl Decode for Decoder {
    fn push(&mut self, token: TokenId) -> String {
        Decoder::push(self, token)
    }

    fn finish(&mut self) -> String {
        Decoder::finish(self)
    }

    fn is_within_character(&self) -> bool {
        Decoder::is_within_character(self)
    }
}

/// What a token added.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Added {
    pub(super) events: Vec<Event>,
    /// It is one of the model's thoughts, or a mark of theirs.
    pub(super) reasoning: bool,
    /// The token was an end token or completed a stop string: it is the last one.
    pub(super) ended: Option<FinishReason>,
}

#[derive(Clone, Debug)]
struct Waiting {
    /// Where the token's text begins and ends, in bytes. A token that is only a part of a character, or has
    /// no text, ends with the first byte that follows.
    start: usize,
    end: usize,
    entry: TokenLogprob,
}

impl<D: Decode> Answer<D> {
    /// No `end_tokens` if they are to be ignored.
    pub(super) fn new(
        choice: usize,
        decoder: D,
        parser: OutputParser,
        stop: Vec<String>,
        end_tokens: Vec<TokenId>,
    ) -> Self {
        Self {
            choice,
            decoder,
            is_visible: !parser.is_reasoning(),
            parser,
            stop: StopStrings::new(stop),
            end_tokens,
            unread: VecDeque::new(),
            waiting: VecDeque::new(),
            decoded: 0,
            visible: 0,
            out: 0,
            skipped: 0,
            calls: 0,
            complete_calls: 0,
            stopped: false,
        }
    }

    /// Whether the next token is one of the model's thoughts, and other text may be put in their place.
    pub(super) fn can_end_thoughts(&self) -> bool {
        self.parser.is_reasoning() && !self.decoder.is_within_character()
    }

    /// Whether thoughts may still come.
    pub(super) fn may_think(&self) -> bool {
        self.parser.may_think()
    }

    /// Adds the next token. After one that ended the answer, only `finish` may follow.
    pub(super) fn push(&mut self, token: TokenId, entry: Option<TokenLogprob>) -> Added {
        if self.end_tokens.contains(&token) {
            return Added { ended: Some(FinishReason::Stop), ..Added::default() };
        }
        let text = self.decoder.push(token);
        if let Some(entry) = entry {
            let start = self.decoded;
            self.unread.push_back(Waiting { start, end: start + text.len().max(1), entry });
        }
        let was_reasoning = self.parser.is_reasoning();
        let events = self.read(&text);
        if self.parser.is_reasoning() && !self.is_visible {
            // Nothing of it will be visible any more.
            self.forget_unread(self.decoded);
        }
        Added {
            events,
            reasoning: was_reasoning || self.parser.is_reasoning(),
            ended: self.stopped.then_some(FinishReason::Stop),
        }
    }

    /// Ends the choice with what was held back, and with its last event.
    pub(super) fn finish(mut self, reason: FinishReason) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.stopped {
            let text = self.decoder.finish();
            events.extend(self.read(&text));
        }
        if !self.stopped {
            let outputs = self.parser.finish();
            events.extend(self.take(outputs));
        }
        if !self.stopped {
            // Tokens without text belong to the text before them if that was visible to its end.
            let end = self.visible + self.skipped;
            self.end_visible(if self.decoded == end { usize::MAX } else { end });
        }
        let text = self.stop.finish();
        let logprobs = self.waiting.drain(..).map(|waiting| waiting.entry).collect();
        events.extend(self.text(text, logprobs));
        let reason = match reason {
            // The last characters may complete a stop string, though no token did.
            _ if self.stopped => FinishReason::Stop,
            FinishReason::Stop if self.complete_calls > 0 => FinishReason::ToolCalls,
            reason => reason,
        };
        events.push(Event::Finish { choice: self.choice, reason });
        events
    }

    fn read(&mut self, text: &str) -> Vec<Event> {
        self.decoded += text.len();
        let outputs = self.parser.push(text);
        self.take(outputs)
    }

    fn take(&mut self, outputs: Vec<Output>) -> Vec<Event> {
        let choice = self.choice;
        let mut events = Vec::with_capacity(outputs.len());
        for output in outputs {
            if self.stopped {
                break;
            }
            match output {
                Output::Content { text, start } => {
                    if start != self.visible + self.skipped || !self.is_visible {
                        self.end_visible(start);
                        self.skipped = start - self.visible;
                        self.is_visible = true;
                    }
                    self.make_visible(start + text.len());
                    events.extend(self.pass(&text));
                    continue;
                }
                Output::Reasoning(text) => events.push(Event::Reasoning { choice, text }),
                Output::ToolStart { name } => {
                    self.calls += 1;
                    events.push(Event::ToolStart { choice, call: self.calls - 1, name });
                }
                Output::ToolArgs(text) => {
                    events.push(Event::ToolArgs { choice, call: self.calls - 1, text });
                }
                Output::ToolEnd => self.complete_calls += 1,
            }
            self.end_visible(self.visible + self.skipped);
            self.is_visible = false;
        }
        events
    }

    /// The text up to this byte is visible, so the entries that end in it are.
    fn make_visible(&mut self, end: usize) {
        let count = self.unread.iter().take_while(|entry| entry.end <= end).count();
        let (skipped, visible) = (self.skipped, self.visible);
        self.waiting.extend(self.unread.drain(..count).map(|unread| Waiting {
            start: unread.start.saturating_sub(skipped).max(visible),
            end: unread.end - skipped,
            ..unread
        }));
    }

    /// What comes between the visible text so far and `next` is not visible. An entry whose text began in it still is.
    fn end_visible(&mut self, next: usize) {
        if !self.is_visible {
            return self.forget_unread(next);
        }
        let end = self.visible + self.skipped;
        let stays = next == usize::MAX;
        let begun = self.unread.iter().take_while(|entry| stays || entry.start < end).count();
        let visible = self.visible;
        self.waiting.extend(self.unread.drain(..begun).map(|unread| Waiting {
            start: visible,
            end: visible,
            ..unread
        }));
        self.forget_unread(next);
    }

    /// The text up to this byte is not visible.
    fn forget_unread(&mut self, end: usize) {
        while self.unread.front().is_some_and(|entry| entry.end <= end) {
            self.unread.pop_front();
        }
    }

    fn pass(&mut self, text: &str) -> Option<Event> {
        let Passed { text: passed, stopped } = self.stop.push(text);
        self.visible += text.len();
        self.out += passed.len();
        self.stopped = stopped;
        // Of the tokens that a stop string cuts, the one with visible text keeps its entry.
        let out = self.out;
        let is_out = |waiting: &Waiting| waiting.end <= out || stopped && waiting.start < out;
        let count = self.waiting.iter().take_while(|waiting| is_out(waiting)).count();
        let logprobs = self.waiting.drain(..count).map(|waiting| waiting.entry).collect();
        if stopped {
            self.waiting.clear();
            self.unread.clear();
        }
        self.text(passed, logprobs)
    }

    fn text(&self, text: String, logprobs: Vec<TokenLogprob>) -> Option<Event> {
        let empty = text.is_empty() && logprobs.is_empty();
        (!empty).then_some(Event::Text { choice: self.choice, text, logprobs })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::output::{Calls, OutputFormat, Tool, Wanted};

    const END: TokenId = 999;

    /// A vocabulary of byte strings.
    #[derive(Clone, Default)]
    struct Bytes {
        vocabulary: Vec<Vec<u8>>,
        held: Vec<u8>,
    }

    impl Decode for Bytes {
        fn push(&mut self, token: TokenId) -> String {
            self.held.extend(&self.vocabulary[token as usize]);
            let complete = match std::str::from_utf8(&self.held) {
                Ok(text) => text.len(),
                Err(error) => error.valid_up_to(),
            };
            let rest = self.held.split_off(complete);
            String::from_utf8(std::mem::replace(&mut self.held, rest)).unwrap()
        }

        fn finish(&mut self) -> String {
            String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
        }

        fn is_within_character(&self) -> bool {
            !self.held.is_empty()
        }
    }

    fn entry(token: TokenId) -> TokenLogprob {
        TokenLogprob { token, bytes: Vec::new(), logprob: -1.0, top: Vec::new() }
    }

    fn answer(tokens: &[&[u8]], stop: &[&str]) -> Answer<Bytes> {
        let vocabulary = tokens.iter().map(|bytes| bytes.to_vec()).collect();
        let decoder = Bytes { vocabulary, held: Vec::new() };
        Answer::new(
            2,
            decoder,
            OutputParser::plain(),
            stop.iter().map(|stop| stop.to_string()).collect(),
            vec![END],
        )
    }

    /// Thoughts between tags, and calls of one tool in Hermes' tags.
    fn thinking() -> OutputParser {
        let tool = Tool {
            name: "get".to_owned(),
            parameters: serde_json::json!({ "type": "object" }),
            strict: true,
            origin: String::new(),
        };
        let calls = Calls { tools: vec![tool], required: false, parallel: true };
        let format = OutputFormat::of_template("<tool_call> \"name\": <think> </think>");
        format.shape(&Wanted { calls, may_think: true, ..Wanted::default() }).parser
    }

    #[test]
    fn thoughts_and_calls_take_their_entries_along() {
        let call = "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        let text = format!("<think>\nHm, so.\n</think>\n\nWell then.\n{call}");
        let visible = text.find("Well then.").unwrap();
        let visible = visible..visible + "Well then.".len();
        for size in 1..text.len() {
            let tokens: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            let decoder = Bytes {
                vocabulary: tokens.iter().map(|token| token.to_vec()).collect(),
                held: Vec::new(),
            };
            let mut answer = Answer::new(0, decoder, thinking(), Vec::new(), vec![END]);
            let mut events = Vec::new();
            for token in 0..tokens.len() as TokenId {
                events.extend(answer.push(token, Some(entry(token))).events);
            }
            events.extend(answer.finish(FinishReason::Stop));
            let (mut said, mut entries, mut calls) = (String::new(), Vec::new(), String::new());
            for event in events {
                match event {
                    Event::Text { text, logprobs, .. } => {
                        said += &text;
                        entries.extend(logprobs.iter().map(|entry| entry.token as usize));
                    }
                    Event::ToolArgs { text, .. } => calls += &text,
                    Event::Finish { reason, .. } => assert_eq!(reason, FinishReason::ToolCalls),
                    _ => {}
                }
            }
            assert_eq!((&*said, &*calls), ("Well then.", "{\"a\": 1}"));
            let shows =
                |token: &usize| token * size < visible.end && (token + 1) * size > visible.start;
            let expected: Vec<usize> = (0..tokens.len()).filter(shows).collect();
            assert_eq!(entries, expected, "tokens of {size} bytes");
        }
    }

    /// Pushes tokens 0, 1, … until the answer ends; the pieces with their entries, and the reason.
    fn run(mut answer: Answer<Bytes>) -> (Vec<(String, Vec<TokenId>)>, FinishReason) {
        let mut events = Vec::new();
        let mut reason = FinishReason::Length;
        for token in 0..answer.decoder.vocabulary.len() as TokenId {
            let added = answer.push(token, Some(entry(token)));
            events.extend(added.events);
            if let Some(ended) = added.ended {
                reason = ended;
                break;
            }
        }
        events.extend(answer.finish(reason));
        let Some(Event::Finish { choice: 2, reason }) = events.pop() else { panic!("no finish") };
        let pieces = events.into_iter().map(|event| match event {
            Event::Text { choice: 2, text, logprobs } => {
                assert!(!text.is_empty() || !logprobs.is_empty());
                (text, logprobs.iter().map(|entry| entry.token).collect())
            }
            other => panic!("{other:?}"),
        });
        (pieces.collect(), reason)
    }

    fn piece(text: &str, entries: &[TokenId]) -> (String, Vec<TokenId>) {
        (text.to_string(), entries.to_vec())
    }

    #[test]
    fn a_split_character_brings_the_entries_of_its_parts() {
        let smile = "🙂".as_bytes();
        let (pieces, reason) = run(answer(&[b"a", &smile[..2], &smile[2..], b"b"], &[]));
        assert_eq!(pieces, [piece("a", &[0]), piece("🙂", &[1, 2]), piece("b", &[3])]);
        assert_eq!(reason, FinishReason::Length);
    }

    #[test]
    fn an_unfinished_character_is_flushed_with_its_entry() {
        let (pieces, _) = run(answer(&[b"a", &"🙂".as_bytes()[..2]], &[]));
        assert_eq!(pieces, [piece("a", &[0]), piece("\u{fffd}", &[1])]);
    }

    #[test]
    fn held_text_brings_its_entries_later() {
        let (pieces, _) = run(answer(&[b"x", b"ST", b"O", b"x", b"S"], &["STOP"]));
        assert_eq!(pieces, [piece("x", &[0]), piece("STOx", &[1, 2, 3]), piece("S", &[4])]);
    }

    #[test]
    fn a_stop_string_goes_with_the_entries_of_its_tokens() {
        let (pieces, reason) = run(answer(&[b"x", b"yST", b"O", b"Pz", b"!"], &["STOP"]));
        assert_eq!(pieces, [piece("x", &[0]), piece("y", &[]), piece("", &[1])]);
        assert_eq!(reason, FinishReason::Stop);
        let (pieces, reason) = run(answer(&[b"STOP"], &["STOP", "TOP"]));
        assert_eq!((pieces, reason), (vec![], FinishReason::Stop));
    }

    #[test]
    fn an_end_token_has_no_text_and_no_entry_and_counts() {
        let mut answer = answer(&[b"a", b"S"], &["STOP"]);
        answer.push(0, None);
        answer.push(1, None);
        let added = answer.push(END, Some(entry(END)));
        assert_eq!(added, Added { ended: Some(FinishReason::Stop), ..Added::default() });
        let events = answer.finish(FinishReason::Stop);
        let text = Event::Text { choice: 2, text: "S".into(), logprobs: Vec::new() };
        assert_eq!(events, [text, Event::Finish { choice: 2, reason: FinishReason::Stop }]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// The text cut into tokens at any byte, against the text as a whole.
        #[test]
        fn an_answer_does_not_depend_on_how_tokens_cut_it(
            text in "[abé🙂]{0,30}",
            cuts in prop::collection::vec(0usize..60, 0..20),
            stops in prop::collection::vec("[abé🙂]{1,4}", 0..3),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let tokens: Vec<&[u8]> = cuts.windows(2).map(|ends| &text.as_bytes()[ends[0]..ends[1]]).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (pieces, reason) = run(answer(&tokens, &stops));
            let got: String = pieces.iter().map(|(text, _)| text.as_str()).collect();
            let entries: Vec<TokenId> = pieces.iter().flat_map(|(_, entries)| entries.clone()).collect();

            let mut matcher = StopStrings::new(stops.iter().map(|stop| stop.to_string()));
            let whole = matcher.push(&text);
            let expected = if whole.stopped { whole.text } else { text.clone() };
            prop_assert_eq!(&got, &expected);
            prop_assert_eq!(reason == FinishReason::Stop, whole.stopped);
            // The entries are of the first tokens, in order, and cover the text. A token that ends inside of a character
            // counts from the character's start.
            prop_assert!(entries.iter().copied().eq(0..entries.len() as TokenId));
            if whole.stopped {
                let visible = |start: usize| (0..=start).rev().find(|&at| text.is_char_boundary(at)) < Some(got.len());
                let count = cuts[..tokens.len()].iter().take_while(|&&start| visible(start)).count();
                prop_assert_eq!(entries.len(), count);
            } else {
                prop_assert_eq!(entries.len(), tokens.len());
            }
        }
    }
}
