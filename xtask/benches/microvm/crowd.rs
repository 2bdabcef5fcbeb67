//! Many at once: what `wrenn run -- true` costs when others start beside it.
//!
//! With as many cores as there are, so many runs cannot take less than their CPU time together; what they take beyond it
//! is waiting for each other. The CPU time of one is that of the whole host while it runs alone: VMM, guest and kernel.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use wrenn_sys::spawn::ExitStatus;

use crate::Round;
use crate::program;
use crate::setting::Setting;

/// How many start at once.
const CROWD: usize = 32;
/// The kernel counts CPU time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// Values of one round.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    round.doing("one alone");
    let before = busy_ticks()?;
    run(setting, 1)?;
    let one = (busy_ticks()? - before) as f64 / TICKS_PER_SECOND;
    round.doing(&format!("{CROWD} at once"));
    let began = Instant::now();
    run(setting, CROWD)?;
    let all = began.elapsed().as_secs_f64();
    let cores = std::thread::available_parallelism()?.get() as f64;
    round.value("crowd-one-cpu", "s", one);
    round.value("crowd-wall", "s", all);
    round.value("crowd-least", "s", CROWD as f64 * one / cores);
    Ok(())
}

fn run(setting: &Setting, count: usize) -> Result<()> {
    let mut started = Vec::new();
    for _ in 0..count {
        let (running, stdin, stdout) = program::wrenn_run(setting, &["--boot-timeout", "600s"], &["true"])?;
        drop(stdin);
        started.push((running, stdout));
    }
    for (running, _stdout) in started {
        let ended = running.wait()?;
        ensure!(ended.status == ExitStatus::Exited(0), "a run ended with {:?}", ended.status);
    }
    Ok(())
}

/// CPU time of the whole host that was not idle, from /proc/stat.
fn busy_ticks() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("no CPU time in /proc/stat")?;
    let fields: Vec<u64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    // user nice system idle iowait irq softirq; guest time is part of user.
    Ok([0, 1, 2, 5, 6].into_iter().filter_map(|index| fields.get(index)).sum())
}
