use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use base_mlx_core::store::{Bytes, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// A bar with bytes, speed and time left on a terminal; elsewhere a line as a file begins. All on stderr.
pub(crate) struct Bars {
    terminal: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Bars {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), bar: Mutex::new(None) }
    }

    /// Takes an unfinished bar away, so that a message after it begins on its own line.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.take() {
            bar.abandon();
        }
    }

    fn take(&self) -> Option<ProgressBar> {
        self.bar.lock().expect("nothing panics under this lock").take()
    }
}

impl Progress for Bars {
    fn start(&self, file: &str, total_bytes: Option<u64>, already: u64) {
        self.clear();
        if !self.terminal {
            let size = total_bytes.map(|bytes| format!(" ({})", Bytes(bytes))).unwrap_or_default();
            self.message(&format!("pulling {file}{size}"));
            return;
        }
        let (bar, template) = match total_bytes {
            Some(total) => (ProgressBar::new(total), KNOWN),
            None => (ProgressBar::new_spinner(), UNKNOWN),
        };
        let style = ProgressStyle::with_template(template).expect("the templates below are sound");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(file.to_owned());
        bar.set_position(already);
        // What lies here already says nothing about the speed.
        bar.reset_eta();
        *self.bar.lock().expect("nothing panics under this lock") = Some(bar);
    }

    fn advance(&self, bytes: u64) {
        if let Some(bar) = &*self.bar.lock().expect("nothing panics under this lock") {
            bar.inc(bytes);
        }
    }

    fn finish(&self) {
        if let Some(bar) = self.take() {
            bar.finish();
        }
    }

    fn message(&self, text: &str) {
        let line = || {
            // A terminal that is gone is no reason to stop a download.
            let _ = writeln!(io::stderr(), "{text}");
        };
        match &*self.bar.lock().expect("nothing panics under this lock") {
            Some(bar) => bar.suspend(line),
            None => line(),
        }
    }
}

const KNOWN: &str =
    "{msg} [{bar:24}] {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
const UNKNOWN: &str = "{msg} {decimal_bytes}, {decimal_bytes_per_sec}";
