//! Facts judged: one capability each, in a fixed order, with the remedy for everything that is not ready. Pure.

use super::facts::{Cgroup2, Device, Facts, KvmFact, NetworkFact, ProgramFact};
use super::{Capability, KERNEL_OLDEST, Name, QEMU_OLDEST, State, Version};
use crate::limits;
use crate::network::Dns;
use crate::units::Mib;
use crate::vmm::firecracker::version;

/// Controllers that limit what a sandbox uses.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// Every capability, in the order of [`Name`].
pub fn assess(facts: &Facts) -> Vec<Capability> {
    let judged = [
        (Name::Root, root(facts)),
        (Name::Kernel, kernel(facts)),
        (Name::Qemu, qemu(&facts.qemu)),
        (Name::Firecracker, firecracker(facts)),
        (Name::Kvm, kvm(facts)),
        (Name::NetworkNamespaces, tried(&facts.network.namespaces, "a network namespace can be made")),
        (Name::Tun, tried(&facts.network.tun, "a TAP can be made")),
        (Name::Veth, tried(&facts.network.veth, "a veth pair can be made")),
        (Name::Nftables, nftables(&facts.network.nft)),
        (Name::Firewall, firewall(&facts.network)),
        (Name::Dns, dns(&facts.network.dns)),
        (Name::CgroupV2, cgroup_v2(facts.cgroup2.as_ref())),
        (Name::DeviceMapper, device_mapper(facts)),
        (Name::LoopDevices, loop_devices(facts)),
        (Name::Userfaultfd, userfaultfd(facts)),
        (Name::Memory, memory(facts)),
        (Name::Swap, swap(&facts.disk_swaps)),
        (Name::Disk, disk(facts)),
    ];
    judged.into_iter().map(|(name, (state, detail))| Capability { name, state, detail }).collect()
}

type Judgement = (State, String);

fn ready(detail: impl Into<String>) -> Judgement {
    (State::Ready, detail.into())
}

fn degraded(detail: impl Into<String>, remedy: impl Into<String>) -> Judgement {
    (State::Degraded { remedy: remedy.into() }, detail.into())
}

fn missing(detail: impl Into<String>, remedy: impl Into<String>) -> Judgement {
    (State::Missing { remedy: remedy.into() }, detail.into())
}

fn root(facts: &Facts) -> Judgement {
    if facts.root { ready("running as root") } else { missing("not running as root", "run wrenn as root (sudo)") }
}

fn kernel(facts: &Facts) -> Judgement {
    let release = format!("Linux {}", facts.kernel);
    if Version::in_text(&facts.kernel).is_some_and(|version| version >= KERNEL_OLDEST) {
        ready(release)
    } else {
        degraded(release, format!("use Linux {KERNEL_OLDEST} or newer: Wrenn is not tested on older ones"))
    }
}

fn qemu(qemu: &ProgramFact) -> Judgement {
    let remedy = format!(
        "install QEMU {QEMU_OLDEST} or newer: the Debian package qemu-system-x86, on Debian 12 from bookworm-backports"
    );
    match qemu {
        ProgramFact::Absent => missing("not installed", remedy),
        ProgramFact::Mute { path, reason } => missing(format!("{} does not run: {reason}", path.display()), remedy),
        ProgramFact::Found(found) if found.version < QEMU_OLDEST => {
            missing(format!("{} at {} is too old", found.version, found.path.display()), remedy)
        }
        ProgramFact::Found(found) => ready(format!("{} at {}", found.version, found.path.display())),
    }
}

fn firecracker(facts: &Facts) -> Judgement {
    let (oldest, holed) = (version::OLDEST, version::HOLED);
    let remedy = format!(
        "install a release binary of Firecracker {oldest} or newer, not {holed}, in PATH, or name it in \
         WRENN_FIRECRACKER; until then QEMU runs the sandboxes"
    );
    match &facts.firecracker {
        ProgramFact::Absent => missing("not found", remedy),
        ProgramFact::Mute { path, reason } => missing(format!("{} does not run: {reason}", path.display()), remedy),
        ProgramFact::Found(found) if version::check(found.version).is_err() => {
            missing(format!("{} at {} has the hole CVE-2026-5747", found.version, found.path.display()), remedy)
        }
        ProgramFact::Found(found) => {
            let detail = format!("{} at {}", found.version, found.path.display());
            if facts.firecracker_is_static {
                ready(detail)
            } else {
                degraded(
                    format!("{detail} is no release: it is linked dynamically, and its system-call filter empty"),
                    remedy,
                )
            }
        }
    }
}

fn kvm(facts: &Facts) -> Judgement {
    const SLOWER: &str = "until then QEMU translates the guest's instructions, about ten times slower";
    let Some(virtualization) = facts.virtualization else {
        let detail = match facts.kvm {
            KvmFact::Absent => "the CPU shows neither vmx nor svm",
            KvmFact::Untried | KvmFact::Runs | KvmFact::Fails(_) => {
                "/dev/kvm is there, but the CPU shows neither vmx nor svm: a paravirtual KVM, which cannot run an \
                 ordinary kernel"
            }
        };
        let remedy = "switch on VT-x or AMD-V in the firmware, or nested virtualization if this is a virtual machine";
        return missing(detail, format!("{remedy}; {SLOWER}"));
    };
    match &facts.kvm {
        KvmFact::Runs => ready(format!("{}, and a test guest ran", virtualization.flag())),
        KvmFact::Absent => {
            let remedy = format!("modprobe {}; {SLOWER}", virtualization.module());
            missing(format!("the CPU has {}, but there is no /dev/kvm", virtualization.flag()), remedy)
        }
        KvmFact::Untried => missing("not tried", "run `wrenn doctor`"),
        KvmFact::Fails(reason) if facts.root => {
            let remedy = format!("see the kernel's log (dmesg) for kvm; {SLOWER}");
            missing(format!("the CPU has {}, but {reason}", virtualization.flag()), remedy)
        }
        KvmFact::Fails(reason) => missing(reason.clone(), format!("run wrenn as root; {SLOWER}")),
    }
}

/// What was tried; a reason ends with what helps, after its last semicolon.
fn tried(outcome: &Result<(), String>, detail: &str) -> Judgement {
    match outcome {
        Ok(()) => ready(detail),
        Err(reason) => reason_and_remedy(reason, missing),
    }
}

fn nftables(nft: &Result<String, String>) -> Judgement {
    match nft {
        Ok(found) => ready(found),
        Err(reason) => reason_and_remedy(reason, missing),
    }
}

fn firewall(network: &NetworkFact) -> Judgement {
    if network.nft.is_err() {
        return degraded("the host's rules cannot be read", "see nftables");
    }
    match network.forward_drops.as_deref() {
        Some([]) => ready("no other firewall drops forwarded packets"),
        None => ready("not asked"),
        Some(chains) => degraded(
            format!("drops forwarded packets by default: {}", chains.join(", ")),
            "sandboxes have no way out unless that chain accepts theirs: a drop there beats our accept; let it accept \
             interfaces `wv*` (with Docker: chain DOCKER-USER)",
        ),
    }
}

fn dns(dns: &Dns) -> Judgement {
    match dns {
        Dns::Resolver(address) => ready(format!("queries of sandboxes go to {address}")),
        Dns::Unavailable(reason) => reason_and_remedy(reason, degraded),
    }
}

/// Splits what others tell as `cause; what helps`.
fn reason_and_remedy(reason: &str, judge: fn(String, String) -> Judgement) -> Judgement {
    match reason.rsplit_once("; ") {
        Some((detail, remedy)) => judge(detail.to_owned(), remedy.to_owned()),
        None => judge(reason.to_owned(), "see the message".to_owned()),
    }
}

fn cgroup_v2(cgroup2: Option<&Cgroup2>) -> Judgement {
    const REMEDY: &str =
        "boot with systemd.unified_cgroup_hierarchy=1; until then nothing but the VM's size limits a sandbox";
    let Some(cgroup2) = cgroup2 else {
        return missing("not mounted", REMEDY);
    };
    let absent: Vec<&str> =
        CONTROLLERS.into_iter().filter(|name| !cgroup2.controllers.iter().any(|each| each == name)).collect();
    let mount = cgroup2.mount.display();
    match &cgroup2.trial {
        _ if !absent.is_empty() => {
            degraded(format!("{mount} has no controller {} (cgroup v1 holds it)", absent.join(", ")), REMEDY)
        }
        Ok(()) => ready(format!("{mount} with {}", CONTROLLERS.join(", "))),
        Err(reason) => {
            let remedy = "run wrenn as root, outside of a container whose control groups are read-only";
            missing(format!("no group can be made in {mount}: {reason}"), remedy)
        }
    }
}

fn device_mapper(facts: &Facts) -> Judgement {
    let remedy = "modprobe dm_mod dm_snapshot; until then disks are qcow2 overlays";
    device(facts, &facts.device_mapper, "it has snapshots", remedy)
}

fn loop_devices(facts: &Facts) -> Judgement {
    let remedy = "modprobe loop; device-mapper disks need it, qcow2 overlays do not";
    device(facts, &facts.loop_control, "/dev/loop-control opens", remedy)
}

fn userfaultfd(facts: &Facts) -> Judgement {
    let remedy = "use a kernel with CONFIG_USERFAULTFD, 6.1 or newer; until then memory is restored from files alone";
    device(facts, &facts.userfaultfd, "usable", remedy)
}

fn device(facts: &Facts, device: &Device, detail: &str, remedy: &str) -> Judgement {
    match device {
        Device::Opens => ready(detail),
        Device::Refused(reason) if facts.root => missing(reason, remedy),
        Device::Refused(reason) => missing(reason, "run wrenn as root"),
    }
}

fn memory(facts: &Facts) -> Judgement {
    let Some(memory) = facts.memory else {
        return missing("/proc/meminfo cannot be read", "mount /proc");
    };
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let fit = memory.available / limits::SANDBOX_MEMORY_TYPICAL.bytes();
    let detail = format!(
        "{:.1} of {:.1} GiB available: {fit} sandboxes of {} until every page of theirs is their own",
        gib(memory.available),
        gib(memory.total),
        limits::SANDBOX_MEMORY_TYPICAL
    );
    if memory.available < limits::MEMORY_MIN.bytes() {
        missing(detail, format!("free at least {}, the least a sandbox takes", limits::MEMORY_MIN))
    } else if fit < 2 {
        degraded(detail, "free some memory: there is room for one sandbox")
    } else {
        ready(detail)
    }
}

fn swap(disk_swaps: &[String]) -> Judgement {
    if disk_swaps.is_empty() {
        ready("no swap on a disk")
    } else {
        degraded(
            format!("guest memory can be written to {}", disk_swaps.join(", ")),
            "swapoff -a: guest memory in swap is slow, and lies on a disk in the clear unless the swap is encrypted",
        )
    }
}

fn disk(facts: &Facts) -> Judgement {
    let path = facts.disk.path.display();
    let Some(free) = facts.disk.free else {
        return missing(format!("free space at {path} cannot be found out"), "choose another folder with WRENN_DIR");
    };
    let free = Mib((free >> 20).try_into().unwrap_or(u32::MAX));
    let detail = format!("{free} free at {path}");
    if free < limits::DISK_FREE_LEAST {
        missing(detail, format!("free at least {}, or choose another disk with WRENN_DIR", limits::DISK_FREE_LEAST))
    } else if free < limits::DISK_FREE_WANTED {
        degraded(
            detail,
            format!("{} are good to have: templates and sandboxes' disks live there", limits::DISK_FREE_WANTED),
        )
    } else {
        ready(detail)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;
    use std::path::PathBuf;

    use super::super::facts::{DiskFact, Found};
    use super::super::parse::{Memory, Virtualization};
    use super::*;

    /// A host that has everything.
    pub fn best() -> Facts {
        let program = |version| ProgramFact::Found(Found { path: PathBuf::from("/usr/bin/program"), version });
        Facts {
            root: true,
            kernel: "6.1.0-56-cloud-amd64".to_owned(),
            virtualization: Some(Virtualization::Vmx),
            kvm: KvmFact::Runs,
            qemu: program(Version::new(10, 0, 2)),
            firecracker: program(Version::new(1, 14, 4)),
            firecracker_is_static: true,
            network: NetworkFact {
                namespaces: Ok(()),
                tun: Ok(()),
                veth: Ok(()),
                nft: Ok("nftables v1.0.6".to_owned()),
                forward_drops: Some(Vec::new()),
                dns: Dns::Resolver(Ipv4Addr::new(192, 0, 2, 53)),
            },
            device_mapper: Device::Opens,
            loop_control: Device::Opens,
            userfaultfd: Device::Opens,
            cgroup2: Some(Cgroup2 {
                mount: PathBuf::from("/sys/fs/cgroup"),
                controllers: ["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).to_vec(),
                trial: Ok(()),
            }),
            memory: Some(Memory { total: 16 << 30, available: 8 << 30 }),
            disk_swaps: Vec::new(),
            disk: DiskFact { path: PathBuf::from("/var/lib"), free: Some(64 << 30) },
        }
    }

    fn word(facts: &Facts, name: Name) -> &'static str {
        let list = assess(facts);
        let found = list.iter().find(|each| each.name == name).unwrap();
        found.state.word()
    }

    #[test]
    fn every_capability_is_told_once_and_in_order() {
        let names: Vec<Name> = assess(&best()).iter().map(|each| each.name).collect();
        assert!(names.is_sorted() && names.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(names.last(), Some(&Name::Disk));
        assert_eq!(names.len(), Name::Disk as usize + 1);
        let not_ready: Vec<Name> =
            assess(&best()).iter().filter(|each| each.state != State::Ready).map(|each| each.name).collect();
        assert_eq!(not_ready, []);
    }

    #[test]
    fn what_is_not_as_wanted_is_told_and_has_a_remedy() {
        type Change = fn(&mut Facts);
        let cases: &[(Name, &str, Change)] = &[
            (Name::Root, "missing", |facts| facts.root = false),
            (Name::Kernel, "degraded", |facts| facts.kernel = "4.19.0".to_owned()),
            (Name::Kernel, "degraded", |facts| facts.kernel = String::new()),
            (Name::Qemu, "missing", |facts| facts.qemu = ProgramFact::Absent),
            (Name::Qemu, "missing", |facts| facts.qemu = of(Version::new(8, 1, 9))),
            (Name::Qemu, "ready", |facts| facts.qemu = of(Version::new(8, 2, 0))),
            (Name::Qemu, "missing", |facts| {
                facts.qemu = ProgramFact::Mute { path: PathBuf::new(), reason: String::new() }
            }),
            (Name::Firecracker, "missing", |facts| facts.firecracker = of(Version::new(1, 14, 3))),
            (Name::Firecracker, "missing", |facts| facts.firecracker = of(Version::new(1, 15, 0))),
            (Name::Firecracker, "ready", |facts| facts.firecracker = of(Version::new(1, 15, 1))),
            (Name::Firecracker, "degraded", |facts| facts.firecracker_is_static = false),
            (Name::Firecracker, "missing", |facts| facts.firecracker = ProgramFact::Absent),
            (Name::Kvm, "missing", |facts| facts.virtualization = None),
            (Name::Kvm, "missing", |facts| facts.kvm = KvmFact::Absent),
            (Name::Kvm, "missing", |facts| facts.kvm = KvmFact::Fails("it hangs".to_owned())),
            (Name::NetworkNamespaces, "missing", |facts| facts.network.namespaces = Err("it is not; do it".to_owned())),
            (Name::Tun, "missing", |facts| facts.network.tun = Err("it is not; modprobe tun".to_owned())),
            (Name::Veth, "missing", |facts| facts.network.veth = Err("without a remedy".to_owned())),
            (Name::Nftables, "missing", |facts| facts.network.nft = Err("not installed; install it".to_owned())),
            (Name::Firewall, "ready", |facts| facts.network.forward_drops = None),
            (Name::Firewall, "degraded", |facts| facts.network.nft = Err("not installed; install it".to_owned())),
            (Name::Firewall, "degraded", |facts| {
                facts.network.forward_drops = Some(vec!["ip filter FORWARD".to_owned()])
            }),
            (Name::Dns, "degraded", |facts| facts.network.dns = Dns::Unavailable("none; list one".to_owned())),
            (Name::CgroupV2, "missing", |facts| facts.cgroup2 = None),
            (Name::CgroupV2, "missing", |facts| facts.cgroup2.as_mut().unwrap().trial = Err("read-only".to_owned())),
            (Name::CgroupV2, "degraded", |facts| facts.cgroup2.as_mut().unwrap().controllers.clear()),
            (Name::DeviceMapper, "missing", |facts| facts.device_mapper = Device::Refused(String::new())),
            (Name::LoopDevices, "missing", |facts| facts.loop_control = Device::Refused(String::new())),
            (Name::Userfaultfd, "missing", |facts| facts.userfaultfd = Device::Refused(String::new())),
            (Name::Memory, "missing", |facts| facts.memory = None),
            (Name::Memory, "missing", |facts| facts.memory = Some(Memory { total: 1 << 30, available: 1 << 20 })),
            (Name::Memory, "degraded", |facts| facts.memory = Some(Memory { total: 1 << 30, available: 300 << 20 })),
            (Name::Swap, "degraded", |facts| facts.disk_swaps = vec!["/dev/sda2".to_owned()]),
            (Name::Disk, "missing", |facts| facts.disk.free = Some(0)),
            (Name::Disk, "missing", |facts| facts.disk.free = None),
            (Name::Disk, "degraded", |facts| facts.disk.free = Some(1 << 30)),
        ];
        for (name, wanted, change) in cases {
            let mut facts = best();
            change(&mut facts);
            assert_eq!(word(&facts, *name), *wanted, "{name}");
            let remedies = assess(&facts).into_iter().filter_map(|each| each.state.remedy().map(str::to_owned));
            assert!(remedies.into_iter().all(|remedy| !remedy.is_empty()), "{name}");
        }
    }

    fn of(version: Version) -> ProgramFact {
        ProgramFact::Found(Found { path: PathBuf::from("/opt/program"), version })
    }

    #[test]
    fn a_device_that_is_only_there_is_not_believed() {
        let facts = Facts { virtualization: None, kvm: KvmFact::Untried, ..best() };
        let list = assess(&facts);
        let kvm = list.iter().find(|each| each.name == Name::Kvm).unwrap();
        assert!(kvm.detail.contains("paravirtual"), "{}", kvm.detail);
    }
}
