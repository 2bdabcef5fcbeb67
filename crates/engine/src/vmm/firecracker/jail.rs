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

/// What a jail is made of, on the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    /// The empty folder it is mounted over.
    pub mount_point: &'a Path,
    /// The program.
    pub program: &'a Path,
    /// Those of [`LIBRARIES`] that are needed.
    pub libraries: &'a [PathBuf],
    /// The kernel.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
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
    let device = |path: &str| JailEntry::Device { path: PathBuf::from(path), source: PathBuf::from(path) };
    let mut entries = vec![
        read_only(PROGRAM, parts.program),
        read_only(KERNEL, parts.kernel),
        read_only(INITRAMFS, parts.initramfs),
        JailEntry::Device { path: PathBuf::from(DISK), source: parts.disk.to_owned() },
        JailEntry::Writable { path: PathBuf::from(RUN), source: parts.control.to_owned() },
    ];
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
            kernel: Path::new("/var/lib/wrenn/kernels/k/vmlinux"),
            initramfs: Path::new("/var/lib/wrenn/kernels/k/initrd.img"),
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
            "/dev/kvm",
            "/dev/net/tun",
            "/dev/urandom",
            "/dev/userfaultfd",
        ];
        assert_eq!(inside(&a), expected.map(Path::new));
    }

    #[test]
    fn one_folder_is_writable_and_only_a_linked_program_sees_libraries() {
        let sandbox = ["/run/wrenn/a/jail", "/run/wrenn/a/vmm"].map(PathBuf::from);
        let libraries = ["/lib", "/lib64"].map(PathBuf::from);
        let jail = plan(parts(&sandbox, &libraries, false));
        let writable: Vec<_> =
            jail.entries.iter().filter(|entry| matches!(entry, JailEntry::Writable { .. })).cloned().collect();
        let run = JailEntry::Writable { path: PathBuf::from("/run"), source: PathBuf::from("/run/wrenn/a/vmm") };
        assert_eq!(writable, [run]);
        assert!(inside(&jail).ends_with(&[Path::new("/lib"), Path::new("/lib64")]));
        assert!(!inside(&jail).contains(&Path::new(USERFAULTFD)));
        assert_eq!(jail.mount_point, sandbox[0]);
    }
}
