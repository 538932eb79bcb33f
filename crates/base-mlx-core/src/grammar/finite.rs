use llguidance::api::ParserLimits;
use llguidance::derivre::{ExprRef, RegexAst};
use llguidance::earley::lexerspec::{LexemeIdx, LexerSpec};
use llguidance::earley::regexvec::LexemeSet;

/// Bounds the digits of JSON's numbers, which else go on without end: past what any float can be, and past what a small model
/// finds its way back from. `-?[0-9]{1,18}(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?` is left.
pub(super) fn bound_numbers(lexer: &mut LexerSpec, limits: &ParserLimits) -> Result<(), String> {
    let unbounded = unbounded(lexer, limits)?;
    if unbounded.is_empty() {
        return Ok(());
    }
    let current_class = lexer.current_class;
    for (index, lexeme) in std::mem::take(&mut lexer.lexemes).into_iter().enumerate() {
        let Some(&(_, expression)) = unbounded.iter().find(|(of, _)| *of == index) else {
            lexer.lexemes.push(lexeme);
            continue;
        };
        lexer.current_class = lexeme.class();
        let endless = RegexAst::Not(Box::new(RegexAst::Regex(ENDLESS.to_owned())));
        let bounded = RegexAst::And(vec![RegexAst::ExprRef(expression), endless]);
        let added = lexer.add_greedy_lexeme(String::new(), bounded, false, None, usize::MAX);
        // Where it was, so that the grammar finds it.
        if added.map_err(|error| error.to_string())?.as_usize() != index {
            return Err("two kinds of numbers are one".to_owned());
        }
    }
    lexer.current_class = current_class;
    Ok(())
}

/// The lexemes that numbers without end are of, with their regexes.
fn unbounded(lexer: &LexerSpec, limits: &ParserLimits) -> Result<Vec<(usize, ExprRef)>, String> {
    let mut candidates = Vec::new();
    let mut set = lexer.alloc_lexeme_set();
    for (index, lexeme) in lexer.lexemes.iter().enumerate() {
        if let Some(expression) = expression(&lexeme.to_string(200, None)) {
            candidates.push((index, expression));
            set.add(LexemeIdx::new(index));
        }
    }
    if candidates.is_empty() {
        return Ok(candidates);
    }
    let mut limits = limits.clone();
    let mut regexes = lexer.to_regex_vec(&mut limits).map_err(|error| error.to_string())?;
    let initial = regexes.initial_state(&set);
    let mut endless = |head: &str| {
        let bytes = head.bytes().chain(std::iter::repeat_n(b'9', 40));
        let end = bytes.fold(initial, |state, byte| regexes.transition(state, byte));
        regexes.state_desc(end).greedy_accepting.as_slice().to_vec()
    };
    let mut found: LexemeSet = lexer.alloc_lexeme_set();
    ["9", "-9", "0.9", "-0.9"].into_iter().flat_map(&mut endless).for_each(|of| found.add(of));
    // No number of JSON, so that these are texts.
    endless("09").into_iter().for_each(|of| found.remove(of));
    candidates.retain(|&(index, _)| found.contains(LexemeIdx::new(index)));
    Ok(candidates)
}

/// What a lexeme of JSON is a name for; it tells that to people only.
fn expression(shown: &str) -> Option<ExprRef> {
    let number = shown.split_once("(ExprRef ")?.1.split_once(')')?.0;
    number.parse().ok().map(ExprRef::new)
}

const ENDLESS: &str = r"-?(?:[0-9]{19}.*|[0-9]+\.[0-9]{18}.*|[0-9.]+[eE][+-]?[0-9]{3}.*)";
