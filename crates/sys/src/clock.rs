//! Stepping the wall clock by an amount.

use std::io;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Moves CLOCK_REALTIME by this many nanoseconds, forwards or backwards. The kernel adds them to the time of that very
/// moment: however long the caller is kept from running meanwhile, nothing of the step is lost. Needs CAP_SYS_TIME.
///
/// Errors: `InvalidInput` when the clock would be before 1970 or beyond what the kernel can tell.
pub fn step(nanos: i64) -> io::Result<()> {
    let mut request = request(nanos);
    // SAFETY: clock_adjtime reads and writes one timex, which `request` is.
    let answer = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &mut request) };
    // What is not an error is the state of the clock's synchronisation, in which nobody here is interested.
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The kernel wants whole seconds, rounded down, and nanoseconds that are not negative.
fn request(nanos: i64) -> libc::timex {
    // SAFETY: a timex is plain numbers, for which all zeroes is a value.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    request.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    request.time.tv_sec = nanos.div_euclid(NANOS_PER_SECOND);
    request.time.tv_usec = nanos.rem_euclid(NANOS_PER_SECOND);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_split_as_the_kernel_wants_it() {
        for (nanos, expected) in [
            (0, (0, 0)),
            (1, (0, 1)),
            (-1, (-1, 999_999_999)),
            (1_500_000_000, (1, 500_000_000)),
            (-1_500_000_000, (-2, 500_000_000)),
            (-2_000_000_000, (-2, 0)),
            (i64::MAX, (9_223_372_036, 854_775_807)),
            (i64::MIN, (-9_223_372_037, 145_224_192)),
        ] {
            let request = request(nanos);
            assert_eq!((request.time.tv_sec, request.time.tv_usec), expected, "{nanos}");
        }
    }
}
