//! What the sandbox uses: `GET /metrics`, as E2B's clients read it.

use std::fs;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The answer; sizes in bytes unless the name says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metrics {
    ts: u64,
    cpu_count: usize,
    /// Of all CPUs together, 0 to 100, since the last time somebody asked.
    cpu_used_pct: f64,
    mem_total: u64,
    mem_used: u64,
    mem_cache: u64,
    mem_total_mib: u64,
    mem_used_mib: u64,
    disk_used: u64,
    disk_total: u64,
}

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A file of /proc could not be read.
    #[error("cannot read {path}; is /proc mounted?")]
    Read {
        /// The file.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of /proc does not say what it should.
    #[error("{0} has no {1}")]
    Content(&'static str, &'static str),
    /// The root file system would not say its size.
    #[error("cannot tell how full the disk is")]
    Disk(#[source] io::Error),
}

/// CPU time since boot, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct CpuTime {
    total: u64,
    idle: u64,
}

/// The CPU's counters when somebody last asked.
#[derive(Debug, Default)]
pub struct CpuMeter {
    last: Mutex<CpuTime>,
}

impl CpuMeter {
    /// A meter whose first answer is about the time since boot.
    pub fn new() -> Self {
        Self::default()
    }

    fn used_pct(&self, now: CpuTime) -> f64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let total = now.total.saturating_sub(last.total);
        let idle = now.idle.saturating_sub(last.idle).min(total);
        *last = now;
        if total == 0 { 0.0 } else { (total - idle) as f64 * 100.0 / total as f64 }
    }
}

/// Reads everything. Blocks for as long as reading a few files of /proc takes.
pub fn read(meter: &CpuMeter) -> Result<Metrics, MetricsError> {
    let (cpu, cpu_count) = parse_stat(&file("/proc/stat")?).ok_or(MetricsError::Content("/proc/stat", "cpu line"))?;
    let memory = file("/proc/meminfo")?;
    let memory = |name| meminfo(&memory, name).ok_or(MetricsError::Content("/proc/meminfo", name));
    let (total, cache) = (memory("MemTotal")?, memory("Cached")?);
    let used = total.saturating_sub(memory("MemAvailable")?);
    let disk = rustix::fs::statvfs("/").map_err(|errno| MetricsError::Disk(errno.into()))?;
    Ok(Metrics {
        ts: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        cpu_count,
        cpu_used_pct: (meter.used_pct(cpu) * 100.0).round() / 100.0,
        mem_total: total,
        mem_used: used,
        mem_cache: cache,
        mem_total_mib: total >> 20,
        mem_used_mib: used >> 20,
        disk_used: (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        disk_total: disk.f_blocks * disk.f_frsize,
    })
}

fn file(path: &'static str) -> Result<String, MetricsError> {
    fs::read_to_string(path).map_err(|source| MetricsError::Read { path, source })
}

/// The sums of /proc/stat's first line, and how many CPUs follow it.
fn parse_stat(text: &str) -> Option<(CpuTime, usize)> {
    let mut lines = text.lines();
    let line = lines.next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
    let (idle, waiting) = (*ticks.get(3)?, ticks.get(4).copied().unwrap_or(0));
    // What guests used (the ninth and tenth) is part of the first two already.
    let total = ticks.iter().take(8).sum();
    Some((CpuTime { total, idle: idle + waiting }, lines.take_while(|line| line.starts_with("cpu")).count()))
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  10 0 20 60 10 0 0 0 5 5\ncpu0 1 1\ncpu1 1 1\nintr 5\n";

    #[test]
    fn proc_is_read() {
        assert_eq!(parse_stat(STAT), Some((CpuTime { total: 100, idle: 70 }, 2)));
        assert_eq!(parse_stat("intr 5\n"), None);
        assert_eq!(parse_stat("cpu  1 2\n"), None);
        let text = "MemTotal:        2048 kB\nCached:   3 kB\nCachedX: 4 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(2 << 20));
        assert_eq!(meminfo(text, "Cached"), Some(3072));
        assert_eq!(meminfo(text, "Mem"), None);
    }

    #[test]
    fn the_cpu_is_measured_between_two_questions() {
        let meter = CpuMeter::new();
        assert_eq!(meter.used_pct(CpuTime { total: 100, idle: 70 }), 30.0);
        assert_eq!(meter.used_pct(CpuTime { total: 100, idle: 70 }), 0.0);
        assert_eq!(meter.used_pct(CpuTime { total: 300, idle: 170 }), 50.0);
        assert_eq!(meter.used_pct(CpuTime { total: 200, idle: 500 }), 0.0, "counters that fall are no harm");
    }

    #[test]
    fn this_machine_has_metrics() {
        let metrics = read(&CpuMeter::new()).unwrap();
        assert!(metrics.cpu_count > 0 && metrics.mem_total > metrics.mem_used && metrics.disk_total > 0, "{metrics:?}");
        assert!((0.0..=100.0).contains(&metrics.cpu_used_pct));
        assert!(metrics.ts > 1_700_000_000);
    }
}
