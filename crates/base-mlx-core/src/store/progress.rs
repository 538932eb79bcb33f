/// Who is told how a pull goes. Called from the pulling thread, often: answer quickly.
pub trait Progress: Send + Sync {
    /// A file begins, or begins again: `already` bytes of it are here. `total_bytes` is `None` if nobody knows.
    fn start(&self, file: &str, total_bytes: Option<u64>, already: u64);
    /// So many more bytes of the file that was started last.
    fn advance(&self, bytes: u64);
    /// The file that was started last is complete.
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
