//! Running a command in a guest: `process.Process/Start`, its stream of events, its input, its end.
//!
//! Bytes stay bytes and keep their order; the end comes after the last byte and is never invented: when the stream
//! breaks before it, that is an error.

use std::time::Duration;

use bytes::Bytes;
use connectrpc::client::{CallOptions, ClientConfig, Http2Connection, ServerStream, SharedHttp2Connection};
use connectrpc::{ConnectError, ErrorCode};
use http::Uri;
use hyper_util::rt::TokioIo;
use wrenn_proto::envd::TOKEN_HEADER;
use wrenn_proto::envd::process::__buffa::view::StartResponseView;
use wrenn_proto::envd::process::process_event::{DataEvent, EndEvent, Event, data_event::Output};
use wrenn_proto::envd::process::{
    CloseStdinRequest, ProcessClient, ProcessConfig, ProcessInput, ProcessSelector, SendInputRequest,
    SendSignalRequest, Signal, StartRequest, StartResponse, process_input, process_selector,
};

use super::{CONNECT_LIMIT, EnvdClient, EnvdError, words};

/// Largest message taken from a guest, in bytes: 32 KiB of output and its frame, with room for newer fields.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Flow control window: what a guest may send before we have read it, in bytes.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// Calls at once on one connection.
const CALLS_MAX: usize = 64;
/// How long a guest has for a call that answers once; starting a program under emulation takes a while.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// What a command's own time limit is exceeded by before we stop waiting for the guest to say so.
const TIMEOUT_GRACE: Duration = Duration::from_secs(10);

type Body = <SharedHttp2Connection as connectrpc::client::ClientTransport>::ResponseBody;

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
}

/// What a running command does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote to its standard output.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
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
            | Self::Protocol { .. } => None,
        }
    }
}

const START: &str = "Process/Start";

/// A command that runs in a guest, and its output.
pub struct Exec {
    pid: u32,
    stream: ServerStream<Body, StartResponseView<'static>>,
    process: ProcessClient<SharedHttp2Connection>,
    timeout: Option<Duration>,
}

/// The way to a running command's standard input and signals. Cheap to clone.
#[derive(Clone)]
pub struct Input {
    pid: u32,
    process: ProcessClient<SharedHttp2Connection>,
}

impl EnvdClient {
    /// Starts `command`; answers when it runs.
    pub async fn start(&self, command: Command) -> Result<Exec, EnvdError> {
        let process = self.process_client();
        let options = start_options(&command);
        let timeout = command.timeout;
        let mut stream = within(START, process.start_with_options(start_request(command), options)).await?;
        match within(START, next_event(&mut stream)).await? {
            Event::Start(start) => Ok(Exec { pid: start.pid, stream, process, timeout }),
            other => Err(protocol(START, &format!("the first event is {other:?}"))),
        }
    }

    /// One HTTP/2 connection, made when it is first used.
    fn process_client(&self) -> ProcessClient<SharedHttp2Connection> {
        let client = self.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let client = client.clone();
            async move { client.connect(CONNECT_LIMIT).await.map(TokioIo::new) }
        });
        let authority = Uri::from_static("http://guest");
        let connection = Http2Connection::builder()
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .lazy_with_connector(connector, authority.clone())
            .shared(CALLS_MAX);
        let config = ClientConfig::new(authority)
            .proto()
            .with_default_max_message_size(MESSAGE_BYTES_MAX)
            .with_default_header(TOKEN_HEADER, &self.access_token);
        ProcessClient::new(connection, config)
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
        ..Default::default()
    }
}

/// The time limit goes out as a header only: as an option of the call it would also cut the stream on this side, and
/// with it output that is on its way.
fn start_options(command: &Command) -> CallOptions {
    use base64::Engine as _;
    let mut options = CallOptions::default();
    if let Some(timeout) = command.timeout {
        options = options.with_header("connect-timeout-ms", timeout.as_millis().max(1).to_string());
    }
    if let Some(user) = &command.user {
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:"));
        options = options.with_header("authorization", format!("Basic {basic}"));
    }
    options
}

impl Exec {
    /// The command's pid in the guest.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The way to its input.
    pub fn input(&self) -> Input {
        Input { pid: self.pid, process: self.process.clone() }
    }

    /// How long the stream may take at most, when the command has a time limit.
    pub fn limit(&self) -> Option<Duration> {
        self.timeout.map(|timeout| timeout + TIMEOUT_GRACE)
    }

    /// The next thing the command does; waits for it without limit. Not to be called again after `End`.
    pub async fn next(&mut self) -> Result<ExecEvent, EnvdError> {
        loop {
            let event = match next_event(&mut self.stream).await {
                Err(error) if error.code == ErrorCode::DeadlineExceeded && self.timeout.is_some() => {
                    return Ok(ExecEvent::End(ExecEnd::TimedOut));
                }
                event => event.map_err(|error| refused(START, &error))?,
            };
            match event {
                Event::Data(data) => {
                    if let Some(output) = output_of(*data)? {
                        return Ok(output);
                    }
                }
                Event::End(end) => return Ok(ExecEvent::End(end_of(&end))),
                Event::Keepalive(_) => {}
                Event::Start(_) | Event::Gap(_) => return Err(protocol(START, "an event out of place")),
            }
        }
    }
}

fn output_of(data: DataEvent) -> Result<Option<ExecEvent>, EnvdError> {
    match data.output {
        Some(Output::Stdout(bytes)) => Ok(Some(ExecEvent::Stdout(bytes))),
        Some(Output::Stderr(bytes)) => Ok(Some(ExecEvent::Stderr(bytes))),
        Some(Output::Pty(_)) => Err(protocol(START, "terminal output of a command without a terminal")),
        None => Ok(None),
    }
}

fn end_of(end: &EndEvent) -> ExecEnd {
    match (end.exited, end.signal) {
        (true, _) => ExecEnd::Exited(end.exit_code),
        (false, Some(signal)) => ExecEnd::Signalled(signal),
        (false, None) => ExecEnd::Unknown,
    }
}

impl Input {
    /// Writes to the command's standard input; answers when all of it is written.
    pub async fn write(&self, bytes: Bytes) -> Result<(), EnvdError> {
        let input = ProcessInput { input: Some(process_input::Input::Stdin(bytes)) };
        let request = SendInputRequest { process: self.selector().into(), input: input.into() };
        // Without a limit: a command may take its time to read.
        self.process.send_input(request).await.map(drop).map_err(|error| refused("Process/SendInput", &error))
    }

    /// Closes the command's standard input: it reads end-of-file.
    pub async fn close(&self) -> Result<(), EnvdError> {
        let request = CloseStdinRequest { process: self.selector().into() };
        within("Process/CloseStdin", self.process.close_stdin(request)).await.map(drop)
    }

    /// Asks the command and what it started to end.
    pub async fn terminate(&self) -> Result<(), EnvdError> {
        self.signal(Signal::SIGNAL_SIGTERM).await
    }

    /// Kills the command and what it started.
    pub async fn kill(&self) -> Result<(), EnvdError> {
        self.signal(Signal::SIGNAL_SIGKILL).await
    }

    async fn signal(&self, signal: Signal) -> Result<(), EnvdError> {
        let request = SendSignalRequest { process: self.selector().into(), signal: signal.into() };
        within("Process/SendSignal", self.process.send_signal(request)).await.map(drop)
    }

    fn selector(&self) -> ProcessSelector {
        ProcessSelector { selector: Some(process_selector::Selector::Pid(self.pid)) }
    }
}

async fn next_event(stream: &mut ServerStream<Body, StartResponseView<'static>>) -> Result<Event, ConnectError> {
    let message = stream.message::<StartResponse>().await?;
    let ended = || ConnectError::new(ErrorCode::DataLoss, "the stream ended before the command did");
    message
        .ok_or_else(ended)?
        .to_owned_message()
        .event
        .into_option()
        .and_then(|event| event.event)
        .ok_or_else(|| ConnectError::new(ErrorCode::Internal, "an empty event"))
}

/// A call that answers once has a limit.
async fn within<T>(
    call: &'static str,
    exchange: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, EnvdError> {
    match tokio::time::timeout(CALL_LIMIT, exchange).await {
        Err(_elapsed) => Err(EnvdError::Deadline { call, limit: CALL_LIMIT }),
        Ok(answer) => answer.map_err(|error| refused(call, &error)),
    }
}

fn refused(call: &'static str, error: &ConnectError) -> EnvdError {
    let message = words(error.message.as_deref().unwrap_or_default());
    match error.code {
        ErrorCode::Unavailable => EnvdError::Unreachable(std::io::Error::other(message)),
        ErrorCode::DataLoss | ErrorCode::Internal => EnvdError::Protocol { call, detail: message },
        _other_codes => EnvdError::Refused { call, code: error.code.as_str().to_owned(), message },
    }
}

fn protocol(call: &'static str, detail: &str) -> EnvdError {
    EnvdError::Protocol { call, detail: words(detail) }
}
