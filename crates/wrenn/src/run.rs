//! `wrenn run`: the whole system in one command. Create, run with live output, exit with the command's code, destroy.
//!
//! ```text
//!   open ─► sweep ─► create ─► start ─► pump output ──► end ─► destroy ─► exit code
//!                       │         └── signal, trouble, broken pipe ──┘
//!                       └── signal: cancelled, taken down
//! ```
//!
//! Whatever happens after `create` began, the sandbox is destroyed before this returns.

mod output;
mod stdin;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use wrenn_agent::envd_client::{Command, EnvdError, Exec, ExecEnd, ExecEvent, Input, NotStarted};
use wrenn_agent::reconcile;
use wrenn_agent::sandbox::{self, CreateError, Request, Sandbox, Shape, Stopwatch, Timing, Trouble};
use wrenn_engine::storage::Backend;
use wrenn_engine::units::Mib;
use wrenn_engine::vmm::Description;

use crate::cli::{Programs, RunArgs};
use crate::{EXIT_FAILED, host};
use output::{Captured, Sink};

/// How long a command has to end once it was asked to, before the VM goes.
const END_GRACE: Duration = Duration::from_secs(2);

const EXIT_TIMED_OUT: u8 = 124;
const EXIT_NOT_EXECUTABLE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_SIGNAL_BASE: u8 = 128;

/// How a run ended, as far as the caller's exit code goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The command ran and ended.
    Ended(ExecEnd),
    /// The command could not be started because of what it is.
    NotStarted(NotStarted),
    /// A signal to us ended it.
    Interrupted(i32),
    /// Nobody reads our output any more.
    BrokenPipe,
}

impl Outcome {
    fn exit_code(self) -> u8 {
        match self {
            Self::Ended(ExecEnd::Exited(code)) => code as u8,
            Self::Ended(ExecEnd::Signalled(signal)) | Self::Interrupted(signal) => {
                EXIT_SIGNAL_BASE.wrapping_add(signal as u8)
            }
            Self::Ended(ExecEnd::TimedOut) => EXIT_TIMED_OUT,
            Self::Ended(ExecEnd::Unknown) => EXIT_FAILED,
            Self::NotStarted(NotStarted::NotFound) => EXIT_NOT_FOUND,
            Self::NotStarted(NotStarted::NotExecutable) => EXIT_NOT_EXECUTABLE,
            Self::BrokenPipe => EXIT_SIGNAL_BASE + rustix::process::Signal::PIPE.as_raw() as u8,
        }
    }
}

/// Why a run failed on Wrenn's side.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Trouble(#[from] Trouble),
    #[error("cannot run the command")]
    Envd(#[from] EnvdError),
    #[error("cannot write the command's output")]
    Output(#[source] std::io::Error),
}

/// Runs a command in a new sandbox.
pub fn run(dir: &Path, programs: &Programs, args: RunArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run_in(dir, programs, args));
    // Not waited for: a thread may be in a write to a terminal that nobody reads.
    runtime.shutdown_background();
    outcome.map(ExitCode::from)
}

async fn run_in(dir: &Path, programs: &Programs, args: RunArgs) -> anyhow::Result<u8> {
    let mut signals = Signals::new()?;
    let mut watch = Stopwatch::default();
    let host = host::open(dir, programs, &args.drivers.wishes()).await?;
    watch.lap("open");
    reconcile::sweep(&host).await.context("cannot remove what an earlier run left behind")?;
    watch.lap("sweep");

    let (cancel, cancelled) = watch::channel(false);
    let request = request(&args);
    let creation = sandbox::create(&host, &request, cancelled);
    tokio::pin!(creation);
    let mut interrupted = None;
    let created = tokio::select! {
        created = &mut creation => created,
        signal = signals.next() => {
            interrupted = Some(signal);
            cancel.send_replace(true);
            creation.await
        }
    };
    let sandbox = match (created, interrupted) {
        (Err(CreateError::Cancelled), Some(signal)) => return Ok(Outcome::Interrupted(signal).exit_code()),
        (created, _) => created?,
    };
    let mut report = Report::new(&args, &sandbox);
    let mut sandbox = sandbox;
    let ran = match interrupted {
        Some(signal) => Ok(Outcome::Interrupted(signal)),
        None => match execute(&mut sandbox, &args, &mut signals, &mut report).await {
            // A guest that stands still does not answer; that is not its fault.
            Err(RunError::Envd(_)) if sandbox.is_lacking_room() => Err(Trouble::DiskFull.into()),
            outcome => outcome,
        },
    };
    sandbox.lap("exec");
    report.timings = watch.timings().iter().copied().chain(sandbox.destroy().await).collect();
    report.print(&args, ran)
}

fn request(args: &RunArgs) -> Request {
    Request {
        template: args.template.clone(),
        kernel: args.kernel.clone(),
        shape: Shape { vcpus: args.vcpus, memory: Mib(args.memory), disk: args.disk.map(Mib) },
        ready_limit: args.boot_timeout,
    }
}

/// Starts the command and sees it through to its end, or to what ends it.
async fn execute(
    sandbox: &mut Sandbox,
    args: &RunArgs,
    signals: &mut Signals,
    report: &mut Report,
) -> Result<Outcome, RunError> {
    let start = sandbox.envd().clone();
    let start = start.start(command(args));
    let mut exec = tokio::select! {
        biased;
        started = start => match started {
            Ok(exec) => exec,
            Err(error) => return not_started(error, report),
        },
        trouble = sandbox.trouble() => return Err(trouble.into()),
        signal = signals.next() => return Ok(Outcome::Interrupted(signal)),
    };
    let input = exec.input();
    let stdin = tokio::spawn(stdin::pump(input.clone()));
    let outcome = see_through(sandbox, &mut exec, &input, signals, &mut report.sink).await;
    stdin.abort();
    outcome
}

async fn see_through(
    sandbox: &mut Sandbox,
    exec: &mut Exec,
    input: &Input,
    signals: &mut Signals,
    sink: &mut Sink,
) -> Result<Outcome, RunError> {
    let limit = exec.limit();
    let pump = pump(exec, sink);
    tokio::pin!(pump);
    tokio::select! {
        biased;
        pumped = &mut pump => pumped,
        trouble = sandbox.trouble() => Err(trouble.into()),
        () = sleep_or_for_ever(limit) => Ok(Outcome::Ended(ExecEnd::TimedOut)),
        signal = signals.next() => {
            end_command(input, &mut pump, signals).await;
            Ok(Outcome::Interrupted(signal))
        }
    }
}

/// Asks the command to end and lets its last output through; a second signal, or no end within the grace, cuts it short.
async fn end_command(
    input: &Input,
    pump: &mut (impl Future<Output = Result<Outcome, RunError>> + Unpin),
    signals: &mut Signals,
) {
    let ending = async {
        if let Err(error) = input.terminate().await {
            tracing::warn!(%error, "cannot ask the command to end; the VM is ended");
        } else if let Err(error) = pump.await {
            tracing::warn!(%error, "the command's last output is lost");
        }
    };
    tokio::select! {
        () = ending => {}
        () = tokio::time::sleep(END_GRACE) => {}
        _second = signals.next() => {}
    }
}

async fn pump(exec: &mut Exec, sink: &mut Sink) -> Result<Outcome, RunError> {
    loop {
        let written = match exec.next().await? {
            ExecEvent::Stdout(bytes) => sink.stdout(&bytes).await,
            ExecEvent::Stderr(bytes) => sink.stderr(&bytes).await,
            ExecEvent::End(end) => return Ok(Outcome::Ended(end)),
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Outcome::BrokenPipe),
            Err(error) => return Err(RunError::Output(error)),
        }
    }
}

async fn sleep_or_for_ever(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

fn command(args: &RunArgs) -> Command {
    let mut words = args.command.iter().cloned();
    Command {
        program: words.next().expect("clap demands a command"),
        args: words.collect(),
        env: args.env.clone(),
        workdir: args.workdir.clone(),
        user: Some(args.user.clone()),
        timeout: args.timeout,
        stdin: stdin::has_any(),
    }
}

fn not_started(error: EnvdError, report: &mut Report) -> Result<Outcome, RunError> {
    let Some(why) = error.not_started() else { return Err(error.into()) };
    if let EnvdError::Refused { message, .. } = error {
        report.note = Some(message);
    }
    Ok(Outcome::NotStarted(why))
}

/// SIGINT, SIGTERM and SIGHUP, as one stream.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal's number.
    async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        };
        kind.as_raw_value()
    }
}

/// What a run prints beside the command's own output.
struct Report {
    sink: Sink,
    id: String,
    vmm: Description,
    storage: Backend,
    note: Option<String>,
    timings: Vec<Timing>,
}

impl Report {
    fn new(args: &RunArgs, sandbox: &Sandbox) -> Self {
        Self {
            sink: if args.json { Sink::captured() } else { Sink::live() },
            id: sandbox.id().to_string(),
            vmm: sandbox.vmm().clone(),
            storage: sandbox.storage(),
            note: None,
            timings: Vec::new(),
        }
    }

    fn print(self, args: &RunArgs, ran: Result<Outcome, RunError>) -> anyhow::Result<u8> {
        if args.timing {
            eprint!("{}", timing_table(&self.timings));
        }
        let code = ran.as_ref().map_or(EXIT_FAILED, |outcome| outcome.exit_code());
        if let Sink::Captured(captured) = self.sink {
            let error = ran.err().map(|error| crate::causes(&error.into())).or(self.note);
            let made = Made { id: &self.id, vmm: &self.vmm, storage: self.storage };
            println!("{}", json(made, code, error, &captured, &self.timings));
            return Ok(code);
        }
        if let Some(note) = self.note {
            eprintln!("wrenn: {note}");
        }
        ran?;
        Ok(code)
    }
}

/// Which sandbox it was, and what it was made with.
struct Made<'a> {
    id: &'a str,
    vmm: &'a Description,
    storage: Backend,
}

fn json(
    made: Made<'_>,
    exit_code: u8,
    error: Option<String>,
    output: &Captured,
    timings: &[Timing],
) -> serde_json::Value {
    let timings: serde_json::Map<_, _> =
        timings.iter().map(|timing| (timing.phase.to_owned(), millis(timing.took).into())).collect();
    serde_json::json!({
        "id": made.id,
        "vmm": made.vmm,
        "storage": made.storage,
        "start": "cold",
        "exit_code": exit_code,
        "error": error,
        "stdout": output.stdout.json(),
        "stderr": output.stderr.json(),
        "timings_ms": timings,
    })
}

fn millis(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

fn timing_table(timings: &[Timing]) -> String {
    let total: Duration = timings.iter().map(|timing| timing.took).sum();
    let row = |name: &str, took: Duration| format!("{name:<12} {:>10.1} ms\n", took.as_secs_f64() * 1e3);
    let rows: String = timings.iter().map(|timing| row(timing.phase, timing.took)).collect();
    format!("{rows}{}", row("total", total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        let code = |outcome: Outcome| outcome.exit_code();
        assert_eq!(code(Outcome::Ended(ExecEnd::Exited(3))), 3);
        assert_eq!(code(Outcome::Ended(ExecEnd::Signalled(9))), 137);
        assert_eq!(code(Outcome::Ended(ExecEnd::TimedOut)), 124);
        assert_eq!(code(Outcome::Ended(ExecEnd::Unknown)), 125);
        assert_eq!(code(Outcome::NotStarted(NotStarted::NotFound)), 127);
        assert_eq!(code(Outcome::NotStarted(NotStarted::NotExecutable)), 126);
        assert_eq!(code(Outcome::Interrupted(2)), 130);
        assert_eq!(code(Outcome::Interrupted(15)), 143);
        assert_eq!(code(Outcome::BrokenPipe), 141);
    }
}
