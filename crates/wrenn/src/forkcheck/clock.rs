//! A guest's clock, compared with ours by a program in it that says the time whenever it is sent a line.
//!
//! The agent sets the clock by a call that is signed with its key; this asks as any user could, and so sees what they see. The
//! guest read its clock somewhere in the round trip: it is off by what it differs from the middle, give or take half of it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use tokio::time::timeout;
use wrenn_agent::envd_client::{Command, EnvdClient, Exec, ExecEvent};

/// How far a guest's clock may be off: what the agent brings it to before anybody's code runs.
pub const WITHIN: Duration = Duration::from_millis(50);
/// Times that it is asked; the first that is certainly close enough is the last.
const TRIES_MAX: usize = 50;
/// How long all of it may take.
const LIMIT: Duration = Duration::from_secs(30);
/// Longest line that is a time.
const LINE_BYTES_MAX: usize = 64;

/// busybox's shell knows the time itself; elsewhere `date` tells nanoseconds.
const TELL_TIME: &str = r#"while read -r line; do echo "${EPOCHREALTIME:-$(date +%s.%N)}"; done"#;

/// By how much a guest's clock can be off at most, as far as it could be told.
pub async fn measure(envd: &EnvdClient) -> Result<Duration> {
    timeout(LIMIT, closest(envd)).await.context("the guest did not tell the time")?
}

async fn closest(envd: &EnvdClient) -> Result<Duration> {
    let command = Command {
        program: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), TELL_TIME.to_owned()],
        stdin: true,
        ..Command::default()
    };
    let mut exec = envd.start(command).await?;
    let mut best = Duration::MAX;
    for _ in 0..TRIES_MAX {
        best = best.min(ask(&mut exec).await?);
        if best < WITHIN {
            break;
        }
    }
    exec.input().close().await?;
    Ok(best)
}

/// One round trip.
async fn ask(exec: &mut Exec) -> Result<Duration> {
    let (sent, begun) = (SystemTime::now(), Instant::now());
    exec.input().write(Bytes::from_static(b"\n")).await?;
    let line = line(exec).await?;
    let round_trip = begun.elapsed();
    let guest = time(&line).with_context(|| format!("the guest's time is no time: {}", line.escape_debug()))?;
    Ok(off_by_at_most(sent, round_trip, guest))
}

async fn line(exec: &mut Exec) -> Result<String> {
    let mut heard = Vec::new();
    loop {
        match exec.next().await? {
            ExecEvent::Stdout(output) => heard.extend_from_slice(&output.bytes),
            ExecEvent::Stderr(_) | ExecEvent::Terminal(_) | ExecEvent::Gap { .. } => {}
            ExecEvent::End(end) => bail!("what tells the guest's time has ended: {end:?}"),
        }
        if heard.len() > LINE_BYTES_MAX {
            return Err(anyhow!("the guest says more than a time"));
        }
        if heard.ends_with(b"\n") {
            return Ok(String::from_utf8_lossy(&heard).trim().to_owned());
        }
    }
}

/// Seconds since 1970 with up to nine digits after the point.
fn time(text: &str) -> Option<Duration> {
    let (seconds, fraction) = text.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(seconds) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    Some(Duration::new(seconds.parse().ok()?, format!("{fraction:0<9}").parse().ok()?))
}

fn off_by_at_most(sent: SystemTime, round_trip: Duration, guest: Duration) -> Duration {
    let middle = sent.duration_since(UNIX_EPOCH).unwrap_or_default() + round_trip / 2;
    guest.abs_diff(middle).saturating_add(round_trip / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_with_a_fraction() {
        assert_eq!(time("1800000000.5"), Some(Duration::from_millis(1_800_000_000_500)));
        assert_eq!(time("1.000001"), Some(Duration::from_micros(1_000_001)));
        assert_eq!(time("0.123456789"), Some(Duration::from_nanos(123_456_789)));
        for text in ["", "1", "1.", ".5", "-1.0", "1.0000000000", "1.%N", "1.5 ", "99999999999999999999.0"] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn half_of_the_round_trip_is_uncertain() {
        let sent = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let trip = Duration::from_millis(20);
        for (guest_ms, off_by_ms) in [(1_800_000_000_010, 10), (1_800_000_000_000, 20), (1_799_999_999_000, 1020)] {
            let off_by = off_by_at_most(sent, trip, Duration::from_millis(guest_ms));
            assert_eq!(off_by, Duration::from_millis(off_by_ms));
        }
    }
}
