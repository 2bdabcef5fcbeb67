//! What Wrenn needs from the machine, why, and how it shows that it is there.

use std::path::{Path, PathBuf};

use crate::process::{Job, find_program};

/// For what a machine is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To build and run Wrenn.
    Use,
    /// To check and test it as well.
    Develop,
}

/// A package and what it is for.
#[derive(Debug, PartialEq, Eq)]
pub struct Need {
    /// Debian's name of the package.
    pub package: &'static str,
    /// What Wrenn does with it.
    pub why: &'static str,
    /// What is there when the package is.
    pub evidence: Evidence,
    /// The narrowest scope that needs it.
    pub scope: Scope,
}

/// What shows that a need is met, however it came onto the machine.
#[derive(Debug, PartialEq, Eq)]
pub enum Evidence {
    /// A program in PATH: building uses it.
    Program(&'static str),
    /// A program in the system's own folders: the engine runs it, and looks nowhere else.
    SystemProgram(&'static str),
    /// Like [`Evidence::SystemProgram`], but its `--version` has to be at least this.
    SystemProgramOf(&'static str, Version),
    /// One of these files.
    AnyFile(&'static [&'static str]),
}

/// A version as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Oldest QEMU: 8.2 is the first that maps guest memory privately over a read-only file (`readonly=on,rom=off`).
pub const QEMU_OLDEST: Version = Version { major: 8, minor: 2 };

/// Everything Wrenn needs, in the order in which it is reported.
pub const NEEDS: &[Need] = &[
    Need {
        package: "qemu-system-x86",
        why: "runs the microVMs; 8.2 or newer",
        evidence: Evidence::SystemProgramOf("qemu-system-x86_64", QEMU_OLDEST),
        scope: Scope::Use,
    },
    Need {
        package: "qemu-utils",
        why: "tests compare our disk images with what qemu-img and qemu-io make of them",
        evidence: Evidence::SystemProgram("qemu-img"),
        scope: Scope::Develop,
    },
    Need {
        package: "busybox-static",
        why: "tests lock a program that needs no libraries into a jail",
        evidence: Evidence::AnyFile(&["/usr/bin/busybox", "/bin/busybox"]),
        scope: Scope::Develop,
    },
    Need {
        package: "iproute2",
        why: "tests look at the host's network with ip, as a person would",
        evidence: Evidence::SystemProgram("ip"),
        scope: Scope::Develop,
    },
    Need {
        package: "nftables",
        why: "nft applies the sandboxes' firewall rules",
        evidence: Evidence::SystemProgram("nft"),
        scope: Scope::Use,
    },
    Need {
        package: "e2fsprogs",
        why: "mke2fs builds template disks without mounting them",
        evidence: Evidence::SystemProgram("mke2fs"),
        scope: Scope::Use,
    },
    Need {
        package: "mmdebstrap",
        why: "builds the Debian of the template `base`",
        evidence: Evidence::SystemProgram("mmdebstrap"),
        scope: Scope::Use,
    },
    Need {
        package: "protobuf-compiler",
        why: "protoc generates the guest agent's wire",
        evidence: Evidence::Program("protoc"),
        scope: Scope::Use,
    },
    Need {
        package: "nodejs",
        why: "builds the server's pages",
        evidence: Evidence::Program("node"),
        scope: Scope::Use,
    },
    Need {
        package: "npm",
        why: "fetches what they are built with",
        evidence: Evidence::Program("npm"),
        scope: Scope::Use,
    },
    Need {
        package: "chromium",
        why: "tests click through the test page",
        evidence: Evidence::SystemProgram("chromium"),
        scope: Scope::Develop,
    },
    Need {
        package: "chromium-driver",
        why: "tests tell the browser what to do",
        evidence: Evidence::SystemProgram("chromedriver"),
        scope: Scope::Develop,
    },
    Need {
        package: "postgresql",
        why: "tests run the database's suite on PostgreSQL too",
        evidence: Evidence::AnyFile(&[
            "/usr/lib/postgresql/15/bin/postgres",
            "/usr/lib/postgresql/16/bin/postgres",
            "/usr/lib/postgresql/17/bin/postgres",
        ]),
        scope: Scope::Develop,
    },
    Need { package: "gcc", why: "links programs", evidence: Evidence::Program("cc"), scope: Scope::Use },
    Need {
        package: "libc6-dev",
        why: "the static libc of the guest binary",
        evidence: Evidence::AnyFile(&["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib/libc.a", "/usr/lib64/libc.a"]),
        scope: Scope::Use,
    },
];

/// What looking for a piece of evidence found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is there.
    Yes,
    /// It is not there, or too old, or does not say its version.
    No,
}

/// The needs of this scope that are not met, in the table's order.
pub fn missing(scope: Scope, look: impl Fn(&Evidence) -> Found) -> Vec<&'static Need> {
    let wanted = |need: &&Need| match scope {
        Scope::Use => need.scope == Scope::Use,
        Scope::Develop => true,
    };
    NEEDS.iter().filter(wanted).filter(|need| look(&need.evidence) == Found::No).collect()
}

/// The first of these needs that is not met.
pub fn still_missing<'a>(needs: &[&'a Need], look: impl Fn(&Evidence) -> Found) -> Option<&'a Need> {
    needs.iter().find(|need| look(&need.evidence) == Found::No).copied()
}

/// Looks for evidence on the machine itself.
pub fn on_this_machine(evidence: &Evidence) -> Found {
    let there = match evidence {
        Evidence::Program(name) => find_program(name).is_some(),
        Evidence::SystemProgram(name) => find_in_system(name).is_some(),
        Evidence::SystemProgramOf(name, oldest) => installed_version(name).is_some_and(|version| version >= *oldest),
        Evidence::AnyFile(paths) => paths.iter().any(|path| Path::new(path).exists()),
    };
    if there { Found::Yes } else { Found::No }
}

fn installed_version(program: &str) -> Option<Version> {
    let path = find_in_system(program)?;
    version_in(&Job::new(path.to_str()?).args(["--version"]).capture().ok()?)
}

/// The same folders that the engine's command runner looks in.
fn find_in_system(program: &str) -> Option<PathBuf> {
    let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Path::new);
    folders.iter().map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// The first `N.N` of a text, such as `QEMU emulator version 10.0.2 (…)`.
pub fn version_in(text: &str) -> Option<Version> {
    text.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(parse_version)
}

/// The upstream version of a Debian version, such as `1:7.2+dfsg-7`.
pub fn version_of_package(version: &str) -> Option<Version> {
    let without_epoch = version.split_once(':').map_or(version, |(_, rest)| rest);
    version_in(without_epoch)
}

fn parse_version(text: &str) -> Option<Version> {
    let mut numbers = text.split('.');
    Some(Version { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let of = |major, minor| Some(Version { major, minor });
        assert_eq!(version_in("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"), of(10, 0));
        assert_eq!(version_in("QEMU emulator version 7.2.17"), of(7, 2));
        assert_eq!(version_in("no version"), None);
        assert_eq!(version_of_package("1:7.2+dfsg-7+deb12u18+b3"), of(7, 2));
        assert_eq!(version_of_package("1:10.0.2+ds-2+deb13u1~bpo12+1"), of(10, 0));
        assert_eq!(version_of_package("8.2.2"), of(8, 2));
        assert_eq!(version_of_package("(none)"), None);
        assert!(version_of_package("1:10.0") > Some(QEMU_OLDEST));
        assert!(version_of_package("1:8.1.5") < Some(QEMU_OLDEST));
    }

    #[test]
    fn only_what_is_not_there_is_missing() {
        assert_eq!(missing(Scope::Develop, |_| Found::Yes), Vec::<&Need>::new());
        assert_eq!(missing(Scope::Develop, |_| Found::No).len(), NEEDS.len());
        assert!(missing(Scope::Use, |_| Found::No).len() < NEEDS.len());
        let without_nft = |evidence: &Evidence| match evidence {
            Evidence::SystemProgram("nft") => Found::No,
            Evidence::Program(_)
            | Evidence::SystemProgram(_)
            | Evidence::SystemProgramOf(..)
            | Evidence::AnyFile(_) => Found::Yes,
        };
        let names: Vec<_> = missing(Scope::Use, without_nft).iter().map(|need| need.package).collect();
        assert_eq!(names, ["nftables"]);
    }
}
