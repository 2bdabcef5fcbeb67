//! Snapshots, forks and the way back to a snapshot.

use std::time::Duration;

use wrenn_engine::limits::FORKS_MAX;
use wrenn_engine::names::SandboxId;
use wrenn_engine::units::Mib;
use wrenn_proto::hostagent as wire;

use super::sandbox::{changed, resume_options};
use super::{Malformed, Problems, code, malformed, millis, missing, parse, timings_in, timings_out, vmm_in, vmm_out};
use crate::host_agent::{
    AgentError, Changed, ForkRequest, Forked, ResumeOptions, SnapshotRequest, SnapshotView, Snapshotted,
};

// ---- answers ---------------------------------------------------------------------------------------------------------

impl From<SnapshotView> for wire::Snapshot {
    fn from(view: SnapshotView) -> Self {
        Self {
            id: view.id.to_string(),
            name: view.name,
            created_unix_ms: view.created_unix_ms,
            sandbox: view.sandbox.to_string(),
            template: view.template,
            kernel: view.kernel,
            vcpus: view.vcpus,
            memory_mib: view.memory.0,
            disk_mib: view.disk.0,
            vmm: vmm_out(view.vmm).into(),
            has_memory: view.has_memory,
            own_bytes: view.own_bytes,
            shared_bytes: view.shared_bytes,
            attributes: view.attributes.into_iter().collect(),
        }
    }
}

/// The snapshot that an answer must hold.
pub(in crate::rpc) fn snapshot_view(snapshot: Option<wire::Snapshot>) -> Result<SnapshotView, AgentError> {
    Ok(checked_view(snapshot.ok_or_else(|| missing("snapshot"))?)?)
}

fn checked_view(snapshot: wire::Snapshot) -> Result<SnapshotView, Malformed> {
    Ok(SnapshotView {
        id: parse("id", &snapshot.id)?,
        name: snapshot.name,
        created_unix_ms: snapshot.created_unix_ms,
        sandbox: parse("sandbox", &snapshot.sandbox)?,
        template: snapshot.template,
        kernel: snapshot.kernel,
        vcpus: snapshot.vcpus,
        memory: Mib(snapshot.memory_mib),
        disk: Mib(snapshot.disk_mib),
        vmm: vmm_in(snapshot.vmm.into_option())?,
        has_memory: snapshot.has_memory,
        own_bytes: snapshot.own_bytes,
        shared_bytes: snapshot.shared_bytes,
        attributes: snapshot.attributes.into_iter().collect(),
    })
}

impl From<Snapshotted> for wire::SnapshotResponse {
    fn from(made: Snapshotted) -> Self {
        Self { snapshot: wire::Snapshot::from(made.view).into(), timings: timings_out(made.timings) }
    }
}

/// The new snapshot that an answer must hold.
pub(in crate::rpc) fn snapshotted(answer: wire::SnapshotResponse) -> Result<Snapshotted, AgentError> {
    let view = snapshot_view(answer.snapshot.into_option())?;
    Ok(Snapshotted { view, timings: timings_in(answer.timings) })
}

/// What is told of forks: the capture, then each of them.
pub(in crate::rpc) fn fork_events(forked: Forked) -> Vec<wire::fork_response::Event> {
    let captured = wire::fork_response::Captured { timings: timings_out(forked.timings) };
    let child = |child: Result<Changed, AgentError>| match child {
        Ok(changed) => wire::Changed::from(changed).into(),
        Err(AgentError { code, message }) => {
            wire::fork_response::Failed { code: code.as_str().to_owned(), message }.into()
        }
    };
    std::iter::once(captured.into()).chain(forked.children.into_iter().map(child)).collect()
}

/// Puts together what was told of forks.
#[derive(Debug, Default)]
pub(in crate::rpc) struct Forks {
    timings: Option<Vec<crate::sandbox::Timing>>,
    children: Vec<Result<Changed, AgentError>>,
}

impl Forks {
    /// Takes what was told next.
    pub fn take(&mut self, event: wire::fork_response::Event) -> Result<(), AgentError> {
        match event {
            wire::fork_response::Event::Captured(captured) => self.timings = Some(timings_in(captured.timings)),
            wire::fork_response::Event::Made(made) => self.children.push(Ok(changed(Some(*made))?)),
            wire::fork_response::Event::Failed(failed) => {
                let code = code(&failed.code).ok_or_else(|| malformed("code", &failed.code))?;
                self.children.push(Err(AgentError { code, message: failed.message }));
            }
            wire::fork_response::Event::Keepalive(_) => {}
        }
        Ok(())
    }

    /// All of it, once the agent has no more to tell.
    pub fn finish(self, count: u32) -> Result<Forked, AgentError> {
        let timings = self.timings.ok_or_else(|| missing("captured"))?;
        if self.children.len() != count as usize {
            return Err(malformed("forks", format!("{} of {count} are told of", self.children.len())).into());
        }
        Ok(Forked { children: self.children, timings })
    }
}

// ---- requests --------------------------------------------------------------------------------------------------------

/// How a snapshot is wanted, as it goes out.
pub(in crate::rpc) fn snapshot_request(id: &SandboxId, request: SnapshotRequest) -> wire::SnapshotRequest {
    let attributes = request.attributes.into_iter().collect();
    wire::SnapshotRequest { id: id.to_string(), name: request.name, attributes }
}

/// How a snapshot is wanted, as it came in, checked.
pub(in crate::rpc) fn checked_snapshot(request: wire::SnapshotRequest) -> Result<SnapshotRequest, AgentError> {
    let mut problems = Problems::default();
    let request = SnapshotRequest { name: request.name, attributes: request.attributes.into_iter().collect() };
    if let Some(name) = &request.name {
        problems.check_name(name);
    }
    problems.check_attributes(&request.attributes);
    problems.into_result()?;
    Ok(request)
}

/// The snapshot that a request names, by name or id.
pub(in crate::rpc) fn snapshot_name(name: &str) -> Result<String, AgentError> {
    let mut problems = Problems::default();
    problems.check_snapshot(name);
    problems.into_result()?;
    Ok(name.to_owned())
}

/// How forks are wanted, as it goes out.
pub(in crate::rpc) fn fork_request(id: &SandboxId, request: ForkRequest) -> wire::ForkRequest {
    wire::ForkRequest {
        id: id.to_string(),
        count: request.count,
        ready_limit_ms: millis(request.ready_limit),
        timeout_ms: request.timeout.map(millis),
        metadata: request.metadata.into_iter().collect(),
        attributes: request.attributes.into_iter().collect(),
    }
}

/// How forks are wanted, as it came in, checked.
pub(in crate::rpc) fn checked_fork(request: wire::ForkRequest) -> Result<ForkRequest, AgentError> {
    let mut problems = Problems::default();
    let request = ForkRequest {
        count: request.count,
        ready_limit: Duration::from_millis(request.ready_limit_ms),
        timeout: request.timeout_ms.map(Duration::from_millis),
        metadata: request.metadata.into_iter().collect(),
        attributes: request.attributes.into_iter().collect(),
    };
    problems.check((1..=FORKS_MAX).contains(&request.count), || {
        format!("{} forks: 1 to {} can be made at once", request.count, FORKS_MAX)
    });
    problems.check_labels(&request.metadata);
    problems.check_attributes(&request.attributes);
    problems.check_timeout(request.timeout);
    problems.check_ready_limit(request.ready_limit);
    problems.into_result()?;
    Ok(request)
}

/// Where a sandbox is to go back to, as it goes out.
pub(in crate::rpc) fn rollback_request(
    id: &SandboxId,
    snapshot: &str,
    options: ResumeOptions,
) -> wire::RollBackRequest {
    wire::RollBackRequest {
        id: id.to_string(),
        snapshot: snapshot.to_owned(),
        ready_limit_ms: millis(options.ready_limit),
        timeout_ms: options.timeout.map(millis),
    }
}

/// Where a sandbox is to go back to, as it came in, checked.
pub(in crate::rpc) fn checked_rollback(request: wire::RollBackRequest) -> Result<(String, ResumeOptions), AgentError> {
    let mut problems = Problems::default();
    problems.check_snapshot(&request.snapshot);
    let options = resume_options(&mut problems, request.ready_limit_ms, request.timeout_ms);
    problems.into_result()?;
    Ok((request.snapshot, options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_agent::Code;

    #[test]
    fn everything_wrong_with_forks_is_told_at_once() {
        let asked = wire::ForkRequest {
            count: 0,
            ready_limit_ms: u64::MAX,
            timeout_ms: Some(u64::MAX),
            metadata: [(String::new(), String::new())].into_iter().collect(),
            attributes: [(String::new(), String::new())].into_iter().collect(),
            ..Default::default()
        };
        let error = checked_fork(asked).unwrap_err();
        assert_eq!(error.code, Code::Invalid);
        for part in ["0 forks: 1 to 1024", "a label has", "an attribute has", "a timeout of ", "a boot timeout of "] {
            assert!(error.message.contains(part), "{part} is not in: {}", error.message);
        }
        let count = |count| checked_fork(wire::ForkRequest { count, ..Default::default() }).is_ok();
        assert!(count(1) && count(FORKS_MAX) && !count(FORKS_MAX + 1) && !count(u32::MAX));
    }

    #[test]
    fn a_snapshots_name_is_none_of_an_id() {
        let named =
            |name: &str| checked_snapshot(wire::SnapshotRequest { name: Some(name.to_owned()), ..Default::default() });
        for name in ["a", "0", "before.the-change_2", "sn", "sb0123456789abcdefgh", "acme/a", &"x".repeat(64)] {
            assert_eq!(named(name), Ok(SnapshotRequest { name: Some(name.to_owned()), ..SnapshotRequest::default() }));
        }
        for name in ["", "-a", ".", "..", "a/b/c", "a b", "A", "ä", "a\n", &"x".repeat(65), "sn0123456789abcdefgh"] {
            assert!(named(name).unwrap_err().message.contains("cannot be a snapshot's name"), "{name}");
        }
        assert_eq!(checked_snapshot(wire::SnapshotRequest::default()), Ok(SnapshotRequest::default()));
        assert_eq!(snapshot_name("sn0123456789abcdefgh").unwrap(), "sn0123456789abcdefgh");
    }

    #[test]
    fn both_problems_of_a_way_back_are_told() {
        let request = wire::RollBackRequest { ready_limit_ms: u64::MAX, ..Default::default() };
        let error = checked_rollback(request).unwrap_err();
        assert!(error.message.contains("a snapshot's name") && error.message.contains("a boot timeout"), "{error}");
    }

    #[test]
    fn forks_that_are_not_told_of_are_missed() {
        let captured = || wire::fork_response::Captured::default().into();
        let failed = |code: &str| -> wire::fork_response::Event {
            wire::fork_response::Failed { code: code.to_owned(), message: "why".to_owned() }.into()
        };
        let told = |events: Vec<wire::fork_response::Event>| {
            let mut forks = Forks::default();
            events.into_iter().try_for_each(|event| forks.take(event))?;
            forks.finish(1)
        };
        assert_eq!(told(vec![captured(), failed("exhausted")]).unwrap().children.len(), 1);
        for (events, word) in [
            (vec![captured()], "0 of 1"),
            (vec![captured(), failed("failed"), failed("failed")], "2 of 1"),
            (vec![failed("failed")], "captured: missing"),
            (vec![captured(), failed("bored")], "code: bored"),
            (vec![captured(), wire::Changed::default().into()], "sandbox: missing"),
        ] {
            let error = told(events).unwrap_err();
            assert!(error.message.contains(word) && error.message.contains("version"), "{error}");
        }
    }

    #[test]
    fn a_snapshot_from_another_version_is_named() {
        let of = |snapshot| snapshot_view(snapshot).unwrap_err().message;
        assert!(of(None).contains("snapshot: missing"));
        let snapshot = wire::Snapshot { id: "sb0123456789abcdefgh".to_owned(), ..Default::default() };
        assert!(of(Some(snapshot)).contains("is not a snapshot id"));
    }
}
