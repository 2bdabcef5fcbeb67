//! Starts shims and cleans up after them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use wrenn_proto::shim::{Client, Console, ExitRecord, Ready, SPEC_VERSION, Spec, Vmm};
use wrenn_sys::spawn::{Child, ExitStatus, Spawn};

/// Longest any single step of a test may take. The machine may be very busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The descriptor the shim says on that it is ready.
const READY_FD: i32 = 3;

/// What to start, and where.
pub struct Plan {
    pub spec: Spec,
    folder: tempfile::TempDir,
}

impl Plan {
    /// A shim whose VMM is this shell script.
    pub fn script(script: &str) -> Self {
        Self::program("/bin/sh", &["-c", script])
    }

    /// A shim whose VMM is this program.
    pub fn program(program: &str, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let spec = Spec {
            version: SPEC_VERSION,
            sandbox: "sb0123456789abcdefgh".into(),
            vmm: Vmm {
                program: program.into(),
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                env: vec![("PATH".into(), "/usr/bin:/bin".into())],
                cwd: "/".into(),
                credentials: None,
                jail: None,
                netns: None,
                cgroup: None,
                fds: vec![],
                rlimits: vec![],
                oom_score_adj: None,
            },
            console: Console {
                path: path("console"),
                bytes: 64 * 1024,
                bytes_per_second: 1 << 30,
                burst_bytes: 1 << 30,
            },
            exit_record: path("exit.json"),
            socket: path("shim.sock"),
            ready_fd: READY_FD,
            pager: None,
            linger_s: 0,
        };
        Self { spec, folder }
    }

    /// Starts it and expects the VMM to run.
    pub fn start(self) -> Shim {
        let shim = self.launch(&[]);
        assert!(matches!(shim.ready, Some(Ready::Started { .. })), "{:?}", shim.ready);
        shim
    }

    /// Starts it with more descriptors and waits for its ready line, whatever that is.
    pub fn launch(self, fds: &[(BorrowedFd<'_>, i32)]) -> Shim {
        let spec_path = self.folder.path().join("spec.json");
        std::fs::write(&spec_path, serde_json::to_vec(&self.spec).unwrap()).unwrap();
        let (ready_reader, ready_writer) = std::io::pipe().unwrap();
        let mut spawn = shim(&[spec_path.as_os_str()]).fd(ready_writer.as_fd(), READY_FD);
        for (fd, number) in fds {
            spawn = spawn.fd(*fd, *number);
        }
        let (errors, errors_writer) = std::io::pipe().unwrap();
        let child = Killed(spawn.fd(errors_writer.as_fd(), 2).start().unwrap());
        drop((ready_writer, errors_writer));
        let ready = Ready::read(ready_reader).ok();
        Shim { spec: self.spec, ready, child, errors, _folder: self.folder }
    }
}

/// The shim's program with these arguments, in a session of its own.
pub fn shim(args: &[&OsStr]) -> Spawn<'static> {
    Spawn::new(env!("CARGO_BIN_EXE_wrenn-shim")).args(args.iter().copied()).session()
}

/// A started shim. Dropping it kills it, and so its VMM.
pub struct Shim {
    pub spec: Spec,
    pub ready: Option<Ready>,
    pub child: Killed,
    /// The shim's stderr.
    errors: PipeReader,
    _folder: tempfile::TempDir,
}

impl Shim {
    pub fn client(&self) -> Client {
        Client::connect(&self.spec.socket, PATIENCE).unwrap()
    }

    pub fn vmm_pid(&self) -> u32 {
        match self.ready {
            Some(Ready::Started { vmm_pid, .. }) => vmm_pid,
            ref other => panic!("no VMM: {other:?}"),
        }
    }

    /// Waits for the VMM's end.
    pub fn wait(&self) -> ExitRecord {
        self.client().wait(Some(PATIENCE)).unwrap()
    }

    /// The record on disk.
    pub fn record(&self) -> Option<ExitRecord> {
        ExitRecord::read(&self.spec.exit_record).unwrap()
    }

    /// Waits for the shim's own end.
    pub fn ended(&self) -> ExitStatus {
        assert!(is_readable_within(self.child.as_fd(), PATIENCE), "the shim does not end");
        self.child.wait().unwrap()
    }

    /// Whether the shim ends within this time.
    pub fn ends_within(&self, limit: Duration) -> bool {
        is_readable_within(self.child.as_fd(), limit)
    }

    /// What it wrote to stderr, after its end.
    pub fn errors(&mut self) -> String {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).unwrap();
        text
    }

    /// The console so far, as text.
    pub fn console(&self) -> String {
        let tail = wrenn_proto::shim::ring::read_tail(&self.spec.console.path, u64::MAX).unwrap();
        String::from_utf8_lossy(&tail.data).into_owned()
    }

    /// Waits until the console holds this text.
    pub fn console_says(&self, text: &str) {
        until(&format!("the console says {text:?}"), || self.console().contains(text));
    }

    /// CPU time the shim has used, in clock ticks (10 ms).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Resident memory in KiB, now and at most.
    pub fn memory_kib(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.pid())).unwrap();
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        (value("VmRSS:"), value("VmHWM:"))
    }
}

/// Ends with the test, however that ends.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.signal(Signal::KILL).unwrap();
        self.0.wait().unwrap();
    }
}

impl std::ops::Deref for Killed {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

/// Waits until something holds; it is looked at every few milliseconds because files give no event.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn is_readable_within(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    rustix::event::poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit)).unwrap() == 1
}

/// Reads to the end, which must come within the usual patience.
pub fn read_all(mut reader: PipeReader) -> String {
    let mut bytes = Vec::new();
    loop {
        assert!(is_readable_within(reader.as_fd(), PATIENCE), "somebody still holds the pipe's other end");
        let mut chunk = [0; 4096];
        match reader.read(&mut chunk).unwrap() {
            0 => return String::from_utf8(bytes).unwrap(),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

/// An open file of this content.
pub fn file(folder: &Path, content: &str) -> File {
    let path: PathBuf = folder.join("inherited");
    std::fs::write(&path, content).unwrap();
    File::open(path).unwrap()
}
