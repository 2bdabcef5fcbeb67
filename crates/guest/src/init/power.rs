//! The end of the machine: nobody runs, everything is on disk, then off.

use std::sync::mpsc;
use std::time::Duration;

use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, WaitOptions};
use rustix::system::{RebootCommand, reboot};

use super::say;

/// How long writing everything back may take; a host that does not take our writes must not keep us alive.
const SYNC_MAX: Duration = Duration::from_secs(10);

/// Ends every process, writes everything back and ends the machine.
pub fn off() -> ! {
    end_all();
    if !within(SYNC_MAX, settle) {
        say("the disk does not take our writes; ending without");
    }
    // A restart, not a power-off: the VMMs are told to end on one, and a machine without ACPI cannot do the other.
    let failed = reboot(RebootCommand::Restart);
    say(&format!("FATAL: cannot end the machine: {failed:?}"));
    // PID 1 ending is a kernel panic, which `panic=-1` turns into a restart.
    std::process::exit(1)
}

fn end_all() {
    // "Group 1" is kill(-1): every process but us. Nothing to end is an error here, and fine.
    if let Err(_nobody) = rustix::process::kill_process_group(Pid::INIT, Signal::KILL) {}
}

/// Awaits the end of all (a file open for writing keeps the filesystem writable), then makes the disk the truth.
fn settle() {
    while !matches!(rustix::process::wait(WaitOptions::empty()), Err(rustix::io::Errno::CHILD)) {}
    rustix::fs::sync();
    if let Err(errno) = mount_remount("/", MountFlags::RDONLY, "") {
        say(&format!("the root filesystem stays writable: {errno}"));
        rustix::fs::sync();
    }
}

/// Runs `work` on a thread of its own; `false` if it has not ended in time.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, wait) = mpsc::channel();
    let worker = std::thread::Builder::new().spawn(move || {
        work();
        // The receiver is gone only if we ran out of time.
        if let Err(_late) = done.send(()) {}
    });
    worker.is_ok() && wait.recv_timeout(limit).is_ok()
}
