//! The rate of the CPU's time stamp counter (TSC), which an emulated guest sees as its own.
//!
//! QEMU's translator hands the host's counter through. A guest kernel that has to find out its rate measures it against
//! an emulated timer, and on a busy host that measurement fails and the kernel hangs: so it is told.

use std::time::Duration;

/// The rate in kHz, measured over `window` (20 ms give a few parts in a million); `None` where the CPU has no such
/// counter.
pub fn khz(window: Duration) -> Option<u64> {
    let begin = sample()?;
    std::thread::sleep(window);
    let end = sample()?;
    rate_khz(begin, end)
}

/// A counter value and the time at which it was read, in nanoseconds of the raw monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Sample {
    ticks: u64,
    nanos: u64,
}

fn rate_khz(begin: Sample, end: Sample) -> Option<u64> {
    let ticks = u128::from(end.ticks.checked_sub(begin.ticks)?);
    let nanos = u128::from(end.nanos.checked_sub(begin.nanos)?);
    // Ticks per millisecond.
    let rate = (ticks * 1_000_000).checked_div(nanos)?;
    u64::try_from(rate).ok().filter(|rate| *rate > 0)
}

/// The tightest of several readings: one that was interrupted between clock and counter is off by the interruption.
fn sample() -> Option<Sample> {
    (0..8).filter_map(|_| reading()).min_by_key(|(width, _)| *width).map(|(_, sample)| sample)
}

fn reading() -> Option<(u64, Sample)> {
    let before = raw_nanos();
    let ticks = ticks()?;
    let after = raw_nanos();
    Some((after - before, Sample { ticks, nanos: before + (after - before) / 2 }))
}

fn raw_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> Option<u64> {
    // SAFETY: RDTSC reads a register and is there on every x86-64 CPU; Linux lets user space use it unless a process
    // forbids it to itself (PR_SET_TSC), which nobody here does.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let Some(one) = khz(Duration::from_millis(20)) else { return };
        let other = khz(Duration::from_millis(20)).unwrap();
        assert!(one.abs_diff(other) <= one / 1000, "{one} kHz and {other} kHz");
        assert!((100_000..20_000_000).contains(&one), "{one} kHz");
    }

    #[test]
    fn a_counter_that_runs_backwards_has_no_rate() {
        let (early, late) = (Sample { ticks: 100, nanos: 0 }, Sample { ticks: 50, nanos: 1_000_000 });
        assert_eq!(rate_khz(early, late), None);
        assert_eq!(rate_khz(early, early), None);
        assert_eq!(rate_khz(early, Sample { ticks: 2_300_100, nanos: 1_000_000 }), Some(2_300_000));
    }
}
