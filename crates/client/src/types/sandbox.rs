//! Sandboxes, and what is asked of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Bytes, ErrorBody, Exit};

/// Where in its life a sandbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Being built.
    Creating,
    /// Its guest is ready.
    Running,
    /// Being put to rest.
    Pausing,
    /// At rest, with or without its memory.
    Paused,
    /// Coming back from rest.
    Resuming,
    /// Being captured for a snapshot or a fork; goes on afterwards.
    Capturing,
    /// Going back to a snapshot.
    RollingBack,
    /// Its VM ended by itself: its disk is kept, a resume boots it.
    Stopped,
    /// A step could be neither finished nor undone; `repair` goes on.
    NeedsRepair,
    /// Being taken down.
    Destroying,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Creating,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Capturing,
        Self::RollingBack,
        Self::Stopped,
        Self::NeedsRepair,
        Self::Destroying,
    ];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Capturing => "capturing",
            Self::RollingBack => "rolling_back",
            Self::Stopped => "stopped",
            Self::NeedsRepair => "needs_repair",
            Self::Destroying => "destroying",
        }
    }
}

/// What happens to a sandbox when its time is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// It is paused, and can be resumed.
    Pause,
    /// It is destroyed.
    #[default]
    Destroy,
}

/// How a sandbox's VM began the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// It was booted.
    Cold,
    /// It went on from a captured memory.
    Warm,
}

/// What runs a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Vmm {
    /// `firecracker` or `qemu`.
    pub driver: String,
    /// Such as `10.0.2`.
    pub version: String,
    /// `kvm` or `tcg`.
    pub accel: String,
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Sandbox {
    /// `sb` and 18 characters of `[a-z0-9]`.
    pub id: String,
    /// The host that it is on.
    pub host: String,
    /// Where in its life it is.
    pub state: State,
    /// Why, where it did not get there by a request.
    pub reason: Option<String>,
    /// Grows with each change that is durable.
    pub revision: u64,
    /// When it was created.
    pub created_unix_ms: u64,
    /// When its time is up; null is never, or not while it is at rest.
    pub deadline_unix_ms: Option<u64>,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Id of its template.
    pub template: String,
    /// Id of its kernel.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Size of its disk, in MiB.
    pub disk_mib: u32,
    /// What runs it.
    pub vmm: Vmm,
    /// What its disk is made of: `dm` or `qcow2`.
    pub storage: String,
    /// How its VM began the last time.
    pub start: Start,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
    /// Whose it is.
    pub tenant: String,
    /// Whether traffic to one of its ports resumes it when it is paused.
    pub auto_resume: bool,
    /// What traffic to its ports has to carry as `X-Wrenn-Traffic-Token`; null is nothing. Not told to keys that may only read.
    pub traffic_token: Option<String>,
    /// What its guest's agent asks of who uses it, as `X-Access-Token`. Not told to keys that may only read.
    pub access_token: Option<String>,
}

/// How long a step took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Timing {
    /// The step.
    pub step: String,
    /// In milliseconds.
    pub ms: f64,
}

/// A sandbox after a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Changed {
    /// It.
    pub sandbox: Sandbox,
    /// How long each step took, in the order in which they were done.
    pub timings: Vec<Timing>,
}

/// A sandbox as somebody asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct CreateSandbox {
    /// Name or id of a template; `minimal` if nothing is said. Not together with `snapshot`.
    #[cfg_attr(feature = "openapi", schema(max_length = 256, min_length = 1))]
    pub template: Option<String>,
    /// Name or id of a snapshot: its memory, disk, size, environment and labels.
    #[cfg_attr(feature = "openapi", schema(max_length = 64, min_length = 1))]
    pub snapshot: Option<String>,
    /// Virtual CPUs; 1 if nothing is said. A snapshot has its own.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 32))]
    pub vcpus: Option<u32>,
    /// Memory, in MiB; 256 if nothing is said. A snapshot has its own.
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub memory_mib: Option<u32>,
    /// Size of its disk, in MiB; the template's if nothing is said. A snapshot has its own.
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub disk_mib: Option<u32>,
    /// How long it runs until `on_timeout` happens; null is without end.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 31622400))]
    pub timeout_s: Option<u64>,
    /// What happens then; it is destroyed if nothing is said.
    pub on_timeout: OnTimeout,
    /// Environment of every process in it: at most 256 variables, 128 KiB in all.
    pub env: BTreeMap<String, String>,
    /// Labels: at most 64, keys of 256 bytes, values of 4096.
    pub metadata: BTreeMap<String, String>,
    /// Whether it is booted even where a captured memory is there to go on from. A snapshot always goes on.
    pub cold: bool,
    /// Whether traffic to one of its ports resumes it when it is paused.
    pub auto_resume: bool,
    /// Whether traffic to its ports needs a token, which the answer tells.
    pub traffic_token: bool,
    /// How long the guest may take to become ready; 60 if nothing is said.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 3600))]
    pub boot_timeout_s: Option<u64>,
}

/// How a sandbox is paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PauseRequest {
    /// Keep the disk only: a resume boots it.
    pub disk_only: bool,
}

/// How a sandbox is resumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ResumeRequest {
    /// Another timeout than the one it had; that one is counted anew otherwise.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 31622400))]
    pub timeout_s: Option<u64>,
    /// How long the guest may take to become ready; 60 if nothing is said.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 3600))]
    pub boot_timeout_s: Option<u64>,
}

/// A repair; there is nothing to say about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RepairRequest {}

/// Another timeout, counted from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TimeoutRequest {
    /// From now; null is without end.
    #[serde(deserialize_with = "said_or_null")]
    #[cfg_attr(feature = "openapi", schema(required, minimum = 1, maximum = 31622400))]
    pub timeout_s: Option<u64>,
    /// What happens then; as it was if nothing is said.
    #[serde(default)]
    pub on_timeout: Option<OnTimeout>,
}

/// Without this a field that is missing would be null, and a sandbox would run without end by a slip.
fn said_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Option::deserialize(deserializer)
}

/// Back to a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// Name or id of a snapshot that was made of this sandbox.
    #[cfg_attr(feature = "openapi", schema(max_length = 64, min_length = 1))]
    pub snapshot: String,
    /// Another timeout than the one it had; that one is counted anew otherwise.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 31622400))]
    pub timeout_s: Option<u64>,
    /// How long the guest may take to become ready; 60 if nothing is said.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 3600))]
    pub boot_timeout_s: Option<u64>,
}

/// Forks as somebody asks for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ForkRequest {
    /// How many.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 64))]
    pub count: u32,
    /// How long each runs until its `on_timeout` happens; as the parent's if nothing is said.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 31622400))]
    pub timeout_s: Option<u64>,
    /// Labels of each; the parent's if there are none.
    pub metadata: BTreeMap<String, String>,
    /// How long each guest may take to become ready; 60 if nothing is said.
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 3600))]
    pub boot_timeout_s: Option<u64>,
}

impl Default for ForkRequest {
    fn default() -> Self {
        Self { count: 1, timeout_s: None, metadata: BTreeMap::new(), boot_timeout_s: None }
    }
}

/// One fork: it, or why it was not made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Fork {
    /// It.
    pub sandbox: Option<Sandbox>,
    /// Why it was not made.
    pub error: Option<ErrorBody>,
}

/// New forks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Forked {
    /// One for each that was asked for.
    pub forks: Vec<Fork>,
    /// How long each step of the capture took.
    pub timings: Vec<Timing>,
}

/// What a sandbox took of its host at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Sample {
    /// When.
    pub unix_ms: u64,
    /// CPU time since the sample before, in percent of one CPU; null at rest and in the first sample.
    pub cpu_percent: Option<f64>,
    /// Resident memory of its VMM; null at rest.
    pub memory_bytes: Option<u64>,
    /// What its disk and its captured memory take alone.
    pub disk_own_bytes: u64,
    /// What they take together with others.
    pub disk_shared_bytes: u64,
    /// Bytes that its network brought to it since it began to run; null at rest.
    pub network_rx_bytes: Option<u64>,
    /// Bytes that it sent since then; null at rest.
    pub network_tx_bytes: Option<u64>,
    /// What its guest said of itself; null at rest, and if it did not answer at once.
    #[serde(default)]
    pub guest: Option<GuestSample>,
}

/// What a guest says of itself: not to be trusted, but that no part is more than its whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct GuestSample {
    /// When, by its own clock.
    pub unix_ms: u64,
    /// Its CPUs.
    pub cpus: u32,
    /// What of all its CPUs together was used since somebody asked it last, in percent: 0 to 100.
    pub cpu_percent: f64,
    /// Its memory.
    pub memory_total_bytes: u64,
    /// What of it is not available to programs.
    pub memory_used_bytes: u64,
    /// The size of its root file system.
    pub disk_total_bytes: u64,
    /// What of it is used.
    pub disk_used_bytes: u64,
}

/// What a sandbox took over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Metrics {
    /// The oldest first.
    pub samples: Vec<Sample>,
}

/// A command that was run through this server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LoggedExec {
    /// Its pid in the sandbox.
    pub pid: u32,
    /// The command; one that is very long is cut.
    pub command: Vec<String>,
    /// When it began.
    pub started_unix_ms: u64,
    /// When its end was seen; null while it runs, or when nobody was there to see.
    pub ended_unix_ms: Option<u64>,
    /// How it ended; unknown if the server that ran it was killed meanwhile.
    pub exit: Option<Exit>,
    /// How much it had written when it was last seen.
    pub output_bytes: u64,
}

/// What a sandbox printed, and what was run in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Logs {
    /// The end of its serial console. A guest wrote it: not to be trusted.
    pub console: Bytes,
    /// The last commands, the oldest first.
    pub execs: Vec<LoggedExec>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_must_be_said() {
        let read = serde_json::from_str::<TimeoutRequest>;
        assert_eq!(read(r#"{"timeout_s":null}"#).unwrap().timeout_s, None);
        assert_eq!(read(r#"{"timeout_s":5}"#).unwrap().timeout_s, Some(5));
        assert!(read("{}").is_err());
    }

    #[test]
    fn a_slip_is_no_silent_default() {
        assert!(serde_json::from_str::<CreateSandbox>(r#"{"memory":512}"#).is_err());
        assert!(serde_json::from_str::<CreateSandbox>(r#"{"vcpus":-1}"#).is_err());
        assert_eq!(serde_json::from_str::<CreateSandbox>("{}").unwrap(), CreateSandbox::default());
    }

    #[test]
    fn a_state_is_called_the_same_everywhere() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
