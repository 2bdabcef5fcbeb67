//! Which drivers run on this host: the best that is there, or what is wished for, or an error that names what lacks.

use std::fmt;

use super::{Capabilities, Name};
use crate::storage::Backend;
use crate::vmm::{Accel, DriverKind};
use crate::words::words;

/// What the configuration asks for; `None` leaves it to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Which VMM.
    pub vmm: Option<DriverKind>,
    /// What executes the guest's instructions.
    pub accel: Option<Accel>,
    /// What disks are made of.
    pub storage: Option<Backend>,
    /// How memory comes back.
    pub restore: Option<Restore>,
    /// Which control groups.
    pub cgroup: Option<Cgroup>,
    /// Whether a shortage of memory or disk space is no obstacle. An agent has to look after the sandboxes that are there
    /// already, and may be what makes room; whether there is enough for another is asked when one is made.
    pub despite_shortage: bool,
}

/// How a paused sandbox's memory comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restore {
    /// As a private mapping of a file.
    File,
    /// Page by page, served by us.
    Userfaultfd,
}

/// Which control groups limit a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// The unified ones.
    V2,
    /// None.
    None,
}

/// What a VMM is locked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jail {
    /// A user of its own per sandbox, a system-call filter, and nothing opened by name.
    User,
    /// A user and a root of its own per sandbox, and a system-call filter.
    Root,
}

words!(Restore: File => "file", Userfaultfd => "uffd");
words!(Cgroup: V2 => "v2", None => "none");
words!(Jail: User => "user", Root => "root");

/// Something chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<T> {
    /// What.
    pub value: T,
    /// Why, for people.
    pub reason: String,
}

/// The drivers of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Which VMM.
    pub vmm: Choice<DriverKind>,
    /// What executes the guest's instructions.
    pub accel: Choice<Accel>,
    /// What disks are made of.
    pub storage: Choice<Backend>,
    /// How memory comes back.
    pub restore: Choice<Restore>,
    /// Which control groups.
    pub cgroup: Choice<Cgroup>,
    /// What a VMM is locked into.
    pub jail: Choice<Jail>,
}

/// Something this host, or this version, lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What is needed: a capability's name, or a wish such as `storage = dm`.
    pub what: String,
    /// What was found instead.
    pub detail: String,
    /// What to do about it.
    pub remedy: String,
}

/// Everything that keeps sandboxes from running as asked: all of it, not the first of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Lacks(pub Vec<Lack>);

impl fmt::Display for Lacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this host lacks what sandboxes need")?;
        self.0.iter().try_for_each(|lack| write!(f, "\n  {}: {}; {}", lack.what, lack.detail, lack.remedy))
    }
}

const WISHED: &str = "asked for";

/// What sandboxes that run may have used up themselves.
const SHORTAGES: [Name; 2] = [Name::Memory, Name::Disk];
/// What disks of device-mapper need.
const DEVICE_MAPPER_NEEDS: [Name; 2] = [Name::DeviceMapper, Name::LoopDevices];
/// What sandboxes under Firecracker need beyond what all need.
pub(super) const FIRECRACKER_NEEDS: [Name; 4] = [Name::Kvm, Name::DeviceMapper, Name::LoopDevices, Name::Firecracker];

/// Chooses; reports everything that lacks at once.
pub fn choose(host: &Capabilities, wishes: &Wishes) -> Result<Chosen, Lacks> {
    let blockers = host.blockers().map(|blocker| blocker.name);
    let blockers = blockers.filter(|name| !(wishes.despite_shortage && SHORTAGES.contains(name)));
    let mut lacks: Vec<Lack> = blockers.map(|name| lack(host, name.to_string(), name)).collect();
    let mut keep = |found: Option<Lack>| lacks.extend(found);
    let vmm = vmm(host, wishes, &mut keep);
    let accel = accel(host, wishes, &mut keep);
    let storage = storage(host, wishes, &mut keep);
    let restore = restore(host, wishes.restore, vmm.value, &mut keep);
    let cgroup = cgroup(host, wishes.cgroup, &mut keep);
    let jail = jail(vmm.value);
    if lacks.is_empty() { Ok(Chosen { vmm, accel, storage, restore, cgroup, jail }) } else { Err(Lacks(lacks)) }
}

fn vmm(host: &Capabilities, wishes: &Wishes, lacks: &mut impl FnMut(Option<Lack>)) -> Choice<DriverKind> {
    match wishes.vmm {
        Some(DriverKind::Qemu) => {
            // Where it is a blocker, it is told as such.
            let told = host.requires(Name::Qemu);
            lacks((!told && !host.is_ready(Name::Qemu)).then(|| lack(host, "vmm = qemu".to_owned(), Name::Qemu)));
            because(DriverKind::Qemu, WISHED)
        }
        Some(DriverKind::Firecracker) => {
            for name in [Name::Firecracker, Name::Kvm] {
                lacks((!host.is_usable(name)).then(|| lack(host, format!("vmm = firecracker ({name})"), name)));
            }
            because(DriverKind::Firecracker, WISHED)
        }
        None => match why_not_firecracker(host, wishes) {
            None => because(DriverKind::Firecracker, "KVM, device-mapper and a Firecracker without known holes"),
            Some(reason) => because(DriverKind::Qemu, &reason),
        },
    }
}

/// Why Firecracker is not the best choice here; `None` when it is.
fn why_not_firecracker(host: &Capabilities, wishes: &Wishes) -> Option<String> {
    if wishes.storage == Some(Backend::Qcow2) {
        return Some("Firecracker knows no qcow2 disks".to_owned());
    }
    if wishes.accel == Some(Accel::Tcg) {
        return Some("Firecracker translates no instructions".to_owned());
    }
    let missing = FIRECRACKER_NEEDS.into_iter().find(|name| !host.is_usable(*name))?;
    Some(format!("no Firecracker here: {missing}: {}", host.why_not(missing).0))
}

fn accel(host: &Capabilities, wishes: &Wishes, lacks: &mut impl FnMut(Option<Lack>)) -> Choice<Accel> {
    let kvm = host.is_ready(Name::Kvm);
    match wishes.accel {
        Some(Accel::Tcg) => {
            let firecracker = wishes.vmm == Some(DriverKind::Firecracker);
            lacks(firecracker.then(|| contradiction("accel = tcg", "Firecracker runs on KVM alone", "vmm = qemu")));
            because(Accel::Tcg, WISHED)
        }
        Some(Accel::Kvm) => {
            lacks((!kvm).then(|| lack(host, "accel = kvm".to_owned(), Name::Kvm)));
            because(Accel::Kvm, WISHED)
        }
        None if kvm => because(Accel::Kvm, "hardware virtualization that ran a test guest"),
        None => because(Accel::Tcg, &host.why_not(Name::Kvm).0),
    }
}

fn storage(host: &Capabilities, wishes: &Wishes, lacks: &mut impl FnMut(Option<Lack>)) -> Choice<Backend> {
    let firecracker = wishes.vmm == Some(DriverKind::Firecracker);
    let missing = DEVICE_MAPPER_NEEDS.into_iter().find(|name| !host.is_ready(*name));
    match (wishes.storage, missing) {
        (Some(Backend::Qcow2), _) => {
            let reason = "Firecracker reads plain block devices alone";
            lacks(firecracker.then(|| contradiction("storage = qcow2", reason, "storage = dm, or vmm = qemu")));
            because(Backend::Qcow2, WISHED)
        }
        (Some(Backend::DeviceMapper), missing) => {
            lacks(missing.map(|name| lack(host, format!("storage = dm ({name})"), name)));
            because(Backend::DeviceMapper, WISHED)
        }
        (None, None) => because(Backend::DeviceMapper, "the kernel's own snapshots over shared images"),
        (None, Some(name)) => {
            lacks(firecracker.then(|| lack(host, format!("vmm = firecracker ({name})"), name)));
            because(Backend::Qcow2, &format!("works on every host; {name}: {}", host.why_not(name).0))
        }
    }
}

fn jail(vmm: DriverKind) -> Choice<Jail> {
    match vmm {
        DriverKind::Qemu => {
            because(Jail::User, "QEMU runs as a user of the sandbox's own, under its system-call filter")
        }
        DriverKind::Firecracker => {
            because(Jail::Root, "Firecracker has a user and a root of the sandbox's own, under its system-call filter")
        }
    }
}

fn restore(
    host: &Capabilities,
    wish: Option<Restore>,
    vmm: DriverKind,
    lacks: &mut impl FnMut(Option<Lack>),
) -> Choice<Restore> {
    match wish {
        Some(Restore::File) => because(Restore::File, WISHED),
        None => because(Restore::File, "guest memory is mapped privately over a file"),
        Some(Restore::Userfaultfd) => {
            let wish = "memory backend = uffd";
            lacks(match vmm {
                DriverKind::Qemu => {
                    Some(contradiction(wish, "QEMU maps memory from files alone", "memory backend = file"))
                }
                DriverKind::Firecracker if host.is_ready(Name::Userfaultfd) => None,
                DriverKind::Firecracker => {
                    Some(lack(host, format!("{wish} ({})", Name::Userfaultfd), Name::Userfaultfd))
                }
            });
            because(Restore::Userfaultfd, WISHED)
        }
    }
}

fn cgroup(host: &Capabilities, wish: Option<Cgroup>, lacks: &mut impl FnMut(Option<Lack>)) -> Choice<Cgroup> {
    let v2 = host.is_ready(Name::CgroupV2);
    match wish {
        Some(Cgroup::None) => because(Cgroup::None, WISHED),
        Some(Cgroup::V2) => {
            lacks((!v2).then(|| lack(host, "cgroup = v2".to_owned(), Name::CgroupV2)));
            because(Cgroup::V2, WISHED)
        }
        None if v2 => because(Cgroup::V2, "the unified hierarchy has the controllers"),
        None => because(Cgroup::None, &host.why_not(Name::CgroupV2).0),
    }
}

fn because<T>(value: T, reason: &str) -> Choice<T> {
    Choice { value, reason: reason.to_owned() }
}

fn lack(host: &Capabilities, what: String, name: Name) -> Lack {
    let (detail, remedy) = host.why_not(name);
    Lack { what, detail, remedy }
}

fn contradiction(wish: &str, reason: &str, instead: &str) -> Lack {
    Lack { what: wish.to_owned(), detail: reason.to_owned(), remedy: format!("take {instead}, or leave it out") }
}

#[cfg(test)]
mod tests {
    use super::super::assess::tests::best;
    use super::super::facts::{Device, Facts, ProgramFact};
    use super::*;

    fn host(change: impl FnOnce(&mut Facts)) -> Capabilities {
        let mut facts = best();
        change(&mut facts);
        Capabilities::of(facts)
    }

    fn lacking(outcome: Result<Chosen, Lacks>) -> Vec<String> {
        outcome.map_or_else(|lacks| lacks.0.into_iter().map(|lack| lack.what).collect(), |_| Vec::new())
    }

    fn drivers(host: &Capabilities, wishes: &Wishes) -> (DriverKind, Accel, Backend) {
        let chosen = host.choose(wishes).unwrap();
        (chosen.vmm.value, chosen.accel.value, chosen.storage.value)
    }

    fn bare() -> Capabilities {
        host(|facts| {
            facts.virtualization = None;
            facts.cgroup2 = None;
            facts.device_mapper = Device::Refused("no such device".to_owned());
            facts.firecracker = ProgramFact::Absent;
            facts.userfaultfd = Device::Refused("no such device".to_owned());
        })
    }

    #[test]
    fn the_best_that_is_there() {
        use self::{Accel::*, Backend::*, DriverKind::*};
        let best = host(|_| {});
        assert_eq!(drivers(&best, &Wishes::default()), (Firecracker, Kvm, DeviceMapper));
        let no_firecracker = host(|facts| facts.firecracker = ProgramFact::Absent);
        assert_eq!(drivers(&no_firecracker, &Wishes::default()), (Qemu, Kvm, DeviceMapper));
        assert_eq!(drivers(&bare(), &Wishes::default()), (Qemu, Tcg, Qcow2));
        // One wish decides the rest, where only one way is left.
        let qcow2 = Wishes { storage: Some(Qcow2), ..Wishes::default() };
        assert_eq!(drivers(&best, &qcow2), (Qemu, Kvm, Qcow2));
        let tcg = Wishes { accel: Some(Tcg), ..Wishes::default() };
        assert_eq!(drivers(&best, &tcg), (Qemu, Tcg, DeviceMapper));
        assert_eq!(best.choose(&tcg).unwrap().jail.value, Jail::User);
    }

    #[test]
    fn a_shortage_is_no_obstacle_to_who_looks_after_what_is_there() {
        let full = host(|facts| facts.disk.free = Some(1 << 20));
        assert_eq!(lacking(full.choose(&Wishes::default())), ["disk"]);
        assert!(full.choose(&Wishes { despite_shortage: true, ..Wishes::default() }).is_ok());
    }

    #[test]
    fn firecracker_alone_is_enough() {
        let without_qemu = host(|facts| facts.qemu = ProgramFact::Absent);
        assert_eq!(drivers(&without_qemu, &Wishes::default()).0, DriverKind::Firecracker);
        let wish = Wishes { vmm: Some(DriverKind::Qemu), ..Wishes::default() };
        assert_eq!(lacking(without_qemu.choose(&wish)), ["vmm = qemu"]);
        assert!(without_qemu.can_run());
    }

    #[test]
    fn what_was_not_chosen_is_told_with_its_reason() {
        let chosen = bare().choose(&Wishes::default()).unwrap();
        assert_eq!(chosen.cgroup.value, Cgroup::None);
        assert!(chosen.accel.reason.contains("vmx"), "{}", chosen.accel.reason);
        assert!(chosen.storage.reason.contains("no such device"), "{}", chosen.storage.reason);
        assert!(chosen.vmm.reason.contains("kvm"), "{}", chosen.vmm.reason);
    }

    #[test]
    fn a_wish_the_host_cannot_grant_is_an_error_that_names_it() {
        let wishes = Wishes {
            vmm: Some(DriverKind::Firecracker),
            accel: Some(Accel::Kvm),
            storage: Some(Backend::DeviceMapper),
            restore: Some(Restore::Userfaultfd),
            cgroup: Some(Cgroup::V2),
            despite_shortage: false,
        };
        let wanted = [
            "vmm = firecracker (firecracker)",
            "vmm = firecracker (kvm)",
            "accel = kvm",
            "storage = dm (device_mapper)",
            "memory backend = uffd (userfaultfd)",
            "cgroup = v2",
        ];
        assert_eq!(lacking(bare().choose(&wishes)), wanted);
        let modest = Wishes { accel: Some(Accel::Tcg), cgroup: Some(Cgroup::None), ..Wishes::default() };
        assert_eq!(host(|_| {}).choose(&modest).unwrap().accel.value, Accel::Tcg);
    }

    #[test]
    fn wishes_that_contradict_each_other_are_refused() {
        let wishes = Wishes {
            vmm: Some(DriverKind::Firecracker),
            accel: Some(Accel::Tcg),
            storage: Some(Backend::Qcow2),
            ..Wishes::default()
        };
        assert_eq!(lacking(host(|_| {}).choose(&wishes)), ["accel = tcg", "storage = qcow2"]);
        let wishes = Wishes { vmm: Some(DriverKind::Qemu), restore: Some(Restore::Userfaultfd), ..Wishes::default() };
        assert_eq!(lacking(host(|_| {}).choose(&wishes)), ["memory backend = uffd"]);
        let no_loop = host(|facts| facts.loop_control = Device::Refused("gone".to_owned()));
        let wishes = Wishes { vmm: Some(DriverKind::Firecracker), ..Wishes::default() };
        assert_eq!(lacking(no_loop.choose(&wishes)), ["vmm = firecracker (loop_devices)"]);
    }

    #[test]
    fn memory_is_served_only_where_that_is_asked_for() {
        let best = host(|_| {});
        assert_eq!(best.choose(&Wishes::default()).unwrap().restore.value, Restore::File);
        let wishes = Wishes { restore: Some(Restore::Userfaultfd), ..Wishes::default() };
        assert_eq!(best.choose(&wishes).unwrap().restore.value, Restore::Userfaultfd);
        let without = host(|facts| facts.userfaultfd = Device::Refused("gone".to_owned()));
        assert_eq!(lacking(without.choose(&wishes)), ["memory backend = uffd (userfaultfd)"]);
    }

    #[test]
    fn drivers_are_read_as_they_are_shown() {
        assert_eq!("firecracker".parse(), Ok(DriverKind::Firecracker));
        assert_eq!("dm".parse(), Ok(Backend::DeviceMapper));
        let error = "xen".parse::<DriverKind>().unwrap_err().to_string();
        assert_eq!(error, "`xen` is none of qemu, firecracker");
    }

    #[test]
    fn everything_that_blocks_is_told_at_once_with_remedies() {
        let broken = host(|facts| {
            facts.root = false;
            facts.qemu = ProgramFact::Absent;
            facts.firecracker = ProgramFact::Absent;
        });
        assert!(!broken.can_run());
        let error = broken.choose(&Wishes::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("root") && text.contains("qemu-system-x86"), "{text}");
        assert_eq!(error.0.len(), 2);
    }
}
