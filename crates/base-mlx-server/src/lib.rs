//! The OpenAI-compatible HTTP API over the engine.
//!
//! A request's way: [`guard`] decides whether it may come in, [`request`] turns its body into types that cannot be
//! wrong, [`models`] finds or loads the engine, [`events`] is what the engine says, [`dialects`] write that down, and
//! [`sse`] sends it while it is made. `routes/` has a file for each endpoint; all errors are [`error::ApiError`].

mod dialects;
mod error;
mod events;
mod guard;
mod model;
mod models;
mod options;
mod preset;
mod request;
mod router;
mod routes;
mod running;
mod server;
mod sse;

pub use options::{ModelOptions, ReasoningField, ServerOptions};
pub use preset::Preset;
pub use request::DraftName;
pub use server::{ServeError, Server, serve};

/// What every route can reach.
struct App {
    options: ServerOptions,
    models: std::sync::Arc<models::Models>,
    gate: running::Gate,
}
