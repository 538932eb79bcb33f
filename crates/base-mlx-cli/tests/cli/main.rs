//! The command as its users meet it: real processes, real models, real signals.

#![allow(clippy::unwrap_used)]

mod adopt;
mod bench;
mod chat;
mod config;
mod device;
mod disk;
mod doctor;
mod embed;
mod models;
mod process;
mod pull;
mod run;
mod serve;
#[path = "../../../base-mlx-core/tests/support/test_models.rs"]
mod test_models;
