//! The guest's clock: set by /init, measured and stepped by /clock.
//!
//! /init knows the host's time only as of when it was sent, which is good enough at boot. A guest that comes back is
//! brought closer: /resumed notes when the call has arrived and has the clock say at that moment what it said at the host
//! when the call was sent. How far that can be off follows from how long call and answer were on their way. Where that is
//! too long to be sure, the host asks for the time with /clock and has the difference stepped.

use std::io;
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, Timespec};
use wrenn_proto::envd::host_calls::{Clock, ClockAnswer};

use super::CallError;
use crate::envd::state::Machine;
use crate::envd::timestamp;

/// How far our clock may be ahead of the host's call, which took a moment to arrive, before it is set back.
const AHEAD_MAX: Duration = Duration::from_secs(1);

/// Sets the clock to an RFC 3339 timestamp if it is behind it, or clearly ahead.
pub fn set(text: String) -> Result<(), CallError> {
    let host = timestamp::parse(&text).ok_or(CallError::Timestamp(text))?;
    if is_off(SystemTime::now(), host) { set_to(host).map_err(CallError::Clock) } else { Ok(()) }
}

fn is_off(ours: SystemTime, host: SystemTime) -> bool {
    ours.duration_since(host).map_or(true, |ahead| ahead > AHEAD_MAX)
}

fn set_to(now: SystemTime) -> io::Result<()> {
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since_epoch.as_secs()).map_err(io::Error::other)?;
    let time = Timespec { tv_sec: seconds, tv_nsec: since_epoch.subsec_nanos().into() };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

/// Steps the clock if that is asked for, and reads it.
pub fn step_and_read(machine: Machine, request: Clock) -> Result<ClockAnswer, CallError> {
    if let Some(step_ns) = request.step_ns {
        machine.expect_guest("the clock is not this envd's to step")?;
        wrenn_sys::clock::step(step_ns).map_err(CallError::Clock)?;
    }
    Ok(ClockAnswer { unix_ns: unix_ns(SystemTime::now()).to_string() })
}

/// Nanoseconds since 1970.
pub fn unix_ns(time: SystemTime) -> i128 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // A SystemTime has 63 bits of seconds.
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_set_when_it_is_behind_or_clearly_ahead() {
        let host = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let millis = Duration::from_millis;
        assert!(is_off(host - millis(1), host));
        assert!(!is_off(host, host));
        assert!(!is_off(host + millis(1000), host), "the call took a moment");
        assert!(is_off(host + millis(1001), host));
    }
}
