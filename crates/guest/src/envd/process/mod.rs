//! The processes of a sandbox.
//!
//! ```text
//!  service ──► start ──► plan, spawn ──► Process ◄── registry
//!                                          │ one task (supervise) owns pidfd and streams
//!      readers ◄── log ◄── output ◄────────┤ runs ─► ended, reaped ─► drained ─► log finished ─► retired
//!                          input ──────────┘
//! ```
//! - A process belongs to its own task, never to a request: a client that hangs up changes nothing.
//! - It is reaped the moment it ends, even while its output still waits for a slow reader.
//! - The end in the log comes after the last byte, and is what the kernel said, or unknown.
//! - Signals go to its process group, under a lock that the reaping takes too: never to a recycled number.
//!
//! What is not here: the wire ([`service`]) and who may call.

mod event;
mod input;
mod log;
mod output;
mod pty;
mod registry;
pub mod service;
mod spawn;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::Instant;
use wrenn_sys::spawn::{Child, ExitStatus};

use input::{Input, Kind};
use log::{End, Log, Reader, Stream};
use output::{Source, Sources};
use registry::NoPlace;
pub use registry::Registry;
use spawn::{Command, StartError, Started, Stdio};

use super::state::State;
use super::users::Accounts;
use super::watch::watch;
use crate::limits;

/// One process that was started here.
#[derive(Debug)]
pub struct Process {
    /// Its number, which is its process group's and its session's too.
    pid: u32,
    /// What was asked for.
    command: Command,
    /// The name it was started under.
    tag: Option<String>,
    /// What it wrote.
    log: Arc<Log>,
    /// Where it reads.
    input: Input,
    /// Taken away when it was reaped.
    child: Mutex<Option<Child>>,
    /// It ran longer than it was allowed to, and was killed.
    timed_out: AtomicBool,
    /// Becomes true when it was reaped.
    reaped: watch::Sender<bool>,
}

/// A wish to start something.
#[derive(Debug)]
struct Wish {
    command: Command,
    stdio: Stdio,
    tag: Option<String>,
    /// None is the default user.
    user: Option<String>,
    /// When it is killed.
    deadline: Option<Instant>,
}

/// Why a wish was not granted.
#[derive(Debug, thiserror::Error)]
enum WishError {
    #[error(transparent)]
    Place(#[from] NoPlace),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("cannot watch the process's descriptors")]
    Watch(#[source] io::Error),
}

/// Starts a process and attaches its first reader, which sees everything from the first byte.
///
/// Call it from a task of its own: from the moment the program runs until it is supervised nothing may be dropped.
async fn start(state: Arc<State>, wish: Wish) -> Result<(Arc<Process>, Reader), WishError> {
    let place = state.processes.reserve(wish.tag.as_deref())?;
    let turn = state.processes.starts.acquire().await.map_err(|_| StartError::Aborted)?;
    let (command, stdio, shared) = (wish.command.clone(), wish.stdio, Arc::clone(&state));
    // Reads files and starts a program, and the kernel may take its time for both.
    let started = tokio::task::spawn_blocking(move || start_blocking(command, stdio, wish.user.as_deref(), &shared));
    let started = started.await.map_err(|_| StartError::Aborted)??;
    drop(turn);
    let log = state.processes.new_log();
    let reader = log.attach(Some(0)).map_err(|_| WishError::Watch(io::Error::other("a new log has readers")))?;
    let (process, sources, exit) = Process::new(started, wish.command, stdio, wish.tag, log)?;
    place.admit(&process);
    let registry = Arc::clone(&state.processes);
    tokio::spawn(supervise(Arc::clone(&process), sources, exit, wish.deadline, registry));
    Ok((process, reader))
}

fn start_blocking(command: Command, stdio: Stdio, user: Option<&str>, state: &State) -> Result<Started, StartError> {
    let settings = state.settings();
    let accounts = Accounts::load().map_err(StartError::User)?;
    let user = accounts.user(user.unwrap_or(&settings.default_user)).map_err(StartError::User)?;
    let plan = spawn::plan(command, stdio, user, &settings, &state.path)?;
    spawn::start(plan, state.cgroup.as_ref().map(AsFd::as_fd))
}

impl Process {
    fn new(
        started: Started,
        command: Command,
        stdio: Stdio,
        tag: Option<String>,
        log: Arc<Log>,
    ) -> Result<(Arc<Self>, Sources, AsyncFd<OwnedFd>), WishError> {
        let Started { child, input, outputs } = started;
        let watched = watch_descriptors(&child, input, outputs);
        let (exit, input, mut sources) = match watched {
            Ok(watched) => watched,
            Err(error) => {
                put_down(&child);
                return Err(WishError::Watch(error));
            }
        };
        let kind = match stdio {
            Stdio::Pipes | Stdio::OutputPipes => Kind::Stdin,
            Stdio::Terminal(_) => Kind::Terminal,
        };
        if let (Kind::Terminal, Some(master)) = (kind, &input) {
            sources.push(Source::new(Stream::Pty, Arc::clone(master)));
        }
        let process = Self {
            pid: child.pid(),
            command,
            tag,
            log,
            input: Input::new(kind, input),
            child: Mutex::new(Some(child)),
            timed_out: AtomicBool::new(false),
            reaped: watch::Sender::new(false),
        };
        Ok((Arc::new(process), Sources::new(sources), exit))
    }

    /// Sends a signal to the process group; `false` if the process has ended.
    fn signal(&self, signal: Signal) -> io::Result<bool> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(Ok(false), |child| {
            // A group can be empty only when its leader, which we hold, has left it.
            child.signal_group(signal)
        })
    }

    /// Kills the process group and waits, not for ever, until the process is gone.
    async fn kill(&self) -> io::Result<bool> {
        let was_there = self.signal(Signal::KILL)?;
        let mut reaped = self.reaped.subscribe();
        // A process in the kernel's hands for longer ends later: the signal was sent.
        tokio::time::timeout(limits::KILL_SEEN_WITHIN, reaped.wait_for(|reaped| *reaped)).await.ok();
        Ok(was_there)
    }

    fn has_ended(&self) -> bool {
        *self.reaped.borrow()
    }

    fn timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed)
    }

    /// Takes the process's status if it has ended; it is gone then.
    fn reap(&self) -> Option<End> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let end = match child.as_ref()?.try_wait() {
            Ok(None) => return None,
            Ok(Some(ExitStatus::Exited(code))) => End::Exited(code),
            Ok(Some(ExitStatus::Signalled(signal))) => End::Signalled(signal),
            // Somebody else has taken it.
            Err(_) => End::Unknown,
        };
        *child = None;
        drop(child);
        self.reaped.send_replace(true);
        Some(end)
    }
}

type Watched = (AsyncFd<OwnedFd>, Option<Arc<AsyncFd<OwnedFd>>>, Vec<Source>);

fn watch_descriptors(child: &Child, input: Option<OwnedFd>, outputs: Vec<(Stream, OwnedFd)>) -> io::Result<Watched> {
    let exit = watch(child.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
    let is_terminal = outputs.is_empty();
    let interest = if is_terminal { Interest::READABLE | Interest::WRITABLE } else { Interest::WRITABLE };
    let input = input.map(|fd| watch(fd, interest).map(Arc::new)).transpose()?;
    let source = |(stream, fd)| watch(fd, Interest::READABLE).map(|fd| Source::new(stream, Arc::new(fd)));
    Ok((exit, input, outputs.into_iter().map(source).collect::<io::Result<_>>()?))
}

/// Ends a process that nobody would watch.
fn put_down(child: &Child) {
    let ended = child.signal_group(Signal::KILL).and_then(|_| child.wait());
    if let Err(error) = ended {
        eprintln!("envd: process {} could not be ended after its start failed: {error}", child.pid());
    }
}

/// A process's life from its start to its retirement.
async fn supervise(
    process: Arc<Process>,
    mut sources: Sources,
    exit: AsyncFd<OwnedFd>,
    deadline: Option<Instant>,
    registry: Arc<Registry>,
) {
    let mut last_word = LastWord { process: Arc::clone(&process), registry, end: End::Unknown };
    last_word.end = run(&process, &mut sources, &exit, deadline).await;
    process.input.end();
    drop(exit);
    sources.drain(&process.log).await;
}

/// Says how a process ended when its task does: also when the task fails, so that nobody waits for ever.
struct LastWord {
    process: Arc<Process>,
    registry: Arc<Registry>,
    end: End,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        self.process.input.end();
        self.process.log.finish(self.end);
        self.registry.retire(&self.process);
    }
}

/// Pumps output until the process was reaped.
async fn run(process: &Process, sources: &mut Sources, exit: &AsyncFd<OwnedFd>, deadline: Option<Instant>) -> End {
    let pump = async {
        sources.pump(&process.log).await;
        std::future::pending().await
    };
    let timer = async {
        sleep_until(deadline).await;
        match process.signal(Signal::KILL) {
            Ok(was_there) => process.timed_out.store(was_there, Ordering::Relaxed),
            Err(error) => eprintln!("envd: process {} ran too long and cannot be killed: {error}", process.pid),
        }
        std::future::pending().await
    };
    tokio::select! {
        biased;
        end = reaped(process, exit) => end,
        end = timer => end,
        end = pump => end,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits for the process to end and reaps it.
async fn reaped(process: &Process, exit: &AsyncFd<OwnedFd>) -> End {
    loop {
        let ready = exit.readable().await;
        if let Some(end) = process.reap() {
            return end;
        }
        match ready {
            Ok(mut ready) => ready.clear_ready(),
            // The runtime ends, and so does everything.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
