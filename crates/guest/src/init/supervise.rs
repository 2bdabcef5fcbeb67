//! The rest of the machine's life: envd runs, orphans are reaped, and one of the two ends comes.

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;

use rustix::process::{Signal, WaitOptions, WaitStatus};
use wrenn_sys::signals::Blocked;
use wrenn_sys::spawn::{Resource, Rlimit, Spawn};

use super::cgroups::Cgroups;
use super::cmdline::BootConfig;
use super::{InitError, power, say};

/// This very program: its pages are in memory already, and its name in the initramfs is gone.
const ENVD: &str = "/proc/1/exe";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Descriptors of envd, and so of what it starts: 3 per process and 1 per connection, far above what it allows.
const OPEN_FILES_SOFT: u64 = 65_536;
const OPEN_FILES_HARD: u64 = 524_288;
/// The kernel's "never choose this one" when memory runs out.
const OOM_NEVER: i32 = -1000;

/// Starts envd and waits. Returns only when the machine cannot go on.
pub fn run(config: &BootConfig, cgroups: &Cgroups, signals: Blocked) -> Result<Infallible, InitError> {
    let envd = start_envd(config, cgroups)?;
    loop {
        match signals.wait().map_err(InitError::Wait)? {
            Signal::CHILD => {
                if let Some(status) = reap(envd)? {
                    return Err(InitError::EnvdEnded(describe(status)));
                }
            }
            // The others of the blocked set all mean the same, whoever sends them.
            _ => {
                say("powering off");
                power::off()
            }
        }
    }
}

fn start_envd(config: &BootConfig, cgroups: &Cgroups) -> Result<u32, InitError> {
    let console = OpenOptions::new()
        .write(true)
        .open("/dev/console")
        .map_err(|source| InitError::Write { path: "/dev/console", source })?;
    let open_files = Rlimit { resource: Resource::OpenFiles, soft: Some(OPEN_FILES_SOFT), hard: Some(OPEN_FILES_HARD) };
    let child = Spawn::new(ENVD)
        .arg0("envd")
        .env("PATH", PATH)
        .env("WRENN_ID", &config.id)
        .env("WRENN_KEY", &config.key)
        .fd(console.as_fd(), 1)
        .fd(console.as_fd(), 2)
        .session()
        .cgroup(cgroups.wrenn.as_fd())
        .rlimit(open_files)
        .oom_score_adj(OOM_NEVER)
        .start()?;
    Ok(child.pid())
}

/// Reaps everything that has ended; the status of `envd` if it was among it.
fn reap(envd: u32) -> Result<Option<WaitStatus>, InitError> {
    let mut ended = None;
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid.as_raw_nonzero().get().cast_unsigned() == envd => ended = Some(status),
            Ok(Some(_orphan)) => {}
            Ok(None) | Err(rustix::io::Errno::CHILD) => return Ok(ended),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(InitError::Wait(io::Error::from(errno))),
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reaps_all_and_tells_of_the_one_that_matters() {
        let start = |script: &str| Spawn::new("/bin/sh").args(["-c", script]).start().unwrap();
        let orphans = [start("exit 1"), start("exit 2")];
        let envd = start("kill -9 $$");
        let mut status = None;
        while status.is_none() {
            status = reap(envd.pid()).unwrap();
            std::thread::yield_now();
        }
        assert_eq!(describe(status.unwrap()), "signal 9");
        for orphan in orphans {
            while std::path::Path::new(&format!("/proc/{}", orphan.pid())).exists() {
                reap(0).unwrap();
            }
        }
    }
}
