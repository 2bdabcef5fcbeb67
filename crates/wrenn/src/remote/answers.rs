//! What a server answers, as an agent would. What makes no sense is an error that says what.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use wrenn_agent::host_agent::{
    AgentError, Change, Changed, Code, Departure, Ended, Forked, GuestStat, HostView, OnTimeout, Phase, SnapshotView,
    Snapshotted, Start, Stat, TemplateView, View, WarmView, Warmed,
};
use wrenn_agent::sandbox::Timing;
use wrenn_client::{ClientError, Event, types};
use wrenn_engine::names::SandboxId;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::Description;

/// A step that takes longer is a server's mistake.
const STEP_LIMIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What a client says, as an agent would.
pub fn agent_error(error: &ClientError) -> AgentError {
    let code = match error {
        ClientError::Refused { error, .. } => code(error.code),
        ClientError::Unreachable { .. } | ClientError::Broke { .. } => Code::Unavailable,
        ClientError::Url { .. } | ClientError::Key | ClientError::Name(_) => Code::Invalid,
        ClientError::Set { .. } | ClientError::Protocol { .. } => Code::Failed,
    };
    AgentError::of(code, error)
}

/// An answer that makes no sense.
pub fn senseless(detail: impl Display) -> AgentError {
    let message = format!("the server's answer is not understood ({detail}); is it of another version?");
    AgentError { code: Code::Failed, message }
}

fn code(code: types::Code) -> Code {
    match code {
        types::Code::Invalid
        | types::Code::MethodNotAllowed
        | types::Code::TooLarge
        | types::Code::UnsupportedMediaType
        | types::Code::RangeNotSatisfiable => Code::Invalid,
        types::Code::Unauthenticated | types::Code::Forbidden | types::Code::Conflict => Code::Denied,
        types::Code::NotFound => Code::NotFound,
        types::Code::Destroyed => Code::Destroyed,
        types::Code::QuotaExceeded | types::Code::RateLimited | types::Code::Exhausted => Code::Exhausted,
        types::Code::Failed => Code::Failed,
        types::Code::NeedsRepair => Code::NeedsRepair,
        types::Code::Unavailable => Code::Unavailable,
    }
}

fn told(error: types::ErrorBody) -> AgentError {
    let types::ErrorBody { code: kind, message, remedy } = error;
    let message = match remedy.filter(|remedy| !message.contains(remedy)) {
        Some(remedy) => format!("{message}; {remedy}"),
        None => message,
    };
    AgentError { code: code(kind), message }
}

/// Why long work did not succeed.
pub fn failed(operation: types::Operation) -> AgentError {
    operation.error.map_or_else(|| senseless(format_args!("{} failed without a reason", operation.id)), told)
}

/// A sandbox. A key that may only read is not told the token: then its guest cannot be used, which the guest will say.
pub fn view(sandbox: types::Sandbox) -> Result<View, AgentError> {
    Ok(View {
        id: sandbox.id.parse().map_err(senseless)?,
        revision: sandbox.revision,
        phase: phase(sandbox.state),
        reason: sandbox.reason,
        created_unix_ms: sandbox.created_unix_ms,
        deadline_unix_ms: sandbox.deadline_unix_ms,
        on_timeout: on_timeout(sandbox.on_timeout),
        template: sandbox.template,
        kernel: sandbox.kernel,
        vcpus: sandbox.vcpus,
        memory: Mib(sandbox.memory_mib),
        disk: Mib(sandbox.disk_mib),
        vmm: description(sandbox.vmm)?,
        storage: sandbox.storage.parse().map_err(senseless)?,
        start: start(sandbox.start),
        metadata: sandbox.metadata,
        attributes: BTreeMap::new(),
        access_token: sandbox.access_token.unwrap_or_default(),
    })
}

/// A sandbox after a change.
pub fn changed(changed: types::Changed) -> Result<Changed, AgentError> {
    Ok(Changed { view: view(changed.sandbox)?, timings: timings(changed.timings) })
}

/// Something that happened.
pub fn change(event: Event) -> Result<Change, AgentError> {
    Ok(match event {
        Event::Sandbox(sandbox) => Change::Is(view(*sandbox)?),
        Event::Complete => Change::Complete,
        Event::Gone(types::Departure { id, why, ended_unix_ms }) => {
            Change::Gone(Departure { id: id.parse().map_err(senseless)?, why: ended(why), at_unix_ms: ended_unix_ms })
        }
    })
}

/// A snapshot.
pub fn snapshot_view(snapshot: types::Snapshot) -> Result<SnapshotView, AgentError> {
    Ok(SnapshotView {
        id: snapshot.id.parse().map_err(senseless)?,
        name: snapshot.name,
        created_unix_ms: snapshot.created_unix_ms,
        sandbox: snapshot.sandbox.parse().map_err(senseless)?,
        template: snapshot.template,
        kernel: snapshot.kernel,
        vcpus: snapshot.vcpus,
        memory: Mib(snapshot.memory_mib),
        disk: Mib(snapshot.disk_mib),
        vmm: description(snapshot.vmm)?,
        has_memory: snapshot.has_memory,
        own_bytes: snapshot.own_bytes,
        shared_bytes: snapshot.shared_bytes,
        attributes: BTreeMap::new(),
    })
}

/// A new snapshot.
pub fn snapshotted(new: types::NewSnapshot) -> Result<Snapshotted, AgentError> {
    Ok(Snapshotted { view: snapshot_view(new.snapshot)?, timings: timings(new.timings) })
}

/// New forks.
pub fn forked(forked: types::Forked) -> Result<Forked, AgentError> {
    let child = |fork: types::Fork| match (fork.sandbox, fork.error) {
        (Some(sandbox), None) => view(sandbox).map(|view| Ok(Changed { view, timings: Vec::new() })),
        (None, Some(error)) => Ok(Err(told(error))),
        (Some(_), Some(_)) | (None, None) => Err(senseless("a fork is either a sandbox or an error")),
    };
    let children = forked.forks.into_iter().map(child).collect::<Result<_, _>>()?;
    Ok(Forked { children, timings: timings(forked.timings) })
}

/// A template.
pub fn template_view(template: types::Template) -> Result<TemplateView, AgentError> {
    Ok(TemplateView {
        id: template.id,
        name: template.name,
        created: template.created,
        size_bytes: template.size_bytes,
        own_bytes: template.own_bytes,
        warm: template.warm.into_iter().map(warm_view).collect::<Result<_, _>>()?,
    })
}

/// A warm image that is there now.
pub fn warmed(warmed: types::Warmed) -> Result<Warmed, AgentError> {
    Ok(Warmed { view: warm_view(warmed.warm)?, made: warmed.made, timings: timings(warmed.timings) })
}

fn warm_view(warm: types::Warm) -> Result<WarmView, AgentError> {
    Ok(WarmView {
        key: warm.key,
        vcpus: warm.vcpus,
        memory: Mib(warm.memory_mib),
        disk: Mib(warm.disk_mib),
        kernel: warm.kernel,
        vmm: description(warm.vmm)?,
        own_bytes: warm.own_bytes,
    })
}

/// What a sandbox takes, as it was measured last. A server does not tell of processes of its host.
pub fn stat(id: &SandboxId, metrics: types::Metrics) -> Result<Stat, AgentError> {
    let Some(last) = metrics.samples.into_iter().next_back() else {
        let message = format!("{id} was not measured yet; it is every few seconds: try again");
        return Err(AgentError { code: Code::Failed, message });
    };
    Ok(Stat {
        memory_bytes: last.memory_bytes,
        disk_own_bytes: last.disk_own_bytes,
        disk_shared_bytes: last.disk_shared_bytes,
        network_rx_bytes: last.network_rx_bytes,
        network_tx_bytes: last.network_tx_bytes,
        guest: last.guest.map(guest_stat),
        ..Stat::default()
    })
}

fn guest_stat(guest: types::GuestSample) -> GuestStat {
    GuestStat {
        unix_ms: guest.unix_ms,
        cpus: guest.cpus,
        cpu_percent: guest.cpu_percent,
        memory_total_bytes: guest.memory_total_bytes,
        memory_used_bytes: guest.memory_used_bytes,
        disk_total_bytes: guest.disk_total_bytes,
        disk_used_bytes: guest.disk_used_bytes,
    }
}

/// The host behind the server, which does not tell of its sweeps.
pub fn host_view(host: types::Host) -> Result<HostView, AgentError> {
    Ok(HostView {
        host: host.host,
        version: host.version,
        cpus: host.cpus,
        memory: Mib(host.memory_mib),
        memory_taken: Mib(host.memory_taken_mib),
        disk_free_bytes: host.disk_free_bytes,
        disk_total_bytes: host.disk_total_bytes,
        vmm: description(host.vmm)?,
        storage: host.storage.parse().map_err(senseless)?,
        swept: 0,
    })
}

fn description(vmm: types::Vmm) -> Result<Description, AgentError> {
    let driver = vmm.driver.parse().map_err(senseless)?;
    Ok(Description { driver, version: vmm.version, accel: vmm.accel.parse().map_err(senseless)? })
}

fn timings(timings: Vec<types::Timing>) -> Vec<Timing> {
    let timing = |timing: types::Timing| {
        // Nothing is less than nothing.
        let took = Duration::try_from_secs_f64(timing.ms / 1e3).unwrap_or_default().min(STEP_LIMIT);
        Timing { phase: Cow::Owned(timing.step), took }
    };
    timings.into_iter().map(timing).collect()
}

fn phase(state: types::State) -> Phase {
    match state {
        types::State::Creating => Phase::Creating,
        types::State::Running => Phase::Running,
        types::State::Pausing => Phase::Pausing,
        types::State::Paused => Phase::Paused,
        types::State::Resuming => Phase::Resuming,
        types::State::Capturing => Phase::Capturing,
        types::State::RollingBack => Phase::RollingBack,
        types::State::Stopped => Phase::Stopped,
        types::State::NeedsRepair => Phase::NeedsRepair,
        types::State::Destroying => Phase::Destroying,
    }
}

fn ended(why: types::Why) -> Ended {
    match why {
        types::Why::Requested => Ended::Requested,
        types::Why::TimedOut => Ended::TimedOut,
        types::Why::NeverRan => Ended::NeverRan,
        types::Why::Unbound => Ended::Unbound,
        // It went while the server saw nothing of its host.
        types::Why::HostEnded | types::Why::Unknown => Ended::HostEnded,
    }
}

fn on_timeout(on_timeout: types::OnTimeout) -> OnTimeout {
    match on_timeout {
        types::OnTimeout::Pause => OnTimeout::Pause,
        types::OnTimeout::Destroy => OnTimeout::Destroy,
    }
}

fn start(start: types::Start) -> Start {
    match start {
        types::Start::Cold => Start::Cold,
        types::Start::Warm => Start::Warm,
    }
}
