//! An answer that is held to a grammar: which tokens may come next is found out on a worker's thread while the device computes.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::TokenId;
use crate::grammar::{Broken, Constraint};
use crate::sample::Mask;

/// One answer's constraint, wherever it is at the moment.
pub(super) struct Held {
    place: Place,
    /// For the rows of the step under way, in order: each is right if all tokens before it were those of the draft.
    masks: VecDeque<Result<Mask, Broken>>,
    report: Report,
}

enum Place {
    Here(Box<Constraint>),
    /// On a worker's thread.
    Away(Receiver<Done>),
    /// The worker is gone, which only a bug can bring about.
    Lost,
}

/// What came of it, for the log.
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    tokens: usize,
    forced: usize,
    masks: usize,
    /// Spent on masks, by whoever made them, and the longest of them.
    took: Duration,
    longest: Duration,
    /// That the device's thread waited for them.
    waited: Duration,
}

/// A constraint comes back with what was asked.
struct Done {
    constraint: Box<Constraint>,
    masks: VecDeque<Result<Mask, Broken>>,
    took: Duration,
}

impl Held {
    pub(super) fn new(constraint: Constraint) -> Self {
        let place = Place::Here(Box::new(constraint));
        Self { place, masks: VecDeque::new(), report: Report::default() }
    }

    /// Begins to find out what may follow, and what may follow each token of the draft.
    pub(super) fn start(&mut self, workers: &Workers, draft: Vec<TokenId>) {
        if self.here().is_err() {
            return;
        }
        self.masks.clear();
        let Place::Here(constraint) = std::mem::replace(&mut self.place, Place::Lost) else {
            return;
        };
        let (sender, receiver) = channel();
        self.place = match workers.send(Job { constraint, draft, done: sender }) {
            Ok(()) => Place::Away(receiver),
            Err(job) => Place::Here(job.constraint),
        };
    }

    /// What may follow the tokens so far.
    pub(super) fn mask(&mut self) -> Result<Mask, Broken> {
        self.here()?;
        if let Some(mask) = self.masks.pop_front() {
            return mask;
        }
        let began = Instant::now();
        let mask = self.here()?.allowed();
        self.report.made(1, began.elapsed());
        mask
    }

    pub(super) fn accept(&mut self, token: TokenId) -> Result<(), Broken> {
        self.report.tokens += 1;
        self.here()?.accept(token)
    }

    /// Nothing can follow.
    pub(super) fn is_over(&mut self) -> bool {
        self.here().is_ok_and(|constraint| constraint.is_over())
    }

    /// Tokens that must come next, `most` of them; often none.
    pub(super) fn forced(&mut self, most: usize) -> Vec<TokenId> {
        let mut forced = self.here().map(|constraint| constraint.forced()).unwrap_or_default();
        forced.truncate(most);
        self.report.forced += forced.len();
        forced
    }

    /// How many of these may follow.
    pub(super) fn follows(&mut self, tokens: &[TokenId]) -> usize {
        self.here().map_or(0, |constraint| constraint.follows(tokens))
    }

    pub(super) fn log(&self, model: &str) {
        let Report { tokens, forced, masks, took, longest, waited } = self.report;
        let micros = |time: Duration, count: usize| (time / count.max(1) as u32).as_micros() as u64;
        tracing::info!(
            model,
            tokens,
            forced,
            mask_us_mean = micros(took, masks),
            mask_us_max = longest.as_micros() as u64,
            wait_us_mean = micros(waited, masks),
            "grammar done",
        );
    }

    fn here(&mut self) -> Result<&mut Constraint, Broken> {
        if let Place::Away(receiver) = &self.place {
            let began = Instant::now();
            let done = receiver.recv();
            self.report.waited += began.elapsed();
            self.place = match done {
                Ok(Done { constraint, masks, took }) => {
                    self.report.made(masks.len(), took);
                    self.masks = masks;
                    Place::Here(constraint)
                }
                Err(_) => Place::Lost,
            };
        }
        match &mut self.place {
            Place::Here(constraint) => Ok(constraint),
            Place::Away(_) | Place::Lost => Err(Broken::lost()),
        }
    }
}

impl Report {
    fn made(&mut self, masks: usize, took: Duration) {
        self.masks += masks;
        self.took += took;
        self.longest = self.longest.max(took / masks.max(1) as u32);
    }
}

struct Job {
    constraint: Box<Constraint>,
    draft: Vec<TokenId>,
    done: Sender<Done>,
}

/// Threads that make masks. They end with the model.
pub(super) struct Workers {
    jobs: Sender<Job>,
}

impl Workers {
    pub(super) fn start() -> Self {
        let (jobs, receiver) = channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2);
        for _ in 0..threads.clamp(1, MOST_WORKERS) {
            let receiver = Arc::clone(&receiver);
            // Whoever finds no worker does the work himself.
            let _ = std::thread::Builder::new().name("masks".to_owned()).spawn(move || {
                loop {
                    let job = match receiver.lock() {
                        Ok(receiver) => receiver.recv(),
                        Err(_) => return,
                    };
                    let Ok(job) = job else { return };
                    // Our bug costs the answer that it happened to, which finds its constraint lost.
                    let _ = catch_unwind(AssertUnwindSafe(|| job.run()));
                }
            });
        }
        Self { jobs }
    }

    fn send(&self, job: Job) -> Result<(), Job> {
        self.jobs.send(job).map_err(|error| error.0)
    }
}

impl Job {
    fn run(self) {
        let Self { mut constraint, draft, done } = self;
        let began = Instant::now();
        let mut masks = VecDeque::with_capacity(draft.len() + 1);
        let mut accepted = 0;
        loop {
            let mask = constraint.allowed();
            let next = draft.get(accepted).copied();
            let goes_on = next
                .is_some_and(|next| mask.as_ref().is_ok_and(|mask| mask.allows(next)))
                && next.is_some_and(|next| constraint.accept(next).is_ok());
            masks.push_back(mask);
            if !goes_on {
                break;
            }
            accepted += 1;
            if constraint.is_over() {
                break;
            }
        }
        // A constraint that cannot go back says so when it is asked next.
        let _ = constraint.rollback(accepted);
        // Nobody waits for an answer that was cancelled.
        let _ = done.send(Done { constraint, masks, took: began.elapsed() });
    }
}

const MOST_WORKERS: usize = 4;
