//! Whether a guest still lives.
//!
//! A guest can stop for good while its VMM goes on: Firecracker has no power-off, so a guest that switches itself off only
//! shuts its devices down, and nobody would ever be told. A guest that does not answer may as well be busy, or not get to
//! run on a busy host. So it is taken for gone only if, through a long silence, its VMM has mostly slept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

use super::Parts;
use crate::envd_client::EnvdClient;

/// How often the guest is asked.
const EVERY: Duration = Duration::from_secs(3);
/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long a guest that is gone is silent before it is told: several questions, and more than a slow disk takes.
const SILENCE: Duration = Duration::from_secs(20);

/// Listens for one guest.
#[derive(Debug)]
pub(super) struct Pulse {
    looks: Interval,
    /// Where the kernel tells of the VMM's threads; `None` where its pid is not known.
    threads: Option<PathBuf>,
    silence: Option<Silence>,
}

/// Since when there was no answer, and how long the VMM's threads had run or waited for a CPU until then.
#[derive(Clone, Copy, Debug)]
struct Silence {
    since: Instant,
    awake: Duration,
}

impl Pulse {
    /// For the sandbox of `parts`, whose VMM runs.
    pub(super) fn of(parts: &Parts) -> Self {
        let pid = parts.shim.as_ref().and_then(|shim| match shim.vmm_pid() {
            Ok(pid) => pid,
            Err(error) => {
                tracing::debug!(%error, "the shim does not say which process its VMM is");
                None
            }
        });
        // Not at once: the guest has just answered, and in one that was restored each call has its price.
        let mut looks = interval_at(Instant::now() + EVERY, EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { looks, threads: pid.map(|pid| format!("/proc/{pid}/task").into()), silence: None }
    }

    /// Waits until the guest is gone. Cancel safe. Never ends while the guest answers or its VMM works.
    pub(super) async fn stops(&mut self, envd: &EnvdClient) {
        loop {
            self.looks.tick().await;
            let answered = timeout(ANSWER_LIMIT, envd.health()).await.is_ok_and(|health| health.is_ok());
            match (answered, self.threads.as_deref().and_then(awake)) {
                (true, _) | (false, None) => self.silence = None,
                (false, Some(awake)) if self.is_gone(awake) => return,
                (false, Some(_)) => {}
            }
        }
    }

    /// One question more without an answer; the VMM's threads were `awake` for so long in all.
    fn is_gone(&mut self, awake: Duration) -> bool {
        let now = Silence { since: Instant::now(), awake };
        let silence = *self.silence.get_or_insert(now);
        if silence.since.elapsed() < SILENCE {
            return false;
        }
        // It was busy: the silence counts from now on.
        self.silence = Some(now);
        awake.saturating_sub(silence.awake) < silence.since.elapsed() / 2
    }
}

/// How long all threads in a `/proc/PID/task` have run or waited for a CPU.
fn awake(threads: &Path) -> Option<Duration> {
    let mut all = Duration::ZERO;
    for thread in std::fs::read_dir(threads).ok()? {
        // One that ends while it is looked at has no line any more.
        let line = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).unwrap_or_default();
        all += schedstat(&line).unwrap_or_default();
    }
    Some(all)
}

/// The kernel's line: nanoseconds on a CPU, nanoseconds in its queue, time slices.
fn schedstat(line: &str) -> Option<Duration> {
    let mut fields = line.split_whitespace().map(str::parse::<u64>);
    Some(Duration::from_nanos(fields.next()?.ok()?) + Duration::from_nanos(fields.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_line() {
        assert_eq!(schedstat("1500 500 3\n"), Some(Duration::from_nanos(2000)));
        assert_eq!(schedstat(""), None);
        assert!(awake(Path::new("/proc/self/task")).unwrap() > Duration::ZERO);
        assert_eq!(awake(Path::new("/proc/0/task")), None);
    }

    /// Whether a guest that is silent for a minute is gone, when its VMM is awake for this part of the time.
    async fn gone(awake_percent: u32) -> bool {
        let mut pulse = Pulse { looks: tokio::time::interval(EVERY), threads: None, silence: None };
        let mut awake = Duration::from_secs(7);
        for _ in 0..20 {
            if pulse.is_gone(awake) {
                return true;
            }
            awake += EVERY * awake_percent / 100;
            tokio::time::advance(EVERY).await;
        }
        false
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_silent_guest_that_mostly_sleeps_is_gone() {
        assert!(gone(0).await);
        assert!(gone(20).await, "a timer ticks");
        assert!(!gone(60).await, "it works");
        assert!(!gone(200).await);
    }
}
