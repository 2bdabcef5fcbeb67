//! Measuring a guest's clock, and setting it.
//!
//! ```text
//!   host   sent ─────────── half of the round trip ─────────── received
//!   guest                    └─ read somewhere in between: off by `offset`, give or take half of the round trip
//! ```
//! A guest that was paused is behind by the time it slept. It is stepped by what was measured until it is close enough for
//! sure, which takes more than one try on a busy host only.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::time::{sleep, timeout};
use wrenn_proto::envd::host_calls::{Clock, ClockAnswer};

use super::host_call::{HostKey, parsed, signed};
use super::http1::Line;
use super::{CONNECT_LIMIT, EnvdClient, EnvdError};

const CALL: &str = "POST /clock";
/// How long a guest has to tell its time.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Times that it is measured, and stepped, before we give up.
const TRIES_MAX: usize = 20;
/// Between two tries: what disturbed the last one may be over.
const TRY_GAP: Duration = Duration::from_millis(10);

/// A guest's clock, compared with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// By how many nanoseconds the guest's clock is ahead, if it was read in the middle of the round trip.
    pub offset_ns: i64,
    /// How long it took to ask.
    pub round_trip: Duration,
}

impl ClockReading {
    /// By how much it can be off at most.
    pub fn off_by_at_most(&self) -> Duration {
        Duration::from_nanos(self.offset_ns.unsigned_abs()).saturating_add(self.round_trip / 2)
    }

    fn new(sent: SystemTime, round_trip: Duration, guest_unix_ns: u64) -> Self {
        let sent = sent.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let middle = sent + round_trip.as_nanos() / 2;
        // A guest may say any time; centuries are as good as more centuries.
        let offset = i128::from(guest_unix_ns) - i128::try_from(middle).unwrap_or(i128::MAX);
        let offset_ns = offset.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        Self { offset_ns, round_trip }
    }
}

impl EnvdClient {
    /// Compares the guest's clock with ours.
    pub async fn clock(&self, host: HostKey<'_>) -> Result<ClockReading, EnvdError> {
        self.read_clock(&mut self.line().await?, host, None).await
    }

    /// Steps the guest's clock until it is certainly off by less than `within`, at most for `limit`. Answers how close it is.
    pub async fn set_clock(
        &self,
        host: HostKey<'_>,
        within: Duration,
        limit: Duration,
    ) -> Result<ClockReading, EnvdError> {
        let mut best = None;
        let reached = timeout(limit, self.approach(host, within, &mut best)).await;
        match (reached, best) {
            (Ok(Ok(true)), Some(reading)) => Ok(reading),
            (Ok(Err(error)), _) => Err(error),
            (Ok(Ok(_)) | Err(_), Some(best)) => Err(EnvdError::ClockOff { within, best }),
            (Ok(Ok(_)) | Err(_), None) => Err(EnvdError::Deadline { call: CALL, limit }),
        }
    }

    /// Whether it came close enough; `best` is the closest it was seen.
    async fn approach(
        &self,
        host: HostKey<'_>,
        within: Duration,
        best: &mut Option<ClockReading>,
    ) -> Result<bool, EnvdError> {
        let mut line = self.line().await?;
        for _ in 0..TRIES_MAX {
            let reading = self.read_clock(&mut line, host, None).await?;
            let closest = best.get_or_insert(reading);
            if reading.off_by_at_most() < closest.off_by_at_most() {
                *closest = reading;
            }
            if reading.off_by_at_most() < within {
                return Ok(true);
            }
            // Its answer is no measurement: the step is part of its round trip.
            self.read_clock(&mut line, host, Some(reading.offset_ns.saturating_neg())).await?;
            sleep(TRY_GAP).await;
        }
        Ok(false)
    }

    async fn line(&self) -> Result<Line, EnvdError> {
        let stream = self.connect(CONNECT_LIMIT).await.map_err(EnvdError::Unreachable)?;
        Line::open(stream, CALL).await
    }

    async fn read_clock(
        &self,
        line: &mut Line,
        host: HostKey<'_>,
        step_ns: Option<i64>,
    ) -> Result<ClockReading, EnvdError> {
        let body = serde_json::to_vec(&Clock { step_ns }).expect("a number is JSON");
        let request = signed(host, self.nonces.next(), "/clock", body);
        let (sent, begun) = (SystemTime::now(), Instant::now());
        let answer = line.ask(request, CALL, CALL_LIMIT).await?;
        let round_trip = begun.elapsed();
        let ClockAnswer { unix_ns } = parsed(CALL, &answer)?;
        let digits = unix_ns.bytes().all(|byte| byte.is_ascii_digit());
        let unix_ns = digits.then(|| unix_ns.parse().ok()).flatten();
        let no_time = || EnvdError::Protocol { call: CALL, detail: "`unix_ns` is no number of nanoseconds".to_owned() };
        Ok(ClockReading::new(sent, round_trip, unix_ns.ok_or_else(no_time)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_the_round_trip_is_compared() {
        let sent = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let sent_ns = 1_800_000_000_000_000_000;
        let trip = Duration::from_millis(20);
        for (guest, offset_ns, off_by_ms) in [
            (sent_ns + 10_000_000, 0, 10),
            (sent_ns, -10_000_000, 20),
            (sent_ns + 20_000_000, 10_000_000, 20),
            (sent_ns - 3_600_000_000_000, -3_600_010_000_000, 3_600_020),
            (0, -1_800_000_000_010_000_000, 1_800_000_000_020),
        ] {
            let reading = ClockReading::new(sent, trip, guest);
            assert_eq!(reading, ClockReading { offset_ns, round_trip: trip });
            assert_eq!(reading.off_by_at_most(), Duration::from_millis(off_by_ms));
        }
        assert_eq!(ClockReading::new(sent, trip, u64::MAX).offset_ns, i64::MAX);
        assert_eq!(ClockReading::new(UNIX_EPOCH, Duration::MAX, 0).offset_ns, i64::MIN);
    }
}
