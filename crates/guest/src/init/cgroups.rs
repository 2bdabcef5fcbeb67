//! Two cgroups: `wrenn` for envd, which is protected, and `user` for everything a user starts, which can be frozen.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use super::InitError;

const ROOT: &str = "/sys/fs/cgroup";
/// Controllers handed down, where the kernel has them.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// Memory of envd that is not reclaimed for users' sake. It needs about 4 MiB idle, 18 MiB with 200 streams.
const ENVD_MEMORY_LOW: &str = "33554432";
/// envd answers first when all CPUs are busy; 100 is everyone else's weight.
const ENVD_CPU_WEIGHT: &str = "1000";

/// The folders of the two groups; envd is born into the first.
pub struct Cgroups {
    /// `/sys/fs/cgroup/wrenn`.
    pub wrenn: OwnedFd,
}

/// Makes the groups. cgroup2 is mounted already.
pub fn prepare() -> Result<Cgroups, InitError> {
    delegate()?;
    for name in ["wrenn", "user"] {
        let path = format!("{ROOT}/{name}");
        std::fs::create_dir(&path).map_err(|source| InitError::Cgroup { path, source })?;
    }
    for (file, value) in [("memory.low", ENVD_MEMORY_LOW), ("cpu.weight", ENVD_CPU_WEIGHT)] {
        protect(file, value)?;
    }
    let path = format!("{ROOT}/wrenn");
    let wrenn = File::open(&path).map_err(|source| InitError::Cgroup { path, source })?;
    Ok(Cgroups { wrenn: wrenn.into() })
}

fn delegate() -> Result<(), InitError> {
    let failed = |source| InitError::Cgroup { path: ROOT.to_owned(), source };
    let known = std::fs::read_to_string(format!("{ROOT}/cgroup.controllers")).map_err(failed)?;
    let wanted = wanted(&known);
    std::fs::write(format!("{ROOT}/cgroup.subtree_control"), wanted).map_err(failed)
}

fn wanted(known: &str) -> String {
    let here = |name: &&str| known.split_ascii_whitespace().any(|known| known == *name);
    CONTROLLERS.iter().filter(|name| here(name)).map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ")
}

/// A kernel without the controller has no such file, and then nothing to protect envd with.
fn protect(file: &str, value: &str) -> Result<(), InitError> {
    let path = format!("{ROOT}/wrenn/{file}");
    match std::fs::write(&path, value) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(InitError::Cgroup { path, source }),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::wanted;

    #[test]
    fn hands_down_only_what_the_kernel_has() {
        assert_eq!(wanted("cpuset cpu io memory hugetlb pids rdma misc\n"), "+cpu +io +memory +pids");
        assert_eq!(wanted("cpu\n"), "+cpu");
        assert_eq!(wanted(""), "");
    }
}
