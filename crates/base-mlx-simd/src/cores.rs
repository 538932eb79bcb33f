//! How many threads are worth having.

use std::num::NonZero;

/// The cores that this process may use, of the fast kind where there are two: what the system lets it run on and, on
/// Linux, what its control group may use of them. A thread on a slow core would hold up the others with its pieces.
pub fn cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, NonZero::get);
    fast_cores().map_or(allowed, |fast| allowed.min(fast))
}

#[cfg(target_os = "macos")]
fn fast_cores() -> Option<usize> {
    let mut count: libc::c_int = 0;
    let mut size = size_of_val(&count);
    // SAFETY: the name ends with a zero, `count` has `size` bytes for the answer, and nothing is set.
    let failed = unsafe {
        libc::sysctlbyname(
            c"hw.perflevel0.logicalcpu".as_ptr(),
            (&raw mut count).cast(),
            &raw mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    // Macs with one kind of core do not know the name.
    usize::try_from(count).ok().filter(|&count| failed == 0 && count > 0)
}

/// A file that only Intel's processors with two kinds of core have lists the fast ones.
#[cfg(target_os = "linux")]
fn fast_cores() -> Option<usize> {
    let fast = std::fs::read_to_string("/sys/devices/cpu_core/cpus").ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    in_both(&fast, allowed)
}

#[cfg(not(any(target_os = "macos", target_os = "linux")))]
fn fast_cores() -> Option<usize> {
    None
}

/// How many numbers two lists such as `0-3,8` share; `None` if they share none, or one cannot be read.
#[cfg(any(target_os = "linux", test))]
fn in_both(one: &str, other: &str) -> Option<usize> {
    let (one, other) = (ranges(one)?, ranges(other)?);
    let shared = one.iter().flat_map(|&(first, last)| {
        other.iter().map(move |&(from, to)| (last.min(to) + 1).saturating_sub(first.max(from)))
    });
    Some(shared.sum()).filter(|&count| count > 0)
}

#[cfg(any(target_os = "linux", test))]
fn ranges(list: &str) -> Option<Vec<(usize, usize)>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    list.trim().split(',').map(range).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn fast_cores_are_counted_among_those_allowed() {
        assert_eq!(in_both("0-15\n", "\t0-23"), Some(16));
        assert_eq!(in_both("0-15\n", "\t2,4-5,15-20"), Some(4));
        assert_eq!(in_both("0-3,8", "8"), Some(1));
        assert_eq!(in_both("0-15", "16-23"), None, "slow ones alone: all of them are worth having");
        assert_eq!(in_both("", "0-3"), None);
    }

    #[test]
    fn there_is_a_core() {
        let all = std::thread::available_parallelism().unwrap().get();
        assert!((1..=all).contains(&cores()));
    }
}
