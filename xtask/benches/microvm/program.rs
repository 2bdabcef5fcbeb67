//! Programs under measurement: `wrenn run` and a plain QEMU, with what the kernel counts of them.

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;
use wrenn_sys::spawn::{Child, ExitStatus, Spawn};

use crate::setting::{MEMORY, Setting, TEMPLATE, VCPUS};

/// What a command in the guest may take; `wrenn run` itself ends it then.
const COMMAND_LIMIT: &str = "120s";

/// A program that runs; dropping it ends and reaps it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    started: Instant,
}

/// How a program ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// From before it was started until its end was seen.
    pub wall: Duration,
    /// User and system time of all its threads, without its children's.
    pub cpu: Duration,
    /// Its exit.
    pub status: ExitStatus,
}

impl Running {
    /// Starts a program; the clock runs from before it.
    pub fn start(program: Spawn<'_>) -> Result<Self> {
        let started = Instant::now();
        let child = program.parent_death_signal(Signal::TERM).start()?;
        Ok(Self { child, started })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// When it was started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Sends it a signal; `false` if it has ended and was seen to.
    pub fn signal(&self, signal: Signal) -> Result<bool> {
        Ok(self.child.signal(signal)?)
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end.
    pub fn wait(self) -> Result<Ended> {
        while poll(&mut [PollFd::new(&self.child, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
        let wall = self.started.elapsed();
        // Before it is reaped: until then its clock can be read, and stands still.
        let cpu = cpu_time(self.pid())?;
        Ok(Ended { wall, cpu, status: self.child.wait()? })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a process that was reaped already, which is what is wanted.
        self.child.signal(Signal::KILL).and_then(|_| self.child.wait()).ok();
    }
}

/// Starts `wrenn run`, with the sandbox of every measurement, for a command in the guest. `flags` come before it.
pub fn wrenn_run(setting: &Setting, flags: &[&str], command: &[&str]) -> Result<(Running, PipeWriter, PipeReader)> {
    let (stdin_reader, stdin) = io::pipe()?;
    let (stdout, stdout_writer) = io::pipe()?;
    let (vcpus, memory) = (VCPUS.to_string(), MEMORY.0.to_string());
    let stderr = io::stderr();
    let spawn = Spawn::new(&setting.wrenn)
        .args(["run", "-t", TEMPLATE, "--vcpus", &vcpus, "--memory", &memory, "--timeout", COMMAND_LIMIT])
        .args(flags.iter().copied())
        .arg("--")
        .args(command.iter().copied())
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("WRENN_DIR", &setting.data)
        .fd(stdin_reader.as_fd(), 0)
        .fd(stdout_writer.as_fd(), 1)
        .fd(stderr.as_fd(), 2);
    Ok((Running::start(spawn)?, stdin, stdout))
}

/// What `wrenn` says to standard output; it must succeed.
pub fn wrenn_output(setting: &Setting, args: &[&str]) -> Result<String> {
    let (mut stdout, writer) = io::pipe()?;
    let stderr = io::stderr();
    let spawn = Spawn::new(&setting.wrenn).args(args.iter().copied()).env("WRENN_DIR", &setting.data);
    let running = Running::start(spawn.fd(writer.as_fd(), 1).fd(stderr.as_fd(), 2))?;
    drop(writer);
    let mut said = String::new();
    stdout.read_to_string(&mut said)?;
    match running.wait()?.status {
        ExitStatus::Exited(0) => Ok(said),
        status => bail!("wrenn {args:?} ended with {status:?}"),
    }
}

/// Keeps a process, all its threads, on one CPU.
pub fn pin(pid: u32, cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread: i32 = thread?.file_name().to_string_lossy().parse()?;
        sched_setaffinity(Pid::from_raw(thread), &cpus).context("cannot keep a thread on one CPU")?;
    }
    Ok(())
}

/// Reads exactly `bytes` bytes and throws them away.
pub fn read_off(from: &mut impl Read, bytes: u64) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match from.read(&mut buffer[..most])? {
            0 => bail!("only {} of {bytes} bytes came", bytes - left),
            read => left -= read as u64,
        }
    }
    Ok(())
}

/// CPU time of a process, all its threads, ended ones too; also while it is a zombie.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let clock = ClockId::pid_cpu_clock_id(pid).context("a process has no CPU clock")?;
    let time = clock_gettime(clock).context("cannot read a process's CPU clock")?;
    Ok(Duration::from_nanos(u64::try_from(time.num_nanoseconds())?))
}

/// The children of a process, whichever of its threads started them.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let folder = format!("/proc/{pid}/task");
    let mut children = Vec::new();
    for thread in fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
        // A thread that has ended meanwhile has given its children to another.
        let text = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?);
    }
    Ok(children)
}

/// The most memory a living process had resident, in bytes.
pub fn peak_rss(pid: u32) -> Result<u64> {
    size_of(pid, "VmHWM")
}

/// The memory a living process has resident now, in bytes.
pub fn rss(pid: u32) -> Result<u64> {
    size_of(pid, "VmRSS")
}

/// The memory a living process has resident now, in bytes, with what others have too counted in parts.
pub fn pss(pid: u32) -> Result<u64> {
    size_in(pid, "smaps_rollup", "Pss")
}

/// The memory of a living process that is nobody else's and no file's, in bytes.
pub fn own_memory(pid: u32) -> Result<u64> {
    size_in(pid, "smaps_rollup", "Anonymous")
}

/// What a living process has had read from block devices, in bytes.
pub fn read_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    Ok(value.with_context(|| format!("no read_bytes in {path}"))?.parse()?)
}

fn size_of(pid: u32, field: &str) -> Result<u64> {
    size_in(pid, "status", field)
}

fn size_in(pid: u32, file: &str, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    status_bytes(&text, field).with_context(|| format!("no {field} in {path}"))
}

/// A size in a process's status, in bytes.
pub fn status_bytes(status: &str, field: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}
