//! Commands over WebSockets: live output, input, signals, terminals, and coming back to one.
//!
//! ```text
//!   client ── bytes ─► queue ─► guest (in order, as fast as the command reads)
//!          ── messages: signal, size, end of input
//!          ◄─ output as it comes, with its place ── guest
//! ```
//!
//! A command outlives its client: whoever lost the stream comes back by pid and place. A client that does not read holds the
//! command up for half a minute at most, and is let go then.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::response::Response;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use utoipa::IntoParams;
use wrenn_agent::envd_client::{Command, EnvdClient, EnvdError, Exec, ExecEvent, Input, Output, TerminalSize};
use wrenn_agent::host_agent::Phase;
use wrenn_client::types::{self, ClientMessage, Code, ServerMessage, StreamKind, StreamRequest};
use wrenn_engine::names::SandboxId;

use super::exec::{Asked, check_user, not_started, signal_number};
use super::socket::{self, Heard, In, Out, Socket, Stalled};
use crate::app::App;
use crate::auth::Caller;
use crate::convert;
use crate::error::ApiError;
use crate::exec_log::Entry;
use crate::extract::{Id, IdAnd, Query, Writer, parse_json};

/// Frames of input that wait for a command to read.
const INPUT_QUEUE: usize = 4;

/// What a shell on a terminal is started with, where there is one.
const SHELL: [&str; 3] =
    ["/bin/sh", "-c", "for shell in \"$SHELL\" /bin/bash /bin/sh; do [ -x \"$shell\" ] && exec \"$shell\" -l; done"];

/// An upgrade, or a refusal in our words.
pub fn upgradable(upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>) -> Result<WebSocketUpgrade, ApiError> {
    upgrade.map_err(|rejected| {
        ApiError::invalid(format!("this route is a WebSocket: {}", rejected.body_text()))
            .remedy("connect with a WebSocket client, over HTTP/1.1")
    })
}

/// Starts a command and streams what it does (WebSocket).
///
/// The first message of the client is a StreamRequest; then bytes in binary frames are the command's input, and text frames are
/// ClientMessages. The server's text frames are ServerMessages; its binary frames are output: one byte for the stream (1 standard
/// output, 2 standard error, 3 terminal), eight bytes for the place in the command's whole output (big endian), and the bytes.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/exec/stream",
    tag = "commands",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$")),
    responses(
        (status = 101, description = "The stream begins"),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn start(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgradable(upgrade)?;
    let guest = app.guest(&caller, &id).await?;
    Ok(socket::accept(upgrade, move |mut socket| async move {
        let Some(text) = socket.incoming.first_text().await else {
            let error = ApiError::invalid("the first message is to be a text frame that says what to start");
            return refuse(socket.out, error).await;
        };
        match asked(&text) {
            Ok((command, line)) => begin(app, caller, id, guest, command, line, socket).await,
            Err(error) => refuse(socket.out, error).await,
        }
    }))
}

fn asked(text: &str) -> Result<(Command, Vec<String>), ApiError> {
    let request: StreamRequest = parse_json(text.as_bytes())?;
    let StreamRequest { command, env, workdir, user, timeout_s, stdin, pty } = request;
    let line = command.clone();
    let command = Asked { command, env: env.into_iter().collect(), workdir, user, timeout_s }.checked()?;
    let terminal = pty.map(terminal_size).transpose()?;
    Ok((Command { stdin: stdin && terminal.is_none(), terminal, ..command }, line))
}

fn terminal_size(size: types::TerminalSize) -> Result<TerminalSize, ApiError> {
    if size.cols == 0 || size.rows == 0 {
        return Err(ApiError::invalid("a terminal has at least one column and one row"));
    }
    Ok(TerminalSize { cols: size.cols, rows: size.rows })
}

/// Where to go on.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct From {
    /// A place in the command's output, in bytes from its beginning; all that the sandbox still has if nothing is said.
    pub offset: u64,
}

/// Comes back to a command that runs (WebSocket).
///
/// Frames are those of `exec/stream`, but that nothing has to be sent first. What is gone of the output is told as a gap.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/exec/{pid}/stream",
    tag = "commands",
    params(
        ("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$"),
        ("pid" = u32, Path, description = "The command"),
        From,
    ),
    responses(
        (status = 101, description = "The stream begins"),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn attach(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    IdAnd(id, pid): IdAnd<u32>,
    Query(from): Query<From>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgradable(upgrade)?;
    let exec = app.guest(&caller, &id).await?.attach(pid, Some(from.offset)).await?;
    Ok(socket::accept(upgrade, move |socket| async move {
        let stream = Stream { input: Feeder::new(exec.input(), Kind::Unknown), app, caller, id, exec, entry: None };
        stream.run(socket).await;
    }))
}

/// A terminal.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Terminal {
    /// Columns.
    #[param(minimum = 1)]
    pub cols: u16,
    /// Rows.
    #[param(minimum = 1)]
    pub rows: u16,
    /// User; the sandbox's default if nothing is said.
    pub user: Option<String>,
    /// Working directory; the user's home if nothing is said.
    pub workdir: Option<String>,
}

impl Default for Terminal {
    fn default() -> Self {
        Self { cols: 80, rows: 24, user: None, workdir: None }
    }
}

/// Opens a login shell on a terminal (WebSocket).
///
/// Frames are those of `exec/stream`, but that nothing has to be sent first.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/pty",
    tag = "commands",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$"), Terminal),
    responses(
        (status = 101, description = "The stream begins"),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn pty(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    Query(terminal): Query<Terminal>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let size = terminal_size(types::TerminalSize { cols: terminal.cols, rows: terminal.rows })?;
    check_user(terminal.user.as_deref())?;
    let upgrade = upgradable(upgrade)?;
    let guest = app.guest(&caller, &id).await?;
    let line = SHELL.map(str::to_owned).to_vec();
    let env = vec![("TERM".to_owned(), "xterm-256color".to_owned())];
    let asked = Asked { command: line.clone(), env, workdir: terminal.workdir, user: terminal.user, timeout_s: None };
    let command = Command { terminal: Some(size), ..asked.checked()? };
    Ok(socket::accept(upgrade, move |socket| begin(app, caller, id, guest, command, line, socket)))
}

async fn begin(
    app: Arc<App>,
    caller: Caller,
    id: SandboxId,
    guest: EnvdClient,
    command: Command,
    line: Vec<String>,
    socket: Socket,
) {
    let kind = if command.terminal.is_some() { Kind::Terminal } else { Kind::Pipe };
    match guest.start(command).await {
        Ok(exec) => {
            let entry = Some(app.execs.begin(&id, exec.pid(), line));
            let input = Feeder::new(exec.input(), kind);
            Stream { app, caller, id, exec, input, entry }.run(socket).await;
        }
        Err(error) => refuse(socket.out, not_started(error)).await,
    }
}

async fn refuse(mut out: Out, error: ApiError) {
    if out.text(&ServerMessage::Error { error: error.body.clone() }).await.is_ok() {
        out.fail(&error).await;
    }
}

/// What a command's input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pipe,
    Terminal,
    /// Of a command that was come back to: what it has shows when it is written to.
    Unknown,
}

/// Something for a command, in the order in which it was sent.
enum Fed {
    Bytes(Bytes),
    End,
}

/// Writes to a command in a task of its own: a command that does not read holds up its input alone.
struct Feeder {
    input: Input,
    queue: mpsc::Sender<Fed>,
    task: AbortHandle,
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feeder {
    fn new(input: Input, kind: Kind) -> Self {
        let (queue, fed) = mpsc::channel(INPUT_QUEUE);
        let task = tokio::spawn(write(input.clone(), kind, fed)).abort_handle();
        Self { input, queue, task }
    }
}

async fn write(input: Input, mut kind: Kind, mut fed: mpsc::Receiver<Fed>) {
    while let Some(fed) = fed.recv().await {
        if let Err(error) = write_one(&input, &mut kind, fed).await {
            // The command has ended, or takes no input: its output and its end tell.
            tracing::debug!(%error, "a command does not take its input");
        }
    }
}

async fn write_one(input: &Input, kind: &mut Kind, fed: Fed) -> Result<(), EnvdError> {
    match (fed, *kind) {
        (Fed::Bytes(bytes), Kind::Pipe) => input.write(bytes).await,
        (Fed::Bytes(bytes), Kind::Terminal) => input.type_in(bytes).await,
        (Fed::Bytes(bytes), Kind::Unknown) => {
            if input.type_in(bytes.clone()).await.is_ok() {
                *kind = Kind::Terminal;
                return Ok(());
            }
            *kind = Kind::Pipe;
            input.write(bytes).await
        }
        (Fed::End, Kind::Terminal) => input.type_end().await,
        (Fed::End, Kind::Pipe | Kind::Unknown) => input.close().await,
    }
}

/// A command and its client.
struct Stream {
    app: Arc<App>,
    caller: Caller,
    id: SandboxId,
    exec: Exec,
    input: Feeder,
    entry: Option<Entry>,
}

/// What happens next.
enum Turn {
    Event(Result<ExecEvent, EnvdError>),
    Heard(Heard),
}

/// How a stream ends.
enum End {
    /// The command ended.
    Exit(types::Exit),
    /// Something is wrong that the client is to know.
    Error(ApiError),
    /// The client is gone; the command goes on.
    Left,
}

impl std::convert::From<Stalled> for End {
    fn from(_: Stalled) -> Self {
        Self::Left
    }
}

impl Stream {
    async fn run(mut self, socket: Socket) {
        let Socket { mut out, mut incoming } = socket;
        let Err(end) = self.go_on(&mut out, &mut incoming).await;
        match end {
            End::Exit(exit) => {
                if let Some(entry) = &self.entry {
                    entry.ended(exit);
                }
                if out.text(&ServerMessage::Exit { exit }).await.is_ok() {
                    out.close().await;
                }
            }
            End::Error(error) => refuse(out, error).await,
            End::Left => {}
        }
    }

    /// Passes on in both directions until something ends it.
    async fn go_on(&mut self, out: &mut Out, incoming: &mut In) -> Result<std::convert::Infallible, End> {
        out.text(&ServerMessage::Started { pid: self.exec.pid() }).await?;
        let (app, caller) = (Arc::clone(&self.app), self.caller.clone());
        let revoked = app.keys.revoked(&caller);
        tokio::pin!(revoked);
        let mut waiting: Option<Fed> = None;
        loop {
            let turn = tokio::select! {
                event = self.exec.next() => Turn::Event(event),
                // While something waits to be written, nothing more is taken from the client.
                heard = incoming.next(), if waiting.is_none() => Turn::Heard(heard),
                place = self.input.queue.reserve(), if waiting.is_some() => {
                    // Its task ends with us alone.
                    if let (Ok(place), Some(fed)) = (place, waiting.take()) {
                        place.send(fed);
                    }
                    continue;
                }
                () = &mut revoked => {
                    let error = ApiError::new(Code::Unauthenticated, "the key was revoked");
                    return Err(End::Error(error.remedy("the command goes on; come back with another key")));
                }
            };
            match turn {
                Turn::Event(Ok(event)) => self.tell(out, event).await?,
                Turn::Event(Err(error)) => return Err(End::Error(self.broken(error).await)),
                Turn::Heard(heard) => waiting = self.hear(out, heard).await?,
            }
        }
    }

    async fn tell(&mut self, out: &mut Out, event: ExecEvent) -> Result<(), End> {
        let (kind, Output { offset, bytes }) = match event {
            ExecEvent::Stdout(output) => (StreamKind::Stdout, output),
            ExecEvent::Stderr(output) => (StreamKind::Stderr, output),
            ExecEvent::Terminal(output) => (StreamKind::Terminal, output),
            ExecEvent::Gap { bytes } => return Ok(out.text(&ServerMessage::Gap { bytes }).await?),
            ExecEvent::End(end) => return Err(End::Exit(convert::exit(end))),
        };
        if let Some(entry) = &self.entry {
            entry.wrote(offset.saturating_add(bytes.len() as u64));
        }
        Ok(out.binary(kind.frame(offset, &bytes)).await?)
    }

    /// What the client does; something for the command's input waits for its turn.
    async fn hear(&mut self, out: &mut Out, heard: Heard) -> Result<Option<Fed>, End> {
        match heard {
            Heard::Binary(bytes) => return Ok((!bytes.is_empty()).then_some(Fed::Bytes(bytes))),
            Heard::Quiet => out.ping().await?,
            Heard::Gone => return Err(End::Left),
            Heard::Text(text) => match parse_json::<ClientMessage>(text.as_bytes()).map_err(End::Error)? {
                ClientMessage::CloseStdin => return Ok(Some(Fed::End)),
                ClientMessage::Signal { signal } => self.signal(signal).await.map_err(End::Error)?,
                ClientMessage::Resize { cols, rows } => self.resize(cols, rows).await.map_err(End::Error)?,
            },
        }
        Ok(None)
    }

    async fn signal(&self, signal: u32) -> Result<(), ApiError> {
        let number = signal_number(signal)?;
        match self.input.input.signal(number).await {
            // One that has ended needs no signal; its end is on its way.
            Ok(()) | Err(EnvdError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn resize(&self, cols: u16, rows: u16) -> Result<(), ApiError> {
        let size = terminal_size(types::TerminalSize { cols, rows })?;
        match self.input.input.resize(size).await {
            Ok(()) | Err(EnvdError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Why the way to the command broke: a sandbox that was paused or ended says more than a connection.
    async fn broken(&self, error: EnvdError) -> ApiError {
        let pid = self.exec.pid();
        match self.app.agent.get(&self.id).await {
            Ok(view) if view.phase != Phase::Running => {
                let message = format!("the sandbox is {} now, and with it the command", view.phase);
                let back = format!("once it runs again, come back over …/exec/{pid}/stream?offset=…");
                ApiError::new(Code::Conflict, message).remedy(back)
            }
            Ok(_runs) => error.into(),
            Err(gone) => gone.into(),
        }
    }
}
