//! What the values must come to, and which are compared.

use super::Target;

/// The target of a measurement's median, in the measurement's unit.
pub const TARGETS: &[(&str, Target)] = &[
    ("own-wall", Target::AtMost(60.0)),
    ("own-cpu", Target::AtMost(15.0)),
    ("run-peak-rss", Target::AtMost(30.0)),
    ("shim-peak-rss", Target::AtMost(3.0)),
    ("guest-idle-rss", Target::AtMost(8.0)),
    ("guest-binary", Target::AtMost(5.0)),
    ("fault-notice", Target::AtMost(1000.0)),
    ("pause-scan-difference", Target::AtMost(20.0)),
    ("agent-rss-idle", Target::AtMost(30.0)),
    ("agent-rss-per-sandbox", Target::AtMost(1.0)),
    ("uffd-read", Target::AtMost(20.0)),
    ("adopt-20", Target::AtMost(2000.0)),
    ("serve-rss", Target::AtMost(40.0)),
    ("serve-start-100", Target::AtMost(300.0)),
    ("rest-exec-overhead", Target::AtMost(1.0)),
    ("rest-load-p99", Target::AtMost(20.0)),
    ("list-1000", Target::AtMost(10.0)),
    ("proxy-latency", Target::AtMost(0.5)),
];

/// Two measurements of the same round, one divided by the other.
pub struct Ratio {
    /// Its name: lower case, with dashes.
    pub name: &'static str,
    /// The measurement divided.
    pub of: &'static str,
    /// The measurement it is divided by.
    pub to: &'static str,
    /// What the median must be; `None` when it only explains another.
    pub target: Option<Target>,
}

/// Everything that is compared.
pub const RATIOS: &[Ratio] = &[
    // A whole run, until our process is gone, to a plain QEMU until its agent answers.
    Ratio { name: "cold-run-ratio", of: "cold-run", to: "plain-ready", target: Some(Target::AtMost(1.15)) },
    // Of it, until ours answers too.
    Ratio { name: "cold-ready-ratio", of: "cold-ready", to: "plain-ready", target: None },
    // The call and the command's end, to a fork and exec in the guest and one way there and back.
    Ratio { name: "warm-exec-ratio", of: "warm-exec", to: "bare-exec", target: Some(Target::AtMost(1.5)) },
    // A disk of device-mapper, to the same by `losetup` and `dmsetup`; and on an image of 8 GiB to one of 1 GiB.
    Ratio {
        name: "disk-calls-ratio",
        of: "disk-calls",
        to: "disk-calls-by-programs",
        target: Some(Target::AtMost(0.1)),
    },
    Ratio { name: "disk-time-ratio", of: "disk-1gib", to: "disk-by-programs", target: None },
    Ratio { name: "disk-size-ratio", of: "disk-8gib", to: "disk-1gib", target: Some(Target::AtMost(1.2)) },
    // How long a VM stands still to be captured, to what its VMM needs for it and a copy of what changed in memory.
    Ratio {
        name: "pause-frozen-ratio",
        of: "pause-frozen",
        to: "pause-frozen-bare",
        target: Some(Target::AtMost(1.5)),
    },
    // What changed, written and durable with its checksums, to the same bytes in a file.
    Ratio {
        name: "pause-durable-ratio",
        of: "pause-durable",
        to: "pause-durable-bare",
        target: Some(Target::AtMost(1.3)),
    },
    // From the call until `true` has run in the guest, to a plain VMM that goes on from the same state until its guest answers.
    Ratio { name: "resume-ratio", of: "resume-exec", to: "plain-restore", target: Some(Target::AtMost(1.25)) },
    // The same of a new sandbox that starts from its warm image; where one was made ahead; and booted, to that.
    Ratio {
        name: "warm-create-ratio",
        of: "warm-create-exec",
        to: "warm-plain-restore",
        target: Some(Target::AtMost(1.25)),
    },
    Ratio {
        name: "standby-create-ratio",
        of: "standby-create-exec",
        to: "warm-plain-restore",
        target: Some(Target::AtMost(1.0)),
    },
    Ratio {
        name: "cold-create-ratio",
        of: "cold-create-exec",
        to: "warm-create-exec",
        target: Some(Target::AtLeast(8.0)),
    },
    // 16 forks, to the CPU time of as many plain VMMs that go on, on all cores.
    Ratio { name: "fork-ratio", of: "fork-last", to: "fork-least", target: Some(Target::AtMost(1.2)) },
    Ratio { name: "fork-frozen-ratio", of: "fork-frozen", to: "fork-frozen-bare", target: Some(Target::AtMost(1.5)) },
    Ratio {
        name: "fork-own-memory-ratio",
        of: "fork-own-memory",
        to: "fork-own-memory-bare",
        target: Some(Target::AtMost(1.2)),
    },
    // Memory that is served page by page: without a list of what is wanted first, to with it; and mapped, to that.
    Ratio { name: "uffd-ratio", of: "uffd-blind-exec", to: "uffd-exec", target: Some(Target::AtLeast(2.0)) },
    Ratio { name: "uffd-file-ratio", of: "file-exec", to: "uffd-exec", target: None },
    // What a resume costs does not grow.
    Ratio { name: "depth-10-ratio", of: "depth-10-exec", to: "depth-1-exec", target: Some(Target::AtMost(1.2)) },
    Ratio { name: "depth-50-ratio", of: "depth-50-exec", to: "depth-1-exec", target: Some(Target::AtMost(1.2)) },
    // 32 at once, to the CPU time that they take on all cores.
    Ratio { name: "crowd-ratio", of: "crowd-wall", to: "crowd-least", target: Some(Target::AtMost(1.2)) },
    // Throughput: more is better.
    Ratio {
        name: "proxy-throughput-ratio",
        of: "proxy-throughput",
        to: "port-throughput",
        target: Some(Target::AtLeast(0.7)),
    },
    Ratio { name: "output-ratio", of: "exec-output", to: "bare-output", target: Some(Target::AtLeast(0.6)) },
];

/// The target of this measurement, if it has one.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(each, _)| *each == name).map(|(_, target)| *target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_targets_or_a_ratios_once() {
        let mut names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        names.extend(RATIOS.iter().map(|ratio| ratio.name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert_eq!(target("own-wall"), Some(Target::AtMost(60.0)));
        assert_eq!(target("cold-run"), None);
    }
}
