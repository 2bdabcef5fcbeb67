//! What an agent makes of a sandbox that an earlier one has left, in whatever state.
//!
//! | the manifest says | the VM is there | it is gone |
//! |---|---|---|
//! | creating, destroying | destroyed | destroyed |
//! | running | taken over | stopped |
//! | pausing, not captured | thawed, taken over | stopped |
//! | pausing, captured | the pause is finished | the pause is finished |
//! | paused, stopped, needs repair | stays | stays |
//! | resuming | the resume is undone | the resume is undone |
//! | rolling back | the rollback is finished: at rest | the rollback is finished: at rest |
//!
//! A sandbox that is bound to whoever asked for it is destroyed in any case: that connection is gone.
//!
//! Each outcome is one that an ordinary request could have had.

use std::sync::Arc;

use wrenn_engine::image::ImageError;
use wrenn_engine::network::NetworkError;
use wrenn_engine::storage::{Disk, StorageError};
use wrenn_engine::vmm::{Folders, Shim, VmmError};
use wrenn_proto::shim::ExitRecord;

use super::parts::blocking;
use super::pause::{self, PauseError};
use super::resume;
use super::rise::{Risen, disk_place, guest_client, live_layers};
use super::rollback;
use super::{Parts, Sandbox, Stopwatch};
use crate::generation::Number;
use crate::host_agent::with_causes;
use crate::manifest::{ManifestError, Progress, State};

/// A sandbox that this agent cannot drive. Its VM, if there is one, goes on.
#[derive(Debug, thiserror::Error)]
#[error("it is made with {made}, and this agent drives {here}; start the agent with {remedy}, then `wrenn repair`")]
struct ForeignError {
    made: String,
    here: String,
    remedy: String,
}

/// Whether a sandbox in the middle of something was made with another driver than this agent's. One at rest is told so when
/// it is to come back.
fn foreign(parts: &Parts) -> Option<ForeignError> {
    let (manifest, host) = (&parts.manifest, &parts.host);
    match &manifest.state {
        State::Running
        | State::Pausing { .. }
        | State::Resuming { .. }
        | State::Booting { .. }
        | State::RollingBack { .. } => {}
        State::Creating
        | State::Paused { .. }
        | State::Stopped { .. }
        | State::NeedsRepair { .. }
        | State::Destroying => return None,
    }
    let (driver, storage) = (host.vmm.describe().driver, host.storage.backend());
    if manifest.vmm.driver == driver && manifest.storage == storage {
        return None;
    }
    Some(ForeignError {
        made: format!("{} and {}", manifest.vmm.driver, manifest.storage),
        here: format!("{driver} and {storage}"),
        remedy: format!("--vmm {} --storage {}", manifest.vmm.driver, manifest.storage),
    })
}

/// What became of a sandbox that was found.
pub enum Adopted {
    /// It runs, and is ours now.
    Runs(Box<Sandbox>),
    /// It is at rest, has stopped, or needs a repair.
    Rests(Box<Parts>),
    /// It is gone.
    Gone,
}

/// Why a VM that is there was not taken over.
#[derive(Debug, thiserror::Error)]
enum TakeOverError {
    #[error("its shim does not answer, or its VMM has ended{}", .0.as_ref().map(|end| format!(": {end}")).unwrap_or_default())]
    VmGone(Option<String>),
    #[error("it has no network slot")]
    NoSlot,
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Vmm(#[from] VmmError),
    #[error("the agent in its guest cannot be let go on")]
    GoOn(#[source] Box<PauseError>),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// Takes a sandbox over, or finishes or undoes what was half done.
pub(crate) async fn adopt(mut parts: Parts) -> Adopted {
    if let Some(reason) = foreign(&parts) {
        parts.needs_repair(&reason);
        return Adopted::Rests(Box::new(parts));
    }
    match parts.manifest.state.clone() {
        _ if parts.manifest.bound => destroy(parts).await,
        State::Creating | State::Destroying => destroy(parts).await,
        State::Running | State::Pausing { progress: Progress::Capturing, .. } => take_over(parts).await,
        State::Pausing { progress: Progress::Captured, .. } => finish_pause(parts).await,
        State::Resuming { generation } => undo_resume(parts, State::Paused { generation }).await,
        State::Booting { reason } => undo_resume(parts, State::Stopped { reason }).await,
        State::RollingBack { generation } => finish_rollback(parts, generation).await,
        State::Paused { .. } | State::Stopped { .. } | State::NeedsRepair { .. } => {
            recall_disk(&mut parts).await;
            Adopted::Rests(Box::new(parts))
        }
    }
}

async fn destroy(mut parts: Parts) -> Adopted {
    recall_disk(&mut parts).await;
    // What failed was logged; the next start goes on.
    parts.destroy(&mut Stopwatch::default()).await.ok();
    Adopted::Gone
}

async fn take_over(mut parts: Parts) -> Adopted {
    let ran = parts.manifest.state == State::Running;
    match attach(&mut parts).await {
        Ok(mut risen) => {
            // CPUs that an agent had stopped, users whom it had not let go on yet: to thaw what runs changes nothing.
            let went_on = pause::go_on(&mut parts, &mut *risen.machine, &risen.envd).await;
            let sandbox = Box::new(Sandbox::new(parts, risen, Stopwatch::default()));
            match went_on {
                Ok(()) => Adopted::Runs(sandbox),
                Err(error) => unanswered(sandbox, ran, error).await,
            }
        }
        Err(error) => stop(parts, &error).await,
    }
}

/// A VM that runs and whose guest does not answer may stand still for want of room on the disk: that is no reason to end it.
async fn unanswered(mut sandbox: Box<Sandbox>, ran: bool, error: PauseError) -> Adopted {
    if ran && !sandbox.vm_has_ended().await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(sandbox = %sandbox.id(), error, "the guest of a sandbox that is taken over does not answer");
        return Adopted::Runs(sandbox);
    }
    stop(sandbox.into_parts(), &TakeOverError::GoOn(Box::new(error))).await
}

async fn attach(parts: &mut Parts) -> Result<Risen, TakeOverError> {
    let host = Arc::clone(&parts.host);
    let shim = Shim::at(&parts.places.shim_socket());
    let pid = shim.vmm_pid();
    if !matches!(pid, Ok(Some(_))) {
        return Err(TakeOverError::VmGone(recorded_end(parts)));
    }
    let ended = shim.watch();
    parts.shim = Some(shim);
    let slot = parts.manifest.slot.ok_or(TakeOverError::NoSlot)?;
    if parts.lease.is_none() {
        parts.lease = Some(host.network.adopt(slot).await?);
    }
    parts.cgroup = host.cgroups.as_ref().map(|cgroups| cgroups.at(&parts.manifest.id));
    open_disk(parts).await?;
    let folders = Folders { run: &parts.places.run_dir, capture: &parts.places.capture() };
    let machine = host.vmm.attach(folders).await?;
    let envd = guest_client(parts);
    // Before the first of them is used: the agent before used some that it could not write down any more.
    parts.reserve_nonces(parts.manifest.nonces_below);
    parts.write()?;
    Ok(Risen { envd, line: None, machine, ended })
}

/// The disk of a VM that runs: its devices are there, and are found.
async fn open_disk(parts: &mut Parts) -> Result<(), TakeOverError> {
    let Some(record) = parts.manifest.disk.clone() else { return Ok(()) };
    let host = Arc::clone(&parts.host);
    let template = host.images.template(&parts.manifest.template)?;
    let (place, layers) = (disk_place(&host, parts), live_layers(&template, parts, &record));
    let storage = Arc::clone(&host.storage);
    parts.disk = Some(blocking(move || storage.open(&place, &layers, record.size_bytes)).await?);
    Ok(())
}

/// The disk as it is written down, without looking at it: enough to let go of it, or to remove it.
async fn recall_disk(parts: &mut Parts) {
    let Some(record) = parts.manifest.disk.clone() else { return };
    let host = Arc::clone(&parts.host);
    let place = disk_place(&host, parts);
    let layers = match host.images.template(&parts.manifest.template) {
        Ok(template) => live_layers(&template, parts, &record),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(sandbox = %parts.manifest.id, error, "the template of a sandbox is gone");
            return;
        }
    };
    parts.disk = Some(Disk { name: place.name, path: place.path, layers, size_bytes: record.size_bytes, device: None });
}

/// Its VM is gone, or out of reach: it is ended for good, and the disk is kept.
async fn stop(mut parts: Parts, why: &TakeOverError) -> Adopted {
    let reason = with_causes(why);
    tracing::warn!(sandbox = %parts.manifest.id, reason, "the VM of a sandbox is lost; its disk is kept");
    parts.stop(reason).await;
    Adopted::Rests(Box::new(parts))
}

fn recorded_end(parts: &Parts) -> Option<String> {
    match ExitRecord::read(&parts.places.exit_record()) {
        Ok(record) => record.map(|record| format!("the VMM {}", record.end)),
        Err(error) => Some(format!("{error}")),
    }
}

async fn finish_pause(mut parts: Parts) -> Adopted {
    recall_disk(&mut parts).await;
    if let Err(error) = pause::finish(&mut parts, &mut Stopwatch::default()).await {
        parts.needs_repair(&error);
    }
    Adopted::Rests(Box::new(parts))
}

async fn finish_rollback(mut parts: Parts, generation: Number) -> Adopted {
    recall_disk(&mut parts).await;
    if let Err(error) = rollback::finish(&mut parts, generation, &mut Stopwatch::default()).await {
        parts.needs_repair(&error);
    }
    Adopted::Rests(Box::new(parts))
}

async fn undo_resume(mut parts: Parts, rests_as: State) -> Adopted {
    recall_disk(&mut parts).await;
    if let Err(error) = resume::undo(&mut parts, rests_as).await {
        parts.needs_repair(&error);
    }
    Adopted::Rests(Box::new(parts))
}

/// Goes on where a step failed that could be neither finished nor undone.
pub(crate) async fn repair(mut parts: Parts) -> Adopted {
    if let State::NeedsRepair { was, .. } = parts.manifest.state.clone() {
        parts.manifest.state = *was;
    }
    adopt(parts).await
}
