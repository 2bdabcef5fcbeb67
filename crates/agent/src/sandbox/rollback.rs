//! Back to a snapshot: a sandbox becomes what it was, under the same id.
//!
//! ```text
//!   placed as a generation ─► checked ─┃─► VM ended ─► network free ─► live disk gone ─► Paused ─► (a resume)
//!   └─ any failure: nothing changed ───┘┃└──────── any failure: NeedsRepair, and `finish` goes on ────────┘
//!                                   no way back
//! ```
//!
//! What it was before the rollback is given up with the one word in the manifest, not before: until then everything that the
//! snapshot consists of is there, whole and fit for this host.

use super::parts::TakeDownError;
use super::resume::{self, ResumeError};
use super::{Parts, Stopwatch, blocking};
use crate::faults::{Injected, Step};
use crate::generation::Number;
use crate::manifest::{ManifestError, State};
use crate::snapshot::{Record, SnapshotError, Stored};

/// Why a sandbox was not taken back.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// The snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// What was captured cannot be used.
    #[error("the snapshot cannot be used")]
    Unusable(#[source] Box<ResumeError>),
    /// Something of what it was cannot be taken down.
    #[error(transparent)]
    TakeDown(#[from] TakeDownError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Asked for by a test.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// Everything up to the point of no return; a VM that runs goes on meanwhile. Answers as which generation it will rest.
pub(crate) async fn begin(parts: &mut Parts, stored: &Stored, watch: &mut Stopwatch) -> Result<Number, RollbackError> {
    let number = parts.manifest.newest_generation.next();
    parts.manifest.newest_generation = number;
    // Before there is anything of it: a crash must not leave a generation whose number is used again.
    parts.write()?;
    let (id, dir, from) = (parts.manifest.id.clone(), parts.places.dir.clone(), stored.clone());
    let record = blocking(move || -> Result<Record, SnapshotError> {
        from.place(&id, &dir, number)?;
        from.record()
    })
    .await?;
    parts.reached(Step::RollbackPlaced)?;
    watch.lap("place");
    let host = parts.host.clone();
    let checked = resume::check_generation(&host, parts, number).await;
    checked.map_err(|error| RollbackError::Unusable(Box::new(error)))?;
    watch.lap("check");
    // Neither guest has seen a number as large.
    parts.reserve_nonces(record.nonces_below);
    Ok(number)
}

/// Gives up what the sandbox is, for the generation `number`; on an error it is what it was.
pub(crate) fn decide(parts: &mut Parts, number: Number) -> Result<(), RollbackError> {
    let before = parts.manifest.state.clone();
    let noted = parts.note(State::RollingBack { generation: number }).map_err(RollbackError::from);
    noted.and_then(|()| Ok(parts.reached(Step::RollbackDecided)?)).inspect_err(|_| parts.note_or_warn(before))
}

/// Everything after that. Whatever of it is done already is found done.
pub(crate) async fn finish(parts: &mut Parts, number: Number, watch: &mut Stopwatch) -> Result<(), RollbackError> {
    parts.end_vm().await?;
    parts.free_network().await?;
    parts.remove_disk().await?;
    parts.clear_run_dir();
    parts.reached(Step::RollbackEnded)?;
    watch.lap("end vm");
    parts.note(State::Paused { generation: number })?;
    parts.reached(Step::RollbackDone)?;
    watch.lap("note");
    Ok(())
}
