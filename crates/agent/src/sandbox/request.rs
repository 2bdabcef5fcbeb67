//! What is asked of a new sandbox, and whether it can be had: raw, then checked, all problems at once.

use std::fmt;

use wrenn_engine::limits;
use wrenn_engine::units::Mib;

/// Disk that `--disk` cannot go below is the template's; memory it cannot go above is the host's.
#[derive(Clone, Copy, Debug)]
pub struct HostFacts {
    /// Memory the host has in all.
    pub memory: Mib,
    /// Size of the template's image.
    pub template_disk: Mib,
}

/// A sandbox as somebody asks for it.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Mib,
    /// Size of the disk; the template's own when not given.
    pub disk: Option<Mib>,
}

/// Why a sandbox cannot be had as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Outside of what a VM can have.
    #[error("{asked} vCPUs: a sandbox has 1 to {} of them", limits::VCPUS_MAX)]
    Vcpus {
        /// How many were asked for.
        asked: u32,
    },
    /// Too little to boot.
    #[error("memory of {asked}: a guest needs at least {} to boot", limits::MEMORY_MIN)]
    MemoryTooSmall {
        /// How much was asked for.
        asked: Mib,
    },
    /// More than there is.
    #[error("memory of {asked}: this host has {host} in all")]
    MemoryTooLarge {
        /// How much was asked for.
        asked: Mib,
        /// How much the host has.
        host: Mib,
    },
    /// Smaller than the template.
    #[error("a disk of {asked}: the template's image takes {template}; ask for that or more")]
    DiskTooSmall {
        /// How much was asked for.
        asked: Mib,
        /// How much the template takes.
        template: Mib,
    },
    /// Larger than any disk.
    #[error("a disk of {asked}: {} is the most", limits::DISK_MAX)]
    DiskTooLarge {
        /// How much was asked for.
        asked: Mib,
    },
}

/// All problems of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(Problem::to_string).collect();
        f.write_str(&lines.join("; "))
    }
}

impl std::error::Error for Problems {}

/// A shape that this host can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedShape {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory: Mib,
    /// Size of the disk.
    pub disk: Mib,
}

impl Shape {
    /// The shape, if `host` can give it; otherwise everything that is wrong with it.
    pub fn check(&self, host: HostFacts) -> Result<CheckedShape, Problems> {
        let mut problems = Vec::new();
        if !(1..=limits::VCPUS_MAX).contains(&self.vcpus) {
            problems.push(Problem::Vcpus { asked: self.vcpus });
        }
        if self.memory < limits::MEMORY_MIN {
            problems.push(Problem::MemoryTooSmall { asked: self.memory });
        }
        if self.memory > host.memory {
            problems.push(Problem::MemoryTooLarge { asked: self.memory, host: host.memory });
        }
        let disk = self.disk.unwrap_or(host.template_disk);
        if disk < host.template_disk {
            problems.push(Problem::DiskTooSmall { asked: disk, template: host.template_disk });
        }
        if disk > limits::DISK_MAX {
            problems.push(Problem::DiskTooLarge { asked: disk });
        }
        if problems.is_empty() {
            Ok(CheckedShape { vcpus: self.vcpus, memory: self.memory, disk })
        } else {
            Err(Problems(problems))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: HostFacts = HostFacts { memory: Mib(4096), template_disk: Mib(64) };

    #[test]
    fn tells_every_problem_at_once() {
        let shape = Shape { vcpus: 0, memory: Mib(1), disk: Some(Mib(1)) };
        let Problems(problems) = shape.check(HOST).unwrap_err();
        assert_eq!(
            problems,
            [
                Problem::Vcpus { asked: 0 },
                Problem::MemoryTooSmall { asked: Mib(1) },
                Problem::DiskTooSmall { asked: Mib(1), template: Mib(64) },
            ]
        );
        let shape = Shape { vcpus: 1000, memory: Mib(4097), disk: Some(Mib(u32::MAX)) };
        assert_eq!(shape.check(HOST).unwrap_err().0.len(), 3);
    }

    #[test]
    fn the_template_decides_the_disk_nobody_asked_for() {
        let shape = Shape { vcpus: 2, memory: Mib(256), disk: None };
        assert_eq!(shape.check(HOST), Ok(CheckedShape { vcpus: 2, memory: Mib(256), disk: Mib(64) }));
    }
}
