//! Sandboxes and what is asked of one.

use std::time::Duration;

use wrenn_engine::names::SandboxId;
use wrenn_engine::units::Mib;
use wrenn_proto::hostagent as wire;

use super::template::{fresh_in, fresh_out};
use super::{
    Malformed, Problems, invalid, malformed, millis, missing, parse, timings_in, timings_out, vmm_in, vmm_out,
};
use crate::host_agent::{
    AgentError, Change, Changed, CreateRequest, Departure, Ended, GuestStat, OnTimeout, Phase, ResumeOptions, Source,
    Start, Stat, Timeout, View, Wishes,
};

// ---- enums -----------------------------------------------------------------------------------------------------------

impl From<OnTimeout> for wire::OnTimeout {
    fn from(on_timeout: OnTimeout) -> Self {
        match on_timeout {
            OnTimeout::Pause => Self::ON_TIMEOUT_PAUSE,
            OnTimeout::Destroy => Self::ON_TIMEOUT_DESTROY,
        }
    }
}

/// `None` where it was not said.
fn on_timeout(number: i32) -> Result<Option<OnTimeout>, Malformed> {
    match number {
        0 => Ok(None),
        1 => Ok(Some(OnTimeout::Pause)),
        2 => Ok(Some(OnTimeout::Destroy)),
        unknown => Err(malformed("on_timeout", unknown)),
    }
}

impl From<Phase> for wire::Phase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Creating => Self::PHASE_CREATING,
            Phase::Running => Self::PHASE_RUNNING,
            Phase::Pausing => Self::PHASE_PAUSING,
            Phase::Paused => Self::PHASE_PAUSED,
            Phase::Resuming => Self::PHASE_RESUMING,
            Phase::Capturing => Self::PHASE_CAPTURING,
            Phase::RollingBack => Self::PHASE_ROLLING_BACK,
            Phase::Stopped => Self::PHASE_STOPPED,
            Phase::NeedsRepair => Self::PHASE_NEEDS_REPAIR,
            Phase::Destroying => Self::PHASE_DESTROYING,
        }
    }
}

fn phase(number: i32) -> Result<Phase, Malformed> {
    match number {
        1 => Ok(Phase::Creating),
        2 => Ok(Phase::Running),
        3 => Ok(Phase::Pausing),
        4 => Ok(Phase::Paused),
        5 => Ok(Phase::Resuming),
        6 => Ok(Phase::Stopped),
        7 => Ok(Phase::NeedsRepair),
        8 => Ok(Phase::Destroying),
        9 => Ok(Phase::Capturing),
        10 => Ok(Phase::RollingBack),
        unknown => Err(malformed("phase", unknown)),
    }
}

impl From<Start> for wire::Start {
    fn from(start: Start) -> Self {
        match start {
            Start::Cold => Self::START_COLD,
            Start::Warm => Self::START_WARM,
        }
    }
}

fn start(number: i32) -> Result<Start, Malformed> {
    match number {
        1 => Ok(Start::Cold),
        2 => Ok(Start::Warm),
        unknown => Err(malformed("start", unknown)),
    }
}

// ---- answers ---------------------------------------------------------------------------------------------------------

impl From<View> for wire::Sandbox {
    fn from(view: View) -> Self {
        Self {
            id: view.id.to_string(),
            revision: view.revision,
            phase: wire::Phase::from(view.phase).into(),
            reason: view.reason,
            created_unix_ms: view.created_unix_ms,
            deadline_unix_ms: view.deadline_unix_ms,
            on_timeout: wire::OnTimeout::from(view.on_timeout).into(),
            template: view.template,
            kernel: view.kernel,
            vcpus: view.vcpus,
            memory_mib: view.memory.0,
            disk_mib: view.disk.0,
            vmm: vmm_out(view.vmm).into(),
            storage: view.storage.to_string(),
            metadata: view.metadata.into_iter().collect(),
            attributes: view.attributes.into_iter().collect(),
            access_token: view.access_token,
            start: wire::Start::from(view.start).into(),
        }
    }
}

/// The sandbox that an answer must hold.
pub(in crate::rpc) fn view(sandbox: Option<wire::Sandbox>) -> Result<View, AgentError> {
    Ok(checked_view(sandbox.ok_or_else(|| missing("sandbox"))?)?)
}

fn checked_view(sandbox: wire::Sandbox) -> Result<View, Malformed> {
    Ok(View {
        id: parse("id", &sandbox.id)?,
        revision: sandbox.revision,
        phase: phase(sandbox.phase.to_i32())?,
        reason: sandbox.reason,
        created_unix_ms: sandbox.created_unix_ms,
        deadline_unix_ms: sandbox.deadline_unix_ms,
        on_timeout: on_timeout(sandbox.on_timeout.to_i32())?.ok_or_else(|| missing("on_timeout"))?,
        template: sandbox.template,
        kernel: sandbox.kernel,
        vcpus: sandbox.vcpus,
        memory: Mib(sandbox.memory_mib),
        disk: Mib(sandbox.disk_mib),
        vmm: vmm_in(sandbox.vmm.into_option())?,
        storage: parse("storage", &sandbox.storage)?,
        start: start(sandbox.start.to_i32())?,
        metadata: sandbox.metadata.into_iter().collect(),
        attributes: sandbox.attributes.into_iter().collect(),
        access_token: sandbox.access_token,
    })
}

impl From<Changed> for wire::Changed {
    fn from(changed: Changed) -> Self {
        Self { sandbox: wire::Sandbox::from(changed.view).into(), timings: timings_out(changed.timings) }
    }
}

/// The change that an answer must hold.
pub(in crate::rpc) fn changed(changed: Option<wire::Changed>) -> Result<Changed, AgentError> {
    let changed = changed.ok_or_else(|| missing("changed"))?;
    Ok(Changed { view: view(changed.sandbox.into_option())?, timings: timings_in(changed.timings) })
}

/// What happened, as it goes out.
pub(in crate::rpc) fn change_event(change: Change) -> wire::watch_response::Event {
    match change {
        Change::Is(view) => wire::Sandbox::from(view).into(),
        Change::Complete => wire::watch_response::Complete {}.into(),
        Change::Gone(Departure { id, why, at_unix_ms }) => {
            wire::Departure { id: id.to_string(), why: why.as_str().to_owned(), at_unix_ms }.into()
        }
    }
}

/// What happened; `None` where nothing did.
pub(in crate::rpc) fn change(event: wire::watch_response::Event) -> Result<Option<Change>, AgentError> {
    Ok(match event {
        wire::watch_response::Event::Is(sandbox) => Some(Change::Is(checked_view(*sandbox)?)),
        wire::watch_response::Event::Complete(_) => Some(Change::Complete),
        wire::watch_response::Event::Gone(gone) => Some(Change::Gone(departure(*gone)?)),
        wire::watch_response::Event::Keepalive(_) => None,
    })
}

fn departure(gone: wire::Departure) -> Result<Departure, Malformed> {
    let why = Ended::ALL.into_iter().find(|why| why.as_str() == gone.why);
    let why = why.ok_or_else(|| malformed("why", &gone.why))?;
    Ok(Departure { id: parse("id", &gone.id)?, why, at_unix_ms: gone.at_unix_ms })
}

impl From<Stat> for wire::StatResponse {
    fn from(stat: Stat) -> Self {
        Self {
            memory_bytes: stat.memory_bytes,
            cpu_ms: stat.cpu_ms,
            disk_own_bytes: stat.disk_own_bytes,
            disk_shared_bytes: stat.disk_shared_bytes,
            memory_file_bytes: stat.memory_file_bytes,
            vmm_pid: stat.vmm_pid,
            network_rx_bytes: stat.network_rx_bytes,
            network_tx_bytes: stat.network_tx_bytes,
            guest: stat.guest.map(Into::into).into(),
        }
    }
}

impl From<wire::StatResponse> for Stat {
    fn from(stat: wire::StatResponse) -> Self {
        Self {
            memory_bytes: stat.memory_bytes,
            cpu_ms: stat.cpu_ms,
            disk_own_bytes: stat.disk_own_bytes,
            disk_shared_bytes: stat.disk_shared_bytes,
            memory_file_bytes: stat.memory_file_bytes,
            vmm_pid: stat.vmm_pid,
            network_rx_bytes: stat.network_rx_bytes,
            network_tx_bytes: stat.network_tx_bytes,
            guest: stat.guest.into_option().map(Into::into),
        }
    }
}

impl From<GuestStat> for wire::GuestStat {
    fn from(guest: GuestStat) -> Self {
        Self {
            unix_ms: guest.unix_ms,
            cpus: guest.cpus,
            cpu_percent: guest.cpu_percent,
            memory_total_bytes: guest.memory_total_bytes,
            memory_used_bytes: guest.memory_used_bytes,
            disk_total_bytes: guest.disk_total_bytes,
            disk_used_bytes: guest.disk_used_bytes,
        }
    }
}

impl From<wire::GuestStat> for GuestStat {
    fn from(guest: wire::GuestStat) -> Self {
        Self {
            unix_ms: guest.unix_ms,
            cpus: guest.cpus,
            cpu_percent: guest.cpu_percent,
            memory_total_bytes: guest.memory_total_bytes,
            memory_used_bytes: guest.memory_used_bytes,
            disk_total_bytes: guest.disk_total_bytes,
            disk_used_bytes: guest.disk_used_bytes,
        }
    }
}

// ---- requests --------------------------------------------------------------------------------------------------------

/// The sandbox that a request names.
pub(in crate::rpc) fn sandbox_id(text: &str) -> Result<SandboxId, AgentError> {
    text.parse().map_err(|error: wrenn_engine::names::NameError| invalid(error.to_string()))
}

/// The request as it goes out; a path that is no text cannot.
pub(in crate::rpc) fn create_request(request: CreateRequest) -> Result<wire::CreateRequest, AgentError> {
    let source = match request.source {
        Source::Template(fresh) => fresh_out(fresh)?.into(),
        Source::Snapshot(snapshot) => wire::create_request::Source::Snapshot(snapshot),
    };
    let wishes = request.wishes;
    Ok(wire::CreateRequest {
        source: Some(source),
        env: wishes.env.into_iter().collect(),
        metadata: wishes.metadata.into_iter().collect(),
        attributes: wishes.attributes.into_iter().collect(),
        timeout_ms: wishes.timeout.map(millis),
        on_timeout: wire::OnTimeout::from(wishes.on_timeout).into(),
        ready_limit_ms: millis(wishes.ready_limit),
        bound: wishes.bound,
    })
}

/// The request as it came in, checked.
pub(in crate::rpc) fn checked_create(request: wire::CreateRequest) -> Result<CreateRequest, AgentError> {
    let source = request.source.ok_or_else(|| {
        invalid("neither a template nor a snapshot to start from; is it of another version?".to_owned())
    })?;
    let mut problems = Problems::default();
    let source = checked_source(&mut problems, source);
    let wishes = Wishes {
        env: request.env.into_iter().collect(),
        metadata: request.metadata.into_iter().collect(),
        attributes: request.attributes.into_iter().collect(),
        timeout: request.timeout_ms.map(Duration::from_millis),
        on_timeout: problems.take(on_timeout(request.on_timeout.to_i32())).unwrap_or_default(),
        ready_limit: Duration::from_millis(request.ready_limit_ms),
        bound: request.bound,
    };
    problems.check_env(&wishes.env);
    problems.check_labels(&wishes.metadata);
    problems.check_attributes(&wishes.attributes);
    problems.check_timeout(wishes.timeout);
    problems.check_ready_limit(wishes.ready_limit);
    problems.into_result()?;
    Ok(CreateRequest { source, wishes })
}

fn checked_source(problems: &mut Problems, source: wire::create_request::Source) -> Source {
    match source {
        wire::create_request::Source::Template(fresh) => Source::Template(fresh_in(problems, *fresh)),
        wire::create_request::Source::Snapshot(snapshot) => {
            problems.check_snapshot(&snapshot);
            Source::Snapshot(snapshot)
        }
    }
}

/// How a sandbox is to be resumed, as it goes out.
pub(in crate::rpc) fn resume_request(id: &SandboxId, options: ResumeOptions) -> wire::ResumeRequest {
    wire::ResumeRequest {
        id: id.to_string(),
        ready_limit_ms: millis(options.ready_limit),
        timeout_ms: options.timeout.map(millis),
    }
}

/// How a sandbox is to be resumed, as it came in, checked.
pub(in crate::rpc) fn checked_resume(request: &wire::ResumeRequest) -> Result<ResumeOptions, AgentError> {
    let mut problems = Problems::default();
    let options = resume_options(&mut problems, request.ready_limit_ms, request.timeout_ms);
    problems.into_result()?;
    Ok(options)
}

/// How a sandbox comes back from rest or from a snapshot, checked.
pub(super) fn resume_options(problems: &mut Problems, ready_limit_ms: u64, timeout_ms: Option<u64>) -> ResumeOptions {
    let options = ResumeOptions {
        ready_limit: Duration::from_millis(ready_limit_ms),
        timeout: timeout_ms.map(Duration::from_millis),
    };
    problems.check_timeout(options.timeout);
    problems.check_ready_limit(options.ready_limit);
    options
}

/// Another timeout, as it goes out.
pub(in crate::rpc) fn timeout_request(id: &SandboxId, timeout: Timeout) -> wire::SetTimeoutRequest {
    let on_timeout = timeout.on_timeout.map_or(wire::OnTimeout::ON_TIMEOUT_UNSPECIFIED, wire::OnTimeout::from);
    wire::SetTimeoutRequest { id: id.to_string(), after_ms: timeout.after.map(millis), on_timeout: on_timeout.into() }
}

/// Another timeout, as it came in, checked.
pub(in crate::rpc) fn checked_timeout(request: &wire::SetTimeoutRequest) -> Result<Timeout, AgentError> {
    let mut problems = Problems::default();
    let timeout = Timeout {
        after: request.after_ms.map(Duration::from_millis),
        on_timeout: problems.take(on_timeout(request.on_timeout.to_i32())),
    };
    problems.check_timeout(timeout.after);
    problems.into_result()?;
    Ok(timeout)
}

#[cfg(test)]
mod tests {
    use super::super::limits;
    use super::*;
    use crate::host_agent::Code;

    fn fresh() -> wire::Fresh {
        wire::Fresh { template: "minimal".to_owned(), vcpus: 1, memory_mib: 256, ..Default::default() }
    }

    fn request() -> wire::CreateRequest {
        wire::CreateRequest { source: Some(fresh().into()), ..Default::default() }
    }

    #[test]
    fn everything_wrong_with_a_request_is_told_at_once() {
        let long = "x".repeat(limits::LABEL_VALUE_BYTES_MAX + 1);
        let asked = wire::CreateRequest {
            source: Some(wire::Fresh { template: String::new(), kernel: Some("vmlinuz".to_owned()), ..fresh() }.into()),
            env: (0..=limits::ENV_MAX).map(|n| (format!("A={n}"), "x".repeat(1024))).collect(),
            metadata: (0..=limits::LABELS_MAX).map(|n| (n.to_string(), long.clone())).collect(),
            attributes: (0..=limits::LABELS_MAX + 1).map(|n| (n.to_string(), long.clone())).collect(),
            timeout_ms: Some(u64::MAX),
            on_timeout: 9.into(),
            ready_limit_ms: u64::MAX,
            ..request()
        };
        let error = checked_create(asked).unwrap_err();
        assert_eq!(error.code, Code::Invalid);
        for part in [
            "on_timeout: 9",
            "a template's name of 0 bytes",
            "the kernel's path must be absolute",
            "257 environment variables: 256 are the most",
            "an environment of ",
            "without `=`",
            "65 labels: 64 are the most",
            "a label has a key of 1 to 256 bytes and a value of at most 4096",
            "66 attributes: 64 are the most",
            "an attribute has a key of 1 to 256 bytes and a value of at most 4096",
            "a timeout of ",
            "a boot timeout of ",
        ] {
            assert!(error.message.contains(part), "{part} is not in: {}", error.message);
        }
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        let value = "x".repeat(limits::LABEL_VALUE_BYTES_MAX);
        let key = |n: usize| format!("{n:0width$}", width = limits::LABEL_KEY_BYTES_MAX);
        let per_variable = limits::ENV_BYTES_MAX / limits::ENV_MAX;
        let asked = wire::CreateRequest {
            env: (0..limits::ENV_MAX).map(|n| (format!("{n:04}"), "x".repeat(per_variable - 4))).collect(),
            metadata: (0..limits::LABELS_MAX).map(|n| (key(n), value.clone())).collect(),
            attributes: (0..limits::LABELS_MAX).map(|n| (key(n), value.clone())).collect(),
            ..request()
        };
        let wishes = checked_create(asked).unwrap().wishes;
        assert_eq!((wishes.metadata.len(), wishes.attributes.len()), (limits::LABELS_MAX, limits::LABELS_MAX));
    }

    #[test]
    fn a_request_that_starts_from_nothing_is_of_another_version() {
        let error = checked_create(wire::CreateRequest { source: None, ..request() }).unwrap_err();
        assert!(error.code == Code::Invalid && error.message.contains("version"), "{error}");
    }

    #[test]
    fn a_snapshot_to_start_from_has_a_name() {
        for name in ["", ".hidden", "a/b/c", "A", &"x".repeat(65)] {
            let source = Some(wire::create_request::Source::Snapshot(name.to_owned()));
            let error = checked_create(wire::CreateRequest { source, ..request() }).unwrap_err();
            assert!(error.code == Code::Invalid && error.message.contains("a snapshot's name"), "{error}");
        }
    }

    #[test]
    fn every_phase_and_start_comes_back_as_it_went() {
        for phase in [
            Phase::Creating,
            Phase::Running,
            Phase::Pausing,
            Phase::Paused,
            Phase::Resuming,
            Phase::Capturing,
            Phase::RollingBack,
            Phase::Stopped,
            Phase::NeedsRepair,
            Phase::Destroying,
        ] {
            assert_eq!(super::phase(wire::Phase::from(phase) as i32), Ok(phase));
        }
        for start in [Start::Cold, Start::Warm] {
            assert_eq!(super::start(wire::Start::from(start) as i32), Ok(start));
        }
        assert!(super::phase(0).is_err() && super::start(0).is_err() && super::start(3).is_err());
    }

    #[test]
    fn every_end_comes_back_as_it_went_and_another_versions_is_named() {
        for why in Ended::ALL {
            let gone = || Change::Gone(Departure { id: SandboxId::from_random([3; 18]), why, at_unix_ms: u64::MAX });
            assert_eq!(change(change_event(gone())), Ok(Some(gone())));
        }
        assert_eq!(change(wire::KeepAlive {}.into()), Ok(None));
        let gone = wire::Departure { id: "sb0123456789abcdefgh".to_owned(), why: "bored".to_owned(), at_unix_ms: 1 };
        let error = change(gone.into()).unwrap_err();
        assert!(error.message.contains("why: bored") && error.message.contains("version"), "{error}");
    }

    #[test]
    fn an_answer_from_another_version_is_named() {
        let error = view(Some(wire::Sandbox { vmm: wire::Vmm::default().into(), ..Default::default() })).unwrap_err();
        assert!(error.message.contains("id: `` is not a sandbox id") && error.message.contains("version"), "{error}");
    }
}
