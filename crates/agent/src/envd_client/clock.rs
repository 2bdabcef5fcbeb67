//! Measuring a guest's clock, and setting it.
//!
//! ```text
//!   host   sent ───────┐                          ┌──────► received
//!   guest              └─► arrived ─► answered ───┘
//! ```
//! What lies between sent and received, but not between arrived and answered, is the round trip. The guest's clock is off by
//! `offset`, the distance of the middles, give or take half of the round trip. /clock answers at once: there both are one
//! moment.
//!
//! A guest that was paused is behind by the time it slept. It is measured until one round trip was short enough to be sure,
//! and stepped by what that said: a step is exact, so what it leaves is half of that round trip. On a busy host most round
//! trips are long; one of many is not.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{sleep, timeout};
use wrenn_proto::envd::host_calls::{Clock, ClockAnswer};

use super::EnvdError;
use super::host_call::{CLOCK, HostKey, HostLine, Timed, parsed};

/// Between two tries: what disturbed the last one may be over.
const TRY_GAP: Duration = Duration::from_millis(10);

/// A guest's clock, compared with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// By how many nanoseconds the guest's clock is ahead, if call and answer took equally long.
    pub offset_ns: i64,
    /// How long both took.
    pub round_trip: Duration,
}

impl ClockReading {
    /// By how much it can be off at most.
    pub fn off_by_at_most(&self) -> Duration {
        Duration::from_nanos(self.offset_ns.unsigned_abs()).saturating_add(self.round_trip / 2)
    }

    /// From the times of a call, of which the guest told two. None where it says that the call took longer in there than
    /// altogether, or ended before it began: its clock was changed meanwhile.
    pub(super) fn new(sent: SystemTime, took: Duration, guest: Answered) -> Option<Self> {
        let inside = Duration::from_nanos(guest.answered_ns.checked_sub(guest.arrived_ns)?);
        let round_trip = took.checked_sub(inside)?;
        let twice_ours = i128::try_from(unix_ns(sent) * 2 + took.as_nanos()).unwrap_or(i128::MAX);
        let twice_theirs = i128::from(guest.arrived_ns) + i128::from(guest.answered_ns);
        // A guest may say any time; centuries are as good as more centuries.
        let offset_ns = ((twice_theirs - twice_ours) / 2).clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        Some(Self { offset_ns, round_trip })
    }
}

/// When a call arrived and was answered by a guest's clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answered {
    pub(super) arrived_ns: u64,
    pub(super) answered_ns: u64,
}

/// Nanoseconds since 1970.
pub(super) fn unix_ns(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}

/// A time as a guest tells it.
pub(super) fn told_unix_ns(call: &'static str, text: &str) -> Result<u64, EnvdError> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let no_time = || EnvdError::Protocol { call, detail: "a time is no number of nanoseconds".to_owned() };
    digits.then(|| text.parse().ok()).flatten().ok_or_else(no_time)
}

impl HostLine {
    /// Compares the guest's clock with ours.
    pub async fn clock(&mut self, host: HostKey<'_>) -> Result<ClockReading, EnvdError> {
        self.read_clock(host, None).await
    }

    /// Steps the guest's clock until it is certainly off by less than `within`, at most for `limit`. Answers how close it is.
    pub async fn set_clock(
        &mut self,
        host: HostKey<'_>,
        within: Duration,
        limit: Duration,
    ) -> Result<ClockReading, EnvdError> {
        let mut best = None;
        match timeout(limit, self.approach(host, within, &mut best)).await {
            Ok(reached) => reached,
            Err(_elapsed) => Err(match best {
                Some(best) => EnvdError::ClockOff { within, best },
                None => EnvdError::Deadline { call: CLOCK.name, limit },
            }),
        }
    }

    /// Comes close enough; `best` is the closest it was seen meanwhile.
    async fn approach(
        &mut self,
        host: HostKey<'_>,
        within: Duration,
        best: &mut Option<ClockReading>,
    ) -> Result<ClockReading, EnvdError> {
        loop {
            let mut reading = self.read_clock(host, None).await?;
            if reading.off_by_at_most() >= within && reading.round_trip / 2 < within {
                reading = self.correct(host, reading).await?;
            }
            if reading.off_by_at_most() < within {
                return Ok(reading);
            }
            let closest = best.get_or_insert(reading);
            if reading.off_by_at_most() < closest.off_by_at_most() {
                *closest = reading;
            }
            sleep(TRY_GAP).await;
        }
    }

    /// Steps the clock by what was measured. What is known of it then is as good as that measurement, if the guest did it.
    async fn correct(&mut self, host: HostKey<'_>, measured: ClockReading) -> Result<ClockReading, EnvdError> {
        let after = self.read_clock(host, Some(measured.offset_ns.saturating_neg())).await?;
        let uncertain = (measured.round_trip + after.round_trip) / 2;
        let was_done = Duration::from_nanos(after.offset_ns.unsigned_abs()) <= uncertain;
        Ok(if was_done { ClockReading { offset_ns: 0, ..measured } } else { after })
    }

    async fn read_clock(&mut self, host: HostKey<'_>, step_ns: Option<i64>) -> Result<ClockReading, EnvdError> {
        let body = serde_json::to_vec(&Clock { step_ns }).expect("a number is JSON");
        let Timed { answer, sent, took } = self.timed(host, &CLOCK, body).await?;
        let ClockAnswer { unix_ns } = parsed(CLOCK.name, &answer)?;
        let now_ns = told_unix_ns(CLOCK.name, &unix_ns)?;
        let reading = ClockReading::new(sent, took, Answered { arrived_ns: now_ns, answered_ns: now_ns });
        Ok(reading.expect("one moment in there is not longer than the call"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT_NS: u64 = 1_800_000_000_000_000_000;

    fn ms(count: i64) -> i64 {
        count * 1_000_000
    }

    /// A call of `took` ms whose arrival and answer are these many ms from its sending, by the guest's clock.
    fn reading(took: i64, arrived: i64, answered: i64) -> Option<ClockReading> {
        let sent = UNIX_EPOCH + Duration::from_nanos(SENT_NS);
        let at = |offset| SENT_NS.checked_add_signed(ms(offset)).unwrap();
        let guest = Answered { arrived_ns: at(arrived), answered_ns: at(answered) };
        ClockReading::new(sent, Duration::from_millis(took.unsigned_abs()), guest)
    }

    #[test]
    fn the_middles_are_compared() {
        for (took, arrived, answered, offset, round_trip, off_by) in [
            // Read at once.
            (20, 10, 10, 0, 20, 10),
            (20, 0, 0, -10, 20, 20),
            (20, 20, 20, 10, 20, 20),
            (20, -3_600_000, -3_600_000, -3_600_010, 20, 3_600_020),
            // Set to the time of sending: behind by the way of the call, whatever is done meanwhile.
            (20, 0, 0, -10, 20, 20),
            (1020, 0, 1000, -10, 20, 20),
            (1098, 0, 1000, -49, 98, 98),
            (1000, 0, 1000, 0, 0, 0),
        ] {
            let wanted = ClockReading { offset_ns: ms(offset), round_trip: Duration::from_millis(round_trip) };
            assert_eq!(reading(took, arrived, answered), Some(wanted), "{took} {arrived} {answered}");
            assert_eq!(wanted.off_by_at_most(), Duration::from_millis(off_by));
        }
    }

    #[test]
    fn a_clock_that_was_changed_meanwhile_tells_nothing() {
        assert_eq!(reading(20, 0, 21), None, "longer in there than altogether");
        assert_eq!(reading(20, 10, 9), None, "answered before it arrived");
    }

    #[test]
    fn a_guest_may_say_any_time() {
        let at = |time_ns| Answered { arrived_ns: time_ns, answered_ns: time_ns };
        let trip = Duration::from_millis(20);
        assert_eq!(ClockReading::new(UNIX_EPOCH, trip, at(u64::MAX)).unwrap().offset_ns, i64::MAX);
        assert_eq!(ClockReading::new(UNIX_EPOCH, Duration::MAX, at(0)).unwrap().offset_ns, i64::MIN);
    }
}
