//! The one command runner: the only place of the host side that starts helper programs (`nft`, `mke2fs`, `apt-get`).
//!
//! A helper gets nothing by accident: its program is found in a fixed list of directories, its environment is what is
//! written here (`LC_ALL=C`, a fixed `PATH`) plus what the caller adds, its working directory is given, and it is the
//! leader of its own process group. It ends in one of four ways, all told in [`CommandError`]: it succeeds, it fails, it
//! runs out of time, or its future is dropped; in the last two the whole group is killed.
//!
//! Long-lived programs (VMM, shim) are not started here but by `wrenn_sys::spawn`, and nothing on the way of a create
//! starts a helper except `nft`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin};

/// Where helpers are looked for, in this order; the same list is their `PATH`.
pub const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Time a helper gets unless told otherwise: `nft` takes 2 ms, `mke2fs` about a second on a slow disk.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// What a helper may print on its standard output unless told otherwise; more is an error, never a silent cut.
const STDOUT_MAX_DEFAULT: usize = 1024 * 1024;
/// What is kept of the standard error: its end, where the reason is.
const STDERR_KEPT: usize = 16 * 1024;
/// Lines of the standard error that an error message shows.
const STDERR_LINES_SHOWN: usize = 8;
/// Longest line handed to a line callback; longer ones come in pieces.
const LINE_MAX: usize = 4096;
/// How long output is still read after the helper itself ended, should a child of its keep the pipe open.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Why a helper gave no result.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program is not installed.
    #[error("`{program}` is not installed{}", remedy(program))]
    Missing {
        /// The program's name.
        program: String,
    },
    /// A program was named by a relative path with a slash in it.
    #[error("`{program}` is neither a plain name nor an absolute path")]
    NotAbsolute {
        /// What was given.
        program: String,
    },
    /// The program could not be started.
    #[error("cannot start {command}")]
    Start {
        /// Program and arguments.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Reading or writing its pipes failed.
    #[error("lost the pipes of {command}")]
    Pipe {
        /// Program and arguments.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with another status than 0.
    #[error("{command} ended with {status}{}", shown(stderr))]
    Failed {
        /// Program and arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed on its standard error.
        stderr: String,
    },
    /// It ran too long and was killed.
    #[error("{command} was killed after {} s without an end{}", after.as_secs_f32(), shown(stderr))]
    TimedOut {
        /// Program and arguments.
        command: String,
        /// The time it had.
        after: Duration,
        /// The end of what it printed on its standard error.
        stderr: String,
    },
    /// It printed more than it may and was killed.
    #[error("{command} was killed: it printed more than {max} bytes")]
    OutputTooLarge {
        /// Program and arguments.
        command: String,
        /// The limit in bytes.
        max: usize,
    },
}

impl CommandError {
    /// The end of the standard error, where there was any.
    pub fn stderr(&self) -> &str {
        match self {
            Self::Failed { stderr, .. } | Self::TimedOut { stderr, .. } => stderr,
            Self::Missing { .. }
            | Self::NotAbsolute { .. }
            | Self::Start { .. }
            | Self::Pipe { .. }
            | Self::OutputTooLarge { .. } => "",
        }
    }
}

/// What a helper that succeeded had printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The whole standard output.
    pub stdout: Vec<u8>,
    /// The end of the standard error (at most 16 KiB).
    pub stderr: Vec<u8>,
}

impl Output {
    /// The standard output as text; what is not UTF-8 becomes U+FFFD.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Called with each line a helper prints, on either stream, without its end.
pub type LineCallback = Box<dyn FnMut(&str) + Send>;

/// A helper about to be run.
///
/// ```no_run
/// # async fn example() -> Result<(), wrenn_engine::command::CommandError> {
/// use wrenn_engine::command::Command;
/// let rules = Command::new("nft").args(["-j", "list", "ruleset"]).run().await?.stdout;
/// # Ok(()) }
/// ```
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    stdin: Option<Vec<u8>>,
    timeout: Duration,
    stdout_max: usize,
    on_line: Option<LineCallback>,
}

impl Command {
    /// A run of `program`: a plain name, looked up in [`DIRECTORIES`], or an absolute path.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            stdin: None,
            timeout: TIMEOUT_DEFAULT,
            stdout_max: STDOUT_MAX_DEFAULT,
            on_line: None,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a variable to the fixed environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// The working directory; `/` unless given.
    pub fn cwd(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cwd = directory.into();
        self
    }

    /// What it reads on its standard input; `/dev/null` unless given.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// The time it has; 60 s unless given.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How many bytes it may print on its standard output; 1 MiB unless given.
    pub fn stdout_max(mut self, bytes: usize) -> Self {
        self.stdout_max = bytes;
        self
    }

    /// Calls back with each line of either stream as it comes; for progress.
    pub fn on_line(mut self, callback: impl FnMut(&str) + Send + 'static) -> Self {
        self.on_line = Some(Box::new(callback));
        self
    }

    /// Runs it to its end. Dropping the future kills the helper and all of its process group.
    pub async fn run(self) -> Result<Output, CommandError> {
        let program = find(&self.program)?;
        let command = self.to_string();
        let mut running = Running::start(&self, &program)
            .map_err(|source| CommandError::Start { command: command.clone(), source })?;
        let mut capture = Capture::new(self.stdout_max, self.on_line);
        let ended = tokio::time::timeout(self.timeout, running.finish(self.stdin, &mut capture)).await;
        let stderr = String::from_utf8_lossy(&capture.stderr).into_owned();
        match ended {
            Err(_elapsed) => Err(CommandError::TimedOut { command, after: self.timeout, stderr }),
            Ok(Err(End::Pipe(source))) => Err(CommandError::Pipe { command, source }),
            Ok(Err(End::TooLarge)) => Err(CommandError::OutputTooLarge { command, max: self.stdout_max }),
            Ok(Ok(status)) if status.success() => Ok(Output { stdout: capture.stdout, stderr: capture.stderr }),
            Ok(Ok(status)) => Err(CommandError::Failed { command, status, stderr }),
        }
    }
}

/// Program and arguments as a shell would read them, for messages.
impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("`")?;
        f.write_str(&quoted(&self.program))?;
        for arg in &self.args {
            write!(f, " {}", quoted(arg))?;
        }
        f.write_str("`")
    }
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Command({self})")
    }
}

/// The absolute path of a program: as given, or the first hit in [`DIRECTORIES`].
pub fn find(program: impl AsRef<OsStr>) -> Result<PathBuf, CommandError> {
    let given = Path::new(program.as_ref());
    let name = given.to_string_lossy().into_owned();
    let candidates = match (given.is_absolute(), name.contains('/')) {
        (true, _) => vec![given.to_owned()],
        (false, true) => return Err(CommandError::NotAbsolute { program: name }),
        (false, false) => DIRECTORIES.iter().map(|directory| Path::new(directory).join(given)).collect(),
    };
    candidates.into_iter().find(|path| path.is_file()).ok_or(CommandError::Missing { program: name })
}

/// The Debian package that brings a program, where we know it.
pub fn debian_package(program: &str) -> Option<&'static str> {
    Some(match program.rsplit('/').next()? {
        "apt-get" | "apt-cache" | "apt-config" => "apt",
        "debugfs" | "dumpe2fs" | "e2fsck" | "mke2fs" | "resize2fs" | "tune2fs" => "e2fsprogs",
        "dmsetup" => "dmsetup",
        "dpkg" | "dpkg-deb" | "dpkg-query" => "dpkg",
        "ip" | "ss" => "iproute2",
        "iptables" => "iptables",
        "mmdebstrap" => "mmdebstrap",
        "nft" => "nftables",
        "protoc" => "protobuf-compiler",
        "qemu-img" => "qemu-utils",
        "qemu-system-x86_64" => "qemu-system-x86",
        "qemu-system-aarch64" => "qemu-system-arm",
        "sysctl" => "procps",
        // Not ours: names of programs are an open set.
        _ => return None,
    })
}

fn remedy(program: &str) -> String {
    match debian_package(program) {
        Some(package) => format!("; it is in the Debian package `{package}`: apt-get install {package}"),
        None => String::new(),
    }
}

fn shown(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(STDERR_LINES_SHOWN)..].join("\n  ");
    if last.is_empty() { String::new() } else { format!(":\n  {last}") }
}

fn quoted(text: &OsStr) -> String {
    let text = text.to_string_lossy();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%^".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) { text.into_owned() } else { format!("{text:?}") }
}

/// How a run ended other than by the helper's own end.
enum End {
    Pipe(io::Error),
    TooLarge,
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Pipe(error)
    }
}

/// A started helper: the leader of its process group, which is killed with it unless it ended by itself.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    #[allow(clippy::disallowed_methods, reason = "this is the one command runner")]
    fn start(plan: &Command, program: &Path) -> io::Result<Self> {
        let child = tokio::process::Command::new(program)
            .args(&plan.args)
            .env_clear()
            .env("PATH", PATH)
            .env("LC_ALL", "C")
            .envs(plan.env.iter().map(|(name, value)| (name, value)))
            .current_dir(&plan.cwd)
            .stdin(if plan.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, group })
    }

    /// Feeds, drains and awaits the helper.
    async fn finish(&mut self, stdin: Option<Vec<u8>>, capture: &mut Capture) -> Result<ExitStatus, End> {
        let feed = feed(self.child.stdin.take(), stdin);
        let stdout = self.child.stdout.take();
        let stderr = self.child.stderr.take();
        let drain = capture.drain(stdout, stderr);
        tokio::pin!(feed, drain);
        let (mut fed, mut drained) = (false, false);
        let status = loop {
            tokio::select! {
                result = &mut feed, if !fed => { result?; fed = true; }
                result = &mut drain, if !drained => { result?; drained = true; }
                // Reaped: from here on the group's number is no longer ours to signal.
                status = self.child.wait() => { self.group = None; break status?; }
            }
        };
        if !drained {
            match tokio::time::timeout(DRAIN_MAX, drain).await {
                Ok(result) => result?,
                Err(_elapsed) => tracing::debug!("a child of a helper keeps its output open"),
            }
        }
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group.take()
            && let Err(error) = rustix::process::kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, "a helper's process group was gone already");
        }
    }
}

/// Writes the whole input and closes it. A helper that stops reading early is no error: its status tells.
async fn feed(pipe: Option<ChildStdin>, bytes: Option<Vec<u8>>) -> Result<(), End> {
    if let (Some(mut pipe), Some(bytes)) = (pipe, bytes) {
        match pipe.write_all(&bytes).await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// What is kept of the two streams, within limits.
struct Capture {
    stdout: Vec<u8>,
    stdout_max: usize,
    stderr: Vec<u8>,
    on_line: Option<LineCallback>,
    partial: [Vec<u8>; 2],
}

impl Capture {
    fn new(stdout_max: usize, on_line: Option<LineCallback>) -> Self {
        Self { stdout: Vec::new(), stdout_max, stderr: Vec::new(), on_line, partial: Default::default() }
    }

    async fn drain(
        &mut self,
        mut stdout: Option<impl AsyncRead + Unpin>,
        mut stderr: Option<impl AsyncRead + Unpin>,
    ) -> Result<(), End> {
        let (mut out, mut err) = ([0_u8; 8192], [0_u8; 8192]);
        while stdout.is_some() || stderr.is_some() {
            tokio::select! {
                count = read_some(&mut stdout, &mut out), if stdout.is_some() => match count? {
                    0 => stdout = None,
                    count => self.take_stdout(&out[..count])?,
                },
                count = read_some(&mut stderr, &mut err), if stderr.is_some() => match count? {
                    0 => stderr = None,
                    count => self.take_stderr(&err[..count]),
                },
            }
        }
        for index in 0..self.partial.len() {
            self.emit(index);
        }
        Ok(())
    }

    fn take_stdout(&mut self, bytes: &[u8]) -> Result<(), End> {
        if self.stdout.len() + bytes.len() > self.stdout_max {
            return Err(End::TooLarge);
        }
        self.stdout.extend_from_slice(bytes);
        self.lines(0, bytes);
        Ok(())
    }

    fn take_stderr(&mut self, bytes: &[u8]) {
        self.stderr.extend_from_slice(bytes);
        let excess = self.stderr.len().saturating_sub(STDERR_KEPT);
        self.stderr.drain(..excess);
        self.lines(1, bytes);
    }

    fn lines(&mut self, index: usize, bytes: &[u8]) {
        if self.on_line.is_none() {
            return;
        }
        for &byte in bytes {
            match byte {
                // Progress bars overwrite their line.
                b'\n' | b'\r' => self.emit(index),
                _ => {
                    self.partial[index].push(byte);
                    if self.partial[index].len() >= LINE_MAX {
                        self.emit(index);
                    }
                }
            }
        }
    }

    fn emit(&mut self, index: usize) {
        let line = std::mem::take(&mut self.partial[index]);
        if let (Some(callback), false) = (&mut self.on_line, line.is_empty()) {
            callback(&String::from_utf8_lossy(&line));
        }
    }
}

async fn read_some(pipe: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> io::Result<usize> {
    match pipe {
        Some(pipe) => pipe.read(buffer).await,
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn shell(script: &str) -> Command {
        Command::new("sh").args(["-c", script])
    }

    #[tokio::test]
    async fn captures_both_streams_and_feeds_stdin() {
        let output = shell("cat; echo oops >&2").stdin("hello").run().await.unwrap();
        assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"hello"[..], &b"oops\n"[..]));
    }

    #[tokio::test]
    async fn gives_an_environment_of_its_own() {
        let output = Command::new("env").env("A", "b c").cwd("/usr").run().await.unwrap();
        let mut lines: Vec<_> = output.text().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["A=b c", "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
        assert_eq!(Command::new("pwd").cwd("/usr").run().await.unwrap().text(), "/usr\n");
    }

    #[tokio::test]
    async fn a_failure_names_command_status_and_reason() {
        let error = shell("echo first >&2; echo why >&2; exit 3").run().await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`sh -c \"echo first"), "{text}");
        assert!(text.contains("exit status: 3:\n  first\n  why"), "{text}");
    }

    #[tokio::test]
    async fn an_early_end_with_unread_input_is_the_status_of_the_helper() {
        assert!(shell("exit 0").stdin(vec![0; 1 << 20]).run().await.is_ok());
        assert!(matches!(shell("exit 1").stdin(vec![0; 1 << 20]).run().await, Err(CommandError::Failed { .. })));
    }

    #[tokio::test]
    async fn a_missing_program_names_its_package() {
        let missing = CommandError::Missing { program: "mke2fs".into() };
        assert!(missing.to_string().contains("apt-get install e2fsprogs"));
        let error = Command::new("no-such-program-anywhere").run().await.unwrap_err();
        assert_eq!(error.to_string(), "`no-such-program-anywhere` is not installed");
        assert!(matches!(Command::new("./sh").run().await, Err(CommandError::NotAbsolute { .. })));
    }

    #[tokio::test]
    async fn the_whole_group_is_killed_on_timeout() {
        let directory = tempfile::tempdir().unwrap();
        let script = "sleep 600 & echo $! > pid; echo waiting >&2; wait";
        let error = shell(script).cwd(directory.path()).timeout(Duration::from_millis(300)).run().await.unwrap_err();
        assert!(matches!(&error, CommandError::TimedOut { stderr, .. } if stderr == "waiting\n"), "{error}");
        let pid = std::fs::read_to_string(directory.path().join("pid")).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while alive(pid.trim()) {
            assert!(std::time::Instant::now() < deadline, "process {pid} outlived its group");
            tokio::task::yield_now().await;
        }
    }

    /// A killed orphan may stay a zombie where the container's PID 1 does not reap.
    fn alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
    }

    #[tokio::test]
    async fn too_much_output_is_refused_and_endless_errors_are_cut() {
        let error = shell("yes").stdout_max(10_000).run().await.unwrap_err();
        assert!(matches!(error, CommandError::OutputTooLarge { max: 10_000, .. }), "{error}");
        let output = shell("head -c 1000000 /dev/zero >&2; echo end >&2").run().await.unwrap();
        assert_eq!(output.stderr.len(), STDERR_KEPT);
        assert!(output.stderr.ends_with(b"end\n"));
    }

    #[tokio::test]
    async fn a_daemon_that_keeps_the_pipe_does_not_hold_us() {
        let started = std::time::Instant::now();
        let output = shell("echo done; sleep 20 &").run().await.unwrap();
        assert_eq!(output.text(), "done\n");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test]
    async fn lines_arrive_one_by_one() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        shell("printf 'a\\nb\\rc'")
            .on_line(move |line| sink.lock().unwrap().push(line.to_owned()))
            .run()
            .await
            .unwrap();
        assert_eq!(*seen.lock().unwrap(), ["a", "b", "c"]);
    }
}
