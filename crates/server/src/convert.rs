//! The agent's words as the API's, and back. Pure.

use wrenn_agent::envd_client::{ExecEnd, RunningProcess};
use wrenn_agent::host_agent::{
    self, Departure, Description, Ended, GuestStat, Phase, SnapshotView, Stat, TemplateView, Timing, View, WarmView,
};
use wrenn_client::types;

use crate::attributes::Attributes;
use crate::snapshot_names;

/// Whether secrets are in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    /// They are.
    Told,
    /// They are not.
    Kept,
}

/// A sandbox.
pub fn sandbox(view: &View, host: &str, secrets: Secrets) -> types::Sandbox {
    let attributes = Attributes::read(&view.attributes);
    let tenant = attributes.owner().to_owned();
    let told = |secret: Option<String>| secret.filter(|_| secrets == Secrets::Told);
    types::Sandbox {
        id: view.id.to_string(),
        host: host.to_owned(),
        state: state(view.phase),
        reason: view.reason.clone(),
        revision: view.revision,
        created_unix_ms: view.created_unix_ms,
        deadline_unix_ms: view.deadline_unix_ms,
        on_timeout: on_timeout(view.on_timeout),
        template: view.template.clone(),
        kernel: view.kernel.clone(),
        vcpus: view.vcpus,
        memory_mib: view.memory.0,
        disk_mib: view.disk.0,
        vmm: vmm(&view.vmm),
        storage: view.storage.to_string(),
        start: match view.start {
            host_agent::Start::Cold => types::Start::Cold,
            host_agent::Start::Warm => types::Start::Warm,
        },
        metadata: view.metadata.clone(),
        tenant,
        auto_resume: attributes.auto_resume,
        traffic_token: told(attributes.traffic.map(|traffic| traffic.token(&view.id))),
        access_token: told(Some(view.access_token.clone())),
    }
}

/// Where in its life it is.
pub fn state(phase: Phase) -> types::State {
    match phase {
        Phase::Creating => types::State::Creating,
        Phase::Running => types::State::Running,
        Phase::Pausing => types::State::Pausing,
        Phase::Paused => types::State::Paused,
        Phase::Resuming => types::State::Resuming,
        Phase::Capturing => types::State::Capturing,
        Phase::RollingBack => types::State::RollingBack,
        Phase::Stopped => types::State::Stopped,
        Phase::NeedsRepair => types::State::NeedsRepair,
        Phase::Destroying => types::State::Destroying,
    }
}

fn on_timeout(on_timeout: host_agent::OnTimeout) -> types::OnTimeout {
    match on_timeout {
        host_agent::OnTimeout::Pause => types::OnTimeout::Pause,
        host_agent::OnTimeout::Destroy => types::OnTimeout::Destroy,
    }
}

/// What happens at a timeout, as the agent is asked for it.
pub fn asked_on_timeout(on_timeout: types::OnTimeout) -> host_agent::OnTimeout {
    match on_timeout {
        types::OnTimeout::Pause => host_agent::OnTimeout::Pause,
        types::OnTimeout::Destroy => host_agent::OnTimeout::Destroy,
    }
}

/// What runs it.
pub fn vmm(vmm: &Description) -> types::Vmm {
    types::Vmm { driver: vmm.driver.to_string(), version: vmm.version.clone(), accel: vmm.accel.to_string() }
}

/// How long steps took.
pub fn timings(timings: &[Timing]) -> Vec<types::Timing> {
    timings
        .iter()
        .map(|timing| types::Timing { step: timing.phase.to_string(), ms: timing.took.as_secs_f64() * 1e3 })
        .collect()
}

/// A snapshot.
pub fn snapshot(view: &SnapshotView, host: &str) -> types::Snapshot {
    types::Snapshot {
        id: view.id.to_string(),
        host: host.to_owned(),
        name: snapshot_names::own(view).map(str::to_owned),
        created_unix_ms: view.created_unix_ms,
        sandbox: view.sandbox.to_string(),
        template: view.template.clone(),
        kernel: view.kernel.clone(),
        vcpus: view.vcpus,
        memory_mib: view.memory.0,
        disk_mib: view.disk.0,
        vmm: vmm(&view.vmm),
        has_memory: view.has_memory,
        own_bytes: view.own_bytes,
        shared_bytes: view.shared_bytes,
        tenant: Attributes::read(&view.attributes).owner().to_owned(),
    }
}

/// A template.
pub fn template(view: &TemplateView, host: &str) -> types::Template {
    types::Template {
        id: view.id.clone(),
        host: host.to_owned(),
        name: view.name.clone(),
        created: view.created.clone(),
        size_bytes: view.size_bytes,
        own_bytes: view.own_bytes,
        warm: view.warm.iter().map(warm).collect(),
    }
}

/// A warm image.
pub fn warm(view: &WarmView) -> types::Warm {
    types::Warm {
        key: view.key.clone(),
        vcpus: view.vcpus,
        memory_mib: view.memory.0,
        disk_mib: view.disk.0,
        kernel: view.kernel.clone(),
        vmm: vmm(&view.vmm),
        own_bytes: view.own_bytes,
    }
}

/// A sandbox that is gone.
pub fn departure(departure: &Departure) -> types::Departure {
    let why = match departure.why {
        Ended::Requested => types::Why::Requested,
        Ended::TimedOut => types::Why::TimedOut,
        Ended::NeverRan => types::Why::NeverRan,
        Ended::Unbound => types::Why::Unbound,
        Ended::HostEnded => types::Why::HostEnded,
    };
    types::Departure { id: departure.id.to_string(), why, ended_unix_ms: departure.at_unix_ms }
}

/// How a command ended.
pub fn exit(end: ExecEnd) -> types::Exit {
    match end {
        ExecEnd::Exited(code) => types::Exit::Exited { code },
        ExecEnd::Signalled(signal) => types::Exit::Signalled { signal },
        ExecEnd::TimedOut => types::Exit::TimedOut,
        ExecEnd::Unknown => types::Exit::Unknown,
    }
}

/// A command that runs.
pub fn process(process: RunningProcess) -> types::Process {
    types::Process { pid: process.pid, tag: process.tag, command: process.command }
}

/// One measurement; the CPU's share needs the one before.
pub fn sample(stat: &Stat, unix_ms: u64, cpu_percent: Option<f64>) -> types::Sample {
    types::Sample {
        unix_ms,
        cpu_percent,
        memory_bytes: stat.memory_bytes,
        disk_own_bytes: stat.disk_own_bytes,
        disk_shared_bytes: stat.disk_shared_bytes,
        network_rx_bytes: stat.network_rx_bytes,
        network_tx_bytes: stat.network_tx_bytes,
        guest: stat.guest.as_ref().map(guest_sample),
    }
}

fn guest_sample(guest: &GuestStat) -> types::GuestSample {
    types::GuestSample {
        unix_ms: guest.unix_ms,
        cpus: guest.cpus,
        cpu_percent: guest.cpu_percent,
        memory_total_bytes: guest.memory_total_bytes,
        memory_used_bytes: guest.memory_used_bytes,
        disk_total_bytes: guest.disk_total_bytes,
        disk_used_bytes: guest.disk_used_bytes,
    }
}
