//! What handing out work costs, and what is left of it beside a busy process:
//! `cargo run --release -p base-mlx-simd --example fork_join [THREADS]`.

use std::hint::{black_box, spin_loop};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use base_mlx_simd::Pool;

fn main() {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("busy") {
        loop {
            spin_loop();
        }
    }
    let threads = argument.and_then(|threads| threads.parse().ok()).unwrap_or(usize::MAX);
    let pool = Pool::new(threads);
    println!("{} threads", pool.threads());
    for pieces in [2, 12] {
        let cost = time(100_000, || pool.run(pieces, |_, _| ()));
        println!("{:<40} {cost:>10.2?}", format!("{pieces} empty pieces, all awake"));
        let mut slept = Vec::new();
        for _ in 0..500 {
            std::thread::sleep(Duration::from_micros(500));
            slept.push(time(1, || pool.run(pieces, |_, _| ())));
        }
        slept.sort();
        println!("{:<40} {:>10.2?}", format!("{pieces} empty pieces, all asleep"), slept[250]);
    }
    let alone = Pool::new(1);
    println!("{:<40} {:>10.1}", "steps a second, one thread", steps_per_second(&alone));
    let quiet = steps_per_second(&pool);
    println!("{:<40} {quiet:>10.1}", "steps a second, quiet");
    for tasks in [1, 2] {
        let processes: Vec<_> = (0..tasks).map(|_| Busy::start()).collect();
        let busy = steps_per_second(&pool);
        drop(processes);
        let name = format!("steps a second beside {tasks} busy");
        println!("{name:<40} {busy:>10.1} ({:.0} %)", busy / quiet * 100.0);
    }
}

/// As a decode step of a small model: 300 operations of 12 pieces of 5 microseconds, then a token is chosen.
fn steps_per_second(pool: &Pool) -> f64 {
    let started = Instant::now();
    let mut steps = 0;
    while started.elapsed() < Duration::from_secs(4) {
        for _ in 0..300 {
            pool.run(12, |_, _| work(ROUNDS_IN_PIECE));
        }
        work(60 * ROUNDS_IN_PIECE);
        steps += 1;
    }
    f64::from(steps) / started.elapsed().as_secs_f64()
}

/// Nothing but arithmetic, each round waiting for the one before.
fn work(rounds: u32) {
    let mut x = black_box(1.0_f32);
    for _ in 0..rounds {
        x = x * 0.999 + 0.001;
    }
    black_box(x);
}

fn time(repeat: u32, mut run: impl FnMut()) -> Duration {
    let started = Instant::now();
    for _ in 0..repeat {
        run();
    }
    started.elapsed() / repeat
}

/// Another process that never rests.
struct Busy(Child);

impl Busy {
    fn start() -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        Self(Command::new(program).arg("busy").spawn().expect("this program starts"))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// About five microseconds.
const ROUNDS_IN_PIECE: u32 = 2500;
