//! The host as it is: read, nothing changed, nothing judged.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use wrenn_sys::dm::DeviceMapper;
use wrenn_sys::kvm;

use super::parse::{self, Memory, Version, Virtualization};
use super::{Depth, Options, QEMU_PROGRAM, known};
use crate::cgroup;
use crate::command::{self, Command};
use crate::network::{self, Dns, NetworkCapabilities, NetworkConfig};
use crate::vmm::firecracker::is_dynamic;

/// How long a program may take to say its version: milliseconds, on a busy host a second.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// How long the smallest guest may take; real hardware needs a millisecond.
const KVM_DEADLINE: Duration = Duration::from_secs(5);

/// Everything that was found out.
#[derive(Clone, Debug)]
pub struct Facts {
    pub root: bool,
    pub kernel: String,
    pub virtualization: Option<Virtualization>,
    pub kvm: KvmFact,
    pub qemu: ProgramFact,
    pub firecracker: ProgramFact,
    /// A release is linked statically; one that is not was built for a target whose filter is empty.
    pub firecracker_is_static: bool,
    pub network: NetworkFact,
    pub device_mapper: Device,
    pub loop_control: Device,
    pub userfaultfd: Device,
    pub cgroup2: Option<Cgroup2>,
    pub memory: Option<Memory>,
    pub disk_swaps: Vec<String>,
    pub disk: DiskFact,
}

/// What `/dev/kvm` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmFact {
    /// It is not there.
    Absent,
    /// It is there; without hardware virtualization it was not tried.
    Untried,
    /// It runs a guest of three instructions.
    Runs,
    /// It does not, for this reason.
    Fails(String),
}

/// A program that was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramFact {
    /// Not there.
    Absent,
    /// There, of this version.
    Found(Found),
    /// There, but it does not say its version.
    Mute {
        /// Where it is.
        path: PathBuf,
        /// What happened instead.
        reason: String,
    },
}

/// A program and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// What `--version` says.
    pub version: Version,
}

impl ProgramFact {
    /// The program, if it is there and says its version.
    pub fn found(&self) -> Option<&Found> {
        match self {
            Self::Found(found) => Some(found),
            Self::Absent | Self::Mute { .. } => None,
        }
    }
}

/// What of a sandbox's network is there; the reasons tell what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkFact {
    /// Network namespaces.
    pub namespaces: Result<(), String>,
    /// TAPs.
    pub tun: Result<(), String>,
    /// veth pairs.
    pub veth: Result<(), String>,
    /// nftables: what was found.
    pub nft: Result<String, String>,
    /// Chains of others that drop what is forwarded; `None` when nobody asked.
    pub forward_drops: Option<Vec<String>>,
    /// What sandboxes get for DNS.
    pub dns: Dns,
}

/// A device or file that has to be openable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// It opens.
    Opens,
    /// It does not, for this reason.
    Refused(String),
}

/// The unified control groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup2 {
    /// Where they are mounted.
    pub mount: PathBuf,
    /// Which controllers they have.
    pub controllers: Vec<String>,
    /// Whether a sandbox's group could be made; what was not tried counts as possible.
    pub trial: Result<(), String>,
}

/// Room for the data folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskFact {
    /// The folder, or the nearest one above it that exists.
    pub path: PathBuf,
    /// Free bytes there; `None` when they cannot be found out.
    pub free: Option<u64>,
}

/// Looks at everything, what takes time side by side.
pub async fn observe(options: &Options) -> Facts {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let virtualization = parse::virtualization(&read("/proc/cpuinfo"));
    let kvm = tokio::task::spawn_blocking(move || observe_kvm(virtualization));
    let firecracker = async {
        match &options.firecracker {
            Some(path) => known_version_of(path.clone(), options).await,
            None => ProgramFact::Absent,
        }
    };
    let qemu = async {
        match &options.qemu {
            Some(path) => known_version_of(path.clone(), options).await,
            None => observe_program(QEMU_PROGRAM, options).await,
        }
    };
    let (kvm, qemu, firecracker, network) = tokio::join!(kvm, qemu, firecracker, observe_network(options));
    let is_static = firecracker.found().is_some_and(|found| !is_dynamic(&found.path).unwrap_or(true));
    Facts {
        root: rustix::process::geteuid().is_root(),
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        virtualization,
        kvm: kvm.unwrap_or_else(|panic| KvmFact::Fails(panic.to_string())),
        qemu,
        firecracker,
        firecracker_is_static: is_static,
        network,
        device_mapper: observe_device_mapper(),
        loop_control: open("/dev/loop-control"),
        // A VMM in its jail is not root, and has no other way to it than the device.
        userfaultfd: open("/dev/userfaultfd"),
        cgroup2: observe_cgroup2(&read("/proc/self/mountinfo"), options),
        memory: parse::memory(&read("/proc/meminfo")),
        disk_swaps: parse::disk_swaps(&read("/proc/swaps")),
        disk: observe_disk(&options.data_dir),
    }
}

fn observe_kvm(virtualization: Option<Virtualization>) -> KvmFact {
    if !Path::new("/dev/kvm").exists() {
        return KvmFact::Absent;
    }
    if virtualization.is_none() {
        return KvmFact::Untried;
    }
    match kvm::prove(KVM_DEADLINE) {
        Ok(()) => KvmFact::Runs,
        Err(error) => KvmFact::Fails(with_causes(&error)),
    }
}

async fn observe_program(name: &str, options: &Options) -> ProgramFact {
    match command::find(name) {
        Ok(path) => known_version_of(path, options).await,
        Err(_absent) => ProgramFact::Absent,
    }
}

/// In a hurry, what the program said before is as good as asking it again.
async fn known_version_of(path: PathBuf, options: &Options) -> ProgramFact {
    let known = match options.depth {
        Depth::Choose => known::version(&options.data_dir, &path),
        Depth::All => None,
    };
    if let Some(version) = known {
        return ProgramFact::Found(Found { path, version });
    }
    let fact = version_of(path).await;
    if let (Depth::Choose, Some(found)) = (options.depth, fact.found()) {
        known::remember(&options.data_dir, &found.path, found.version);
    }
    fact
}

async fn version_of(path: PathBuf) -> ProgramFact {
    if !path.is_file() {
        return ProgramFact::Mute { path, reason: "there is no such file".to_owned() };
    }
    match Command::new(&path).arg("--version").timeout(VERSION_DEADLINE).run().await {
        Ok(output) => match Version::in_text(&output.text()) {
            Some(version) => ProgramFact::Found(Found { path, version }),
            None => ProgramFact::Mute { path, reason: "`--version` names none".to_owned() },
        },
        Err(error) => ProgramFact::Mute { path, reason: with_causes(&error) },
    }
}

/// In depth, by really making a sandbox's network in a namespace that is thrown away.
async fn observe_network(options: &Options) -> NetworkFact {
    let config = options.network.clone();
    match options.depth {
        Depth::Choose => glance_at_network(&config),
        Depth::All => {
            let tried = tokio::task::spawn_blocking(move || network::capabilities(&config)).await;
            tried.map_or_else(|panic| broken_network(&panic.to_string()), of_capabilities)
        }
    }
}

fn of_capabilities(tried: NetworkCapabilities) -> NetworkFact {
    NetworkFact {
        namespaces: tried.netns,
        tun: tried.tap,
        veth: tried.veth,
        nft: tried.nft,
        forward_drops: Some(tried.forward_drops),
        dns: tried.dns,
    }
}

/// Only whether the pieces are there: the making of the network tells the rest.
fn glance_at_network(config: &NetworkConfig) -> NetworkFact {
    let tun = match open("/dev/net/tun") {
        Device::Opens => Ok(()),
        Device::Refused(reason) => Err(format!("{reason}; modprobe tun")),
    };
    let namespaces = fs::metadata("/proc/self/ns/net");
    NetworkFact {
        namespaces: namespaces.map(drop).map_err(|error| format!("{error}; the kernel needs CONFIG_NET_NS")),
        tun,
        veth: Ok(()),
        nft: command::find("nft").map(|path| path.display().to_string()).map_err(|error| with_causes(&error)),
        forward_drops: None,
        dns: network::resolvers::choose(&config.resolv_conf),
    }
}

fn broken_network(reason: &str) -> NetworkFact {
    let broken = || Err(format!("the test of it failed: {reason}"));
    NetworkFact {
        namespaces: broken(),
        tun: broken(),
        veth: broken(),
        nft: Err(reason.to_owned()),
        forward_drops: None,
        dns: Dns::Unavailable(reason.to_owned()),
    }
}

fn observe_cgroup2(mountinfo: &str, options: &Options) -> Option<Cgroup2> {
    let mount = parse::cgroup2_mount(mountinfo)?;
    let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    let trial = match options.depth {
        Depth::Choose => Ok(()),
        Depth::All => cgroup::trial(&mount, &options.network.run_dir).map_err(|error| with_causes(&error)),
    };
    Some(Cgroup2 { mount, controllers: controllers.split_whitespace().map(str::to_owned).collect(), trial })
}

fn observe_disk(data_dir: &Path) -> DiskFact {
    let path = data_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/")).to_owned();
    let free = rustix::fs::statvfs(&path).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    DiskFact { path, free }
}

fn observe_device_mapper() -> Device {
    let snapshot = "snapshot".parse().expect("a name");
    match DeviceMapper::open().and_then(|mapper| mapper.has_target(&snapshot)) {
        Ok(true) => Device::Opens,
        Ok(false) => Device::Refused("the kernel's device-mapper has no snapshots".to_owned()),
        Err(error) => Device::Refused(with_causes(&error)),
    }
}

fn open(path: &str) -> Device {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_closed_again) => Device::Opens,
        Err(error) => Device::Refused(format!("{path}: {error}")),
    }
}

/// An error and its sources on one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
