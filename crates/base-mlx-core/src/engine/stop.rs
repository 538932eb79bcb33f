/// Finds stop strings in a text that comes in pieces. Of several, the one that is complete first counts, of those the one
/// that began first; so the end does not depend on how the text was cut.
///
/// Only what may still become a match is held back: the longest end of the text that some stop string begins with.
#[derive(Clone, Debug)]
pub(super) struct StopStrings {
    patterns: Vec<Pattern>,
    /// The end of the text, as long as the longest part of a pattern that is matched.
    held: String,
}

/// What a piece of text let go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) text: String,
    /// A stop string follows; nothing else does.
    pub(super) stopped: bool,
}

impl StopStrings {
    pub(super) fn new(strings: impl IntoIterator<Item = String>) -> Self {
        Self { patterns: strings.into_iter().map(Pattern::new).collect(), held: String::new() }
    }

    pub(super) fn push(&mut self, piece: &str) -> Passed {
        let before = self.held.len();
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        for end in before + 1..=text.len() {
            let byte = text.as_bytes()[end - 1];
            let complete = self.patterns.iter_mut().filter_map(|pattern| pattern.push(byte)).max();
            if let Some(len) = complete {
                text.truncate(end - len);
                return Passed { text, stopped: true };
            }
        }
        let hold = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        self.held = text.split_off(text.len() - hold);
        Passed { text, stopped: false }
    }

    /// The text has ended: what was held back is no match.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Knuth, Morris and Pratt: every byte is looked at once, however long the string and however often it almost matches.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// How much of the pattern is still matched when the byte after its first `i + 1` does not follow.
    fallback: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(string: String) -> Self {
        assert!(!string.is_empty(), "an empty stop string is refused where requests are parsed");
        let bytes = string.into_bytes();
        let mut fallback = vec![0];
        let mut matched = 0;
        for &byte in &bytes[1..] {
            while matched > 0 && bytes[matched] != byte {
                matched = fallback[matched - 1];
            }
            matched += usize::from(bytes[matched] == byte);
            fallback.push(matched);
        }
        Self { bytes, fallback, matched: 0 }
    }

    /// The pattern's length if this byte completes it.
    fn push(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        (self.matched == self.bytes.len()).then_some(self.matched)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What is before the first match, by trying every end and every stop string.
    fn twin<'a>(text: &'a str, stops: &[String]) -> (&'a str, bool) {
        let mut ends = text.char_indices().map(|(start, char)| start + char.len_utf8());
        let cut = ends.find_map(|end| {
            let complete = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
            complete.map(|stop| end - stop.len()).min()
        });
        (&text[..cut.unwrap_or(text.len())], cut.is_some())
    }

    /// The longest end of the text that could begin a stop string.
    fn ambiguous(text: &str, stops: &[String]) -> usize {
        let ends = text.char_indices().map(|(start, _)| &text[start..]);
        ends.filter(|end| stops.iter().any(|stop| stop.starts_with(end)))
            .map(str::len)
            .max()
            .unwrap_or(0)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_stop_is_found_however_the_text_is_cut(
            pieces in prop::collection::vec("[abé🙂]{0,4}", 0..12),
            stops in prop::collection::vec("[abé🙂]{1,5}", 0..4),
        ) {
            let mut matcher = StopStrings::new(stops.clone());
            let (mut text, mut passed) = (String::new(), String::new());
            let mut stopped = false;
            for piece in &pieces {
                text.push_str(piece);
                let now = matcher.push(piece);
                passed.push_str(&now.text);
                stopped = now.stopped;
                prop_assert_eq!(stopped, twin(&text, &stops).1);
                if stopped {
                    break;
                }
                prop_assert_eq!(passed.len() + ambiguous(&text, &stops), text.len(), "held back too much or too little");
            }
            if !stopped {
                passed.push_str(&matcher.finish());
            }
            let whole = pieces.concat();
            prop_assert_eq!((passed.as_str(), stopped), twin(&whole, &stops));
        }
    }

    #[test]
    fn a_long_stop_string_that_almost_matches_costs_little() {
        let stop = "a".repeat(10_000) + "b";
        let mut matcher = StopStrings::new([stop]);
        for _ in 0..30_000 {
            matcher.push("a");
        }
        assert_eq!(matcher.held.len(), 10_000);
    }
}
