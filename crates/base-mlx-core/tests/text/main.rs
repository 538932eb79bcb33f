//! Tokenizers and templates against what other implementations make of the same files.

#![allow(clippy::unwrap_used)]

mod decoding;
mod end_tokens;
mod files;
mod hostile;
mod messages;
mod output;
mod real_models;
mod sources;
#[path = "../support/mod.rs"]
mod support;
mod templates;
mod tool_parser;
mod vectors;
