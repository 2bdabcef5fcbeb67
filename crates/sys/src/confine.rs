//! Giving up what root may do, for good: for a program's first lines, before it has threads.
//!
//! What is left is an ordinary user without capabilities that owns one folder, which it sees at a place of everybody's; all else of
//! the file system it sees as any user does. The folder's own path may lead through folders that are root's alone.

use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount};
use rustix::process::{Gid, Pid, Signal, Uid, getppid, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Who a process becomes, and what it keeps.
#[derive(Debug)]
pub struct Confinement<'a> {
    /// The user and group that it becomes; it has no other groups.
    pub uid: u32,
    /// Its folder.
    pub folder: &'a Path,
    /// Where it sees that folder: a folder that is there for everybody.
    pub place: &'a Path,
    /// Its parent, with which it ends.
    pub parent: Option<u32>,
}

/// Confines the calling process, which has one thread: credentials are a thread's, and others would keep theirs.
pub fn confine(confinement: &Confinement<'_>) -> io::Result<()> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has threads already"));
    }
    // SAFETY: no descriptor becomes invalid by it; the thread's root and working directory are its own from here on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount_bind(confinement.folder, confinement.place)?;
    mount_remount(
        confinement.place,
        MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
        c"",
    )?;
    std::env::set_current_dir(confinement.place)?;
    become_user(confinement.uid)?;
    set_no_new_privs(true)?;
    if let Some(parent) = confinement.parent {
        end_with(parent)?;
    }
    Ok(())
}

fn become_user(uid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    // With the last of root's ids all capabilities go.
    set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// The kernel forgets this when a process becomes another user, so it is said afterwards.
fn end_with(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let is_there = getppid().map(Pid::as_raw_nonzero).is_some_and(|pid| pid.get().unsigned_abs() == parent);
    if is_there { Ok(()) } else { Err(io::Error::other("the process that this one belongs to has ended")) }
}
