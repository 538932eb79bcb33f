/// Why a grammar cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A keyword of a schema that cannot be guaranteed, or a value of one.
    #[error("{origin} cannot be guaranteed: {}: {message}", if pointer.is_empty() { "the whole" } else { pointer })]
    Unsupported {
        origin: String,
        /// A JSON pointer from the schema's root: `/properties/age/not`.
        pointer: String,
        message: String,
    },
    #[error("{origin} is not a grammar: {message}")]
    Invalid { origin: String, message: String },
    /// It takes more time or memory than a grammar may.
    #[error("{origin} is too complex: {message}")]
    TooComplex { origin: String, message: String },
    /// Others are compiled, and take long: later there may be room.
    #[error("{0} grammars are being compiled, which is all that is done at once")]
    Busy(usize),
    /// Nobody's grammar is to blame.
    #[error("the grammar was not compiled: {0}")]
    Failed(String),
    /// The model's tokens are of no use for grammars.
    #[error("answers of this model cannot be held to a grammar: {0}")]
    Vocabulary(String),
}
