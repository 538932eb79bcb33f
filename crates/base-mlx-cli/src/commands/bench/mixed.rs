//! How long running answers pause while a long prompt is read beside them.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base_mlx_core::engine::{Engine, Event};

use super::Arguments;
use super::measure::request;
use crate::commands::list::write_aligned;

/// Lets answers run alone, then beside a prompt of `tokens`, and writes how far apart their tokens were.
pub(super) fn measure(
    engine: &Engine,
    arguments: &Arguments,
    tokens: usize,
    out: &mut impl Write,
) -> Result<()> {
    let context = engine.info().context;
    ensure!(
        tokens < context,
        "a --mixed prompt of {tokens} tokens does not fit into the context of {context}"
    );
    let end = AtomicBool::new(false);
    let Gaps { mut quiet, mut mixed, reading } = std::thread::scope(|scope| {
        // Whatever goes wrong, the threads end, and with them the scope.
        let ends = EndOnDrop(&end);
        let mut streams = Vec::new();
        for number in 0..arguments.streams {
            let end = &end;
            // One answer after another, for what is slow about a long one is not the prompt beside it.
            let listen = move || {
                let mut answers = Vec::new();
                while !end.load(Ordering::Relaxed) {
                    let mut answer = engine.generate(request(engine, 32, ANSWER, number)?)?;
                    let mut texts = Vec::new();
                    while !end.load(Ordering::Relaxed) {
                        match answer.next_blocking() {
                            Some(Event::Text { .. }) => texts.push(Instant::now()),
                            Some(Event::Error(error)) => return Err(error.into()),
                            Some(_) => {}
                            None => break,
                        }
                    }
                    answers.push(texts);
                }
                anyhow::Ok(answers)
            };
            streams.push(std::thread::Builder::new().spawn_scoped(scope, listen)?);
        }
        // Until all have begun and the engine knows what a step takes.
        std::thread::sleep(WARM_UP);
        let from = Instant::now();
        std::thread::sleep(QUIET);
        let long = request(engine, tokens, 1, arguments.streams)?;
        let begun = Instant::now();
        let mut answer = engine.generate(long)?;
        while let Some(event) = answer.next_blocking() {
            if let Event::Error(error) = event {
                return Err(error.into());
            }
        }
        let read = Instant::now();
        drop(ends);
        let mut gaps = Gaps { quiet: Vec::new(), mixed: Vec::new(), reading: read - begun };
        for stream in streams {
            let answers = stream
                .join()
                .map_err(|_| anyhow::anyhow!("a thread that listened broke off"))??;
            for pair in answers.iter().flat_map(|texts| texts.windows(2)) {
                let gap = (pair[1] - pair[0]).as_secs_f64() * 1000.0;
                if pair[0] >= from && pair[1] <= begun {
                    gaps.quiet.push(gap);
                } else if pair[0] >= begun && pair[1] <= read {
                    gaps.mixed.push(gap);
                }
            }
        }
        anyhow::Ok(gaps)
    })?;
    let (alone, beside) = (at(&mut quiet, 0.5)?, at(&mut mixed, 0.95)?);
    let row = |name: String, value: String| [name, value];
    write_aligned(
        out,
        &[
            row("answers".into(), arguments.streams.to_string()),
            row("gap between tokens, alone, median".into(), format!("{alone:.1} ms")),
            row(
                format!("gap beside a prompt of {tokens}, 95th percentile"),
                format!("{beside:.1} ms"),
            ),
            row("ratio".into(), format!("{:.2}", beside / alone)),
            row("the prompt's first token after".into(), format!("{:.1} s", reading.as_secs_f64())),
        ],
    )?;
    Ok(())
}

/// Milliseconds between the tokens of each answer.
struct Gaps {
    quiet: Vec<f64>,
    mixed: Vec<f64>,
    /// How long the long prompt took.
    reading: Duration,
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn at(gaps: &mut [f64], part: f64) -> Result<f64> {
    gaps.sort_by(f64::total_cmp);
    let gap = gaps.get((gaps.len() as f64 * part) as usize);
    gap.copied().context("the answers were over too soon\nhint: a longer context (--ctx)")
}

/// Tokens of each answer.
const ANSWER: usize = 256;
const WARM_UP: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_secs(4);
