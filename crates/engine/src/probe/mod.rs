//! What this host can do: looked at once, judged once, then passed down as a value.
//!
//! ```text
//! observe (touches the host, changes nothing) ─► Facts ─► assess (pure) ─► Capabilities ─► choose (pure) ─► Chosen
//! ```
//!
//! [`facts`] is the thin part that reads the host; it never fails, what cannot be read is a fact too. [`assess`] turns
//! facts into one [`Capability`] each, and whatever is not ready comes with its remedy: the type allows nothing else.
//! [`choice`] picks the drivers from it; asking for something the host lacks is an error that names it, and what is
//! chosen says why. Nothing here reads the environment: the caller hands in what it found there.

mod assess;
mod choice;
mod facts;
mod known;
mod parse;

use std::fmt;
use std::path::PathBuf;

pub use choice::{Cgroup, Choice, Chosen, Jail, Lack, Lacks, Restore, Wishes};
pub use facts::{Found, ProgramFact};
pub use parse::Version;
pub(crate) use parse::cgroup2_mount;

use crate::network::NetworkConfig;
use crate::vmm::firecracker::version;
use facts::Facts;

/// Oldest QEMU: the first that maps guest memory privately over a read-only file (`readonly=on,rom=off`).
pub const QEMU_OLDEST: Version = Version::new(8, 2, 0);
/// The program of QEMU that runs microVMs.
pub const QEMU_PROGRAM: &str = "qemu-system-x86_64";
/// Oldest kernel that Wrenn was made for: pidfds, `clone3` into a cgroup, `close_range`.
pub const KERNEL_OLDEST: Version = Version::new(5, 10, 0);

/// How thoroughly to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// What decides which drivers run: milliseconds.
    Choose,
    /// Everything that `wrenn doctor` tells.
    All,
}

/// What to look at beside the host itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// The instance's data folder; it need not exist yet.
    pub data_dir: PathBuf,
    /// The QEMU to take; without one, the system's.
    pub qemu: Option<PathBuf>,
    /// The Firecracker binary, where the caller knows of one.
    pub firecracker: Option<PathBuf>,
    /// The network that sandboxes would get.
    pub network: NetworkConfig,
    /// How thoroughly to look.
    pub depth: Depth,
}

/// What this host can do.
#[derive(Clone, Debug)]
pub struct Capabilities {
    facts: Facts,
    list: Vec<Capability>,
}

/// One thing a host can or cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Which one.
    pub name: Name,
    /// Whether it is there.
    pub state: State,
    /// What was found, for people.
    pub detail: String,
}

/// Whether a capability is there. What is not ready always has a remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there.
    Ready,
    /// It is there, with less than one would want.
    Degraded {
        /// What to do about it.
        remedy: String,
    },
    /// It is not there.
    Missing {
        /// What to do about it.
        remedy: String,
    },
}

impl State {
    /// What to do about it; `None` for what is ready.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Self::Ready => None,
            Self::Degraded { remedy } | Self::Missing { remedy } => Some(remedy),
        }
    }

    /// The state in one word, as it is in `wrenn doctor --json`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded { .. } => "degraded",
            Self::Missing { .. } => "missing",
        }
    }
}

/// The capabilities, in the order in which they are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Being root, who may make networks and start VMMs as other users.
    Root,
    /// A kernel that is new enough.
    Kernel,
    /// A QEMU that is new enough.
    Qemu,
    /// A Firecracker without known holes.
    Firecracker,
    /// Hardware virtualization that really runs guests.
    Kvm,
    /// Network namespaces.
    NetworkNamespaces,
    /// TAP devices.
    Tun,
    /// Pairs of virtual Ethernet devices.
    Veth,
    /// nftables and its program.
    Nftables,
    /// No other firewall that drops what sandboxes send.
    Firewall,
    /// A resolver that sandboxes can ask.
    Dns,
    /// The unified control groups, with controllers.
    CgroupV2,
    /// Device-mapper snapshots.
    DeviceMapper,
    /// Loop devices.
    LoopDevices,
    /// Page faults served by us.
    Userfaultfd,
    /// Memory for guests.
    Memory,
    /// No swap that guest memory could land in.
    Swap,
    /// Room on the disk of the data folder.
    Disk,
}

impl Name {
    /// The name as it is shown and as it is in `wrenn doctor --json`: stable.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Kernel => "kernel",
            Self::Qemu => "qemu",
            Self::Firecracker => "firecracker",
            Self::Kvm => "kvm",
            Self::NetworkNamespaces => "network_namespaces",
            Self::Tun => "tun",
            Self::Veth => "veth",
            Self::Nftables => "nftables",
            Self::Firewall => "firewall",
            Self::Dns => "dns",
            Self::CgroupV2 => "cgroup_v2",
            Self::DeviceMapper => "device_mapper",
            Self::LoopDevices => "loop_devices",
            Self::Userfaultfd => "userfaultfd",
            Self::Memory => "memory",
            Self::Swap => "swap",
            Self::Disk => "disk",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Looks at the host and judges it. Changes nothing, and never fails: what cannot be found out counts as not there.
pub async fn look(options: &Options) -> Capabilities {
    Capabilities::of(facts::observe(options).await)
}

impl Capabilities {
    fn of(facts: Facts) -> Self {
        let list = assess::assess(&facts);
        Self { facts, list }
    }

    /// Every capability, in the order of [`Name`].
    pub fn list(&self) -> &[Capability] {
        &self.list
    }

    /// Whether no sandbox runs on this host without it: with one VMM there, nobody needs the other.
    pub fn requires(&self, name: Name) -> bool {
        match name {
            Name::Root
            | Name::NetworkNamespaces
            | Name::Tun
            | Name::Veth
            | Name::Nftables
            | Name::Memory
            | Name::Disk => true,
            Name::Qemu => !choice::FIRECRACKER_NEEDS.into_iter().all(|name| self.is_usable(name)),
            Name::Kernel
            | Name::Firecracker
            | Name::Kvm
            | Name::Firewall
            | Name::Dns
            | Name::CgroupV2
            | Name::DeviceMapper
            | Name::LoopDevices
            | Name::Userfaultfd
            | Name::Swap => false,
        }
    }

    /// What no sandbox runs without and is not there.
    pub fn blockers(&self) -> impl Iterator<Item = &Capability> {
        self.list.iter().filter(|each| self.requires(each.name) && matches!(each.state, State::Missing { .. }))
    }

    /// Whether sandboxes can run here.
    pub fn can_run(&self) -> bool {
        self.blockers().next().is_none()
    }

    /// The QEMU to run, if there is one that is new enough.
    pub fn qemu(&self) -> Option<&Found> {
        self.facts.qemu.found().filter(|found| found.version >= QEMU_OLDEST)
    }

    /// The Firecracker to run, if there is one without known holes.
    pub fn firecracker(&self) -> Option<&Found> {
        self.facts.firecracker.found().filter(|found| version::check(found.version).is_ok())
    }

    /// Memory that guests can have before the host runs out, in bytes.
    pub fn memory_available(&self) -> u64 {
        self.facts.memory.map_or(0, |memory| memory.available)
    }

    /// Memory the host has in all, in bytes.
    pub fn memory_total(&self) -> u64 {
        self.facts.memory.map_or(0, |memory| memory.total)
    }

    /// The drivers for this host: the best that is there, or what is wished for.
    pub fn choose(&self, wishes: &Wishes) -> Result<Chosen, Lacks> {
        choice::choose(self, wishes)
    }

    /// Whether it is there, if with less than one would want.
    fn is_usable(&self, name: Name) -> bool {
        self.list.iter().any(|each| each.name == name && !matches!(each.state, State::Missing { .. }))
    }

    fn is_ready(&self, name: Name) -> bool {
        self.list.iter().any(|each| each.name == name && each.state == State::Ready)
    }

    /// Why a capability is not ready, and what to do about it.
    fn why_not(&self, name: Name) -> (String, String) {
        let found = self.list.iter().find(|each| each.name == name);
        let detail = found.map_or_else(|| "not looked at".to_owned(), |each| each.detail.clone());
        let remedy = found.and_then(|each| each.state.remedy()).unwrap_or("run `wrenn doctor`").to_owned();
        (detail, remedy)
    }
}
