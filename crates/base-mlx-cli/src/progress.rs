use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base_mlx_core::store::{Bytes, Progress};
use indicatif::{ProgressBar, ProgressStyle};

/// A bar with bytes, speed and time left on a terminal; elsewhere a line now and then. All on stderr.
pub(crate) struct Bars {
    terminal: bool,
    shown: Mutex<Option<Shown>>,
}

/// What is being pulled.
struct Shown {
    what: String,
    view: View,
}

enum View {
    Bar(ProgressBar),
    Lines(Lines),
}

impl Bars {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: Mutex::new(None) }
    }

    /// Takes an unfinished bar away, so that a message after it begins on its own line.
    pub(crate) fn clear(&self) {
        if let Some(Shown { view: View::Bar(bar), .. }) = self.shown().take() {
            bar.abandon();
        }
    }

    fn shown(&self) -> MutexGuard<'_, Option<Shown>> {
        self.shown.lock().expect("nothing panics under this lock")
    }
}

impl Progress for Bars {
    fn start(&self, what: &str, total_bytes: Option<u64>, already: u64) {
        let mut shown = self.shown();
        match shown.as_mut().filter(|shown| shown.what == what).map(|shown| &mut shown.view) {
            // The same, known better.
            Some(View::Bar(bar)) => lengthen(bar, total_bytes, already),
            Some(View::Lines(lines)) => lines.recount(total_bytes, already),
            None => {
                drop(shown);
                self.clear();
                let view = match self.terminal {
                    true => View::Bar(bar(what, total_bytes, already)),
                    false => {
                        let lines = Lines::new(total_bytes, already, Instant::now());
                        print(&lines.first(what));
                        View::Lines(lines)
                    }
                };
                *self.shown() = Some(Shown { what: what.to_owned(), view });
            }
        }
    }

    fn advance(&self, bytes: u64) {
        match self.shown().as_mut() {
            Some(Shown { view: View::Bar(bar), .. }) => bar.inc(bytes),
            Some(Shown { what, view: View::Lines(lines) }) => {
                if let Some(line) = lines.advance(what, bytes, Instant::now()) {
                    print(&line);
                }
            }
            None => {}
        }
    }

    fn finish(&self) {
        match self.shown().take() {
            Some(Shown { view: View::Bar(bar), .. }) => bar.finish(),
            Some(Shown { what, view: View::Lines(lines) }) => {
                print(&lines.last(&what, Instant::now()));
            }
            None => {}
        }
    }

    fn message(&self, text: &str) {
        match self.shown().as_ref() {
            Some(Shown { view: View::Bar(bar), .. }) => bar.suspend(|| print(text)),
            _ => print(text),
        }
    }
}

fn bar(what: &str, total_bytes: Option<u64>, already: u64) -> ProgressBar {
    let (bar, template) = match total_bytes {
        Some(total) => (ProgressBar::new(total), KNOWN),
        None => (ProgressBar::new_spinner(), UNKNOWN),
    };
    let style = ProgressStyle::with_template(template).expect("the templates below are sound");
    bar.set_style(style.progress_chars("=> "));
    bar.set_message(what.to_owned());
    lengthen(&bar, total_bytes, already);
    bar
}

fn lengthen(bar: &ProgressBar, total_bytes: Option<u64>, already: u64) {
    if let Some(total) = total_bytes {
        bar.set_length(total);
    }
    bar.set_position(already);
    // What lies here already says nothing about the speed.
    bar.reset_eta();
}

/// A terminal that is gone is no reason to stop a download.
fn print(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// For logs: how far it is, every few seconds.
struct Lines {
    total_bytes: Option<u64>,
    here: u64,
    /// What came since the start, not counting what lay here.
    came: u64,
    since: Instant,
    told: Instant,
}

impl Lines {
    fn new(total_bytes: Option<u64>, already: u64, now: Instant) -> Self {
        Self { total_bytes, here: already, came: 0, since: now, told: now }
    }

    fn recount(&mut self, total_bytes: Option<u64>, already: u64) {
        (self.total_bytes, self.here) = (total_bytes, already);
    }

    fn first(&self, what: &str) -> String {
        let here = match self.here {
            0 => String::new(),
            here => format!(", {} of it here", Bytes(here)),
        };
        match self.total_bytes {
            Some(total) => format!("pulling {what} ({}{here})", Bytes(total)),
            None => format!("pulling {what}"),
        }
    }

    fn advance(&mut self, what: &str, bytes: u64, now: Instant) -> Option<String> {
        self.here += bytes;
        self.came += bytes;
        if now - self.told < BETWEEN_LINES {
            return None;
        }
        self.told = now;
        let (here, speed) = (Bytes(self.here), self.speed(now));
        Some(match self.total_bytes.filter(|&total| total > 0) {
            Some(total) => {
                let percent = self.here.min(total) as f64 * 100.0 / total as f64;
                format!("{what}: {here} of {} ({percent:.0}%), {speed}/s", Bytes(total))
            }
            None => format!("{what}: {here}, {speed}/s"),
        })
    }

    fn last(&self, what: &str, now: Instant) -> String {
        format!("{what}: {} came, {}/s", Bytes(self.came), self.speed(now))
    }

    fn speed(&self, now: Instant) -> Bytes {
        Bytes((self.came as f64 / (now - self.since).as_secs_f64().max(0.001)) as u64)
    }
}

const KNOWN: &str =
    "{msg} [{bar:24}] {decimal_bytes}/{decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
const UNKNOWN: &str = "{msg} {decimal_bytes}, {decimal_bytes_per_sec}";
const BETWEEN_LINES: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_total_what_is_pulled_and_come_now_and_then() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lines = Lines::new(Some(200_000_000), 50_000_000, start);
        assert_eq!(lines.first("a/b"), "pulling a/b (200.0 MB, 50.0 MB of it here)");
        assert_eq!(lines.advance("a/b", 10_000_000, at(1)), None);
        let line = lines.advance("a/b", 40_000_000, at(5)).unwrap();
        assert_eq!(line, "a/b: 100.0 MB of 200.0 MB (50%), 10.0 MB/s");
        assert_eq!(lines.advance("a/b", 0, at(9)), None);
        // A piece that was of no use, and more files than were thought.
        lines.recount(Some(400_000_000), 60_000_000);
        let line = lines.advance("a/b", 40_000_000, at(10)).unwrap();
        assert_eq!(line, "a/b: 100.0 MB of 400.0 MB (25%), 9.0 MB/s");
        assert_eq!(lines.last("a/b", at(10)), "a/b: 90.0 MB came, 9.0 MB/s");

        let mut unknown = Lines::new(None, 0, start);
        assert_eq!(unknown.first("x"), "pulling x");
        assert_eq!(unknown.advance("x", 500, at(5)).unwrap(), "x: 500 bytes, 100 bytes/s");
    }
}
