//! Firecracker's API as types: what is sent ([`Change`], serialized exactly) and what is asked ([`Query`], whose answers
//! may hold more than is read here).
//!
//! Field names and values are Firecracker's own (`firecracker.yaml`, 1.14 to 1.16). A field it may leave out is an
//! `Option` and is not sent as `null`. Paths are those that the Firecracker process sees.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Changes of state that only move data in memory.
const QUICK: Duration = Duration::from_secs(10);
/// Starting a VM: its kernel is read, its memory is mapped, its devices are made.
const START: Duration = Duration::from_secs(30);
/// Snapshots: all of guest memory goes through a disk.
const SNAPSHOT: Duration = Duration::from_secs(300);

/// An HTTP method that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Asks.
    Get,
    /// Sets.
    Put,
    /// Changes what is set.
    Patch,
}

impl Method {
    /// As it is written in a request.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
        }
    }
}

/// The id of a device; it is also a part of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct DeviceId(&'static str);

impl DeviceId {
    /// An id of letters, digits and `_`; anything else does not compile in a `const`.
    pub const fn new(id: &'static str) -> Self {
        let bytes = id.as_bytes();
        let mut at = 0;
        assert!(!bytes.is_empty());
        while at < bytes.len() {
            assert!(bytes[at].is_ascii_alphanumeric() || bytes[at] == b'_');
            at += 1;
        }
        Self(id)
    }
}

/// What the guest boots from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BootSource {
    /// An uncompressed ELF kernel.
    pub kernel_image_path: String,
    /// The initramfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<String>,
    /// The kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// A token bucket: `size` tokens (bytes or operations) come back within `refill_time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// Tokens it holds.
    pub size: u64,
    /// Extra tokens, once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds until it is full again.
    pub refill_time: u64,
}

/// Limits of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimiter {
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// What a guest's flush does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum CacheType {
    /// It is not offered to the guest.
    Unsafe,
    /// It is an fsync on the host.
    Writeback,
}

/// How Firecracker reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum IoEngine {
    /// By plain system calls.
    Sync,
    /// By io_uring.
    Async,
}

/// A disk. The first one is `/dev/vda`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drive {
    /// Its id.
    pub drive_id: DeviceId,
    /// Whether Firecracker adds `root=/dev/vda` to the kernel's command line.
    pub is_root_device: bool,
    /// What a guest's flush does.
    pub cache_type: CacheType,
    /// Whether the guest may only read.
    pub is_read_only: bool,
    /// The file or device.
    pub path_on_host: String,
    /// How it is read and written.
    pub io_engine: IoEngine,
    /// Its limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// What of a disk can be changed while the VM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DriveChange {
    /// Its id.
    pub drive_id: DeviceId,
    /// Another file or device; also when the same one has another size now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// Other limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkInterface {
    /// Its id.
    pub iface_id: DeviceId,
    /// The TAP.
    pub host_dev_name: String,
    /// The guest's MAC address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Limits of what the guest receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// What of a network interface can be changed while the VM runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkInterfaceChange {
    /// Its id.
    pub iface_id: DeviceId,
    /// Other limits of what the guest receives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Other limits of what the guest sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

/// Size and manner of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Virtual CPUs, 1 to 32.
    pub vcpu_count: u32,
    /// Memory in MiB.
    pub mem_size_mib: u32,
    /// Whether two CPUs share a core; only with an even number of them.
    #[serde(default)]
    pub smt: bool,
    /// Whether KVM logs which pages are written, for snapshots of the difference.
    #[serde(default)]
    pub track_dirty_pages: bool,
}

/// A random number generator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Entropy {
    /// Its limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// A balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// Its size in MiB.
    pub amount_mib: u32,
    /// Whether it gives way when the guest runs out of memory.
    pub deflate_on_oom: bool,
    /// Seconds between statistics; 0 is without.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
}

/// A balloon's other size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BalloonChange {
    /// In MiB.
    pub amount_mib: u32,
}

/// Another pace of a balloon's statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BalloonStatisticsChange {
    /// Seconds between statistics; they cannot be turned on or off.
    pub stats_polling_interval_s: u16,
}

/// What a balloon's guest reports. Counts a guest does not know are absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct BalloonStatistics {
    /// Pages it should hold.
    pub target_pages: u32,
    /// Pages it holds.
    pub actual_pages: u32,
    /// MiB it should hold.
    pub target_mib: u32,
    /// MiB it holds.
    pub actual_mib: u32,
    /// Unused memory, in bytes.
    pub free_memory: Option<u64>,
    /// All memory, in bytes.
    pub total_memory: Option<u64>,
    /// Memory for new programs without swapping, in bytes.
    pub available_memory: Option<u64>,
    /// Memory in caches, in bytes.
    pub disk_caches: Option<u64>,
    /// Times the guest ran out of memory.
    pub oom_kill: Option<u64>,
}

/// Version of the metadata service's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MmdsVersion {
    /// Plain.
    V1,
    /// With a session token.
    V2,
}

/// The metadata service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MmdsConfig {
    /// Its protocol.
    pub version: MmdsVersion,
    /// The interfaces on which it answers.
    pub network_interfaces: Vec<DeviceId>,
    /// The address at which it answers; link-local.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4_address: Option<Ipv4Addr>,
}

/// The state to go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum VmState {
    /// CPUs and devices stand still.
    Paused,
    /// They go on.
    Resumed,
}

/// Something to be done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Boot what was configured.
    InstanceStart,
    /// Write the metrics now.
    FlushMetrics,
    /// Press Ctrl+Alt+Del on the guest's keyboard.
    SendCtrlAltDel,
}

/// How much of guest memory a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum SnapshotType {
    /// All of it.
    Full,
    /// What was written since the last one.
    Diff,
}

/// A snapshot to be made of a paused VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotCreate {
    /// How much of memory.
    pub snapshot_type: SnapshotType,
    /// Where the state of CPUs and devices goes.
    pub snapshot_path: String,
    /// Where memory goes.
    pub mem_file_path: String,
}

/// Where a snapshot's memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MemoryBackendType {
    /// A file, mapped privately.
    File,
    /// A process behind a Unix socket that serves page faults.
    Uffd,
}

/// Where a snapshot's memory comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryBackend {
    /// What it is.
    pub backend_type: MemoryBackendType,
    /// The file or socket.
    pub backend_path: String,
}

/// Another TAP for an interface of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkOverride {
    /// The interface.
    pub iface_id: DeviceId,
    /// The TAP.
    pub host_dev_name: String,
}

/// A snapshot to go on from, in a Firecracker to which nothing else was said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotLoad {
    /// The state of CPUs and devices.
    pub snapshot_path: String,
    /// Its memory.
    pub mem_backend: MemoryBackend,
    /// Whether KVM logs which pages are written from now on.
    pub track_dirty_pages: bool,
    /// Whether the CPUs run at once.
    pub resume_vm: bool,
    /// Other TAPs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
}

/// Where metrics go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// A file or pipe that exists.
    pub metrics_path: String,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What failed.
    Error,
    /// What is strange.
    Warning,
    /// What happens.
    Info,
    /// More.
    Debug,
    /// Everything.
    Trace,
}

/// Where the log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Logger {
    /// A file or pipe that exists; standard output if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_path: Option<String>,
    /// How much.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether lines name their level.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether lines name their place in Firecracker's source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
}

#[derive(Serialize)]
struct VmBody {
    state: VmState,
}

#[derive(Serialize)]
struct ActionBody {
    action_type: Action,
}

/// Everything that can be told. The answer is that it was done, or why not.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Before the start.
    BootSource(BootSource),
    /// Before the start.
    Drive(Drive),
    /// After the start.
    DriveChange(DriveChange),
    /// Before the start.
    NetworkInterface(NetworkInterface),
    /// After the start.
    NetworkInterfaceChange(NetworkInterfaceChange),
    /// Before the start.
    MachineConfig(MachineConfig),
    /// Before the start.
    Entropy(Entropy),
    /// Before the start.
    Balloon(Balloon),
    /// After the start.
    BalloonChange(BalloonChange),
    /// After the start.
    BalloonStatisticsChange(BalloonStatisticsChange),
    /// Before the start, after the interfaces it names.
    MmdsConfig(MmdsConfig),
    /// The metadata, whole; any time.
    MmdsPut(Value),
    /// What of the metadata changes; any time.
    MmdsPatch(Value),
    /// After the start.
    Vm(VmState),
    /// `InstanceStart` once, the others after it.
    Action(Action),
    /// While paused.
    SnapshotCreate(SnapshotCreate),
    /// Before anything else.
    SnapshotLoad(SnapshotLoad),
    /// Once, before the start.
    Metrics(Metrics),
    /// Before the start.
    Logger(Logger),
}

impl Change {
    /// Its name in messages.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::BootSource(_) => "set the boot source",
            Self::Drive(_) => "add the disk",
            Self::DriveChange(_) => "change the disk",
            Self::NetworkInterface(_) => "add the network interface",
            Self::NetworkInterfaceChange(_) => "change the network interface",
            Self::MachineConfig(_) => "set the machine's size",
            Self::Entropy(_) => "add the random number generator",
            Self::Balloon(_) => "add the balloon",
            Self::BalloonChange(_) => "change the balloon",
            Self::BalloonStatisticsChange(_) => "change the balloon's statistics",
            Self::MmdsConfig(_) => "set up the metadata service",
            Self::MmdsPut(_) => "set the metadata",
            Self::MmdsPatch(_) => "change the metadata",
            Self::Vm(VmState::Paused) => "pause",
            Self::Vm(VmState::Resumed) => "resume",
            Self::Action(Action::InstanceStart) => "start",
            Self::Action(Action::FlushMetrics) => "flush metrics",
            Self::Action(Action::SendCtrlAltDel) => "press Ctrl+Alt+Del",
            Self::SnapshotCreate(_) => "create a snapshot",
            Self::SnapshotLoad(_) => "load a snapshot",
            Self::Metrics(_) => "set up metrics",
            Self::Logger(_) => "set up logging",
        }
    }

    /// How long it may take.
    pub const fn limit(&self) -> Duration {
        match self {
            Self::BootSource(_)
            | Self::Drive(_)
            | Self::DriveChange(_)
            | Self::NetworkInterface(_)
            | Self::NetworkInterfaceChange(_)
            | Self::MachineConfig(_)
            | Self::Entropy(_)
            | Self::Balloon(_)
            | Self::BalloonChange(_)
            | Self::BalloonStatisticsChange(_)
            | Self::MmdsConfig(_)
            | Self::MmdsPut(_)
            | Self::MmdsPatch(_)
            | Self::Vm(_)
            | Self::Action(Action::FlushMetrics | Action::SendCtrlAltDel)
            | Self::Metrics(_)
            | Self::Logger(_) => QUICK,
            Self::Action(Action::InstanceStart) => START,
            Self::SnapshotCreate(_) | Self::SnapshotLoad(_) => SNAPSHOT,
        }
    }

    /// The request: method, path, body.
    pub fn request(&self) -> (Method, String, Vec<u8>) {
        use Method::{Patch, Put};
        match self {
            Self::BootSource(body) => request(Put, "/boot-source", body),
            Self::Drive(body) => request(Put, format!("/drives/{}", body.drive_id.0), body),
            Self::DriveChange(body) => request(Patch, format!("/drives/{}", body.drive_id.0), body),
            Self::NetworkInterface(body) => request(Put, format!("/network-interfaces/{}", body.iface_id.0), body),
            Self::NetworkInterfaceChange(body) => {
                request(Patch, format!("/network-interfaces/{}", body.iface_id.0), body)
            }
            Self::MachineConfig(body) => request(Put, "/machine-config", body),
            Self::Entropy(body) => request(Put, "/entropy", body),
            Self::Balloon(body) => request(Put, "/balloon", body),
            Self::BalloonChange(body) => request(Patch, "/balloon", body),
            Self::BalloonStatisticsChange(body) => request(Patch, "/balloon/statistics", body),
            Self::MmdsConfig(body) => request(Put, "/mmds/config", body),
            Self::MmdsPut(body) => request(Put, "/mmds", body),
            Self::MmdsPatch(body) => request(Patch, "/mmds", body),
            Self::Vm(state) => request(Patch, "/vm", &VmBody { state: *state }),
            Self::Action(action) => request(Put, "/actions", &ActionBody { action_type: *action }),
            Self::SnapshotCreate(body) => request(Put, "/snapshot/create", body),
            Self::SnapshotLoad(body) => request(Put, "/snapshot/load", body),
            Self::Metrics(body) => request(Put, "/metrics", body),
            Self::Logger(body) => request(Put, "/logger", body),
        }
    }
}

fn request(method: Method, path: impl Into<String>, body: &impl Serialize) -> (Method, String, Vec<u8>) {
    (method, path.into(), serde_json::to_vec(body).expect("structs of strings and numbers are JSON"))
}

/// Something that can be asked.
pub trait Query {
    /// Its name in messages.
    const NAME: &'static str;
    /// Its path; the method is GET.
    const PATH: &'static str;
    /// How long it may take.
    const LIMIT: Duration = QUICK;
    /// What is answered; other fields than those read are ignored.
    type Answer: DeserializeOwned;
}

/// What a Firecracker says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct InstanceInfo {
    /// `Firecracker`.
    pub app_name: String,
    /// What `--id` said.
    pub id: String,
    /// How far it is.
    pub state: InstanceState,
    /// Its version.
    pub vmm_version: String,
}

/// How far a Firecracker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum InstanceState {
    /// It can be configured.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The guest's CPUs run.
    Running,
    /// They stand still.
    Paused,
}

/// A Firecracker's version.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct FirecrackerVersion {
    /// Such as `1.16.1`.
    pub firecracker_version: String,
}

macro_rules! queries {
    ($($(#[$doc:meta])* $query:ident, $name:literal, $path:literal => $answer:ty;)+) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub struct $query;

            impl Query for $query {
                const NAME: &'static str = $name;
                const PATH: &'static str = $path;
                type Answer = $answer;
            }
        )+
    };
}

queries! {
    /// Who it is and how far.
    GetInstance, "describe itself", "/" => InstanceInfo;
    /// Which version it is.
    GetVersion, "tell its version", "/version" => FirecrackerVersion;
    /// The machine's size.
    GetMachineConfig, "tell the machine's size", "/machine-config" => MachineConfig;
    /// The balloon.
    GetBalloon, "describe the balloon", "/balloon" => Balloon;
    /// What the balloon's guest reports.
    GetBalloonStatistics, "tell the balloon's statistics", "/balloon/statistics" => BalloonStatistics;
    /// The metadata.
    GetMmds, "tell the metadata", "/mmds" => Value;
}

#[cfg(test)]
mod tests;
