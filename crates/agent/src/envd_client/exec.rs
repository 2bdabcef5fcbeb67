//! Running a command in a guest, or coming back to one that runs: `process.Process/Start` and `Connect`, whose streams of
//! events are the same.
//!
//! Bytes stay bytes and keep their order; the end comes after the last byte and is never invented: when the stream
//! breaks before it, that is an error. Each piece of output says where in the command's output it was, so that whoever lost
//! the stream can [attach](EnvdClient::attach) where it broke.

use std::time::Duration;

use bytes::Bytes;
use connectrpc::client::{CallOptions, ServerStream, SharedHttp2Connection};
use connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::envd::process::__buffa::view::{ConnectResponseView, StartResponseView};
use wrenn_proto::envd::process::process_event::{DataEvent, EndEvent, Event, data_event};
use wrenn_proto::envd::process::{ConnectRequest, ConnectResponse, ProcessConfig, StartRequest, StartResponse};

use super::input::{Input, TerminalSize};
use super::process::{Client, as_user, by_pid, protocol, refused, within};
use super::{EnvdClient, EnvdError};

/// What a command's own time limit is exceeded by before we stop waiting for the guest to say so.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);

/// A command to run in a guest.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// A path, or a name looked up in the PATH of the user.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables on top of the guest's.
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home if `None`.
    pub workdir: Option<String>,
    /// User; the guest's default if `None`.
    pub user: Option<String>,
    /// Kill it after this time.
    pub timeout: Option<Duration>,
    /// Whether it gets a pipe as standard input; otherwise /dev/null.
    pub stdin: bool,
    /// A terminal of this size as its standard input, output and error, instead of anything else.
    pub terminal: Option<TerminalSize>,
    /// A name to find it by; no two running processes of a guest share one.
    pub tag: Option<String>,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its place in the command's output, all streams counted together, in bytes.
    pub offset: u64,
    /// What was written; never nothing.
    pub bytes: Bytes,
}

impl Output {
    /// The place after it: where to [attach](EnvdClient::attach) to get what comes next.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }
}

/// What a running command does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote to its standard output.
    Stdout(Output),
    /// It wrote to its standard error.
    Stderr(Output),
    /// It wrote to its terminal.
    Terminal(Output),
    /// This many bytes of its output are gone: nobody was attached, and it wrote more than is kept.
    Gap {
        /// How many.
        bytes: u64,
    },
    /// It ended; nothing comes after.
    End(ExecEnd),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// With an exit code.
    Exited(i32),
    /// By a signal.
    Signalled(i32),
    /// It was killed at its time limit.
    TimedOut,
    /// The guest cannot tell.
    Unknown,
}

/// Why a command did not start, as a shell would tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStarted {
    /// There is no such command (127).
    NotFound,
    /// It is no executable (126).
    NotExecutable,
}

impl EnvdError {
    /// Whether this says that a command could not be started because of what it is.
    pub fn not_started(&self) -> Option<NotStarted> {
        match self {
            Self::Refused { call: START, code, .. } if code == ErrorCode::NotFound.as_str() => {
                Some(NotStarted::NotFound)
            }
            Self::Refused { call: START, code, .. } if code == ErrorCode::PermissionDenied.as_str() => {
                Some(NotStarted::NotExecutable)
            }
            Self::Refused { .. }
            | Self::Unreachable(_)
            | Self::NotReady { .. }
            | Self::Deadline { .. }
            | Self::ClockOff { .. }
            | Self::Protocol { .. } => None,
        }
    }
}

const START: &str = "Process/Start";
const CONNECT: &str = "Process/Connect";

type Body = <SharedHttp2Connection as connectrpc::client::ClientTransport>::ResponseBody;

/// Where events come from.
enum Events {
    Start(ServerStream<Body, StartResponseView<'static>>),
    Connect(ServerStream<Body, ConnectResponseView<'static>>),
}

/// A command that runs in a guest, and its output.
pub struct Exec {
    pid: u32,
    events: Events,
    process: Client,
    timeout: Option<Duration>,
    /// It has, or nobody here knows.
    has_terminal: bool,
}

impl EnvdClient {
    /// Starts `command`; answers when it runs.
    pub async fn start(&self, command: Command) -> Result<Exec, EnvdError> {
        let process = self.process_client();
        let options = start_options(&command);
        let (timeout, has_terminal) = (command.timeout, command.terminal.is_some());
        let stream = within(START, process.start_with_options(start_request(command), options)).await?;
        let mut events = Events::Start(stream);
        let pid = events.pid().await?;
        Ok(Exec { pid, events, process, timeout, has_terminal })
    }

    /// Attaches to the process `pid`, which runs or ended less than half a minute ago. Its output comes from `offset` on, of
    /// which some may be gone ([`ExecEvent::Gap`]); without one only what it writes from now on. Whoever else is attached
    /// stays so.
    pub async fn attach(&self, pid: u32, offset: Option<u64>) -> Result<Exec, EnvdError> {
        let process = self.process_client();
        let request = ConnectRequest { process: by_pid(pid).into(), offset };
        let mut events = Events::Connect(within(CONNECT, process.connect(request)).await?);
        let told = events.pid().await?;
        if told != pid {
            return Err(protocol(CONNECT, &format!("this is process {told}, not {pid}")));
        }
        Ok(Exec { pid, events, process, timeout: None, has_terminal: true })
    }
}

impl Events {
    /// The call that they answer.
    fn call(&self) -> &'static str {
        match self {
            Self::Start(_) => START,
            Self::Connect(_) => CONNECT,
        }
    }

    async fn next(&mut self) -> Result<Event, ConnectError> {
        let event = match self {
            Self::Start(stream) => {
                stream.message::<StartResponse>().await?.map(|message| message.to_owned_message().event)
            }
            Self::Connect(stream) => {
                stream.message::<ConnectResponse>().await?.map(|message| message.to_owned_message().event)
            }
        };
        let ended = || ConnectError::new(ErrorCode::DataLoss, "the stream ended before the command did");
        let event = event.ok_or_else(ended)?.into_option().and_then(|event| event.event);
        event.ok_or_else(|| ConnectError::new(ErrorCode::Internal, "an empty event"))
    }

    /// The pid in the first event.
    async fn pid(&mut self) -> Result<u32, EnvdError> {
        let call = self.call();
        match within(call, self.next()).await? {
            Event::Start(start) => Ok(start.pid),
            other => Err(protocol(call, &format!("the first event is {other:?}"))),
        }
    }
}

fn start_request(command: Command) -> StartRequest {
    StartRequest {
        process: ProcessConfig {
            cmd: command.program,
            args: command.args,
            envs: command.env.into_iter().collect(),
            cwd: command.workdir,
        }
        .into(),
        stdin: Some(command.stdin),
        pty: command.terminal.map(TerminalSize::to_wire).into(),
        tag: command.tag,
    }
}

/// The time limit goes out as a header only: as an option of the call it would also cut the stream on this side, and
/// with it output that is on its way.
fn start_options(command: &Command) -> CallOptions {
    let options = as_user(command.user.as_deref());
    match command.timeout {
        Some(timeout) => options.with_header("connect-timeout-ms", timeout.as_millis().max(1).to_string()),
        None => options,
    }
}

impl Exec {
    /// The command's pid in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The way to its input.
    pub fn input(&self) -> Input {
        Input::new(self.pid, self.process.clone())
    }

    /// How long the stream may take at most, when the command has a time limit.
    pub fn limit(&self) -> Option<Duration> {
        self.timeout.map(|timeout| timeout + TIMEOUT_GRACE)
    }

    /// The next thing the command does; waits for it without limit. Not to be called again after `End`.
    pub async fn next(&mut self) -> Result<ExecEvent, EnvdError> {
        let call = self.events.call();
        loop {
            let event = match self.events.next().await {
                Err(error) if error.code == ErrorCode::DeadlineExceeded && self.timeout.is_some() => {
                    return Ok(ExecEvent::End(ExecEnd::TimedOut));
                }
                event => event.map_err(|error| refused(call, &error))?,
            };
            match (event, &self.events) {
                (Event::Data(data), _) => {
                    if let Some(output) = self.output_of(*data)? {
                        return Ok(output);
                    }
                }
                (Event::End(end), _) => return Ok(ExecEvent::End(end_of(&end))),
                (Event::Keepalive(_), _) => {}
                (Event::Gap(gap), Events::Connect(_)) => return Ok(ExecEvent::Gap { bytes: gap.bytes }),
                // Of a command that was just started nothing can be gone.
                (Event::Start(_), _) | (Event::Gap(_), Events::Start(_)) => {
                    return Err(protocol(call, "an event out of place"));
                }
            }
        }
    }

    fn output_of(&self, data: DataEvent) -> Result<Option<ExecEvent>, EnvdError> {
        let output = |bytes| Output { offset: data.offset, bytes };
        match data.output {
            Some(data_event::Output::Stdout(bytes)) => Ok(Some(ExecEvent::Stdout(output(bytes)))),
            Some(data_event::Output::Stderr(bytes)) => Ok(Some(ExecEvent::Stderr(output(bytes)))),
            Some(data_event::Output::Pty(bytes)) if self.has_terminal => Ok(Some(ExecEvent::Terminal(output(bytes)))),
            Some(data_event::Output::Pty(_)) => {
                Err(protocol(self.events.call(), "terminal output of a command without a terminal"))
            }
            None => Ok(None),
        }
    }
}

fn end_of(end: &EndEvent) -> ExecEnd {
    match (end.exited, end.signal) {
        (true, _) => ExecEnd::Exited(end.exit_code),
        (false, Some(signal)) => ExecEnd::Signalled(signal),
        (false, None) => ExecEnd::Unknown,
    }
}
