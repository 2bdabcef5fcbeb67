//! A capture: what a running sandbox is now is kept, and it goes on.
//!
//! ```text
//!   users frozen ─► CPUs frozen ─► state and memory taken ─► disk copied ─► CPUs and users go on ─► durable, whole
//!   └───────────── any failure: they go on in any case, and what was made is thrown away ─────────────┘
//! ```
//!
//! Nothing of it is written down in the sandbox's manifest: a crash leaves a sandbox that runs, maybe with frozen users or
//! CPUs, which the next agent lets go on, and a folder that nobody looks for. Nothing of the memory that the VM runs on is
//! touched: what changed is merged with it into a new file.

use std::sync::Arc;

use wrenn_engine::memory;
use wrenn_engine::vmm::{Machine, Then};

use super::parts::blocking;
use super::pause::{self, Kept, PauseError, sync_file};
use super::resume;
use super::rise::host_key;
use super::{Parts, Sandbox, Stopwatch, Timing};
use crate::envd_client::EnvdClient;
use crate::faults::Step;
use crate::generation::{Folder, Number};
use crate::host::Host;
use crate::layers::{Layers, link};
use crate::manifest::State;
use crate::snapshot::{Record, Stored};

/// Why nothing was captured.
pub(crate) enum Uncaptured {
    /// The sandbox goes on as before.
    GoesOn(PauseError),
    /// It cannot go on: its VM does not thaw, or is gone.
    Stuck(PauseError),
}

/// Whether there are processes of users in a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Users {
    /// There may be: they stand still before anything is taken, and when it is restored.
    Any,
    /// Nobody can start one yet.
    None,
}

/// A VM under control.
pub(super) struct Vm<'a> {
    pub parts: &'a mut Parts,
    pub machine: &'a mut dyn Machine,
    pub envd: &'a EnvdClient,
    pub users: Users,
}

/// Captures a running sandbox into `stored`, which was begun, and tells what there is to be said of it.
pub(crate) async fn capture(sandbox: &mut Sandbox, stored: &Stored) -> Result<(Record, Vec<Timing>), Uncaptured> {
    if sandbox.is_lacking_room() {
        return Err(Uncaptured::GoesOn(PauseError::NoRoom));
    }
    let mut watch = Stopwatch::default();
    let mut vm =
        Vm { parts: &mut sandbox.parts, machine: &mut *sandbox.machine, envd: &sandbox.envd, users: Users::Any };
    let record = vm.capture(stored, &mut watch).await?;
    Ok((record, watch.into_timings()))
}

impl Vm<'_> {
    /// All of it, but for the record.
    pub(super) async fn capture(&mut self, stored: &Stored, watch: &mut Stopwatch) -> Result<Record, Uncaptured> {
        let taken = self.take(&stored.generation(), watch).await;
        self.go_on().await.map_err(Uncaptured::Stuck)?;
        watch.lap("go on");
        let kept = taken.map_err(Uncaptured::GoesOn)?;
        self.keep(stored, kept, watch).await.map_err(Uncaptured::GoesOn)
    }

    /// What stands still is taken.
    async fn take(&mut self, folder: &Folder, watch: &mut Stopwatch) -> Result<Kept, PauseError> {
        self.parts.reached(Step::CaptureBegun)?;
        // What need not be done while the guest stands still is done before.
        let ready = pause::prepare_memory(self.parts, self.machine, folder).await?;
        watch.lap("prepare");
        if self.users == Users::Any {
            self.envd.freeze(host_key(self.parts)).await?;
        }
        self.parts.reached(Step::CaptureUsersFrozen)?;
        watch.lap("freeze users");
        self.machine.freeze().await?;
        self.parts.reached(Step::CaptureFrozen)?;
        watch.lap("freeze cpus");
        let kept = pause::capture_memory(self.machine, (folder, ready), Then::GoesOn, watch).await?;
        self.parts.reached(Step::CaptureTaken)?;
        self.seal_disk(folder).await?;
        self.parts.reached(Step::CaptureSealed)?;
        watch.lap("disk");
        Ok(kept)
    }

    async fn seal_disk(&self, folder: &Folder) -> Result<(), PauseError> {
        let disk = self.parts.disk.clone().expect("a VM that runs has a disk");
        let (storage, path) = (self.parts.host.storage.clone(), folder.disk());
        blocking(move || {
            if let Some(device) = &disk.device {
                sync_file(device)?;
            }
            storage.seal(&disk, &path)?;
            Ok(())
        })
        .await
    }

    /// CPUs first, then users; to thaw what runs changes nothing.
    async fn go_on(&mut self) -> Result<(), PauseError> {
        self.machine.thaw().await?;
        if self.users == Users::Any {
            resume::right_clock(self.parts, self.envd).await;
            self.envd.thaw(host_key(self.parts)).await?;
        }
        Ok(self.parts.reached(Step::CaptureThawed)?)
    }

    /// What was taken becomes whole and durable, while the VM goes on.
    async fn keep(&mut self, stored: &Stored, kept: Kept, watch: &mut Stopwatch) -> Result<Record, PauseError> {
        let number = Number::FIRST;
        let (mut description, stored) = (pause::describe(self.parts, number), stored.clone());
        let (generations, layers) = (self.parts.generations(), Layers::of(&self.parts.places.dir));
        let host = Arc::clone(&self.parts.host);
        blocking(move || -> Result<(), PauseError> {
            let folder = stored.generation();
            if let Some((cpu, builds_on)) = kept.of_memory() {
                description.memory = Some(pause::describe_memory(&folder, cpu, None)?);
                merge(&host, &folder, builds_on.map(|number| generations.folder(number)), kept)?;
            }
            pause::seal_disk(&folder)?;
            stored.layers().share(&layers, &description.disk.beneath)?;
            Ok(description.write(&folder)?)
        })
        .await?;
        self.parts.reached(Step::CaptureDurable)?;
        watch.lap("keep");
        let manifest = &self.parts.manifest;
        Ok(Record::of(manifest, manifest.nonces_below.max(self.envd.nonces().ceiling())))
    }
}

/// Keeps what a sandbox at rest is in `stored`, which was begun: names for the same files.
pub(crate) async fn share(parts: &mut Parts, stored: &Stored) -> Result<(Record, Vec<Timing>), PauseError> {
    let State::Paused { generation } = parts.manifest.state else {
        unreachable!("the policy lets nobody capture what is {:?}", parts.manifest.state.phase())
    };
    let mut watch = Stopwatch::default();
    parts.reached(Step::CaptureBegun)?;
    pause::settle_memory(parts).await?;
    watch.lap("settle");
    let (dir, stored) = (parts.places.dir.clone(), stored.clone());
    blocking(move || stored.take(&dir, generation)).await?;
    parts.reached(Step::CaptureDurable)?;
    watch.lap("keep");
    Ok((Record::of(&parts.manifest, parts.manifest.nonces_below), watch.into_timings()))
}

/// What was captured becomes one new memory in `folder`, together with that of `base` if it builds on one, which stays as it is.
fn merge(host: &Host, folder: &Folder, base: Option<Folder>, kept: Kept) -> Result<(), PauseError> {
    let to = folder.memory_files();
    if let Some(from) = base.as_ref().map(Folder::memory_files) {
        link(&from.base_sums, &to.base_sums)?;
        link(&from.base, &to.base)?;
    }
    pause::keep_memory(host, folder, kept)?;
    if base.is_some() {
        memory::fold_copy(&to)?;
    }
    Ok(())
}
