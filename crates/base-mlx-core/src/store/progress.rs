/// Who is told how a pull goes. Called from the pulling threads, one at a time, often: answer quickly.
pub trait Progress: Send + Sync {
    /// A part of the pull begins, such as all files of a repository: `already` bytes of it are here. Said again
    /// where either number turns out to be another. `total_bytes` is `None` if nobody knows.
    fn start(&self, what: &str, total_bytes: Option<u64>, already: u64);
    /// So many more bytes of what was started last.
    fn advance(&self, bytes: u64);
    /// What was started last is complete.
    fn finish(&self);
    /// Something worth a line, such as that another source is used.
    fn message(&self, text: &str);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&self, _: &str, _: Option<u64>, _: u64) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
    fn message(&self, _: &str) {}
}
