//! `process.Process` on the wire: requests are read, refused or granted; what they mean is decided elsewhere.
//!
//! Whatever changes something runs in a task of its own, since a handler is dropped when its client hangs up. Every
//! refusal's code and text is decided here, in the `From`s for [`ConnectError`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use futures::{Stream as FutureStream, StreamExt as _};
use rustix::process::Signal;
use tokio::time::Instant;
use wrenn_proto::envd::process::{
    CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest, ListResponse, PTY,
    Process as ProcessService, ProcessConfig, ProcessInfo, ProcessInput, ProcessSelector, SendInputRequest,
    SendInputResponse, SendSignalRequest, SendSignalResponse, StartRequest, StartResponse, StreamInputRequest,
    StreamInputResponse, UpdateRequest, UpdateResponse, process_input, process_selector, stream_input_request,
};

use super::event::Event;
use super::input::{InputError, Kind};
use super::log::{Item, Reader, TooManyReaders};
use super::pty::Size;
use super::registry::{NoPlace, Selector, Unknown};
use super::spawn::{Command, StartError, Stdio};
use super::{Process, Wish, WishError};
use crate::envd::auth;
use crate::envd::files::with_causes;
use crate::envd::state::State;
use crate::envd::users::UserError;
use crate::limits;

/// A terminal's size when the client names none.
const SIZE_DEFAULT: Size = Size { cols: 80, rows: 24 };

/// The service over one sandbox.
#[derive(Debug)]
pub struct Service {
    state: Arc<State>,
}

impl Service {
    /// The service over this sandbox.
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    fn find(&self, selector: Option<&ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        Ok(self.state.processes.find(&to_selector(selector)?)?)
    }

    fn find_running(&self, selector: Option<&ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        Ok(self.state.processes.find_running(&to_selector(selector)?)?)
    }

    /// Writes in a task of its own.
    async fn write(&self, process: &Arc<Process>, input: Option<ProcessInput>) -> Result<(), ConnectError> {
        let (kind, bytes) = match input.and_then(|input| input.input) {
            Some(process_input::Input::Stdin(bytes)) => (Kind::Stdin, bytes),
            Some(process_input::Input::Pty(bytes)) => (Kind::Terminal, bytes),
            None => return Err(ConnectError::invalid_argument("the input is missing")),
        };
        let (process, state) = (Arc::clone(process), Arc::clone(&self.state));
        Ok(outlive(async move { process.input.write(kind, &bytes, &state.processes.input_budget).await }).await??)
    }
}

impl ProcessService for Service {
    async fn list<'a>(
        &'a self,
        _: RequestContext,
        _: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<impl Encodable<ListResponse> + Send + use<'a>> {
        let running = self.state.processes.running();
        Response::ok(ListResponse { processes: running.iter().map(|process| to_info(process)).collect() })
    }

    async fn connect(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ConnectResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let process = self.find(request.process.as_option())?;
        let reader = process.log.attach(request.offset)?;
        let tells_gaps = request.offset.is_some();
        let feed = Feed { process, reader, tells_gaps, is_start: false, beat: keepalive(&context) };
        Response::stream_ok(feed.into_stream())
    }

    async fn start(
        &self,
        context: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<StartResponse> + Send + use<>>> {
        let wish = to_wish(&context, request.to_owned_message())?;
        let (process, reader) = outlive(super::start(Arc::clone(&self.state), wish)).await??;
        let feed = Feed { process, reader, tells_gaps: true, is_start: true, beat: keepalive(&context) };
        Response::stream_ok(feed.into_stream())
    }

    async fn update<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<impl Encodable<UpdateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find_running(request.process.as_option())?;
        if let Some(pty) = request.pty.as_option() {
            process.input.resize(to_size(pty)?)?;
        }
        Response::ok(UpdateResponse {})
    }

    async fn stream_input<'a>(
        &'a self,
        _: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<StreamInputResponse> + Send + use<'a>> {
        let mut target = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(stream_input_request::Event::Start(start)) => {
                    target = Some(self.find_running(start.process.as_option())?);
                }
                Some(stream_input_request::Event::Data(data)) => {
                    let process = target.as_ref().ok_or_else(|| {
                        ConnectError::invalid_argument("the first message must be `start`, naming the process")
                    })?;
                    self.write(process, data.input.into_option()).await?;
                }
                Some(stream_input_request::Event::Keepalive(_)) | None => {}
            }
        }
        Response::ok(StreamInputResponse {})
    }

    async fn send_input<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<impl Encodable<SendInputResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find_running(request.process.as_option())?;
        self.write(&process, request.input.into_option()).await?;
        Response::ok(SendInputResponse {})
    }

    async fn send_signal<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<impl Encodable<SendSignalResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let signal = to_signal(request.signal.to_i32())?;
        let selector = to_selector(request.process.as_option())?;
        let process = self.state.processes.find_running(&selector)?;
        let sent = if signal == Signal::KILL {
            outlive(async move { process.kill().await }).await?
        } else {
            process.signal(signal)
        };
        match sent {
            Ok(true) => Response::ok(SendSignalResponse {}),
            Ok(false) => Err(self
                .state
                .processes
                .find_running(&selector)
                .map_or_else(ConnectError::from, |_| ConnectError::not_found("the process group is empty"))),
            Err(error) => Err(ConnectError::internal(format!("cannot send the signal: {error}"))),
        }
    }

    async fn close_stdin<'a>(
        &'a self,
        _: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<CloseStdinResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find_running(request.process.as_option())?;
        outlive(async move { process.input.close().await }).await??;
        Response::ok(CloseStdinResponse {})
    }
}

/// Runs to its end, also when whoever waits for it goes away.
async fn outlive<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, ConnectError> {
    tokio::spawn(work).await.map_err(|_| ConnectError::internal("the call was aborted inside of envd"))
}

/// What one client is told of a process.
struct Feed {
    process: Arc<Process>,
    reader: Reader,
    tells_gaps: bool,
    /// It is the stream of the Start call, which ends with an error when the process was killed for its time.
    is_start: bool,
    beat: Duration,
}

impl Feed {
    fn into_stream(self) -> impl FutureStream<Item = Result<Event, ConnectError>> + Send {
        let start = Event::Start(self.process.pid);
        let rest = futures::stream::unfold(Some(self), |feed| async move {
            let mut feed = feed?;
            let next = feed.next().await;
            let is_last = matches!(next, Err(_) | Ok(Event::End(_)));
            Some((next, (!is_last).then_some(feed)))
        });
        futures::stream::iter([Ok(start)]).chain(rest)
    }

    async fn next(&mut self) -> Result<Event, ConnectError> {
        loop {
            let Ok(item) = tokio::time::timeout(self.beat, self.reader.next()).await else {
                return Ok(Event::KeepAlive);
            };
            match item {
                Item::Output(piece) => return Ok(Event::Output(piece)),
                Item::Gap(bytes) if self.tells_gaps => return Ok(Event::Gap(bytes)),
                Item::Gap(_) => {}
                Item::End(_) if self.is_start && self.process.timed_out() => {
                    return Err(ConnectError::deadline_exceeded("the command ran out of time and was killed"));
                }
                Item::End(end) => return Ok(Event::End(end)),
                Item::Detached(position) => return Err(detached(position)),
            }
        }
    }
}

fn detached(position: u64) -> ConnectError {
    let seconds = limits::STALL_TIME_MAX.as_secs();
    ConnectError::resource_exhausted(format!(
        "nothing was read for {seconds} s while the process waited; connect again with offset {position}"
    ))
}

/// The `Keepalive-Ping-Interval` header, in seconds.
fn keepalive(context: &RequestContext) -> Duration {
    let asked = context.header("keepalive-ping-interval").and_then(|value| value.to_str().ok()?.parse().ok());
    asked.map_or(limits::KEEPALIVE_DEFAULT, |seconds: u32| {
        Duration::from_secs(seconds.into()).clamp(limits::KEEPALIVE_LEAST, limits::KEEPALIVE_DEFAULT)
    })
}

fn to_wish(context: &RequestContext, request: StartRequest) -> Result<Wish, ConnectError> {
    let config = request.process.into_option().ok_or_else(|| ConnectError::invalid_argument("`process` is missing"))?;
    let stdio = match (request.pty.as_option(), request.stdin) {
        (Some(pty), _) => Stdio::Terminal(to_size(pty)?),
        (None, Some(false)) => Stdio::OutputPipes,
        (None, Some(true) | None) => Stdio::Pipes,
    };
    let command =
        Command { cmd: config.cmd, args: config.args, envs: config.envs.into_iter().collect(), cwd: config.cwd };
    Ok(Wish {
        command,
        stdio,
        tag: request.tag,
        user: auth::requested_user(context.headers()),
        deadline: context.deadline().map(Instant::from_std),
    })
}

fn to_size(pty: &PTY) -> Result<Size, ConnectError> {
    let Some(size) = pty.size.as_option() else { return Ok(SIZE_DEFAULT) };
    let side = |value: u32| {
        u16::try_from(value)
            .map_err(|_| ConnectError::invalid_argument(format!("a terminal's side of {value} is more than 65535")))
    };
    Ok(Size { cols: side(size.cols)?, rows: side(size.rows)? })
}

fn to_selector(selector: Option<&ProcessSelector>) -> Result<Selector, ConnectError> {
    match selector.and_then(|selector| selector.selector.as_ref()) {
        Some(process_selector::Selector::Pid(pid)) => Ok(Selector::Pid(*pid)),
        Some(process_selector::Selector::Tag(tag)) => Ok(Selector::Tag(tag.clone())),
        None => Err(ConnectError::invalid_argument("no process is named: give `pid` or `tag`")),
    }
}

fn to_signal(number: i32) -> Result<Signal, ConnectError> {
    Signal::from_named_raw(number)
        .ok_or_else(|| ConnectError::invalid_argument(format!("{number} is no signal; use 1 to 31")))
}

fn to_info(process: &Process) -> ProcessInfo {
    let command = &process.command;
    let config = ProcessConfig {
        cmd: command.cmd.clone(),
        args: command.args.clone(),
        envs: command.envs.clone().into_iter().collect(),
        cwd: command.cwd.clone(),
    };
    ProcessInfo { config: config.into(), pid: process.pid, tag: process.tag.clone() }
}

impl From<Unknown> for ConnectError {
    fn from(error: Unknown) -> Self {
        Self::not_found(error.to_string())
    }
}

impl From<TooManyReaders> for ConnectError {
    fn from(error: TooManyReaders) -> Self {
        Self::resource_exhausted(error.to_string())
    }
}

impl From<NoPlace> for ConnectError {
    fn from(error: NoPlace) -> Self {
        match error {
            NoPlace::Full => Self::resource_exhausted(error.to_string()),
            NoPlace::TagTaken(_) => Self::already_exists(error.to_string()),
        }
    }
}

impl From<InputError> for ConnectError {
    fn from(error: InputError) -> Self {
        let text = with_causes(&error);
        match error {
            InputError::Kind { .. } | InputError::Closed | InputError::System { .. } => Self::internal(text),
            InputError::TerminalClose => Self::unknown(text),
            InputError::NoTerminal => Self::invalid_argument(text),
            InputError::Full => Self::resource_exhausted(text),
        }
    }
}

impl From<WishError> for ConnectError {
    fn from(error: WishError) -> Self {
        match error {
            WishError::Place(error) => error.into(),
            WishError::Start(error) => error.into(),
            WishError::Watch(_) => Self::internal(with_causes(&error)),
        }
    }
}

impl From<StartError> for ConnectError {
    fn from(error: StartError) -> Self {
        let text = with_causes(&error);
        match error {
            StartError::User(UserError::Unknown(_)) => Self::unauthenticated(text),
            StartError::User(UserError::Read { .. }) => Self::internal(text),
            StartError::CwdPath { .. }
            | StartError::CwdMissing(_)
            | StartError::CwdNoDirectory(_)
            | StartError::Cwd { .. }
            | StartError::NoCommand
            | StartError::Arguments { .. }
            | StartError::Variables(_) => Self::invalid_argument(text),
            StartError::NotFound(_) => Self::not_found(text),
            StartError::NotExecutable { .. } | StartError::NoInterpreter(_) => Self::permission_denied(text),
            StartError::Stdio { source, .. } => exhausted_or_internal(&source, text),
            StartError::Spawn(error) => exhausted_or_internal(&error.source, text),
            StartError::Aborted => Self::unavailable(text),
        }
    }
}

/// Out of memory, processes or descriptors is a matter of load; anything else is not for the client to mend.
fn exhausted_or_internal(source: &std::io::Error, text: String) -> ConnectError {
    use rustix::io::Errno;
    match Errno::from_io_error(source) {
        Some(Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOSPC) => {
            ConnectError::resource_exhausted(text)
        }
        Some(_) | None => ConnectError::internal(text),
    }
}
