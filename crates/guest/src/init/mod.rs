//! wrenn-init: the first process of every microVM.
//!
//! ```text
//! kernel ─► /init (initramfs) ─► modules ─► eth0 ─► root filesystem ─► switch root ─► /etc ─► cgroups ─► envd ─► wait
//!               │ any step fails                                                                          │
//!               └──► `wrenn-init: FATAL: ...` on the console ─► power off ◄──── envd ended, or told to ◄──┘
//! ```
//!
//! It is plain blocking code: no runtime, no threads before the power-off, a few hundred kilobytes of its own. What it
//! is to do comes from the kernel command line alone ([`cmdline`]). After envd runs it does two things: it reaps what
//! nobody else waits for, and it ends the machine, in order, on SIGTERM, SIGUSR1, SIGUSR2 or SIGPWR, or with a FATAL line
//! when envd ended. It restarts nothing: a guest whose envd died is not the guest its host thinks it is.
//!
//! It does not know what a sandbox does, and it never talks to the host; the console is its only voice.

mod cgroups;
mod cmdline;
mod etc;
mod modules;
mod mounts;
mod netlink;
mod network;
mod power;
mod root;
mod superblock;
mod supervise;

use std::convert::Infallible;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use wrenn_sys::signals::Blocked;

use cmdline::BootConfig;

use crate::identity::IdentityError;

/// Why the guest could not come up, or had to end.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("cannot block signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot mount {what} on {target}")]
    Mount { what: &'static str, target: String, source: rustix::io::Errno },
    #[error("cannot read the kernel command line")]
    ReadCmdline(#[source] std::io::Error),
    #[error("the kernel command line is not complete")]
    Cmdline(#[from] cmdline::CmdlineError),
    #[error("cannot read the folder of kernel modules")]
    ListModules(#[source] std::io::Error),
    #[error("cannot load the kernel module {name}; was it built for another kernel?")]
    LoadModule { name: String, source: std::io::Error },
    #[error("{} did not appear within {waited_ms} ms; does the VM have this device?", device.display())]
    NoDevice { device: PathBuf, waited_ms: u128 },
    #[error("cannot configure the network: {step}")]
    Network { step: &'static str, source: std::io::Error },
    #[error("cannot read the root filesystem on {}", device.display())]
    ReadRoot { device: PathBuf, source: std::io::Error },
    #[error("no usable root filesystem on {}", device.display())]
    BadRoot { device: PathBuf, source: superblock::SuperblockError },
    #[error("cannot mount the root filesystem of {}", device.display())]
    MountRoot { device: PathBuf, source: std::io::Error },
    #[error("cannot grow the root filesystem to its device ({blocks} blocks)")]
    Grow { blocks: u64, source: std::io::Error },
    #[error("cannot switch to the root filesystem: {step}")]
    SwitchRoot { step: &'static str, source: std::io::Error },
    #[error("cannot write {path}")]
    Write { path: &'static str, source: std::io::Error },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot prepare the cgroup {path}")]
    Cgroup { path: String, source: std::io::Error },
    #[error("cannot start envd")]
    StartEnvd(#[from] wrenn_sys::spawn::SpawnError),
    #[error("cannot wait for processes")]
    Wait(#[source] std::io::Error),
    #[error("envd ended: {0}")]
    EnvdEnded(String),
}

/// Runs the machine to its end. Called by `main` when the process is PID 1; never returns.
pub fn run() -> ! {
    // The kernel gives init its own view of the memory it runs from; everything else is made here.
    let error = match live() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    say(&format!("FATAL: {}", with_causes(&error)));
    power::off()
}

fn live() -> Result<Infallible, InitError> {
    let signals = Blocked::new(&[Signal::CHILD, Signal::TERM, Signal::USR1, Signal::USR2, Signal::POWER])
        .map_err(InitError::Signals)?;
    let mut watch = Stopwatch::default();
    mounts::early()?;
    let config = read_config()?;
    watch.lap("start");
    modules::load_all()?;
    watch.lap("modules");
    network::configure(&config)?;
    watch.lap("network");
    root::mount(&config.root)?;
    watch.lap("root");
    root::switch()?;
    mounts::late()?;
    watch.lap("mounts");
    etc::write(&config)?;
    let cgroups = cgroups::prepare()?;
    watch.lap("files");
    say(&format!("ready after {}", watch.summary()));
    supervise::run(&config, &cgroups, signals)
}

fn read_config() -> Result<BootConfig, InitError> {
    let text = std::fs::read_to_string("/proc/cmdline").map_err(InitError::ReadCmdline)?;
    Ok(cmdline::parse(&text)?)
}

/// One line on the console. The console is best effort: a machine must not fail because nobody listens.
fn say(line: &str) {
    if let Err(_nobody_listens) = std::io::stdout().write_all(format!("wrenn-init: {line}\n").as_bytes()) {}
}

/// Where the time goes between the kernel and envd, for whoever reads the console.
#[derive(Default)]
struct Stopwatch {
    laps: Vec<(&'static str, Duration)>,
}

impl Stopwatch {
    /// Ends a phase.
    fn lap(&mut self, phase: &'static str) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let now = Duration::try_from(now).unwrap_or_default();
        self.laps.push((phase, now));
    }

    /// Milliseconds since the kernel began, then those of each phase.
    fn summary(&self) -> String {
        let starts = self.laps.iter().skip(1).zip(&self.laps);
        let phases = starts.map(|((phase, end), (_, start))| format!("{phase} {}", (*end - *start).as_millis()));
        let first = self.laps.first().map(|(phase, end)| format!("{phase} at {}", end.as_millis()));
        let last = self.laps.last().map_or(0, |(_, end)| end.as_millis());
        format!("{last} ms ({})", first.into_iter().chain(phases).collect::<Vec<_>>().join(", "))
    }
}

/// The error and its causes in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_each_phase() {
        let at = Duration::from_millis;
        let watch = Stopwatch { laps: vec![("start", at(1200)), ("modules", at(1230)), ("root", at(1300))] };
        assert_eq!(watch.summary(), "1300 ms (start at 1200, modules 30, root 70)");
    }

    #[test]
    fn a_fatal_line_names_every_cause() {
        let source = rustix::io::Errno::NODEV;
        let error = InitError::Mount { what: "proc", target: "/proc".into(), source };
        assert_eq!(with_causes(&error), "cannot mount proc on /proc: No such device (os error 19)");
    }
}
