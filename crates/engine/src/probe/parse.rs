//! What the kernel and programs print, read. Pure.

use std::fmt;
use std::path::PathBuf;

/// A version of three numbers; what follows them (`-dev`, `-cloud-amd64`) is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// This version.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self { major, minor, patch }
    }

    /// The first version in a text, such as `QEMU emulator version 10.0.2 (Debian …)`; a third number may be absent.
    pub fn in_text(text: &str) -> Option<Self> {
        text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(Self::of_numbers)
    }

    fn of_numbers(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').filter(|number| !number.is_empty()).map(str::parse::<u32>);
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        Some(Self { major, minor, patch: numbers.next().and_then(Result::ok).unwrap_or(0) })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The CPU's hardware virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtualization {
    /// Intel's.
    Vmx,
    /// AMD's.
    Svm,
}

impl Virtualization {
    /// The kernel module that drives it.
    pub fn module(self) -> &'static str {
        match self {
            Self::Vmx => "kvm_intel",
            Self::Svm => "kvm_amd",
        }
    }

    /// The CPU's flag.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
        }
    }
}

/// The hardware virtualization in `/proc/cpuinfo`, by the CPU's flags.
pub fn virtualization(cpuinfo: &str) -> Option<Virtualization> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?.split_once(':')?.1;
    flags.split_whitespace().find_map(|flag| match flag {
        "vmx" => Some(Virtualization::Vmx),
        "svm" => Some(Virtualization::Svm),
        // Not ours: a CPU has hundreds of flags.
        _ => None,
    })
}

/// The host's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What programs can still take without swapping.
    pub available: u64,
}

/// The memory in `/proc/meminfo`.
pub fn memory(meminfo: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Memory { total: bytes("MemTotal")?, available: bytes("MemAvailable")? })
}

/// The swap areas on a disk in `/proc/swaps`; compressed memory (zram) is none.
pub fn disk_swaps(swaps: &str) -> Vec<String> {
    let areas = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    areas.filter(|area| !area.starts_with("/dev/zram")).map(str::to_owned).collect()
}

/// Where `/proc/self/mountinfo` has the unified control groups.
pub fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_cgroup2 = filesystem.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| mount.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, wanted) in [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright", Some((10, 0, 2))),
            ("QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7+deb12u15)", Some((7, 2, 17))),
            ("QEMU emulator version 8.2", Some((8, 2, 0))),
            ("Firecracker v1.14.4\n\nSupported snapshot data format versions: v9.0.0", Some((1, 14, 4))),
            ("Firecracker v1.17.0-dev", Some((1, 17, 0))),
            ("6.1.0-56-cloud-amd64", Some((6, 1, 0))),
            ("5.10-rc1", Some((5, 10, 0))),
            ("version 8", None),
            ("99999999999.1", None),
            ("", None),
        ] {
            let wanted = wanted.map(|(major, minor, patch)| Version::new(major, minor, patch));
            assert_eq!(Version::in_text(text), wanted, "{text}");
        }
        assert!(Version::new(10, 0, 0) > Version::new(8, 2, 5));
        assert!(Version::new(1, 14, 10) > Version::new(1, 14, 4));
    }

    #[test]
    fn hardware_virtualization_is_a_whole_word_among_the_flags() {
        for (cpuinfo, wanted) in [
            ("processor\t: 0\nflags\t\t: fpu vmx sse\n", Some(Virtualization::Vmx)),
            ("flags\t\t: fpu svm sse\n", Some(Virtualization::Svm)),
            ("flags\t\t: fpu hypervisor svm_lock vmxx\n", None),
            ("vmx flags\t\t: x\nmodel name: vmx\n", None),
            ("", None),
        ] {
            assert_eq!(virtualization(cpuinfo), wanted, "{cpuinfo}");
        }
    }

    #[test]
    fn memory_and_swap() {
        let meminfo = "MemTotal:       24683520 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(memory(meminfo), Some(Memory { total: 24_683_520 * 1024, available: 1024 * 1024 }));
        assert_eq!(memory("MemTotal: 1 kB\n"), None);
        assert_eq!(memory("MemTotal: x kB\nMemAvailable: 1 kB"), None);
        let swaps =
            "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2  partition\t1\t0\t-2\n/dev/zram0 partition 1 0 5\n";
        assert_eq!(disk_swaps(swaps), ["/dev/sda2"]);
        assert_eq!(disk_swaps("Filename\tType\n"), Vec::<String>::new());
    }

    #[test]
    fn the_unified_hierarchy_is_found_wherever_it_is() {
        let hybrid = "25 24 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      26 25 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      27 25 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "25 24 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup rw\n";
        assert_eq!(cgroup2_mount(unified), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(cgroup2_mount("25 24 0:22 / /x rw - tmpfs cgroup2 rw\n"), None);
    }
}
