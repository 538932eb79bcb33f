//! The API contract, point by point, through a real socket with a real model. Each test's name carries the number of
//! its point.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking, and so do their helpers")]

mod access;
mod company;
mod drafts;
mod embeddings;
mod endpoints;
mod errors;
mod first_space;
mod limits;
mod logprobs;
mod memory;
mod messages;
mod metrics;
mod names;
mod prefix;
mod reasoning;
mod sampling;
mod shutdown;
mod streaming;
mod structured;
mod support;
#[path = "../../../base-mlx-core/tests/support/test_models.rs"]
mod test_models;
mod tools;
