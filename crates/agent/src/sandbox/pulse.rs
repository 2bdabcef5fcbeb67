//! Whether a guest still lives.
//!
//! A guest's kernel can stop for good while its VMM goes on: Firecracker has no power-off, so a guest that switches itself off
//! halts its CPUs, and nobody would ever be told. A guest that does not answer may as well be busy. So it is taken for
//! halted only if, through all that silence, its VMM has used no CPU at all.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval, timeout};

use super::Parts;
use crate::envd_client::EnvdClient;

/// How often the guest is asked.
const EVERY: Duration = Duration::from_secs(3);
/// How long one answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How long a halted guest is silent before it is told: several questions.
const SILENCE: Duration = Duration::from_secs(10);
/// What a VMM of a halted guest uses in that time at most, in clock ticks of 10 ms. A guest that is up has a timer.
const IDLE_TICKS: u64 = 1;

/// Listens for one guest.
#[derive(Debug)]
pub(super) struct Pulse {
    looks: Interval,
    /// Where the kernel tells how much CPU the VMM has used; `None` where that is not known.
    stat: Option<PathBuf>,
    silence: Option<Silence>,
}

/// Since when there was neither an answer nor work.
#[derive(Clone, Copy, Debug)]
struct Silence {
    since: Instant,
    ticks: u64,
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
        let mut looks = interval(EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { looks, stat: pid.map(|pid| format!("/proc/{pid}/stat").into()), silence: None }
    }

    /// Waits until the guest has halted. Cancel safe. Never ends while the guest answers or its VMM works.
    pub(super) async fn stops(&mut self, envd: &EnvdClient) {
        loop {
            self.looks.tick().await;
            let answered = timeout(ANSWER_LIMIT, envd.health()).await.is_ok_and(|health| health.is_ok());
            let ticks = self.stat.as_ref().and_then(|stat| cpu_ticks(&std::fs::read_to_string(stat).ok()?));
            match (answered, ticks) {
                (true, _) | (false, None) => self.silence = None,
                (false, Some(ticks)) if self.is_silent_for_long(ticks) => return,
                (false, Some(_)) => {}
            }
        }
    }

    /// One question more without an answer; `ticks` is what the VMM has used so far.
    fn is_silent_for_long(&mut self, ticks: u64) -> bool {
        let now = Silence { since: Instant::now(), ticks };
        let silence = self.silence.get_or_insert(now);
        if ticks > silence.ticks + IDLE_TICKS {
            *silence = now;
        }
        silence.since.elapsed() >= SILENCE
    }
}

/// User and system time in a `/proc/PID/stat`. The program's name, which may hold anything, ends with the last bracket.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_line() {
        let line = "123 (fc) vcpu) S 1 123 123 0 -1 4194560 1 0 0 0 70 8 0 0 20 0 3 0 500 1 1\n";
        assert_eq!(cpu_ticks(line), Some(78));
        assert_eq!(cpu_ticks("123 (fc"), None);
        assert!(cpu_ticks(&std::fs::read_to_string("/proc/self/stat").unwrap()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_guest_that_does_nothing_at_all_has_halted() {
        let mut pulse = Pulse { looks: interval(EVERY), stat: None, silence: None };
        let mut ticks = 100;
        for _ in 0..20 {
            assert!(!pulse.is_silent_for_long(ticks), "it works");
            ticks += IDLE_TICKS + 1;
            tokio::time::advance(EVERY).await;
        }
        let mut looks = 0;
        while !pulse.is_silent_for_long(ticks) {
            tokio::time::advance(EVERY).await;
            looks += 1;
        }
        assert_eq!(looks, 4, "after that many looks it has done nothing for more than the limit");
    }
}
