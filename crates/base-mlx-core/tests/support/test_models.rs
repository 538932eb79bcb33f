//! What `cargo xtask models` fetches. The tests of other crates include this file.

use std::path::PathBuf;

/// The folder of all, from the root.
pub(crate) fn test_models() -> PathBuf {
    let folder = std::env::var_os("BASE_MLX_TEST_MODELS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/test-models"))
    });
    std::path::absolute(folder).unwrap()
}

/// A file or folder among them. A missing one is a failure.
pub(crate) fn test_model(name: &str) -> PathBuf {
    let path = test_models().join(name);
    assert!(path.exists(), "{} is missing\nhint: run `cargo xtask models`", path.display());
    path
}
