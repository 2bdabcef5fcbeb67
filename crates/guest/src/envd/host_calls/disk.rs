//! The root filesystem at the host's word: written back, frozen, thawed.
//!
//! While it is frozen whoever writes to it waits in the kernel, where no signal and no cgroup reaches him: the users'
//! cgroup is frozen *before* the filesystem and thawed after it. Nothing here writes to it, and no thread that a user's
//! request may hold is needed ([`Lane`](crate::envd::lane::Lane)). A freeze that comes too late is undone at once.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

use wrenn_sys::fsfreeze;

use super::CallError;
use crate::envd::state::State;
use crate::limits;

/// Any of its folders names the filesystem.
const ROOT: &str = "/";

/// Writes the root filesystem's caches back.
pub async fn sync(state: &State) -> Result<(), CallError> {
    let done = state.lanes.sync.run(limits::SYNC_TIME_MAX, write_back, drop).await;
    done.map_err(CallError::SyncLane)?.map_err(CallError::Sync)
}

/// Freezes the root filesystem; fine if it is frozen.
pub async fn freeze(state: &State) -> Result<(), CallError> {
    state.machine.expect_guest("the root filesystem is not this envd's to freeze")?;
    let done = state.lanes.disk.run(limits::DISK_FREEZE_TIME_MAX, write_back_and_freeze, thaw_again).await;
    done.map_err(|source| CallError::DiskLane { verb: "freeze", source })?
        .map_err(|source| CallError::Disk { verb: "freeze", source })
}

/// Thaws the root filesystem; fine if it is not frozen. Waits for a freeze that still goes on.
pub async fn thaw(state: &State) -> Result<(), CallError> {
    state.machine.expect_guest("the root filesystem is not this envd's to thaw")?;
    let done = state.lanes.disk.run(limits::DISK_THAW_TIME_MAX, thaw_now, drop).await;
    done.map_err(|source| CallError::DiskLane { verb: "thaw", source })?
        .map_err(|source| CallError::Disk { verb: "thaw", source })
}

fn write_back() -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(ROOT)?)?)
}

/// Most is written back while users may still write, which keeps the freeze itself short.
fn write_back_and_freeze() -> io::Result<()> {
    let root = File::open(ROOT)?;
    rustix::fs::syncfs(&root)?;
    fsfreeze::freeze(root.as_fd())
}

fn thaw_now() -> io::Result<()> {
    fsfreeze::thaw(File::open(ROOT)?.as_fd())
}

/// The host was told that the freeze failed.
fn thaw_again(frozen: io::Result<()>) {
    let Ok(()) = frozen else { return };
    if let Err(error) = thaw_now() {
        eprintln!("envd: the root filesystem was frozen too late and cannot be thawed: {error}");
    }
}
