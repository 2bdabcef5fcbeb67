//! A command in a guest, seen through to its end: shared by `wrenn run`, which owns the sandbox, and by the verbs that use one
//! of an agent.
//!
//! ```text
//!   start ─► see through: output ─► sink           ─► Outcome ─► exit code
//!              ▲  │       our input ─► the command
//!              │  ├── signal: the command is asked to end, then made to
//!              │  ├── trouble with the sandbox: an error
//!       attach │  ▼
//!              └─ the connection breaks ── Keeper: does the sandbox go on? ── no: what became of it
//! ```
//!
//! Every byte of output is passed on once and in order, also when the connection had to be made again: each piece says where
//! in the command's output it belongs. Bytes that the guest no longer had are counted and told, never passed over.

mod input;
mod output;

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use wrenn_agent::envd_client::{
    Command, EnvdClient, EnvdError, Exec, ExecEnd, ExecEvent, Input, NotStarted, Output, TerminalSize,
};

use crate::EXIT_FAILED;

pub use input::{Source, has_any};
pub use output::{Captured, Sink};

/// How long a command has to end once it was asked to, before it is killed.
const END_GRACE: Duration = Duration::from_secs(2);
/// How long the guest has to kill it then.
const KILL_LIMIT: Duration = Duration::from_secs(1);
/// Connections that are made again without a byte of output in between, before that is given up.
const REATTACHED_IN_VAIN_MAX: u32 = 10;
/// The pause before each but the first of them.
const REATTACH_PAUSE: Duration = Duration::from_millis(300);

const EXIT_TIMED_OUT: u8 = 124;
const EXIT_NOT_EXECUTABLE: u8 = 126;
const EXIT_NOT_FOUND: u8 = 127;
const EXIT_SIGNAL_BASE: u8 = 128;

/// How an execution ended, as far as the caller's exit code goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The command ran and ended.
    Ended(ExecEnd),
    /// The command could not be started because of what it is.
    NotStarted(NotStarted),
    /// A signal to us ended it, or our watching of it.
    Interrupted(i32),
    /// Nobody reads our output any more.
    BrokenPipe,
}

impl Outcome {
    /// As a shell would say it.
    pub fn exit_code(self) -> u8 {
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

/// Why an execution failed on Wrenn's side.
#[derive(Debug, thiserror::Error)]
pub enum ExecutionError {
    /// Something became of the sandbox.
    #[error(transparent)]
    Sandbox(#[from] anyhow::Error),
    /// The guest does not do what it should.
    #[error("cannot run the command")]
    Envd(#[from] EnvdError),
    /// We cannot pass the output on.
    #[error("cannot write the command's output")]
    Output(#[source] io::Error),
    /// Output is missing.
    #[error(
        "{bytes} bytes of the command's output are lost: they were not read for so long that the sandbox kept no more; the \
         command itself ended with code {code}"
    )]
    OutputLost {
        /// How many.
        bytes: u64,
        /// What would have been our exit code.
        code: u8,
    },
    /// Input may be lost or not: going on would make the command's result wrong without a word.
    #[error(
        "the connection to the sandbox broke while {bytes} bytes of input were under way, and nobody knows whether the command \
         (pid {pid}) has read them; it goes on"
    )]
    InputUnsure {
        /// How many.
        bytes: usize,
        /// Whose they are.
        pid: u32,
    },
}

/// A place in a command's output, to come back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The command's pid in the guest.
    pub pid: u32,
    /// How much of its output was passed on, in bytes.
    pub offset: u64,
}

/// Who knows what becomes of the sandbox a command runs in.
pub trait Keeper {
    /// Waits until something goes wrong with it that the connection to the guest does not show. Cancel safe.
    fn trouble(&mut self) -> impl Future<Output = anyhow::Error>;

    /// The connection to the guest broke: a way to reach it again if the sandbox goes on, or what became of it.
    fn after_break(
        &mut self,
        broke: EnvdError,
        place: Option<Place>,
    ) -> impl Future<Output = Result<EnvdClient, ExecutionError>>;
}

/// What a signal to us does to the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSignal {
    /// It is asked to end (SIGTERM), then made to.
    End,
    /// Its terminal hangs up (SIGHUP), which is what a shell heeds; then it is made to end.
    HangUp,
    /// It goes on without us.
    Leave,
}

impl OnSignal {
    /// The signal that asks a command to end.
    fn request(self) -> Option<i32> {
        match self {
            Self::End => Some(SignalKind::terminate().as_raw_value()),
            Self::HangUp => Some(SignalKind::hangup().as_raw_value()),
            Self::Leave => None,
        }
    }
}

/// What bytes of output that the guest no longer has are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGap {
    /// An error, once the command has ended: its output is expected to be whole.
    Fail,
    /// Told, and that is all.
    Tell,
}

/// A command that was started or attached to, and what is to be done with its output and its input.
pub struct Execution<'a, K> {
    /// The sandbox.
    pub keeper: &'a mut K,
    /// Signals to us.
    pub signals: &'a mut Signals,
    /// Takes the output.
    pub sink: &'a mut Sink,
    /// Gives the input.
    pub source: Source,
    /// What a signal does.
    pub on_signal: OnSignal,
    /// What a gap in the output is.
    pub on_gap: OnGap,
}

/// How an execution went.
#[derive(Debug)]
pub struct Ran {
    /// The end of it.
    pub outcome: Outcome,
    /// What the guest said about a command that did not start.
    pub note: Option<String>,
    /// The command, once it ran, and how far its output was seen.
    pub place: Option<Place>,
    /// Bytes of output that the guest no longer had.
    pub lost_bytes: u64,
}

impl Ran {
    fn without_command(outcome: Outcome) -> Self {
        Self { outcome, note: None, place: None, lost_bytes: 0 }
    }
}

impl<K: Keeper> Execution<'_, K> {
    /// Starts `command` and sees it through.
    pub async fn run(self, envd: &EnvdClient, command: Command) -> Result<Ran, ExecutionError> {
        let begun = Instant::now();
        let limit = command.timeout;
        let exec = tokio::select! {
            biased;
            started = envd.start(command) => match started {
                Ok(exec) => exec,
                Err(error) => return self.not_started(error).await,
            },
            trouble = self.keeper.trouble() => return Err(trouble.into()),
            signal = self.signals.next() => return Ok(Ran::without_command(Outcome::Interrupted(signal))),
        };
        let deadlines =
            Deadlines { limit: limit.map(|limit| begun + limit), give_up: exec.limit().map(|most| begun + most) };
        self.see_through(exec, 0, deadlines).await
    }

    /// Sees a command through that was attached to at `offset`.
    pub async fn follow(self, exec: Exec, offset: u64) -> Result<Ran, ExecutionError> {
        self.see_through(exec, offset, Deadlines::default()).await
    }

    async fn not_started(self, error: EnvdError) -> Result<Ran, ExecutionError> {
        if let Some(why) = error.not_started() {
            let note = match error {
                EnvdError::Refused { message, .. } => Some(message),
                _no_words_of_the_guests => None,
            };
            return Ok(Ran { note, ..Ran::without_command(Outcome::NotStarted(why)) });
        }
        let words = error.to_string();
        match self.keeper.after_break(error, None).await {
            Ok(_it_goes_on) => Err(ExecutionError::Sandbox(anyhow::anyhow!(
                "the connection to the sandbox broke while the command was started, and nobody knows whether it runs: {words}"
            ))),
            Err(what_became_of_it) => Err(what_became_of_it),
        }
    }

    async fn see_through(self, mut exec: Exec, offset: u64, deadlines: Deadlines) -> Result<Ran, ExecutionError> {
        let Self { keeper, signals, sink, mut source, on_signal, on_gap } = self;
        let mut progress = Progress { pid: exec.pid(), offset, lost_bytes: 0 };
        let mut feeding = Box::pin(feed(&mut source, exec.input()));
        let mut in_vain = 0;
        loop {
            let before = progress.offset;
            let turn = {
                let input = exec.input();
                let pump = pump(&mut exec, sink, &mut progress);
                tokio::pin!(pump);
                tokio::select! {
                    biased;
                    pumped = &mut pump => pumped,
                    trouble = keeper.trouble() => Err(Stop::Failed(trouble.into())),
                    () = sleep_until_or_for_ever(deadlines.give_up) => Ok(Outcome::Ended(ExecEnd::TimedOut)),
                    signal = signals.next() => {
                        if let Some(request) = on_signal.request() {
                            end_command(&input, request, &mut pump, signals).await;
                        }
                        Ok(Outcome::Interrupted(signal))
                    }
                    never = &mut feeding => match never {},
                }
            };
            let broke = match turn {
                Ok(Outcome::BrokenPipe) => {
                    drop(feeding);
                    if let Some(request) = on_signal.request() {
                        end_unread(&mut exec, request, signals).await;
                    }
                    return progress.ran(Outcome::BrokenPipe, OnGap::Tell);
                }
                Ok(outcome) => return progress.ran(deadlines.judge(outcome), on_gap),
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Broke(error)) => error,
            };
            in_vain = if progress.offset == before { in_vain + 1 } else { 0 };
            if in_vain > REATTACHED_IN_VAIN_MAX {
                return Err(broke.into());
            }
            let was_detached = is_detached(&broke);
            exec = reattach(keeper, signals, broke, progress.place(), in_vain).await?;
            if !was_detached {
                drop(feeding);
                if let Some(bytes) = source.under_way() {
                    return Err(ExecutionError::InputUnsure { bytes, pid: progress.pid });
                }
                feeding = Box::pin(feed(&mut source, exec.input()));
            }
        }
    }
}

/// Whether the guest stopped telling us because we did not read for long (a pager that nobody pages, say): the connection
/// stands, and so does our input on its way.
pub fn is_detached(broke: &EnvdError) -> bool {
    matches!(broke, EnvdError::Refused { code, .. } if code == "resource_exhausted")
}

/// When a command should have ended, and when nobody waits any more for the guest to say so.
#[derive(Clone, Copy, Debug, Default)]
struct Deadlines {
    limit: Option<Instant>,
    give_up: Option<Instant>,
}

impl Deadlines {
    /// A command that was killed when its time was up has timed out, also when who came back to it is only told of the kill.
    fn judge(self, outcome: Outcome) -> Outcome {
        let was_killed = outcome == Outcome::Ended(ExecEnd::Signalled(rustix::process::Signal::KILL.as_raw()));
        if was_killed && self.limit.is_some_and(|limit| Instant::now() >= limit) {
            return Outcome::Ended(ExecEnd::TimedOut);
        }
        outcome
    }
}

/// How far an execution is.
struct Progress {
    pid: u32,
    offset: u64,
    lost_bytes: u64,
}

impl Progress {
    fn place(&self) -> Place {
        Place { pid: self.pid, offset: self.offset }
    }

    fn ran(&self, outcome: Outcome, on_gap: OnGap) -> Result<Ran, ExecutionError> {
        match on_gap {
            OnGap::Fail if self.lost_bytes > 0 => {
                Err(ExecutionError::OutputLost { bytes: self.lost_bytes, code: outcome.exit_code() })
            }
            OnGap::Fail | OnGap::Tell => {
                Ok(Ran { outcome, note: None, place: Some(self.place()), lost_bytes: self.lost_bytes })
            }
        }
    }

    /// Tells of bytes that nobody has any more, where they are missing.
    fn lose(&mut self, bytes: u64) {
        self.offset = self.offset.saturating_add(bytes);
        self.lost_bytes = self.lost_bytes.saturating_add(bytes);
        eprintln!("wrenn: {bytes} bytes of the command's output are missing here");
    }
}

/// Why the output stops without the command's end.
enum Stop {
    /// For good.
    Failed(ExecutionError),
    /// For want of a connection.
    Broke(EnvdError),
}

async fn pump(exec: &mut Exec, sink: &mut Sink, progress: &mut Progress) -> Result<Outcome, Stop> {
    loop {
        let written = match exec.next().await.map_err(Stop::Broke)? {
            ExecEvent::Stdout(output) | ExecEvent::Terminal(output) => {
                sink.stdout(&output.bytes).await.map(|()| advance(progress, &output))
            }
            ExecEvent::Stderr(output) => sink.stderr(&output.bytes).await.map(|()| advance(progress, &output)),
            ExecEvent::Gap { bytes } => {
                progress.lose(bytes);
                Ok(())
            }
            ExecEvent::End(end) => return Ok(Outcome::Ended(end)),
        };
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Outcome::BrokenPipe),
            Err(error) => return Err(Stop::Failed(ExecutionError::Output(error))),
        }
    }
}

fn advance(progress: &mut Progress, output: &Output) {
    progress.offset = output.end();
}

/// Passes our input on for as long as it is polled.
async fn feed(source: &mut Source, input: Input) -> Infallible {
    source.pass_on(&input).await;
    std::future::pending().await
}

/// The command's output from `place` on, over a new connection.
async fn reattach(
    keeper: &mut impl Keeper,
    signals: &mut Signals,
    broke: EnvdError,
    place: Place,
    in_vain: u32,
) -> Result<Exec, ExecutionError> {
    let work = async {
        if in_vain > 1 {
            sleep(REATTACH_PAUSE).await;
        }
        let mut broke = broke;
        for _ in 0..REATTACHED_IN_VAIN_MAX {
            tracing::info!(pid = place.pid, offset = place.offset, error = %broke, "the connection to the command broke");
            let envd = keeper.after_break(broke, Some(place)).await?;
            match envd.attach(place.pid, Some(place.offset)).await {
                Ok(exec) => return Ok(exec),
                Err(EnvdError::Refused { code, .. }) if code == "not_found" => return Err(gone(place)),
                Err(error) => broke = error,
            }
            sleep(REATTACH_PAUSE).await;
        }
        Err(broke.into())
    };
    tokio::select! {
        exec = work => exec,
        signal = signals.next() => Err(ExecutionError::Sandbox(anyhow::anyhow!(
            "signal {signal} came while the connection to the command (pid {}) was down; it may go on", place.pid
        ))),
    }
}

fn gone(place: Place) -> ExecutionError {
    ExecutionError::Sandbox(anyhow::anyhow!(
        "the command (pid {}) is not there any more: it ended while nobody was connected to it, or the guest has booted again; \
         how it ended is not known",
        place.pid
    ))
}

/// Asks the command to end and lets its last output through; one that does not end within the grace, or not before a second
/// signal, is killed.
async fn end_command(
    input: &Input,
    request: i32,
    pump: &mut (impl Future<Output = Result<Outcome, Stop>> + Unpin),
    signals: &mut Signals,
) {
    let ending = async {
        if let Err(error) = input.signal(request).await {
            tracing::warn!(%error, "cannot ask the command to end");
            std::future::pending::<()>().await;
        }
        if let Err(Stop::Broke(error)) = pump.await {
            tracing::warn!(%error, "the command's last output is lost");
        }
    };
    tokio::select! {
        () = ending => return,
        () = sleep(END_GRACE) => {}
        _second = signals.next() => {}
    }
    match timeout(KILL_LIMIT, input.kill()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot kill the command"),
        Err(_elapsed) => tracing::warn!("the guest does not kill the command"),
    }
}

/// Ends a command whose output nobody reads any more.
async fn end_unread(exec: &mut Exec, request: i32, signals: &mut Signals) {
    let input = exec.input();
    let drain = async {
        loop {
            match exec.next().await.map_err(Stop::Broke)? {
                ExecEvent::End(end) => return Ok(Outcome::Ended(end)),
                ExecEvent::Stdout(_) | ExecEvent::Stderr(_) | ExecEvent::Terminal(_) | ExecEvent::Gap { .. } => {}
            }
        }
    };
    tokio::pin!(drain);
    end_command(&input, request, &mut drain, signals).await;
}

async fn sleep_until_or_for_ever(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// SIGINT, SIGTERM and SIGHUP, as one stream.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// From now on they do not end this process.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next signal's number. Cancel safe.
    pub async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        };
        kind.as_raw_value()
    }
}

/// The size of our own terminal; the usual one where it has none.
pub fn terminal_size() -> TerminalSize {
    let size = rustix::termios::tcgetwinsize(std::io::stdin()).ok().filter(|size| size.ws_col > 0 && size.ws_row > 0);
    size.map_or(TerminalSize { cols: 80, rows: 24 }, |size| TerminalSize { cols: size.ws_col, rows: size.ws_row })
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

    #[test]
    fn a_kill_is_a_timeout_only_when_the_time_was_up() {
        let killed = Outcome::Ended(ExecEnd::Signalled(9));
        let until = |limit| Deadlines { limit: Some(limit), give_up: None };
        assert_eq!(until(Instant::now()).judge(killed), Outcome::Ended(ExecEnd::TimedOut));
        assert_eq!(until(Instant::now() + Duration::from_secs(60)).judge(killed), killed);
        assert_eq!(Deadlines::default().judge(killed), killed);
        let exited = Outcome::Ended(ExecEnd::Exited(0));
        assert_eq!(until(Instant::now()).judge(exited), exited);
    }
}
