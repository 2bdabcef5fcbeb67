//! Room for what a guest writes: its CPUs stand still while there is none to spare.
//!
//! A device-mapper disk that finds no room is lost, with all that the guest wrote. So the guest is stopped before, and goes
//! on when somebody has made room; if nobody does, the sandbox is given up. A qcow2 disk needs none of this: QEMU stops the guest itself at the write that found no
//! room, and nothing is lost.

use tokio::time::Instant;
use wrenn_engine::limits;
use wrenn_engine::names::SandboxId;
use wrenn_engine::storage::space::{Space, Thresholds, Watch};
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::{Machine, VmmError};

use super::Parts;

/// Whether a sandbox has room, and whether its guest was stopped for want of it.
#[derive(Debug)]
pub(super) struct Room {
    /// `None` for a disk that needs no watching.
    watch: Option<Watch>,
    frozen: bool,
    /// Until when somebody may make room.
    deadline: Option<Instant>,
}

/// What happened to the room of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It came or went: [`Room::follow`] is next.
    Changed,
    /// There was none for too long.
    GivenUp,
}

impl Room {
    /// For the sandbox of `parts`, which has its disk.
    pub(super) fn of(parts: &Parts) -> Self {
        let folder = &parts.places.dir;
        let watched = parts.disk.as_ref().is_some_and(|disk| disk.device.is_some());
        let watch = watched.then(|| {
            let thresholds = Thresholds::of(folder).unwrap_or_else(|error| {
                tracing::warn!(folder = %folder.display(), %error, "cannot see the size of a file system");
                Thresholds::default()
            });
            Watch::new(folder, thresholds, limits::SPACE_LOOK_EVERY)
        });
        Self { watch, frozen: false, deadline: None }
    }

    /// Waits until there is room, or none any more, or none for too long. Cancel safe; never ends for a disk that needs no
    /// watching.
    pub(super) async fn change(&mut self, id: &SandboxId) -> News {
        let Some(watch) = &mut self.watch else { return std::future::pending().await };
        let deadline = self.deadline;
        let change = tokio::select! {
            change = watch.change() => change,
            () = until(deadline) => {
                // Who does not give up is told again.
                self.deadline = Some(Instant::now() + limits::SPACE_WAIT);
                return News::GivenUp;
            }
        };
        let free = Mib::holding(change.available_bytes);
        match change.now {
            Space::Low => {
                self.deadline = Some(Instant::now() + limits::SPACE_WAIT);
                tracing::warn!(
                    sandbox = %id,
                    "only {free} are left for the sandbox's disk: its CPUs stand still until there is more room under \
                     WRENN_DIR, for {} s at most",
                    limits::SPACE_WAIT.as_secs()
                );
            }
            Space::Ample => {
                self.deadline = None;
                tracing::warn!(sandbox = %id, "{free} are free again: the sandbox goes on");
            }
        }
        News::Changed
    }

    /// Whether the guest stands still for want of room.
    pub(super) fn is_lacking(&self) -> bool {
        self.deadline.is_some()
    }

    /// Stops the guest's CPUs, or lets them go on, as the space demands. When this is cancelled or fails, the next call does it
    /// again: to stop what stands still, or thaw what runs, changes nothing.
    pub(super) async fn follow(&mut self, id: &SandboxId, machine: &mut dyn Machine) {
        let freeze = self.watch.as_ref().is_some_and(|watch| watch.state() == Space::Low);
        if freeze == self.frozen {
            return;
        }
        match switch(machine, freeze).await {
            Ok(()) => self.frozen = freeze,
            // A VMM that has ended is told of in its own way; one that refuses is asked again at the next change.
            Err(error) => tracing::warn!(sandbox = %id, %error, freeze, "cannot stop or start the CPUs of a sandbox"),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn switch(machine: &mut dyn Machine, freeze: bool) -> Result<(), VmmError> {
    if freeze { machine.freeze().await } else { machine.thaw().await }
}
