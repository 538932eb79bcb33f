//! Grammars over real vocabularies: what masks let through, against schemas that people wrote and a validator that knows nothing
//! of them.

#![allow(clippy::unwrap_used)]

mod answers;
mod apple;
mod corpus;
mod hostile;
mod places;
mod suite;
#[path = "../support/mod.rs"]
mod support;
mod texts;
mod vocabulary;
