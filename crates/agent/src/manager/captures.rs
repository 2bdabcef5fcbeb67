//! Snapshots and forks: what is captured by a sandbox's actor, and what is started from it.
//!
//! ```text
//!   snapshot:  actor captures ─► many layers made one ─► named, committed
//!   fork:      actor captures ─► never named ─┬─► child, child, … as many at once as there are CPUs
//!                                             └─► thrown away when the last of them has names for its files
//! ```

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use wrenn_engine::limits;
use wrenn_engine::names::{SandboxId, SnapshotId};
use wrenn_engine::units::Mib;

use super::Manager;
use super::actor::Request;
use crate::faults::Step;
use crate::flatten;
use crate::generation::Generation;
use crate::host_agent::{
    AgentError, Changed, Code, ForkRequest, Forked, SnapshotRequest, SnapshotView, Snapshotted, Wishes,
};
use crate::instance::random_bytes;
use crate::sandbox::{self, Owner, Timing, blocking};
use crate::snapshot::{Record, SnapshotError, Stored, Unfinished};

impl Manager {
    /// A snapshot under a name.
    pub(super) async fn keep(&self, id: &SandboxId, request: SnapshotRequest) -> Result<Snapshotted, AgentError> {
        let snapshots = self.shared.host.snapshots.clone();
        if let Some(name) = &request.name {
            snapshots.check_free(name).map_err(|error| snapshot_error(&error))?;
        }
        if snapshots.records().len() >= limits::SNAPSHOTS_MAX {
            let message = format!("there are {} snapshots already: remove some", limits::SNAPSHOTS_MAX);
            return Err(AgentError { code: Code::Exhausted, message });
        }
        let (made, record, timings) = self.capture(id, request).await?;
        let (made, record) = self.shorten(made, record).await;
        let naming = Arc::clone(&self.shared);
        let stored = blocking(move || naming.name(made, &record)).await.map_err(|error| snapshot_error(&error))?;
        let injected = self.shared.host.faults.at(Step::CaptureDone, None);
        injected.map_err(|error| AgentError::of(Code::Failed, &error))?;
        let view = blocking(move || stored.view()).await.map_err(|error| snapshot_error(&error))?;
        Ok(Snapshotted { view, timings })
    }

    /// What the sandbox is now, begun under an id of its own.
    async fn capture(
        &self,
        id: &SandboxId,
        request: SnapshotRequest,
    ) -> Result<(Unfinished, Record, Vec<Timing>), AgentError> {
        let snapshot = SnapshotId::from_random(random_bytes());
        let made = self.shared.host.snapshots.begin(&snapshot).map_err(|error| snapshot_error(&error))?;
        let stored = made.stored().clone();
        let (record, timings) = self.ask(id, |reply| Request::Capture(stored, reply)).await?;
        Ok((made, record.wanted(snapshot, request), timings))
    }

    /// A disk that stands on many layers stands on one, if that can be done. The sandbox has gone on by now.
    async fn shorten(&self, made: Unfinished, record: Record) -> (Unfinished, Record) {
        let host = Arc::clone(&self.shared.host);
        blocking(move || {
            if let Err(error) = flatten::shorten(&host, made.stored(), &record) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(snapshot = %record.id, error, "its disk goes on standing on many layers");
            }
            (made, record)
        })
        .await
    }

    pub(super) async fn forget(&self, snapshot: &str) -> Result<SnapshotView, AgentError> {
        let (snapshots, wanted) = (self.shared.host.snapshots.clone(), snapshot.to_owned());
        let removed = blocking(move || -> Result<SnapshotView, SnapshotError> {
            let view = snapshots.find(&wanted)?.view()?;
            snapshots.remove(&view.id)?;
            Ok(view)
        });
        removed.await.map_err(|error| snapshot_error(&error))
    }

    /// Memory that a sandbox from this snapshot has.
    pub(super) fn memory_of(&self, snapshot: &str) -> Result<Mib, AgentError> {
        let memory = || Ok(Generation::read(&self.shared.host.snapshots.find(snapshot)?.generation())?.memory_mib);
        memory().map_err(|error: SnapshotError| snapshot_error(&error))
    }

    /// The snapshot, if it was made of this sandbox.
    pub(super) fn snapshot_of(&self, id: &SandboxId, snapshot: &str) -> Result<Stored, AgentError> {
        let stored = self.shared.host.snapshots.find(snapshot).map_err(|error| snapshot_error(&error))?;
        let of = stored.record().map_err(|error| snapshot_error(&error))?.sandbox;
        if of != *id {
            let message = format!(
                "the snapshot `{snapshot}` is of the sandbox {of}, and not of {id}; start a new one from it: `wrenn sandbox \
                 create --snapshot {snapshot}`"
            );
            return Err(AgentError { code: Code::Invalid, message });
        }
        Ok(stored)
    }

    /// Forks of a sandbox.
    pub(super) async fn multiply(&self, id: &SandboxId, request: ForkRequest) -> Result<Forked, AgentError> {
        if !(1..=limits::FORKS_MAX).contains(&request.count) {
            let message = format!("{} forks: 1 to {} at once", request.count, limits::FORKS_MAX);
            return Err(AgentError { code: Code::Invalid, message });
        }
        let (made, record, timings) = self.capture(id, SnapshotRequest::default()).await?;
        let wishes = wishes_of(&record, &request);
        let stored = made.stored().clone();
        blocking(move || stored.write(&record)).await.map_err(|error| snapshot_error(&error))?;
        let children = self.raise_all(made.stored(), &wishes, request.count).await?;
        // Each has names of its own for the files by now.
        blocking(move || drop(made)).await;
        Ok(Forked { children, timings })
    }

    /// As many sandboxes as are wanted; as many at once as there are CPUs: more would only make all of them late.
    async fn raise_all(
        &self,
        stored: &Stored,
        wishes: &Wishes,
        count: u32,
    ) -> Result<Vec<Result<Changed, AgentError>>, AgentError> {
        let captured = Generation::read(&stored.generation()).map_err(|error| AgentError::of(Code::Failed, &error))?;
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = Arc::new(Semaphore::new(at_once));
        let mut children = JoinSet::new();
        for index in 0..count as usize {
            let (manager, turns) = (self.clone(), Arc::clone(&turns));
            let (stored, wishes) = (stored.clone(), wishes.clone());
            children.spawn(async move {
                let _turn = turns.acquire().await.expect("nobody closes it");
                let begin = move |host: &Arc<_>| sandbox::begin_from(host, &stored, &wishes, Owner::Instance);
                let child = manager.raise(captured.memory_mib, false, begin).await;
                (index, child.map(|created| created.changed))
            });
        }
        let mut results = Vec::new();
        while let Some(child) = children.join_next().await {
            results.push(child.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic())));
        }
        results.sort_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, child)| child).collect())
    }
}

impl super::Shared {
    /// Makes a snapshot findable. Of two that want the same name, one gets it.
    fn name(&self, made: Unfinished, record: &Record) -> Result<Stored, SnapshotError> {
        let _one_at_a_time = self.naming.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(name) = &record.name {
            self.host.snapshots.check_free(name)?;
        }
        made.commit(record)
    }
}

fn wishes_of(record: &Record, request: &ForkRequest) -> Wishes {
    Wishes {
        env: record.env.clone(),
        metadata: request.metadata.clone(),
        attributes: request.attributes.clone(),
        timeout: request.timeout.or(record.timeout_ms.map(Duration::from_millis)),
        on_timeout: record.on_timeout,
        ready_limit: request.ready_limit,
        bound: false,
    }
}

/// The kind of what is wrong with a snapshot.
pub(super) fn snapshot_error(error: &SnapshotError) -> AgentError {
    let code = match error {
        SnapshotError::Unknown(_) => Code::NotFound,
        SnapshotError::NameTaken(_) | SnapshotError::BadName(_) => Code::Invalid,
        SnapshotError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Code::Exhausted,
        SnapshotError::Io { .. }
        | SnapshotError::Damaged { .. }
        | SnapshotError::Version { .. }
        | SnapshotError::Generation(_) => Code::Failed,
    };
    AgentError::of(code, error)
}
