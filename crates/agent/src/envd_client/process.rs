//! `process.Process`: what its calls have in common, and which processes run.

use std::time::Duration;

use connectrpc::client::{CallOptions, ClientConfig, Http2Connection, SharedHttp2Connection};
use connectrpc::{ConnectError, ErrorCode};
use http::Uri;
use hyper_util::rt::TokioIo;
use wrenn_proto::envd::TOKEN_HEADER;
use wrenn_proto::envd::process::{ListRequest, ProcessClient, ProcessInfo, ProcessSelector, process_selector};

use super::{CONNECT_LIMIT, EnvdClient, EnvdError, words};

/// Largest message taken from a guest, in bytes: 32 KiB of output and its frame, with room for newer fields.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Largest list of processes, in bytes: a thousand, with what an ordinary command line and environment take.
const LIST_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Flow control window: what a guest may send before we have read it, in bytes.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// Calls at once on one connection.
const CALLS_MAX: usize = 64;
/// How long a guest has for a call that answers once; starting a program under emulation takes a while.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A client of one connection.
pub(super) type Client = ProcessClient<SharedHttp2Connection>;

/// A process that was started through the guest's agent and runs. All texts are the guest's words: not to be shown to a
/// terminal as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningProcess {
    /// Its pid in the guest.
    pub pid: u32,
    /// The name it was started under.
    pub tag: Option<String>,
    /// The program as it was asked for, and its arguments.
    pub command: Vec<String>,
}

impl EnvdClient {
    /// The processes that run, by pid. One that ended cannot be found here, but attached to for half a minute.
    pub async fn list(&self) -> Result<Vec<RunningProcess>, EnvdError> {
        let options = CallOptions::default().with_max_message_size(LIST_BYTES_MAX);
        let client = self.process_client();
        let answer = within("Process/List", client.list_with_options(ListRequest {}, options)).await?;
        Ok(answer.into_owned().processes.into_iter().map(running_process).collect())
    }

    pub(super) fn process_client(&self) -> Client {
        let (connection, config) = self.rpc();
        ProcessClient::new(connection, config)
    }

    /// One HTTP/2 connection, made when it is first used.
    pub(super) fn rpc(&self) -> (SharedHttp2Connection, ClientConfig) {
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
        (connection, config)
    }
}

fn running_process(info: ProcessInfo) -> RunningProcess {
    let config = info.config.into_option().unwrap_or_default();
    let command = std::iter::once(config.cmd).chain(config.args).collect();
    RunningProcess { pid: info.pid, tag: info.tag, command }
}

/// Options of a call on behalf of this user of the guest; its default user if `None`.
pub(super) fn as_user(user: Option<&str>) -> CallOptions {
    let options = CallOptions::default();
    match user {
        Some(user) => options.with_header("authorization", basic_user(user)),
        None => options,
    }
}

/// How a user is named: HTTP's basic scheme, without a password.
pub(super) fn basic_user(user: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:")))
}

/// How a call names a process.
pub(super) fn by_pid(pid: u32) -> ProcessSelector {
    ProcessSelector { selector: Some(process_selector::Selector::Pid(pid)) }
}

/// A call that answers once has a limit.
pub(super) async fn within<T>(
    call: &'static str,
    exchange: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, EnvdError> {
    match tokio::time::timeout(CALL_LIMIT, exchange).await {
        Err(_elapsed) => Err(EnvdError::Deadline { call, limit: CALL_LIMIT }),
        Ok(answer) => answer.map_err(|error| refused(call, &error)),
    }
}

pub(super) fn refused(call: &'static str, error: &ConnectError) -> EnvdError {
    let message = words(error.message.as_deref().unwrap_or_default());
    match error.code {
        ErrorCode::Unavailable => EnvdError::Unreachable(std::io::Error::other(message)),
        ErrorCode::DataLoss | ErrorCode::Internal => EnvdError::Protocol { call, detail: message },
        _other_codes => EnvdError::Refused { call, code: error.code.as_str().to_owned(), message },
    }
}

pub(super) fn protocol(call: &'static str, detail: &str) -> EnvdError {
    EnvdError::Protocol { call, detail: words(detail) }
}
