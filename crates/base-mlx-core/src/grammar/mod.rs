//! Grammars that answers cannot leave: llguidance behind our own words. [`Grammars`] compiles for one vocabulary, a
//! [`Constraint`] is one answer's place in a grammar.
//!
//! May import `text` and `sample`.

mod compile;
mod constraint;
mod error;
mod finite;
mod kept;
mod schema;
mod vocabulary;
mod workers;

pub use constraint::{Broken, Constraint};
pub use error::GrammarError;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use llguidance::api::ParserLimits;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{ParserFactory, panic_utils};

use crate::TokenId;
use crate::text::Tokenizer;
use crate::text::output::GrammarSource;
use kept::{Kept, Key};
use workers::{Lost, Workers};

/// Compiles grammars for one vocabulary, and keeps what it compiled last: the tools of a conversation come with each turn.
pub struct Grammars {
    factory: Arc<ParserFactory>,
    workers: Workers,
    kept: Arc<Mutex<Kept>>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// For the first `vocab_size` tokens. `end_tokens` may come where a grammar may end; other special tokens come if they show
    /// in texts. Takes a few hundred milliseconds.
    pub fn new(
        tokenizer: &Tokenizer,
        vocab_size: usize,
        end_tokens: &[TokenId],
    ) -> Result<Self, GrammarError> {
        let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        let slices = SlicedBiasComputer::json_slices();
        let make = || {
            let environment = vocabulary::environment(tokenizer, vocab_size, end_tokens);
            let factory = |of| ParserFactory::new(&of, capabilities, &slices);
            environment.map(factory).transpose()
        };
        let unfit = |why: &str| GrammarError::Vocabulary(why.to_owned());
        // llguidance asserts of tokens what not every checkpoint's are.
        let mut factory = panic_utils::catch_unwind(AssertUnwindSafe(make))
            .map_err(|error| unfit(error.to_string().lines().next().unwrap_or_default()))?
            .ok_or_else(|| unfit("no token ends an answer"))?;
        factory.quiet();
        *factory.limits_mut() = LIMITS;
        Ok(Self {
            factory: Arc::new(factory),
            workers: Workers::new(WORKERS),
            kept: Arc::default(),
        })
    }

    /// Blocks until it is done: a few seconds at most until there is room, else it is busy, and two for the grammar, else that is
    /// too complex.
    pub fn compile(&self, source: &GrammarSource) -> Result<Constraint, GrammarError> {
        let key = Key::of(source);
        compile::check(source, &key)?;
        let largest = compile::largest(source, &key).to_owned();
        let find = {
            let (kept, key) = (Arc::clone(&self.kept), key.clone());
            move || kept.lock().unwrap_or_else(PoisonError::into_inner).find(&key)
        };
        if let Some(found) = find() {
            return found;
        }
        let (factory, kept) = (Arc::clone(&self.factory), Arc::clone(&self.kept));
        let work = {
            let (source, largest) = (source.clone(), largest.clone());
            move || {
                // Another may have compiled it while this one waited for a worker.
                if let Some(found) = find() {
                    return found;
                }
                let made = compile::compile(&factory, &source, &largest, COMPILE_TIME);
                // What is late is kept all the same, so that it takes no worker's time again.
                kept.lock().unwrap_or_else(PoisonError::into_inner).keep(key, &made);
                made
            }
        };
        self.workers.run(COMPILE_TIME, work).unwrap_or_else(|lost| {
            Err(match lost {
                Lost::Busy(workers) => GrammarError::Busy(workers),
                Lost::Failed(message) => GrammarError::Failed(message),
                Lost::Late(time) => GrammarError::TooComplex {
                    origin: largest,
                    message: format!("it takes longer than {time:?}"),
                },
            })
        })
    }
}

/// How many grammars are compiled at once. One that takes longer than [`COMPILE_TIME`] keeps one of these until it is done:
/// it is the limits below, and those of schemas, that bound how long.
const WORKERS: usize = 2;
const COMPILE_TIME: Duration = Duration::from_secs(2);

/// What one grammar may cost; each limit ends in an error.
const LIMITS: ParserLimits = ParserLimits {
    // Four for each property that may come next.
    max_items_in_row: 10_000,
    // 50,000 take a millisecond or two.
    initial_lexer_fuel: 1_000_000,
    // Masks of hostile grammars take 50 ms.
    step_lexer_fuel: 200_000,
    step_max_items: 50_000,
    // A state takes a kilobyte or two.
    max_lexer_states: 50_000,
    max_grammar_size: 200_000,
    precompute_large_lexemes: true,
    verbose_errors: false,
};
