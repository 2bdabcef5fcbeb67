//! A place for one test: an instance of its own, `wrenn` run in it, and the sweep for what it left behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::small_disk::SmallDisk;

/// How long anything that is waited for may take: on a busy machine an emulated host needs 80 s for 100 MB of output.
pub const LIMIT: Duration = Duration::from_secs(240);

/// The drivers that these tests run on: `WRENN_TEST_STACK`, such as `firecracker+kvm+dm`; by default those that run on any
/// machine. Nothing is left to what the host happens to have.
pub struct Stack {
    /// The VMM.
    pub vmm: String,
    /// What executes the guest's instructions.
    pub accel: String,
    /// What disks are made of.
    pub storage: String,
}

impl Stack {
    /// The one of this run.
    pub fn of_this_run() -> Self {
        let text = std::env::var("WRENN_TEST_STACK").unwrap_or_else(|_| "qemu+tcg+qcow2".to_owned());
        let parts: Vec<&str> = text.split('+').collect();
        let [vmm, accel, storage] = parts[..] else { panic!("WRENN_TEST_STACK={text} is not VMM+ACCEL+STORAGE") };
        Self { vmm: vmm.to_owned(), accel: accel.to_owned(), storage: storage.to_owned() }
    }
}

/// Folders of an instance that are made ahead.
const DOWNLOADS: &str = "downloads";
const KERNELS: &str = "kernels";
const TEMPLATES: &str = "templates";

/// Where the images that were made ahead are: `WRENN_TEST_IMAGES`.
pub fn prepared_images() -> PathBuf {
    let images = std::env::var_os("WRENN_TEST_IMAGES");
    images
        .map(PathBuf::from)
        .expect("WRENN_TEST_IMAGES is not set: run these tests with `cargo xtask test`, which builds the images")
}

/// One instance, and what was there before it.
pub struct World {
    /// The file system that the instance is in, where it has one of its own; unmounted before its image goes.
    small_disk: Option<SmallDisk>,
    dir: tempfile::TempDir,
    before: Host,
}

impl World {
    /// An empty instance with the prepared images, and warm ones of the usual sizes.
    pub fn new() -> Self {
        let world = Self::cold();
        crate::warmth::share(world.dir());
        world
    }

    /// An empty instance with the prepared images, in which nothing was booted yet.
    pub fn cold() -> Self {
        let world = Self::without_images();
        for folder in [KERNELS, TEMPLATES] {
            link_tree(&prepared_images().join(folder), &world.dir().join(folder));
        }
        world
    }

    /// An empty instance with all that templates are built of, and none of them.
    pub fn without_templates() -> Self {
        let world = Self::without_images();
        for folder in [KERNELS, DOWNLOADS] {
            link_tree(&prepared_images().join(folder), &world.dir().join(folder));
        }
        world
    }

    /// An empty instance in a file system of its own, of `mib` MiB, with the smallest template; kernels are beside it.
    pub fn on_small_disk(mib: u64) -> Self {
        let mut world = Self::without_images();
        let small_disk = SmallDisk::new(world.dir.path(), mib);
        let beside = world.dir.path().join(KERNELS);
        link_tree(&prepared_images().join(KERNELS), &beside);
        std::os::unix::fs::symlink(beside, small_disk.path().join(KERNELS)).unwrap();
        copy_minimal(&prepared_images().join(TEMPLATES), &small_disk.path().join(TEMPLATES));
        world.small_disk = Some(small_disk);
        world
    }

    /// An empty instance.
    pub fn without_images() -> Self {
        // Beside the images, so that they can be hard-linked.
        let dir = tempfile::Builder::new().prefix("e2e-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { small_disk: None, dir, before: Host::now() }
    }

    /// The instance's folder.
    pub fn dir(&self) -> &Path {
        self.small_disk.as_ref().map_or(self.dir.path(), SmallDisk::path)
    }

    /// A folder for what is about the instance and not in it.
    pub fn beside(&self) -> &Path {
        self.dir.path()
    }

    /// The file system of [`World::on_small_disk`].
    pub fn small_disk(&self) -> &SmallDisk {
        self.small_disk.as_ref().expect("the instance is in a file system of its own")
    }

    /// `wrenn` with these arguments, stdin empty, not yet started.
    pub fn wrenn(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wrenn"));
        let stack = Stack::of_this_run();
        command.args(args).env("WRENN_DIR", self.dir()).stdin(Stdio::null());
        command.env("WRENN_VMM", stack.vmm).env("WRENN_ACCEL", stack.accel).env("WRENN_STORAGE", stack.storage);
        command
    }

    /// `wrenn run -- sh -c SCRIPT` that asks for no drivers of its own, and so goes through an agent where there is one.
    pub fn run_through_agent(&self, script: &str) -> Command {
        let mut command = self.wrenn(&["run", "--", "sh", "-c", script]);
        for wish in ["WRENN_VMM", "WRENN_ACCEL", "WRENN_STORAGE"] {
            command.env_remove(wish);
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs `wrenn` to its end.
    pub fn output(&self, args: &[&str]) -> Output {
        finish(self.wrenn(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// `wrenn run -- COMMAND` in the minimal template, to its end.
    pub fn run(&self, command: &[&str]) -> Output {
        self.output(&[&["run", "--"], command].concat())
    }

    /// `wrenn run` of a shell script that prints `ready` once it runs; answers when it has.
    pub fn start(&self, script: &str) -> Running {
        let script = format!("echo ready; {script}");
        self.start_wrenn(&["run", "--", "sh", "-c", &script])
    }

    /// `wrenn` with these arguments, which prints a line `ready`; answers when it has.
    pub fn start_wrenn(&self, args: &[&str]) -> Running {
        Self::start_command(self.wrenn(args).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// A command whose first line of output is `ready`; answers when it has come.
    pub fn start_command(command: &mut Command) -> Running {
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "wrenn ended early: {:?}", finish(child));
        Running { child, stdout }
    }

    /// The instance's tag.
    pub fn tag(&self) -> String {
        let text = std::fs::read_to_string(self.dir().join("instance.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["tag"].as_str().unwrap().to_owned()
    }

    /// The processes that have `wanted` in their command line, by pid.
    pub fn pids(&self, wanted: &str) -> Vec<u32> {
        let dir = self.dir().to_string_lossy().into_owned();
        processes()
            .into_iter()
            .filter(|(_, line)| line.contains(&dir) && line.contains(wanted))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// The one shim of this instance.
    pub fn shim_pid(&self) -> u32 {
        let pids = self.pids("shim.json");
        assert_eq!(pids.len(), 1, "one shim");
        pids[0]
    }

    /// The VMM of this instance, if one runs by now.
    pub fn vmm_pid_if_any(&self) -> Option<u32> {
        let shim = *self.pids("shim.json").first()?;
        let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// The one VMM of this instance: the shim's child.
    pub fn vmm_pid(&self) -> u32 {
        let shim = self.shim_pid();
        let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        children.split_whitespace().next().expect("the shim has a VMM").parse().unwrap()
    }

    /// As [`World::finish`], for an instance whose agent has ended: that has its socket's folder no more, and its log stays.
    pub fn finish_agent(self) {
        let left = self.left_behind_by_agent();
        assert!(left.is_empty(), "left behind: {left:#?}\n{}", self.agent_words());
    }

    /// Everything of this instance that is on the host once its agent has ended.
    pub fn left_behind_by_agent(&self) -> Vec<String> {
        self.left_behind().into_iter().filter(|line| !line.contains("agent.")).collect()
    }

    /// Fails if anything of this instance is left on the host, or anything of the host is not as it was.
    pub fn finish(self) {
        let left = self.left_behind();
        assert!(left.is_empty(), "left behind: {left:#?}");
    }

    /// Everything of this instance that is on the host, beside its own images.
    pub fn left_behind(&self) -> Vec<String> {
        let mut left: Vec<String> = self.pids("").iter().map(|pid| format!("process {pid}")).collect();
        let entries = |path: PathBuf| -> Vec<String> {
            std::fs::read_dir(path)
                .map(|entries| entries.map(|entry| entry.unwrap().path().display().to_string()).collect())
                .unwrap_or_default()
        };
        left.extend(entries(self.dir().join("sandboxes")));
        if self.dir().join("instance.json").exists() {
            let tag = self.tag();
            let run_dir = PathBuf::from("/run/wrenn").join(&tag);
            left.extend(entries(run_dir).into_iter().filter(|path| !is_claim(path)));
            left.extend(entries("/run/wrenn/netns".into()).into_iter().filter(|path| is_tagged(path, &tag)));
            let dir = self.dir().display().to_string();
            let is_own = |line: &String| self.small_disk.as_ref().is_some_and(|disk| disk.is_in(line));
            let lines = Host::now().lines.into_iter().filter(|line| !is_own(line));
            left.extend(lines.filter(|line| is_tagged(line, &tag) || line.contains(&dir)));
        }
        left
    }

    /// What of the host's firewall, routes, links, sysctls and mounts differs from the beginning. Only for tests that have the
    /// network namespace for themselves.
    pub fn host_changes(&self) -> Vec<String> {
        self.before.difference(&Host::now())
    }
}

/// Whether a line names something of the instance with this tag: in each name the tag comes after a separator, or after what an
/// interface's name begins with. By itself it may be a part of any word.
pub fn is_tagged(line: &str, tag: &str) -> bool {
    ["-", "_", "/", "wv"].iter().any(|before| line.contains(&format!("{before}{tag}")))
}

/// The instance's claim on its tag, which stays with its folder.
fn is_claim(path: &str) -> bool {
    path.ends_with("/owner") || path.ends_with("/owner.lock")
}

/// A `wrenn` that runs.
pub struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// Waits for its end: how it ended, what it printed from here on, and how long that took.
    pub fn finish(mut self) -> (Output, Duration) {
        let begun = Instant::now();
        let mut rest = Vec::new();
        let mut output = finish_with(self.child, || {
            self.stdout.read_to_end(&mut rest).unwrap();
        });
        output.stdout = rest;
        (output, begun.elapsed())
    }
}

/// Sends a signal to a process this test caused.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// Waits for the end of a process; kills it when it takes too long, and fails.
pub fn finish(child: Child) -> Output {
    finish_with(child, || {})
}

fn finish_with(child: Child, read: impl FnOnce()) -> Output {
    let (pid, (done, ended)) = (child.id(), std::sync::mpsc::channel::<()>());
    let watchdog = std::thread::spawn(move || {
        let in_time = ended.recv_timeout(LIMIT) != Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if !in_time {
            signal(pid, "KILL");
        }
        in_time
    });
    read();
    let output = child.wait_with_output().unwrap();
    drop(done);
    assert!(watchdog.join().unwrap(), "wrenn did not end within {LIMIT:?}: {output:?}");
    output
}

/// Runs `command` with `input` as its standard input.
pub fn output_with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = finish(child);
    let written = writer.join().unwrap();
    assert!(written.is_ok(), "{written:?}: {}", text(&output.stderr));
    output
}

/// Runs `command` as an unprivileged user.
pub fn unprivileged(mut command: Command) -> Output {
    finish(command.uid(65_534).gid(65_534).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// The text of a stream.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asserts how a run ended and what it printed on stdout.
#[track_caller]
pub fn assert_run(output: &Output, code: i32, stdout: &str) {
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(code), stdout),
        "stderr: {}",
        text(&output.stderr)
    );
}

/// Asserts that Wrenn itself failed, saying all of `words`.
#[track_caller]
pub fn assert_failed(output: &Output, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "stdout: {} stderr: {stderr}", text(&output.stdout));
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "{what} did not come true within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every process with its command line, arguments separated by blanks.
fn processes() -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some((pid, text(&line).replace('\0', " ")))
    })
    .collect()
}

/// Links `from` and everything in it to `to`: folders are made, files are hard links.
pub fn link_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let entries = std::fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    for entry in entries.map(Result::unwrap) {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            link_tree(&source, &target);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&source).unwrap(), &target).unwrap();
        } else {
            std::fs::hard_link(&source, &target).unwrap();
        }
    }
}

/// Makes `to` a folder of templates that has `minimal` alone.
fn copy_minimal(from: &Path, to: &Path) {
    let names = std::fs::read_to_string(from.join("names.json")).unwrap();
    let names: serde_json::Value = serde_json::from_str(&names).unwrap();
    let id = names["minimal"].as_str().unwrap();
    std::fs::create_dir(to).unwrap();
    std::fs::write(to.join("names.json"), serde_json::json!({ "minimal": id }).to_string()).unwrap();
    let copied =
        Command::new("cp").args(["-a", "--sparse=always"]).args([from.join(id), to.join(id)]).status().unwrap();
    assert!(copied.success());
}

/// What is in a folder; nothing, where there is none.
fn entries(folder: &str) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path())
}

/// What a host has of the things that sandboxes make, one line each.
struct Host {
    lines: Vec<String>,
}

impl Host {
    fn now() -> Self {
        let mut lines = Vec::new();
        for (program, args) in [
            ("nft", &["list", "ruleset"][..]),
            ("ip", &["-br", "link"]),
            ("ip", &["route", "show", "table", "all"]),
            ("ip", &["rule"]),
            ("losetup", &["-ln"]),
            ("cat", &["/proc/self/mountinfo"]),
            ("cat", &["/proc/sys/net/ipv4/ip_forward"]),
        ] {
            let output = Command::new(program).args(args).output().unwrap();
            lines.extend(text(&output.stdout).lines().map(|line| format!("{program}: {line}")));
        }
        lines.extend(entries("/sys/block").filter_map(|disk| {
            let name = std::fs::read_to_string(disk.join("dm/name")).ok()?;
            Some(format!("device-mapper: {}", name.trim()))
        }));
        let cgroups = entries("/sys/fs/cgroup").filter(|path| path.to_string_lossy().contains("/wrenn-"));
        lines.extend(cgroups.map(|path| format!("cgroup: {}", path.display())));
        Self { lines }
    }

    fn difference(&self, now: &Self) -> Vec<String> {
        // These are the whole host's, and other tests have theirs; one's own are looked for by `left_behind`.
        let private =
            |line: &&String| !["losetup:", "device-mapper:", "cgroup:"].iter().any(|kind| line.starts_with(kind));
        let lacks = |host: &Self, line: &String| !host.lines.contains(line);
        let gone = self.lines.iter().filter(private).filter(|line| lacks(now, line)).map(|line| format!("- {line}"));
        let new = now.lines.iter().filter(private).filter(|line| lacks(self, line)).map(|line| format!("+ {line}"));
        gone.chain(new).collect()
    }
}
