//! The one place where xtask starts programs: each has a deadline, and an error names the program and what it said.
//!
//! Children stay in xtask's process group, so that Ctrl-C on a terminal ends them all. Where xtask has become the subreaper
//! of what it starts, it owes orphans what an init does: [`adopt_orphans`] collects those that end.
#![expect(clippy::disallowed_methods, reason = "this is the one runner of xtask; the engine's is engine::command")]

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

/// How long a program may run unless its caller says otherwise.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);
/// How long a program that was told to end (SIGTERM) has before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How long output is still read after the program itself has ended.
const DRAIN: Duration = Duration::from_secs(1);
/// Lines of output that an error quotes.
const ERROR_LINES: usize = 20;

/// A program to run, with its arguments, environment and deadline.
#[derive(Debug)]
pub struct Job {
    program: String,
    args: Vec<OsString>,
    env: Vec<(String, Option<OsString>)>,
    dir: Option<PathBuf>,
    deadline: Duration,
    input: bool,
}

impl Job {
    /// A job for `program`: a name looked up in PATH and the system's sbin folders, or a path.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            deadline: DEADLINE_DEFAULT,
            input: false,
        }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Takes an environment variable away.
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.push((name.to_owned(), None));
        self
    }

    /// Runs in this folder.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Ends the program after this time.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Gives the program xtask's own standard input; without this it has none.
    pub fn with_input(mut self) -> Self {
        self.input = true;
        self
    }

    /// Runs with xtask's own stdout and stderr; anything but success is an error.
    pub fn show(self) -> Result<()> {
        let status = self.show_status()?;
        self.demand_success(status, &VecDeque::new())
    }

    /// Like [`Job::show`], but returns how the program ended.
    pub fn show_status(&self) -> Result<ExitStatus> {
        let mut child = self.spawn(|_| {})?;
        self.wait(&mut child, Instant::now() + self.deadline)
    }

    /// Runs and returns stdout; stderr is in the error.
    pub fn capture(self) -> Result<String> {
        let mut stdout = String::new();
        let (out, writer) = io::pipe().context("cannot make a pipe")?;
        let mut stderr = VecDeque::new();
        let status = self.drain(
            |command| {
                command.stdout(writer);
            },
            Some(out),
            |source, line| match source {
                Source::Stdout => {
                    stdout.push_str(line);
                    stdout.push('\n');
                }
                Source::Stderr => remember(&mut stderr, line),
            },
        )?;
        self.demand_success(status, &stderr)?;
        Ok(stdout)
    }

    /// Runs quietly; the last lines of what it printed, as `shown` shows them, are in the error.
    pub fn quiet(self, shown: impl Fn(&str) -> String) -> Result<()> {
        let mut last = VecDeque::new();
        let status = self.lines(|line| remember(&mut last, &shown(line)))?;
        self.demand_success(status, &last)
    }

    /// Runs and hands over each line of stdout and stderr as it comes.
    pub fn lines(&self, mut on_line: impl FnMut(&str)) -> Result<ExitStatus> {
        self.drain(|_| {}, None, |_, line| on_line(line))
    }

    /// Starts it, to run beside xtask until it is [ended](Beside::end); hands over each line of stdout and stderr as it comes.
    pub fn start(self, mut on_line: impl FnMut(&str) + Send + 'static) -> Result<Beside> {
        let (merged, writer) = io::pipe().context("cannot make a pipe")?;
        let copy = writer.try_clone().context("cannot copy a pipe")?;
        let child = self.spawn(|command| {
            command.stdout(copy).stderr(writer);
        })?;
        let (sender, events) = mpsc::sync_channel(256);
        read_lines(merged, Source::Stderr, sender);
        std::thread::spawn(move || {
            for event in events {
                match event {
                    Event::Line(_, line) => on_line(&line),
                    Event::Ended => {}
                }
            }
        });
        Ok(Beside { job: self, child })
    }

    /// Whether the program is there and ends with success.
    pub fn succeeds(&self) -> bool {
        self.lines(|_| {}).is_ok_and(|status| status.success())
    }

    /// An error unless `status` is success; `last` are the lines to quote.
    pub fn demand_success(&self, status: ExitStatus, last: &VecDeque<String>) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        let quoted: String = last.iter().map(|line| format!("\n    {line}")).collect();
        bail!("`{}` failed ({status}){quoted}", self.line())
    }

    /// The command line, for people.
    fn line(&self) -> String {
        let args = self.args.iter().map(|arg| arg.to_string_lossy().into_owned());
        std::iter::once(self.program.clone()).chain(args).collect::<Vec<_>>().join(" ")
    }

    fn spawn(&self, streams: impl FnOnce(&mut Command)) -> Result<Child> {
        let program =
            find_program(&self.program).ok_or_else(|| anyhow!("cannot find the program `{}`", self.program))?;
        let mut command = Command::new(program);
        command.args(&self.args).stdin(if self.input { Stdio::inherit() } else { Stdio::null() });
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        streams(&mut command);
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", self.line()))?;
        started.push(child.id());
        Ok(child)
    }

    /// Runs with stderr (and stdout, unless `stdout` is a pipe of its own) in one pipe, until both are closed.
    fn drain(
        &self,
        streams: impl FnOnce(&mut Command),
        stdout: Option<io::PipeReader>,
        mut on_line: impl FnMut(Source, &str),
    ) -> Result<ExitStatus> {
        let until = Instant::now() + self.deadline;
        let (merged, writer) = io::pipe().context("cannot make a pipe")?;
        let copy = writer.try_clone().context("cannot copy a pipe")?;
        let mut child = self.spawn(|command| {
            command.stdout(copy).stderr(writer);
            streams(command);
        })?;
        let (sender, events) = mpsc::sync_channel(256);
        if let Some(stdout) = stdout {
            read_lines(stdout, Source::Stdout, sender.clone());
        }
        read_lines(merged, Source::Stderr, sender.clone());
        announce_end(&child, sender)?;
        let mut closing = None;
        loop {
            let left = closing.unwrap_or(until).saturating_duration_since(Instant::now());
            match (events.recv_timeout(left), closing) {
                (Ok(Event::Line(source, line)), _) => on_line(source, &line),
                // Its lines may still be under way; a child of its that keeps the pipe open is not waited for.
                (Ok(Event::Ended), _) => closing = Some(Instant::now() + DRAIN),
                (Err(RecvTimeoutError::Disconnected), _) | (Err(RecvTimeoutError::Timeout), Some(_)) => break,
                (Err(RecvTimeoutError::Timeout), None) => {
                    self.end(&mut child)?;
                    bail!("`{}` took longer than {} s", self.line(), self.deadline.as_secs());
                }
            }
        }
        self.wait(&mut child, until.max(Instant::now() + GRACE))
    }

    fn wait(&self, child: &mut Child, until: Instant) -> Result<ExitStatus> {
        if !ends_before(child, until)? {
            self.end(child)?;
            bail!("`{}` took longer than {} s", self.line(), self.deadline.as_secs());
        }
        child.wait().with_context(|| format!("cannot wait for `{}`", self.program))
    }

    /// Ends the program: politely, then not.
    fn end(&self, child: &mut Child) -> Result<()> {
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("cannot open a pidfd")?;
        match pidfd_send_signal(&pidfd, Signal::TERM) {
            // ESRCH: it has ended by itself meanwhile.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot end `{}`", self.program)),
        }
        if !ends_before(child, Instant::now() + GRACE)? {
            child.kill().with_context(|| format!("cannot kill `{}`", self.program))?;
        }
        child.wait().with_context(|| format!("cannot wait for `{}`", self.program))?;
        Ok(())
    }
}

/// A program that runs beside xtask. Dropping it leaves it running.
#[derive(Debug)]
pub struct Beside {
    job: Job,
    child: Child,
}

impl Beside {
    /// Ends it, politely first; it is an error if it had ended already.
    pub fn end(mut self) -> Result<()> {
        let status = self.child.try_wait().with_context(|| format!("cannot look at `{}`", self.job.program))?;
        if let Some(status) = status {
            bail!("`{}` had ended by itself ({status})", self.job.line());
        }
        self.job.end(&mut self.child)
    }
}

/// The programs that jobs have started: their ends belong to their jobs. A number stays here after its end, which only
/// means that an orphan of the same number would not be collected.
static STARTED: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// How often ended orphans are looked for.
const ORPHANS_INTERVAL: Duration = Duration::from_millis(20);

/// Becomes the subreaper of everything started from here on, and collects orphans that end for as long as xtask runs.
pub fn adopt_orphans() -> Result<()> {
    let lists = format!("/proc/self/task/{}/children", rustix::process::getpid());
    ensure!(Path::new(&lists).exists(), "this kernel does not list a process's children (CONFIG_PROC_CHILDREN)");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("cannot become the subreaper")?;
    std::thread::spawn(|| {
        loop {
            collect_orphans();
            std::thread::sleep(ORPHANS_INTERVAL);
        }
    });
    Ok(())
}

/// Our children that no job has started.
pub fn orphans() -> Vec<i32> {
    let started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let pids: Vec<i32> = lists.flat_map(|list| numbers(&list)).collect();
    pids.into_iter().filter(|pid| !started.contains(&pid.cast_unsigned())).collect()
}

fn numbers(list: &str) -> Vec<i32> {
    list.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

fn collect_orphans() {
    for pid in orphans().into_iter().filter_map(Pid::from_raw) {
        // It is our child and no job waits for it. One that lives on is left alone, an error means that it was collected.
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(_) | Err(_) => {}
        }
    }
}

/// Where a line came from.
#[derive(Clone, Copy, Debug)]
enum Source {
    Stdout,
    Stderr,
}

/// What happens while a program runs.
enum Event {
    Line(Source, String),
    Ended,
}

/// Reads lines on a thread of its own until the end of the stream; bytes that are not UTF-8 are replaced.
fn read_lines(stream: io::PipeReader, source: Source, events: mpsc::SyncSender<Event>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        // A read error ends the reading like the end of the stream; the exit status tells the rest.
        while reader.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
            let text = String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned();
            if events.send(Event::Line(source, text)).is_err() {
                return;
            }
            line.clear();
        }
    });
}

/// Says on a thread of its own when the program has ended.
fn announce_end(child: &Child, events: mpsc::SyncSender<Event>) -> Result<()> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("cannot open a pidfd")?;
    std::thread::spawn(move || {
        while poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None) == Err(Errno::INTR) {}
        // Nobody listens any more when the program was ended at its deadline.
        drop(events.send(Event::Ended));
    });
    Ok(())
}

fn ends_before(child: &Child, until: Instant) -> Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("cannot open a pidfd")?;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for a program"),
        }
    }
}

/// Keeps the last lines for an error.
pub fn remember(last: &mut VecDeque<String>, line: &str) {
    if last.len() == ERROR_LINES {
        last.pop_front();
    }
    last.push_back(line.to_owned());
}

/// The path of a program: looked up in PATH, then in the system's sbin folders, which a user's PATH often lacks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Job {
        Job::new("sh").args(["-c", script])
    }

    #[test]
    fn captures_stdout_and_quotes_stderr() {
        assert_eq!(shell("echo out; echo err >&2").capture().unwrap(), "out\n");
        let error = shell("echo cause >&2; exit 3").capture().unwrap_err().to_string();
        assert!(error.contains("cause") && error.contains("exit status: 3"), "{error}");
    }

    #[test]
    fn ends_a_program_at_its_deadline() {
        let started = Instant::now();
        let error = shell("exec sleep 60").within(Duration::from_millis(100)).show().unwrap_err().to_string();
        assert!(error.contains("took longer"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn does_not_wait_for_what_a_program_leaves_running() {
        let started = Instant::now();
        let out = shell("sleep 20 & echo $!").capture().unwrap();
        assert!(started.elapsed() < Duration::from_secs(15));
        shell(&format!("kill {}", out.trim())).show().unwrap();
    }

    #[test]
    fn names_a_program_that_is_missing() {
        let error = Job::new("no-such-program-of-wrenn").show().unwrap_err().to_string();
        assert!(error.contains("no-such-program-of-wrenn"), "{error}");
        assert!(!Job::new("no-such-program-of-wrenn").succeeds());
    }

    #[test]
    fn what_runs_beside_is_heard_and_ended() {
        let (sender, said) = mpsc::channel();
        let beside =
            shell("echo here; exec sleep 60").start(move |line| sender.send(line.to_owned()).unwrap()).unwrap();
        assert_eq!(said.recv_timeout(Duration::from_secs(20)).unwrap(), "here");
        beside.end().unwrap();
        assert!(said.recv_timeout(Duration::from_secs(20)).is_err());
        let short = shell("exit 3").start(|_| {}).unwrap();
        assert!(ends_before(&short.child, Instant::now() + Duration::from_secs(20)).unwrap());
        assert!(short.end().unwrap_err().to_string().contains("had ended by itself"));
    }

    #[test]
    fn keeps_the_order_of_both_streams() {
        let mut lines = Vec::new();
        shell("echo 1; echo 2 >&2; printf 3").lines(|line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["1", "2", "3"]);
    }
}
