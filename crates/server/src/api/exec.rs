//! Commands whose output is collected, and those that run.

use std::sync::Arc;
use std::time::Duration;

use axum::Json as Answer;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use wrenn_agent::envd_client::{Command, EnvdError, Exec, ExecEvent, Input};
use wrenn_client::types::{self, ExecRequest, Exit, ProcessList, SignalRequest};

use crate::app::App;
use crate::auth::Caller;
use crate::convert;
use crate::error::ApiError;
use crate::exec_log::Entry;
use crate::extract::{Id, IdAnd, Json, LargeJson, Writer};
use crate::limits;

/// Bytes of input that are sent at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Runs a command and answers when it has ended.
///
/// Program and arguments as they are: no shell reads them. A command that is to be watched, or to be talked to, is started over
/// `exec/stream`.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/exec",
    tag = "commands",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$")),
    request_body = ExecRequest,
    responses(
        (status = 200, description = "It has ended", body = types::Exec),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn run(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    Id(id): Id,
    LargeJson(request): LargeJson<ExecRequest>,
) -> Result<Answer<types::Exec>, ApiError> {
    let input = input_of(&request)?;
    let asked = Asked {
        command: request.command,
        env: request.env.into_iter().collect(),
        workdir: request.workdir,
        user: request.user,
        timeout_s: request.timeout_s,
    };
    let line = asked.command.clone();
    let command = Command { stdin: input.is_some(), ..asked.checked()? };
    let guest = app.guest(&caller, &id).await?;
    let exec = guest.start(command).await.map_err(not_started)?;
    let entry = app.execs.begin(&id, exec.pid(), line);
    let feeding = input.map(|bytes| feed(exec.input(), bytes));
    let collecting = collect(exec, &entry);
    let collected = match feeding {
        Some(feeding) => {
            tokio::pin!(collecting);
            tokio::select! {
                collected = &mut collecting => collected,
                () = feeding => collecting.await,
            }
        }
        None => collecting.await,
    };
    Ok(Answer(collected?))
}

/// A command as somebody asks for it.
pub struct Asked {
    /// Program and arguments.
    pub command: Vec<String>,
    /// On top of the sandbox's.
    pub env: Vec<(String, String)>,
    /// Where.
    pub workdir: Option<String>,
    /// As whom.
    pub user: Option<String>,
    /// How long at most.
    pub timeout_s: Option<u64>,
}

impl Asked {
    /// The command, if it is one.
    pub fn checked(self) -> Result<Command, ApiError> {
        let Some((program, args)) = self.command.split_first().filter(|(program, _)| !program.is_empty()) else {
            return Err(ApiError::invalid("`command` is a program and its arguments, and names no program"));
        };
        if self.command.len() > limits::ARGUMENTS_MAX {
            return Err(ApiError::invalid(format!("`command` has more than {} parts", limits::ARGUMENTS_MAX)));
        }
        let variables = self.env.iter().map(|(name, value)| name.len() + value.len());
        let bytes: usize = self.command.iter().map(String::len).chain(variables).sum();
        if bytes > limits::ARGUMENT_BYTES_MAX {
            let most = limits::ARGUMENT_BYTES_MAX;
            return Err(ApiError::invalid(format!("`command` and `env` have more than {most} bytes together")));
        }
        check_nul(self.command.iter().chain(self.env.iter().flat_map(|(name, value)| [name, value])))?;
        if self.env.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
            return Err(ApiError::invalid("a name in `env` is empty or has a `=` in it"));
        }
        check_user(self.user.as_deref())?;
        if self.workdir.as_ref().is_some_and(|path| path.len() > limits::PATH_BYTES_MAX || path.contains('\0')) {
            return Err(ApiError::invalid(format!(
                "`workdir` has more than {} bytes or a NUL",
                limits::PATH_BYTES_MAX
            )));
        }
        Ok(Command {
            program: program.clone(),
            args: args.to_vec(),
            timeout: exec_timeout(self.timeout_s)?,
            env: self.env,
            workdir: self.workdir,
            user: self.user,
            stdin: false,
            terminal: None,
            tag: None,
        })
    }
}

fn check_nul<'a>(mut texts: impl Iterator<Item = &'a String>) -> Result<(), ApiError> {
    if texts.any(|text| text.contains('\0')) {
        return Err(ApiError::invalid("an argument or a variable has a NUL in it, which no program can be given"));
    }
    Ok(())
}

/// A user's name as somebody gives it.
pub fn check_user(user: Option<&str>) -> Result<(), ApiError> {
    let is_odd =
        |user: &str| user.is_empty() || user.len() > limits::USER_BYTES_MAX || user.contains([':', '\0', '\n', '\r']);
    if user.is_some_and(is_odd) {
        return Err(ApiError::invalid(format!("`user` is 1 to {} bytes without `:`", limits::USER_BYTES_MAX)));
    }
    Ok(())
}

fn exec_timeout(timeout_s: Option<u64>) -> Result<Option<Duration>, ApiError> {
    let most = limits::EXEC_TIMEOUT_MAX.as_secs();
    match timeout_s {
        Some(seconds) if !(1..=most).contains(&seconds) => {
            Err(ApiError::invalid(format!("`timeout_s` is 1 to {most}")))
        }
        seconds => Ok(seconds.map(Duration::from_secs)),
    }
}

fn input_of(request: &ExecRequest) -> Result<Option<Bytes>, ApiError> {
    match (&request.stdin, &request.stdin_base64) {
        (Some(_), Some(_)) => {
            Err(ApiError::invalid("`stdin` and `stdin_base64` are two ways to say the same: give one"))
        }
        (Some(text), None) => Ok(Some(Bytes::from(text.clone()))),
        (None, Some(text)) => match STANDARD.decode(text) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) => Err(ApiError::invalid(format!("`stdin_base64` is no base64: {error}"))),
        },
        (None, None) => Ok(None),
    }
}

/// Why a command did not start: what is the command's own fault is the request's.
pub fn not_started(error: EnvdError) -> ApiError {
    match (error.not_started(), &error) {
        (Some(_its_own_fault), EnvdError::Refused { message, .. }) => ApiError::invalid(message.clone()),
        _otherwise => error.into(),
    }
}

/// Writes all of its input. A command that ends or does not read it is no error: its output and its end say what happened.
async fn feed(input: Input, mut bytes: Bytes) {
    while !bytes.is_empty() {
        let chunk = bytes.split_to(bytes.len().min(CHUNK_BYTES));
        if let Err(error) = input.write(chunk).await {
            tracing::debug!(%error, "a command does not take its input");
            return;
        }
    }
    if let Err(error) = input.close().await {
        tracing::debug!(%error, "a command's input cannot be closed");
    }
}

/// One stream of a command: its beginning is kept.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn take(&mut self, more: &[u8]) {
        let room = limits::EXEC_OUTPUT_BYTES_MAX - self.bytes.len();
        self.truncated |= more.len() > room;
        self.bytes.extend_from_slice(&more[..more.len().min(room)]);
    }

    fn shown(self) -> types::Bytes {
        types::Bytes::of(&self.bytes, self.truncated)
    }
}

async fn collect(mut exec: Exec, entry: &Entry) -> Result<types::Exec, ApiError> {
    let pid = exec.pid();
    let (mut stdout, mut stderr) = (Kept::default(), Kept::default());
    loop {
        match exec.next().await? {
            ExecEvent::Stdout(output) | ExecEvent::Terminal(output) => {
                stdout.take(&output.bytes);
                entry.wrote(output.end());
            }
            ExecEvent::Stderr(output) => {
                stderr.take(&output.bytes);
                entry.wrote(output.end());
            }
            ExecEvent::Gap { .. } => {}
            ExecEvent::End(end) => {
                let exit: Exit = convert::exit(end);
                entry.ended(exit);
                return Ok(types::Exec { pid, exit, stdout: stdout.shown(), stderr: stderr.shown() });
            }
        }
    }
}

/// Lists the commands that run in a sandbox.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/exec",
    tag = "commands",
    params(("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$")),
    responses(
        (status = 200, description = "They", body = ProcessList),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn list(State(app): State<Arc<App>>, caller: Caller, Id(id): Id) -> Result<Answer<ProcessList>, ApiError> {
    let processes = app.guest(&caller, &id).await?.list().await?;
    Ok(Answer(ProcessList { items: processes.into_iter().map(convert::process).collect() }))
}

/// Sends a signal to a command and all that it started.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/exec/{pid}/signal",
    tag = "commands",
    params(
        ("id" = String, Path, description = "The sandbox", pattern = "^sb[a-z0-9]{18}$"),
        ("pid" = u32, Path, description = "The command"),
    ),
    request_body = SignalRequest,
    responses(
        (status = 204, description = "It was sent"),
        (status = "default", description = "Refused", body = types::Refusal),
    )
)]
pub async fn signal(
    State(app): State<Arc<App>>,
    Writer(caller): Writer,
    IdAnd(id, pid): IdAnd<u32>,
    Json(request): Json<SignalRequest>,
) -> Result<StatusCode, ApiError> {
    let number = signal_number(request.signal)?;
    app.guest(&caller, &id).await?.input(pid).signal(number).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A signal's number, checked.
pub fn signal_number(signal: u32) -> Result<i32, ApiError> {
    i32::try_from(signal)
        .ok()
        .filter(|number| (1..=64).contains(number))
        .ok_or_else(|| ApiError::invalid("`signal` is 1 to 64"))
}
