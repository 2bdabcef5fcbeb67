//! Under load: the memory of `wrenn run` and its shim after 100 MB of output, and how soon a killed VMM is noticed.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use wrenn_sys::process::Identity;
use wrenn_sys::spawn::ExitStatus;

use crate::Round;
use crate::program::{children, peak_rss, read_off, wrenn_run};
use crate::setting::Setting;

/// Output of the command, in writes of [`WRITE_BYTES`]: with the small ones of `head` an emulated guest takes a minute.
const OUTPUT_BYTES: u64 = WRITES * WRITE_BYTES;
const WRITES: u64 = 1600;
const WRITE_BYTES: u64 = 64 * 1024;
/// The exit code of `wrenn run` when Wrenn itself failed.
const EXIT_FAILED: i32 = 125;

/// Peak memory with the command still running behind its output, then the VMM is killed.
pub fn take(setting: &Setting, round: &mut Round) -> Result<()> {
    round.doing("100 MB of output through wrenn run");
    let script = format!("echo; dd if=/dev/zero bs={WRITE_BYTES} count={WRITES} 2>/dev/null; cat");
    let (running, stdin, mut stdout) = wrenn_run(setting, &[], &["sh", "-c", &script])?;
    read_off(&mut stdout, 1).context("the command did not start")?;
    let begun = Instant::now();
    read_off(&mut stdout, OUTPUT_BYTES)?;
    round.value("run-output", "MB/s", OUTPUT_BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64());

    let shim = only_child(running.pid()).context("cannot find the shim of wrenn run")?;
    let vmm = only_child(shim).context("cannot find the VMM of the shim")?;
    round.value("run-peak-rss", "MB", megabytes(peak_rss(running.pid())?));
    round.value("shim-peak-rss", "MB", megabytes(peak_rss(shim)?));
    round.value("vmm-peak-rss", "MB", megabytes(peak_rss(vmm)?));

    round.doing("kill the VMM");
    let vmm = Identity::read(vmm)?;
    let killed = Instant::now();
    ensure!(vmm.signal(Signal::KILL)?, "the VMM had ended already");
    let ended = running.wait()?;
    let noticed = killed.elapsed();
    drop(stdin);
    ensure!(
        ended.status == ExitStatus::Exited(EXIT_FAILED),
        "after its VMM was killed it ended with {:?}",
        ended.status
    );
    round.value("fault-notice", "ms", noticed.as_secs_f64() * 1e3);
    Ok(())
}

fn only_child(pid: u32) -> Result<u32> {
    match children(pid)?.as_slice() {
        [child] => Ok(*child),
        others => anyhow::bail!("process {pid} has {} children instead of one", others.len()),
    }
}

/// As the targets count: a million bytes.
pub fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
