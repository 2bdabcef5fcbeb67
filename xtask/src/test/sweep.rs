//! What is on the host that sandboxes could leave behind, compared before and after.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::RUN_DIR;
use crate::cargo;
use crate::process::{self, Job, find_program};

/// How long the kernel may take to finish what it does on its own: a network namespace ends asynchronously.
const SETTLE: Duration = Duration::from_secs(5);
const SETTLE_STEP: Duration = Duration::from_millis(100);
/// An agent, its shims, their VMMs, and some to spare.
const GENERATIONS_MAX: u32 = 10;

/// Folders nested deeper than this below a swept one are not looked into.
const DEPTH_MAX: usize = 6;

/// One thing on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// A process that lost its parent to us.
    Process { pid: i32, command: String },
    /// A network interface.
    Link(String),
    /// An nftables table.
    NftTable(String),
    /// A mount, by its mount point.
    Mount(String),
    /// A loop device, by the file behind it.
    Loop(String),
    /// A device-mapper device, by name.
    DeviceMapper(String),
    /// A control group of ours.
    Cgroup(String),
    /// A file, folder or socket where nothing should stay.
    File(String),
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, command } => write!(f, "process {pid}: {command}"),
            Self::Link(name) => write!(f, "network interface {name}"),
            Self::NftTable(name) => write!(f, "nftables table {name}"),
            Self::Mount(path) => write!(f, "mount {path}"),
            Self::Loop(path) => write!(f, "loop device over {path}"),
            Self::DeviceMapper(name) => write!(f, "device-mapper device {name}"),
            Self::Cgroup(path) => write!(f, "cgroup {path}"),
            Self::File(path) => write!(f, "file {path}"),
        }
    }
}

/// Everything of interest, as seen from the tests' namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    things: BTreeSet<Thing>,
}

impl World {
    /// Looks at the host.
    pub fn observe() -> Result<Self> {
        let mut things = BTreeSet::new();
        things.extend(orphans());
        things.extend(links(&read("/proc/self/net/dev")?).into_iter().map(Thing::Link));
        things.extend(nft("tables")?.lines().map(|line| Thing::NftTable(line.to_owned())));
        things.extend(mount_points(&read("/proc/self/mountinfo")?).into_iter().map(Thing::Mount));
        things.extend(block_devices("loop/backing_file").into_iter().map(Thing::Loop));
        things.extend(block_devices("dm/name").into_iter().map(Thing::DeviceMapper));
        things.extend(cgroups().into_iter().map(Thing::Cgroup));
        for folder in swept_folders() {
            things.extend(entries(&folder, DEPTH_MAX).into_iter().filter(|path| !stays(path)).map(Thing::File));
        }
        Ok(Self { things })
    }

    /// What is here that was not there before.
    fn beyond(&self, before: &Self) -> Vec<Thing> {
        self.things.difference(&before.things).cloned().collect()
    }
}

/// What is left beyond `before` once the host has settled; processes among it are ended.
pub fn wait_until_clean(before: &World) -> Result<Vec<Thing>> {
    let until = Instant::now() + SETTLE;
    loop {
        let left = World::observe()?.beyond(before);
        if left.is_empty() {
            return Ok(left);
        }
        if Instant::now() >= until {
            end_processes(before)?;
            return Ok(left);
        }
        // Nothing announces the end of a foreign process or of a namespace's links together; the wait is bounded.
        std::thread::sleep(SETTLE_STEP);
    }
}

/// The host's own network, as text: the tests must not change a byte of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Network {
    ruleset: String,
    routes: String,
    links: BTreeSet<String>,
    forwarding: String,
}

impl Network {
    /// Looks at the network this process is in.
    pub fn observe() -> Result<Self> {
        Ok(Self {
            ruleset: nft("ruleset")?,
            routes: read("/proc/self/net/route")? + &read("/proc/self/net/ipv6_route").unwrap_or_default(),
            links: links(&read("/proc/self/net/dev")?).into_iter().collect(),
            forwarding: read("/proc/sys/net/ipv4/ip_forward")?,
        })
    }
}

/// Where tests may write, and must leave nothing.
fn swept_folders() -> Vec<PathBuf> {
    let sandboxes = std::env::var_os("WRENN_TEST_IMAGES").map(|dir| Path::new(&dir).join("sandboxes"));
    // The last one is what cargo calls CARGO_TARGET_TMPDIR.
    let always = [PathBuf::from(RUN_DIR), std::env::temp_dir(), cargo::target_dir().join("tmp")];
    always.into_iter().chain(sandboxes).collect()
}

/// Whether a file is one of the host-wide books that stay by design: to remove a file that others lock would give the same
/// lock to two of them. An instance's claim on its tag stays with it; a slot's file stays, and is empty when it is free.
fn stays(path: &str) -> bool {
    let Some(book) = path.strip_prefix(RUN_DIR).map(|path| path.trim_start_matches('/')) else { return false };
    let is_tag = |name: &str| name.len() == 4 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    match book.split('/').collect::<Vec<_>>()[..] {
        ["netns" | "slots" | "network.lock" | "cgroup.lock" | "tsc-khz"] => true,
        ["slots", _slot] => fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0),
        [tag] | [tag, "owner" | "owner.lock"] => is_tag(tag),
        _ => false,
    }
}

/// The tests' orphans, but for those that have ended.
fn orphans() -> Vec<Thing> {
    let living = process::orphans().into_iter().filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        (state_in(&stat)? != "Z").then(|| Thing::Process { pid, command: command_of(pid, &stat) })
    });
    living.collect()
}

/// The state in `/proc/PID/stat`: what follows the command's closing parenthesis.
fn state_in(stat: &str) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_whitespace().next()
}

fn command_of(pid: i32, stat: &str) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&arguments).replace('\0', " ");
    let shown = if text.is_empty() { stat } else { &text };
    shown.trim().chars().take(200).collect()
}

/// Ends what runs, generation after generation: what one of them had started is ours when that has ended.
fn end_processes(before: &World) -> Result<()> {
    for _generation in 0..GENERATIONS_MAX {
        let left = processes(&World::observe()?.beyond(before));
        if left.is_empty() {
            return Ok(());
        }
        left.into_iter().for_each(end_process);
        // Nothing announces that they have been collected, and their children are ours.
        std::thread::sleep(SETTLE_STEP);
    }
    Ok(())
}

fn processes(left: &[Thing]) -> Vec<Pid> {
    let pids = left.iter().filter_map(|thing| match thing {
        Thing::Process { pid, .. } => Pid::from_raw(*pid),
        Thing::Link(_)
        | Thing::NftTable(_)
        | Thing::Mount(_)
        | Thing::Loop(_)
        | Thing::DeviceMapper(_)
        | Thing::Cgroup(_)
        | Thing::File(_) => None,
    });
    pids.collect()
}

fn end_process(pid: Pid) {
    // It is our child, so the number cannot belong to somebody else.
    if kill_process(pid, Signal::KILL).is_err() {
        eprintln!("    process {} ended by itself", pid.as_raw_nonzero());
    }
}

/// Interface names in `/proc/net/dev`.
fn links(dev: &str) -> Vec<String> {
    dev.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

/// Mount points in `/proc/self/mountinfo`: the fifth field.
fn mount_points(mountinfo: &str) -> Vec<String> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4).map(str::to_owned)).collect()
}

/// `nft list WHAT`; empty where there is no nft.
fn nft(what: &str) -> Result<String> {
    match find_program("nft") {
        Some(_) => Job::new("nft").args(["list", what]).capture(),
        None => Ok(String::new()),
    }
}

/// An attribute of every block device that has it.
fn block_devices(attribute: &str) -> Vec<String> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices
        .filter_map(|device| Some(fs::read_to_string(device.path().join(attribute)).ok()?.trim().to_owned()))
        .collect()
}

/// Control groups whose name begins like ours: in the unified hierarchy or in one of the old ones.
fn cgroups() -> Vec<String> {
    let all = entries(Path::new("/sys/fs/cgroup"), 2);
    let ours = |path: &String| path.rsplit('/').next().is_some_and(|name| name.starts_with("wrenn"));
    all.into_iter().filter(ours).collect()
}

/// Everything below a folder, to a depth; nothing when it is not there.
fn entries(folder: &Path, depth: usize) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        found.push(entry.path().display().to_string());
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(entries(&entry.path(), depth - 1));
        }
    }
    found
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_left_behind() {
        let world =
            |names: &[&str]| World { things: names.iter().map(|name| Thing::Link((*name).to_owned())).collect() };
        assert_eq!(world(&["lo", "wvk3f00"]).beyond(&world(&["lo"])), [Thing::Link("wvk3f00".to_owned())]);
        assert_eq!(world(&["lo"]).beyond(&world(&["lo", "eth0"])), []);
    }

    #[test]
    fn reads_what_the_kernel_prints() {
        assert_eq!(state_in("12 (a) b) S 7 12 12 0"), Some("S"));
        assert_eq!(state_in("12"), None);
        assert_eq!(links("head\nhead\n    lo: 0 0\n wv1: 1 1\n"), ["lo", "wv1"]);
        assert_eq!(mount_points("22 1 0:5 / /proc rw - proc proc rw\n"), ["/proc"]);
    }

    #[test]
    fn only_the_books_stay() {
        for (path, wanted) in [
            ("/run/wrenn/netns", true),
            ("/run/wrenn/slots", true),
            ("/run/wrenn/network.lock", true),
            ("/run/wrenn/cgroup.lock", true),
            ("/run/wrenn/cgroup-controllers", false),
            ("/run/wrenn/ab12", true),
            ("/run/wrenn/ab12/owner", true),
            ("/run/wrenn/ab12/owner.lock", true),
            ("/run/wrenn/ab12/sbx.sock", false),
            ("/run/wrenn/netns/wrn-ab12-0", false),
            ("/run/wrenn/tsc-khz", true),
            ("/run/wrenn/forwarding-4026531840.json", false),
            ("/run/wrenn/slots/16000000", false),
            ("/tmp/netns", false),
        ] {
            assert_eq!(stays(path), wanted, "{path}");
        }
    }

    #[test]
    fn a_file_left_behind_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/left"), "").unwrap();
        assert_eq!(entries(dir.path(), 1).len(), 1);
        assert_eq!(entries(dir.path(), 2).len(), 2);
    }
}
