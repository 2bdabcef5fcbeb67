//! What can be asked of the agent of one host: the one interface for the command line, and later for a server.
//!
//! ```text
//!   wrenn sandbox … ─► dyn HostAgent ─┬─► manager::Manager    in this process
//!                                     └─► rpc::Remote ──socket or TLS──► rpc::serve ─► Manager    in another one
//! ```
//!
//! Types here are the domain's; the wire (`proto/hostagent`) is theirs alone who speak it. Each call is bounded by its own
//! steps' deadlines; a caller that stops waiting changes nothing of what was begun, but for a [`Bond`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use wrenn_engine::names::{SandboxId, SnapshotId};
use wrenn_engine::storage::Backend;
use wrenn_engine::units::Mib;

use crate::policy::Denied;

// What others need to know of a sandbox beside its view; nobody outside has to look further into the agent.
pub use crate::policy;
pub use crate::sandbox::{Shape, Timing};
pub use wrenn_engine::vmm::Description;

/// What happens to a sandbox when its time is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// It is paused, and can be resumed.
    Pause,
    /// It is destroyed.
    #[default]
    Destroy,
}

/// What a new sandbox starts from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A template, with nothing written yet.
    Template(Fresh),
    /// A snapshot, by its name or id: its size, kernel and environment are the snapshot's.
    Snapshot(String),
}

/// A template, and the VM that it is to run in.
#[derive(Clone, Debug)]
pub struct Fresh {
    /// Name or id of the template.
    pub template: String,
    /// A kernel image to boot instead of the prepared one; a path of the agent's host.
    pub kernel: Option<PathBuf>,
    /// Its size.
    pub shape: Shape,
    /// Whether it is booted even where a warm image is there.
    pub cold: bool,
}

/// How a sandbox's VM began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// It was booted.
    Cold,
    /// It went on from a captured memory.
    Warm,
}

impl Start {
    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A sandbox as somebody asks for it.
#[derive(Clone, Debug)]
pub struct CreateRequest {
    /// What it starts from.
    pub source: Source,
    /// What else is asked of it.
    pub wishes: Wishes,
}

/// What can be asked of a new sandbox, whatever it starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Environment of every process in it, beside what it has from a snapshot.
    pub env: BTreeMap<String, String>,
    /// Labels, which mean nothing to the agent; those of a snapshot if there are none.
    pub metadata: BTreeMap<String, String>,
    /// What whoever asks keeps with it; see [`View::attributes`].
    pub attributes: BTreeMap<String, String>,
    /// How long it runs until `on_timeout` happens, from its creation, its resume or the last change of this; `None` is
    /// without end.
    pub timeout: Option<Duration>,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// How long the guest may take to become ready.
    pub ready_limit: Duration,
    /// Whether it lives only as long as the [`Bond`] that is returned.
    pub bound: bool,
}

impl Wishes {
    /// Nothing but that its guest is ready in time; it lives as long as whoever asks is there.
    pub fn bound(ready_limit: Duration) -> Self {
        Self {
            env: BTreeMap::new(),
            metadata: BTreeMap::new(),
            attributes: BTreeMap::new(),
            timeout: None,
            on_timeout: OnTimeout::Destroy,
            ready_limit,
            bound: true,
        }
    }
}

/// How a sandbox is paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PauseOptions {
    /// Keep the disk only: no memory, and a cold boot on resume.
    pub disk_only: bool,
}

/// How a sandbox is resumed.
#[derive(Clone, Copy, Debug)]
pub struct ResumeOptions {
    /// How long the guest may take to become ready.
    pub ready_limit: Duration,
    /// Another timeout than the one it had; that one is counted anew otherwise.
    pub timeout: Option<Duration>,
}

/// A snapshot as somebody asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// A name that no other snapshot has: 1 to 64 characters of `[a-z0-9._-]`, beginning with a letter or digit. Without one
    /// it is found by its id alone.
    pub name: Option<String>,
    /// What whoever asks keeps with it; see [`View::attributes`].
    pub attributes: BTreeMap<String, String>,
}

/// Forks as somebody asks for them.
#[derive(Clone, Debug)]
pub struct ForkRequest {
    /// How many.
    pub count: u32,
    /// How long each guest may take to become ready.
    pub ready_limit: Duration,
    /// How long each runs until its `on_timeout` happens; as the parent's if `None`.
    pub timeout: Option<Duration>,
    /// Labels of each; the parent's if empty.
    pub metadata: BTreeMap<String, String>,
    /// What whoever asks keeps with each; see [`View::attributes`].
    pub attributes: BTreeMap<String, String>,
}

/// Another timeout, counted from now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeout {
    /// From now; `None` is without end.
    pub after: Option<Duration>,
    /// What happens then; as it was if `None`.
    pub on_timeout: Option<OnTimeout>,
}

/// Where in its life a sandbox is, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
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
    /// Its VM ended without having been asked to: its disk is kept, its memory is lost; a resume boots it.
    Stopped,
    /// A step could be neither finished nor undone: nothing of it is lost, and `repair` goes on.
    NeedsRepair,
    /// Being taken down; never comes back.
    Destroying,
}

impl Phase {
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

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A sandbox, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Which sandbox.
    pub id: SandboxId,
    /// Grows with each change.
    pub revision: u64,
    /// Where in its life it is.
    pub phase: Phase,
    /// Why, where it did not get there by a request.
    pub reason: Option<String>,
    /// Unix time of its creation, in milliseconds.
    pub created_unix_ms: u64,
    /// When its time is up, Unix milliseconds; `None` is never, or not while it is at rest.
    pub deadline_unix_ms: Option<u64>,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Id of the template.
    pub template: String,
    /// Id of the kernel set.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Mib,
    /// Size of its disk.
    pub disk: Mib,
    /// What runs it.
    pub vmm: Description,
    /// What its disk is made of.
    pub storage: Backend,
    /// How its VM began the last time.
    pub start: Start,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
    /// What whoever asked for it keeps with it, such as its owner: means nothing to the agent, and is never inherited. Only who
    /// asks for a sandbox says what it has, whatever it starts from.
    pub attributes: BTreeMap<String, String>,
    /// What its guest asks of who wants to use it.
    pub access_token: String,
}

/// What a call changed.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The sandbox afterwards.
    pub view: View,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

/// What is told to who watches, one after the other.
///
/// It ends with an error, after which there is nothing more: of the kind [`Code::Unavailable`] where the agent ends, or who
/// watches is too slow. Whoever watches again is told all that is there anew.
pub type Changes = BoxStream<'static, Result<Change, AgentError>>;

/// What happens to sandboxes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "almost all of them are the large one")]
pub enum Change {
    /// A sandbox is this now.
    Is(View),
    /// All that were there when the watch began have been told of.
    Complete,
    /// A sandbox is gone for good.
    Gone(Departure),
}

/// The end of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Which sandbox.
    pub id: SandboxId,
    /// Why it is gone.
    pub why: Ended,
    /// When, in Unix milliseconds.
    pub at_unix_ms: u64,
}

/// Why a sandbox is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Somebody asked for its end.
    Requested,
    /// Its time was up.
    TimedOut,
    /// Its creation failed.
    NeverRan,
    /// Whoever it was bound to is gone.
    Unbound,
    /// The agent ended, and was to take all sandboxes with it.
    HostEnded,
}

impl Ended {
    /// All of them, for who has to find one by its name.
    pub const ALL: [Self; 5] = [Self::Requested, Self::TimedOut, Self::NeverRan, Self::Unbound, Self::HostEnded];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::TimedOut => "timed_out",
            Self::NeverRan => "never_ran",
            Self::Unbound => "unbound",
            Self::HostEnded => "host_ended",
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A snapshot, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotView {
    /// Which snapshot.
    pub id: SnapshotId,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Unix time of its capture, in milliseconds.
    pub created_unix_ms: u64,
    /// The sandbox that was captured; it may be gone.
    pub sandbox: SandboxId,
    /// Id of the template.
    pub template: String,
    /// Id of the kernel set.
    pub kernel: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Mib,
    /// Size of its disk.
    pub disk: Mib,
    /// What can run it.
    pub vmm: Description,
    /// Whether it has the sandbox's memory, or its disk alone.
    pub has_memory: bool,
    /// What it takes alone, in bytes: allocated blocks × 512.
    pub own_bytes: u64,
    /// What it takes together with sandboxes and other snapshots.
    pub shared_bytes: u64,
    /// What whoever asked for it keeps with it, as in [`View::attributes`]; not those of the sandbox.
    pub attributes: BTreeMap<String, String>,
}

/// A new snapshot.
#[derive(Clone, Debug)]
pub struct Snapshotted {
    /// It.
    pub view: SnapshotView,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

/// New forks.
#[derive(Clone, Debug)]
pub struct Forked {
    /// One result for each that was asked for.
    pub children: Vec<Result<Changed, AgentError>>,
    /// How long each step of the capture took.
    pub timings: Vec<Timing>,
}

/// A template, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateView {
    /// Hash of what is in it.
    pub id: String,
    /// The name it was built under.
    pub name: String,
    /// When it was built, RFC 3339.
    pub created: String,
    /// The size of its disk, in bytes.
    pub size_bytes: u64,
    /// What it takes on the host, in bytes: allocated blocks × 512.
    pub own_bytes: u64,
    /// Its warm images.
    pub warm: Vec<WarmView>,
}

/// A warm image of a template: a VM that was captured when its guest was ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WarmView {
    /// What it fits to, as a hash.
    pub key: String,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Mib,
    /// Size of its disk.
    pub disk: Mib,
    /// Id of the kernel set.
    pub kernel: String,
    /// What can run it.
    pub vmm: Description,
    /// What it takes on the host, in bytes.
    pub own_bytes: u64,
}

/// A warm image that is there now.
#[derive(Clone, Debug)]
pub struct Warmed {
    /// It.
    pub view: WarmView,
    /// Whether it was made now; else it was there.
    pub made: bool,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

/// Hears how a long call goes on: a line, without its end, for each step that begins. It must not wait for anything.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// A new sandbox.
#[derive(Debug)]
pub struct Created {
    /// It, and how long each step took.
    pub changed: Changed,
    /// What it is bound to, if it was asked for so.
    pub bond: Option<Bond>,
}

/// Holds a sandbox in life; dropping it has the sandbox destroyed, also when its holder is killed.
pub struct Bond(Box<dyn Send + Sync>);

impl Bond {
    /// A bond whose guard's `Drop` has the sandbox destroyed.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self(Box::new(guard))
    }

    /// Whether it holds anything; always, this keeps the guard from being unused.
    pub fn is_held(&self) -> bool {
        std::mem::size_of_val(&self.0) > 0
    }
}

impl fmt::Debug for Bond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bond")
    }
}

/// A host, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// The tag of the instance, by which its objects on the host are known.
    pub host: String,
    /// The agent's version.
    pub version: String,
    /// CPUs that the agent may use.
    pub cpus: u32,
    /// Memory that all VMs that run may have together.
    pub memory: Mib,
    /// What of it those that run, or wait for somebody who wants them, may come to take.
    pub memory_taken: Mib,
    /// What can still be written where the instance's files are, in bytes.
    pub disk_free_bytes: u64,
    /// What that file system holds in all, in bytes.
    pub disk_total_bytes: u64,
    /// What runs new sandboxes.
    pub vmm: Description,
    /// What their disks are made of.
    pub storage: Backend,
    /// Objects of nobody that sweeps have removed since the agent began.
    pub swept: u64,
}

/// What a sandbox takes of its host.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stat {
    /// Memory of its VMM: resident, in bytes. `None` while it is at rest.
    pub memory_bytes: Option<u64>,
    /// CPU time of its VMM so far, in milliseconds. `None` while it is at rest.
    pub cpu_ms: Option<u64>,
    /// What its disk and its captured memory take alone: allocated blocks × 512.
    pub disk_own_bytes: u64,
    /// What they take together with other sandboxes: the template.
    pub disk_shared_bytes: u64,
    /// What of `disk_own_bytes` is captured memory.
    pub memory_file_bytes: u64,
    /// Pid of its VMM, while it runs.
    pub vmm_pid: Option<u32>,
    /// What its guest was sent over the network since its VM was started, in bytes; tunnels are not in it. `None` while it is at
    /// rest.
    pub network_rx_bytes: Option<u64>,
    /// What its guest has sent.
    pub network_tx_bytes: Option<u64>,
    /// What its guest says of itself. `None` while it is at rest, or does not answer at once.
    pub guest: Option<GuestStat>,
}

/// What a guest says of itself. It may say anything, but that no part is more than its whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GuestStat {
    /// Its time, Unix milliseconds.
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

/// Bytes to and from a TCP port of a guest.
pub type Tunnel = Box<dyn Duplex>;

/// Both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// What kind of refusal or failure, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// There is no such sandbox, template or kernel.
    NotFound,
    /// Its state does not allow it.
    Denied,
    /// What was asked for makes no sense.
    Invalid,
    /// The host has no room for it.
    Exhausted,
    /// It was tried and failed; nothing has changed.
    Failed,
    /// It was tried and failed, and the sandbox needs a repair.
    NeedsRepair,
    /// The agent is not there, or ends.
    Unavailable,
    /// Somebody destroyed the sandbox meanwhile.
    Destroyed,
}

impl Code {
    /// All of them, for who has to find one by its name.
    pub const ALL: [Self; 8] = [
        Self::NotFound,
        Self::Denied,
        Self::Invalid,
        Self::Exhausted,
        Self::Failed,
        Self::NeedsRepair,
        Self::Unavailable,
        Self::Destroyed,
    ];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Exhausted => "exhausted",
            Self::Failed => "failed",
            Self::NeedsRepair => "needs_repair",
            Self::Unavailable => "unavailable",
            Self::Destroyed => "destroyed",
        }
    }
}

/// Why a call did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    /// For programs.
    pub code: Code,
    /// For people: the step, the object, every cause, and the remedy where there is one.
    pub message: String,
}

impl AgentError {
    /// An error of this kind with the text of `error` and of all its causes.
    pub fn of(code: Code, error: &(dyn std::error::Error + 'static)) -> Self {
        Self { code, message: with_causes(error) }
    }

    /// The agent ends, and takes no more.
    pub fn ending() -> Self {
        Self { code: Code::Unavailable, message: "the agent is ending".to_owned() }
    }

    /// There is no such sandbox.
    pub fn unknown(id: &SandboxId) -> Self {
        Self { code: Code::NotFound, message: format!("there is no sandbox {id}; `wrenn sandbox ls` lists them") }
    }

    /// Whether the agent says that what was asked for is not there, or not any more: the one word that ends something for others.
    pub fn says_gone(&self) -> bool {
        matches!(self.code, Code::NotFound | Code::Destroyed)
    }
}

impl From<Denied> for AgentError {
    fn from(denied: Denied) -> Self {
        Self { code: Code::Denied, message: denied.to_string() }
    }
}

/// What helps where there is no room.
const ROOM_REMEDY: &str = "free some space";
/// How other programs, a VMM or a shim, tell that there is none.
const NO_ROOM_WORDS: [&str; 2] = ["No space left on device", "Disk quota exceeded"];

/// An error and its causes in one line; a source's text that its parent repeats is left out. A disk that is full can be found so
/// by any step, so the remedy for that is said here, if it was not yet.
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = || std::iter::successors(Some(error), |error| error.source());
    let mut text = String::new();
    for cause in causes().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let lacks_room = causes().any(is_no_room) || NO_ROOM_WORDS.iter().any(|words| text.contains(words));
    if lacks_room && !text.contains(ROOM_REMEDY) {
        text = format!("{text}; {ROOM_REMEDY} under WRENN_DIR");
    }
    text
}

fn is_no_room(error: &(dyn std::error::Error + 'static)) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// The agent of one host.
#[async_trait]
pub trait HostAgent: Send + Sync {
    /// A new sandbox; answers when its guest is ready.
    async fn create(&self, request: CreateRequest) -> Result<Created, AgentError>;

    /// All sandboxes, the oldest first.
    async fn list(&self) -> Result<Vec<View>, AgentError>;

    /// One sandbox.
    async fn get(&self, id: &SandboxId) -> Result<View, AgentError>;

    /// What happens to sandboxes from now on, after all that are there: in order for each, and nothing is left out.
    async fn watch(&self) -> Result<Changes, AgentError>;

    /// Puts a running sandbox to rest.
    async fn pause(&self, id: &SandboxId, options: PauseOptions) -> Result<Changed, AgentError>;

    /// Brings a sandbox back from rest; one that stopped is booted.
    async fn resume(&self, id: &SandboxId, options: ResumeOptions) -> Result<Changed, AgentError>;

    /// Ends a sandbox and all that there is of it, whatever it is doing.
    async fn destroy(&self, id: &SandboxId) -> Result<Changed, AgentError>;

    /// Changes when a running sandbox's time is up.
    async fn set_timeout(&self, id: &SandboxId, timeout: Timeout) -> Result<View, AgentError>;

    /// Finishes or undoes what left a sandbox in need of it.
    async fn repair(&self, id: &SandboxId) -> Result<Changed, AgentError>;

    /// Keeps what a running or paused sandbox is now; a running one goes on.
    async fn snapshot(&self, id: &SandboxId, request: SnapshotRequest) -> Result<Snapshotted, AgentError>;

    /// All snapshots, the oldest first.
    async fn snapshots(&self) -> Result<Vec<SnapshotView>, AgentError>;

    /// Removes a snapshot, by its name or id. What others need of it stays with them.
    async fn remove_snapshot(&self, snapshot: &str) -> Result<SnapshotView, AgentError>;

    /// New sandboxes that go on from where a running or paused one is now; the sandbox itself goes on as before.
    async fn fork(&self, id: &SandboxId, request: ForkRequest) -> Result<Forked, AgentError>;

    /// Takes a sandbox back to one of the snapshots that were made of it, under the same id. What it did since is lost.
    async fn rollback(&self, id: &SandboxId, snapshot: &str, options: ResumeOptions) -> Result<Changed, AgentError>;

    /// All templates.
    async fn templates(&self) -> Result<Vec<TemplateView>, AgentError>;

    /// Builds one of the templates that there are recipes for, and the kernel if there is none yet; nothing is done where its
    /// inputs are unchanged. Whoever asks for one that is being built gets that one.
    async fn build_template(&self, recipe: &str, progress: Progress) -> Result<TemplateView, AgentError>;

    /// Makes a warm image, if it is not there yet: boots a template once, and captures the VM when its guest is ready.
    async fn warm(&self, fresh: Fresh, ready_limit: Duration) -> Result<Warmed, AgentError>;

    /// Removes a template, by its name or id, with its warm images. One that sandboxes or snapshots stand on is not removed.
    async fn remove_template(&self, template: &str) -> Result<TemplateView, AgentError>;

    /// A new template from a snapshot: its disk as one image, and its memory, so that sandboxes start warm.
    async fn template_from_snapshot(&self, snapshot: &str, name: &str) -> Result<TemplateView, AgentError>;

    /// The host, and what is taken of it.
    async fn host(&self) -> Result<HostView, AgentError>;

    /// What a sandbox takes.
    async fn stat(&self, id: &SandboxId) -> Result<Stat, AgentError>;

    /// The last bytes of a sandbox's serial console, at most `bytes_max`; also of one whose VM has ended.
    async fn console(&self, id: &SandboxId, bytes_max: u32) -> Result<Vec<u8>, AgentError>;

    /// A connection to a TCP port of a running sandbox's guest. It ends when the sandbox is paused.
    async fn dial(&self, id: &SandboxId, port: u16, limit: Duration) -> Result<Tunnel, AgentError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{step}")]
    struct Failed {
        step: &'static str,
        #[source]
        source: io::Error,
    }

    #[test]
    fn where_there_is_no_room_the_remedy_is_said_once() {
        let text = |step, source: io::Error| with_causes(&Failed { step, source });
        let (full, told) = (|| io::ErrorKind::StorageFull.into(), "; free some space under WRENN_DIR");
        assert!(text("cannot write the manifest", full()).ends_with(told));
        assert!(text("cannot write", io::Error::from_raw_os_error(122)).ends_with(told), "a quota");
        assert!(text("cannot capture", io::Error::other("QEMU says: No space left on device")).ends_with(told));
        assert!(!text("it is full; free some space there", full()).ends_with(told));
        assert!(!text("cannot write", io::ErrorKind::PermissionDenied.into()).contains("free"));
    }
}
