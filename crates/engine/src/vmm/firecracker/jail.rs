//! What a Firecracker sees of the host, as a pure plan: the paths are the same in every jail, so that a snapshot, which
//! remembers them, can go on in another one.

use std::path::{Path, PathBuf};

use wrenn_proto::shim::{Jail, JailEntry};

/// The program itself.
pub(super) const PROGRAM: &str = "/firecracker";
/// The guest's kernel.
pub(super) const KERNEL: &str = "/kernel";
/// The guest's initramfs.
pub(super) const INITRAMFS: &str = "/initramfs";
/// The guest's disk.
pub(super) const DISK: &str = "/disk";
/// The captured state of CPUs and devices, and the memory, of a VM that is restored.
pub(super) const SNAPSHOT: Snapshot<&str> = Snapshot { devices: "/snapshot/devices", memory: "/snapshot/memory" };
/// The folder of the socket of who serves memory, for a VM that has it served.
const PAGER: &str = "/pager";
/// The socket in there.
pub(super) const PAGER_SOCKET: &str = "/pager/pager.sock";
/// The two files into which it writes a capture: it cannot make others.
pub(super) const CAPTURE: Snapshot<&str> = Snapshot { devices: "/capture/devices", memory: "/capture/memory" };
/// The only folder it may write into.
const RUN: &str = "/run";
/// Where it listens, in there.
pub(super) const SOCKET: &str = "/run/control.sock";

/// Where a dynamically linked program's interpreter and libraries are.
pub(super) const LIBRARIES: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
/// Devices without which it does not start.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/net/tun", "/dev/urandom"];
/// The device that serves page faults to a snapshot, on hosts that have it.
pub(super) const USERFAULTFD: &str = "/dev/userfaultfd";

/// The two files of a captured VM.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snapshot<P> {
    /// The state of CPUs and devices.
    pub devices: P,
    /// Memory.
    pub memory: P,
}

/// What a VM begins with.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'a> {
    /// A kernel and its initramfs.
    Boot { kernel: &'a Path, initramfs: &'a Path },
    /// What was captured of an earlier one.
    Restore(Snapshot<&'a Path>),
    /// The same, with memory that is served.
    RestoreServed {
        /// The state of CPUs and devices.
        devices: &'a Path,
        /// The folder with the socket of who serves memory.
        pager: &'a Path,
    },
}

/// What a jail is made of, on the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    /// The empty folder it is mounted over.
    pub mount_point: &'a Path,
    /// The program.
    pub program: &'a Path,
    /// Those of [`LIBRARIES`] that are needed.
    pub libraries: &'a [PathBuf],
    /// What the VM begins with.
    pub origin: Origin<'a>,
    /// Where a capture of it goes.
    pub capture: Snapshot<&'a Path>,
    /// The disk's block device.
    pub disk: &'a Path,
    /// The control socket's folder.
    pub control: &'a Path,
    /// Whether the host has [`USERFAULTFD`].
    pub userfaultfd: bool,
}

/// The jail of these parts.
pub(super) fn plan(parts: Parts<'_>) -> Jail {
    let read_only =
        |path: &str, source: &Path| JailEntry::ReadOnly { path: PathBuf::from(path), source: source.to_owned() };
    let writable =
        |path: &str, source: &Path| JailEntry::Writable { path: PathBuf::from(path), source: source.to_owned() };
    let device = |path: &str| JailEntry::Device { path: PathBuf::from(path), source: PathBuf::from(path) };
    let origin = match parts.origin {
        Origin::Boot { kernel, initramfs } => [read_only(KERNEL, kernel), read_only(INITRAMFS, initramfs)],
        Origin::Restore(Snapshot { devices, memory }) => {
            [read_only(SNAPSHOT.devices, devices), read_only(SNAPSHOT.memory, memory)]
        }
        Origin::RestoreServed { devices, pager } => [read_only(SNAPSHOT.devices, devices), read_only(PAGER, pager)],
    };
    let mut entries = vec![read_only(PROGRAM, parts.program)];
    entries.extend(origin);
    entries.extend([
        JailEntry::Device { path: PathBuf::from(DISK), source: parts.disk.to_owned() },
        writable(RUN, parts.control),
        writable(CAPTURE.devices, parts.capture.devices),
        writable(CAPTURE.memory, parts.capture.memory),
    ]);
    entries.extend(DEVICES.map(device));
    entries.extend(parts.userfaultfd.then(|| device(USERFAULTFD)));
    entries.extend(parts.libraries.iter().map(|path| JailEntry::ReadOnly { path: path.clone(), source: path.clone() }));
    Jail { mount_point: parts.mount_point.to_owned(), entries }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>(sandbox: &'a [PathBuf; 2], libraries: &'a [PathBuf], userfaultfd: bool) -> Parts<'a> {
        Parts {
            mount_point: &sandbox[0],
            program: Path::new("/opt/firecracker-1.16.1"),
            libraries,
            origin: Origin::Boot {
                kernel: Path::new("/var/lib/wrenn/kernels/k/vmlinux"),
                initramfs: Path::new("/var/lib/wrenn/kernels/k/initrd.img"),
            },
            capture: Snapshot { devices: Path::new("/var/lib/wrenn/c/d"), memory: Path::new("/var/lib/wrenn/c/m") },
            disk: Path::new("/dev/mapper/wrenn-aaaa-1"),
            control: &sandbox[1],
            userfaultfd,
        }
    }

    fn inside(jail: &Jail) -> Vec<&Path> {
        let mut paths = Vec::new();
        for entry in &jail.entries {
            match entry {
                JailEntry::Device { path, .. }
                | JailEntry::ReadOnly { path, .. }
                | JailEntry::Writable { path, .. } => paths.push(path.as_path()),
            }
        }
        paths
    }

    #[test]
    fn the_paths_inside_are_the_same_for_every_sandbox() {
        let sandboxes = ["a", "b"].map(|id| [format!("/run/wrenn/{id}/jail"), format!("/run/wrenn/{id}/vmm")]);
        let [a, b] = sandboxes.map(|sandbox| sandbox.map(PathBuf::from));
        let (a, b) = (plan(parts(&a, &[], true)), plan(parts(&b, &[], true)));
        assert_eq!(inside(&a), inside(&b));
        assert_ne!(a, b);
        let expected = [
            "/firecracker",
            "/kernel",
            "/initramfs",
            "/disk",
            "/run",
            "/capture/devices",
            "/capture/memory",
            "/dev/kvm",
            "/dev/net/tun",
            "/dev/urandom",
            "/dev/userfaultfd",
        ];
        assert_eq!(inside(&a), expected.map(Path::new));
    }

    #[test]
    fn a_restored_vm_sees_what_was_captured_instead_of_a_kernel() {
        let sandbox = ["/run/wrenn/a/jail", "/run/wrenn/a/vmm"].map(PathBuf::from);
        let captured = Snapshot { devices: Path::new("/g/devices"), memory: Path::new("/g/memory") };
        let jail = plan(Parts { origin: Origin::Restore(captured), ..parts(&sandbox, &[], false) });
        for (path, source) in [("/snapshot/devices", "/g/devices"), ("/snapshot/memory", "/g/memory")] {
            let entry = JailEntry::ReadOnly { path: PathBuf::from(path), source: PathBuf::from(source) };
            assert!(jail.entries.contains(&entry), "{path}");
        }
        assert!(!inside(&jail).iter().any(|path| [KERNEL, INITRAMFS].map(Path::new).contains(path)));
    }

    #[test]
    fn a_vm_whose_memory_is_served_sees_a_socket_instead_of_its_memory() {
        let sandbox = ["/run/wrenn/a/jail", "/run/wrenn/a/vmm"].map(PathBuf::from);
        let origin = Origin::RestoreServed { devices: Path::new("/g/devices"), pager: Path::new("/run/wrenn/a/pager") };
        let jail = plan(Parts { origin, ..parts(&sandbox, &[], true) });
        let (path, source) = (PathBuf::from(PAGER), PathBuf::from("/run/wrenn/a/pager"));
        assert!(jail.entries.contains(&JailEntry::ReadOnly { path, source }));
        assert!(Path::new(PAGER_SOCKET).starts_with(PAGER) && inside(&jail).contains(&Path::new(USERFAULTFD)));
        assert!(!inside(&jail).contains(&Path::new(SNAPSHOT.memory)));
    }

    #[test]
    fn one_folder_and_two_files_are_writable_and_only_a_linked_program_sees_libraries() {
        let sandbox = ["/run/wrenn/a/jail", "/run/wrenn/a/vmm"].map(PathBuf::from);
        let libraries = ["/lib", "/lib64"].map(PathBuf::from);
        let jail = plan(parts(&sandbox, &libraries, false));
        let writable: Vec<_> =
            jail.entries.iter().filter(|entry| matches!(entry, JailEntry::Writable { .. })).cloned().collect();
        let expected = [
            ("/run", "/run/wrenn/a/vmm"),
            ("/capture/devices", "/var/lib/wrenn/c/d"),
            ("/capture/memory", "/var/lib/wrenn/c/m"),
        ];
        let entry = |(path, source)| JailEntry::Writable { path: PathBuf::from(path), source: PathBuf::from(source) };
        assert_eq!(writable, expected.map(entry));
        assert!(inside(&jail).ends_with(&[Path::new("/lib"), Path::new("/lib64")]));
        assert!(!inside(&jail).contains(&Path::new(USERFAULTFD)));
        assert_eq!(jail.mount_point, sandbox[0]);
    }
}
