//! Which drivers run on this host: the best that is there, or what is wished for, or an error that names what lacks.

use std::fmt;

use super::{Capabilities, Name};
use crate::vmm::Accel;

/// What the configuration asks for; `None` leaves it to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Which VMM.
    pub vmm: Option<VmmKind>,
    /// What executes the guest's instructions.
    pub accel: Option<Accel>,
    /// What disks are made of.
    pub storage: Option<StorageKind>,
    /// How memory comes back.
    pub restore: Option<Restore>,
    /// Which control groups.
    pub cgroup: Option<Cgroup>,
}

/// A VMM that can be asked for, whether or not this version drives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmmKind {
    /// Firecracker.
    Firecracker,
    /// QEMU's `microvm` machine.
    Qemu,
}

/// What disks are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageKind {
    /// Device-mapper snapshots over loop devices.
    DeviceMapper,
    /// Overlay files.
    Qcow2,
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
}

macro_rules! shown_as {
    ($type:ty: $($variant:ident => $text:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text),+ })
            }
        }
    };
}
shown_as!(VmmKind: Firecracker => "firecracker", Qemu => "qemu");
shown_as!(StorageKind: DeviceMapper => "dm", Qcow2 => "qcow2");
shown_as!(Restore: File => "file", Userfaultfd => "uffd");
shown_as!(Cgroup: V2 => "v2", None => "none");
shown_as!(Jail: User => "user");

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
    pub vmm: Choice<VmmKind>,
    /// What executes the guest's instructions.
    pub accel: Choice<Accel>,
    /// What disks are made of.
    pub storage: Choice<StorageKind>,
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

/// Chooses; reports everything that lacks at once.
pub fn choose(host: &Capabilities, wishes: &Wishes) -> Result<Chosen, Lacks> {
    let mut lacks: Vec<Lack> =
        host.blockers().map(|blocker| lack(host, blocker.name.to_string(), blocker.name)).collect();
    let mut keep = |found: Option<Lack>| lacks.extend(found);
    let vmm = vmm(wishes.vmm, &mut keep);
    let accel = accel(host, wishes.accel, &mut keep);
    let storage = storage(wishes.storage, &mut keep);
    let restore = restore(wishes.restore, &mut keep);
    let cgroup = cgroup(host, wishes.cgroup, &mut keep);
    let jail = because(Jail::User, "QEMU runs as a user of the sandbox's own, under its system-call filter");
    if lacks.is_empty() { Ok(Chosen { vmm, accel, storage, restore, cgroup, jail }) } else { Err(Lacks(lacks)) }
}

fn vmm(wish: Option<VmmKind>, lacks: &mut impl FnMut(Option<Lack>)) -> Choice<VmmKind> {
    match wish {
        Some(VmmKind::Qemu) => because(VmmKind::Qemu, WISHED),
        None => because(VmmKind::Qemu, "the VMM that this version drives"),
        Some(VmmKind::Firecracker) => {
            lacks(Some(not_in_this_version("vmm = firecracker", "vmm = qemu")));
            because(VmmKind::Firecracker, WISHED)
        }
    }
}

fn accel(host: &Capabilities, wish: Option<Accel>, lacks: &mut impl FnMut(Option<Lack>)) -> Choice<Accel> {
    let kvm = host.is_ready(Name::Kvm);
    match wish {
        Some(Accel::Tcg) => because(Accel::Tcg, WISHED),
        Some(Accel::Kvm) => {
            lacks((!kvm).then(|| lack(host, "accel = kvm".to_owned(), Name::Kvm)));
            because(Accel::Kvm, WISHED)
        }
        None if kvm => because(Accel::Kvm, "hardware virtualization that ran a test guest"),
        None => because(Accel::Tcg, &host.why_not(Name::Kvm).0),
    }
}

fn storage(wish: Option<StorageKind>, lacks: &mut impl FnMut(Option<Lack>)) -> Choice<StorageKind> {
    match wish {
        Some(StorageKind::Qcow2) => because(StorageKind::Qcow2, WISHED),
        None => because(StorageKind::Qcow2, "works on every host, and is what this version has"),
        Some(StorageKind::DeviceMapper) => {
            lacks(Some(not_in_this_version("storage = dm", "storage = qcow2")));
            because(StorageKind::DeviceMapper, WISHED)
        }
    }
}

fn restore(wish: Option<Restore>, lacks: &mut impl FnMut(Option<Lack>)) -> Choice<Restore> {
    match wish {
        Some(Restore::File) => because(Restore::File, WISHED),
        None => because(Restore::File, "QEMU maps guest memory privately over a file"),
        Some(Restore::Userfaultfd) => {
            lacks(Some(not_in_this_version("memory restore = uffd", "memory restore = file")));
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

fn not_in_this_version(wish: &str, instead: &str) -> Lack {
    Lack {
        what: wish.to_owned(),
        detail: "not in this version of Wrenn".to_owned(),
        remedy: format!("take {instead}, or leave it out"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::assess::tests::best;
    use super::super::facts::{Facts, ProgramFact};
    use super::*;

    fn host(change: impl FnOnce(&mut Facts)) -> Capabilities {
        let mut facts = best();
        change(&mut facts);
        Capabilities::of(facts)
    }

    fn lacking(outcome: Result<Chosen, Lacks>) -> Vec<String> {
        outcome.map_or_else(|lacks| lacks.0.into_iter().map(|lack| lack.what).collect(), |_| Vec::new())
    }

    #[test]
    fn the_best_that_is_there() {
        let chosen = host(|_| {}).choose(&Wishes::default()).unwrap();
        assert_eq!((chosen.vmm.value, chosen.accel.value), (VmmKind::Qemu, Accel::Kvm));
        assert_eq!((chosen.storage.value, chosen.cgroup.value), (StorageKind::Qcow2, Cgroup::V2));
    }

    #[test]
    fn without_hardware_virtualization_the_reason_is_told() {
        let bare = host(|facts| {
            facts.virtualization = None;
            facts.cgroup2 = None;
        });
        let chosen = bare.choose(&Wishes::default()).unwrap();
        assert_eq!((chosen.accel.value, chosen.cgroup.value), (Accel::Tcg, Cgroup::None));
        assert!(chosen.accel.reason.contains("vmx"), "{}", chosen.accel.reason);
    }

    #[test]
    fn a_wish_the_host_cannot_grant_is_an_error_that_names_it() {
        let bare = host(|facts| {
            facts.virtualization = None;
            facts.cgroup2 = None;
        });
        let wishes = Wishes {
            vmm: Some(VmmKind::Firecracker),
            accel: Some(Accel::Kvm),
            storage: Some(StorageKind::DeviceMapper),
            restore: Some(Restore::Userfaultfd),
            cgroup: Some(Cgroup::V2),
        };
        let wanted = ["vmm = firecracker", "accel = kvm", "storage = dm", "memory restore = uffd", "cgroup = v2"];
        assert_eq!(lacking(bare.choose(&wishes)), wanted);
        let modest = Wishes { accel: Some(Accel::Tcg), cgroup: Some(Cgroup::None), ..Wishes::default() };
        assert_eq!(host(|_| {}).choose(&modest).unwrap().accel.value, Accel::Tcg);
    }

    #[test]
    fn everything_that_blocks_is_told_at_once_with_remedies() {
        let broken = host(|facts| {
            facts.root = false;
            facts.qemu = ProgramFact::Absent;
        });
        assert!(!broken.can_run());
        let error = broken.choose(&Wishes::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("root") && text.contains("qemu-system-x86"), "{text}");
        assert_eq!(error.0.len(), 2);
    }
}
