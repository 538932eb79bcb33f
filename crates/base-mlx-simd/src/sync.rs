//! What threads share and how they wait: std's, or loom's twins of it, which try every order of steps.

#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
    sync::{Arc, Mutex},
    thread::{Builder, JoinHandle, Thread, current, park},
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
    sync::{Arc, Mutex},
    thread::{Builder, JoinHandle, Thread, current, park},
};

/// The time; under loom it stands still, for the same steps must always come to the same.
pub(crate) fn now() -> std::time::Instant {
    #[cfg(loom)]
    return *FROZEN;
    #[cfg(not(loom))]
    std::time::Instant::now()
}

#[cfg(loom)]
static FROZEN: std::sync::LazyLock<std::time::Instant> =
    std::sync::LazyLock::new(std::time::Instant::now);

/// Looks again and again, for the time given; says whether the condition came true.
#[cfg(not(loom))]
pub(crate) fn spin_until(done: impl Fn() -> bool, most: std::time::Duration) -> bool {
    let mut until = None;
    loop {
        for _ in 0..LOOKS_BETWEEN_CLOCKS {
            if done() {
                return true;
            }
            std::hint::spin_loop();
        }
        let now = std::time::Instant::now();
        if now >= *until.get_or_insert(now + most) {
            return false;
        }
    }
}

/// One look stands for any number: loom has every other step happen before it or after it.
#[cfg(loom)]
pub(crate) fn spin_until(done: impl Fn() -> bool, _most: std::time::Duration) -> bool {
    done()
}

/// The clock costs as much as some looks.
#[cfg(not(loom))]
const LOOKS_BETWEEN_CLOCKS: usize = 16;
