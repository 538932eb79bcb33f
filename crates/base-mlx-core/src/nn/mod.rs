//! Parts that families share: linear, embedding, norm, rope from a config.
//!
//! May import `weights`, `tensor`, `backend` and `step`.
