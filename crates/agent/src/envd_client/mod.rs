//! The way into a guest: its agent, envd, on port 49983.
//!
//! ```text
//!   EnvdClient ── dial ──► TCP, opened inside of the sandbox's network namespace, or through the agent that may do so
//!      wait_ready   GET /health, short attempts until it answers
//!      host calls   POST /init …, signed with the instance's key, each with a nonce
//!      reach        a connection to a guest that was restored; on it
//!      come_back       POST /resumed, and POST /clock until the guest's clock is close enough
//!      start        process.Process/Start over HTTP/2: a stream of events
//!      list_dir …   filesystem.Filesystem
//!      http         GET and POST /files, streamed
//!      metrics      GET /metrics
//!      attach       process.Process/Connect: the same of a process that runs already
//! ```
//!
//! The guest is not trusted: each answer is bounded in size and in time, and what it says is reported as its words.

mod clock;
mod come_back;
mod exec;
mod filesystem;
mod host_call;
mod http;
mod http1;
mod input;
mod metrics;
mod nonces;
mod process;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout_at};
use wrenn_proto::envd::PORT;

use crate::host_agent::Tunnel;

pub use clock::ClockReading;
pub use come_back::{CameBack, Identity, Resumed};
pub use exec::{Command, Exec, ExecEnd, ExecEvent, NotStarted, Output};
pub use filesystem::{Entry, EntryKind};
pub use host_call::{HostKey, HostLine, Init};
pub use http::StreamedBody;
pub use input::{Input, TerminalSize};
pub use nonces::Nonces;
pub use process::RunningProcess;

/// How long one attempt to reach a guest that is still booting may take. A SYN sent before the guest's network is up is
/// repeated by the kernel only after a second: many short attempts find it sooner.
const ATTEMPT_LIMIT: Duration = Duration::from_millis(50);
/// The pause between two attempts.
const ATTEMPT_GAP: Duration = Duration::from_millis(5);
/// How long a connection to a guest that was ready before may take.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Why a guest did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EnvdError {
    /// No connection.
    #[error("cannot reach the guest's agent; has the guest ended, or is its network down?")]
    Unreachable(#[source] io::Error),
    /// It never became ready.
    #[error("the guest's agent was not ready within {} ms", .limit.as_millis())]
    NotReady {
        /// How long it had.
        limit: Duration,
        /// What the last attempt met.
        #[source]
        last: Box<EnvdError>,
    },
    /// It took too long over one call.
    #[error("the guest's agent did not answer {call} within {} ms", .limit.as_millis())]
    Deadline {
        /// What it was asked.
        call: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// What it said is not its protocol, or more than its limit.
    #[error("the guest's agent broke its protocol in {call}: {detail}")]
    Protocol {
        /// What it was asked.
        call: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// It refused.
    #[error("the guest's agent refused {call} ({code}): {message}")]
    Refused {
        /// What it was asked.
        call: &'static str,
        /// Its error code: a Connect code such as `not_found`, or an HTTP status.
        code: String,
        /// Its words, at most [`MESSAGE_CHARS_MAX`] characters.
        message: String,
    },
    /// Its clock was measured and stepped, and is still not known to be right.
    #[error(
        "the guest's clock cannot be brought within {} ms of the host's: at best it was up to {} ms off; is the host too busy?",
        .within.as_millis(), .best.off_by_at_most().as_millis()
    )]
    ClockOff {
        /// How close it should be.
        within: Duration,
        /// The best measurement.
        best: ClockReading,
    },
}

/// What is kept of a guest's error text, in characters: a kilobyte of a hook's complaints, and whose they are.
pub const MESSAGE_CHARS_MAX: usize = 1500;

/// A guest's words, made fit to be shown: bounded, control characters escaped.
fn words(text: &str) -> String {
    text.chars()
        .take(MESSAGE_CHARS_MAX)
        .map(|character| if character.is_control() { '\u{fffd}' } else { character })
        .collect()
}

/// Opens connections to a guest.
#[async_trait]
pub trait Dial: Send + Sync + fmt::Debug {
    /// A connection to `port` of the guest within `limit`. Cancel safe.
    async fn dial(&self, port: u16, limit: Duration) -> io::Result<Tunnel>;
}

/// A guest's agent, as the host speaks to it. Cheap to clone; opens connections as it needs them.
#[derive(Clone, Debug)]
pub struct EnvdClient {
    dial: Arc<dyn Dial>,
    access_token: String,
    nonces: Nonces,
}

impl EnvdClient {
    /// The agent reached by `dial`, which will be, or was, given `access_token`. Signed calls are numbered from `nonces`,
    /// which all clients of one guest must share.
    pub fn new(dial: Arc<dyn Dial>, access_token: String, nonces: Nonces) -> Self {
        Self { dial, access_token, nonces }
    }

    /// The numbers of its signed calls.
    pub fn nonces(&self) -> &Nonces {
        &self.nonces
    }

    async fn connect(&self, limit: Duration) -> io::Result<Tunnel> {
        self.dial.dial(PORT, limit).await
    }

    /// Waits until the guest answers `GET /health`, at most `limit`.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), EnvdError> {
        repeated(limit, || self.health()).await
    }

    /// One attempt at `GET /health`. Once the connection stands the guest has its kernel up and answers when it can:
    /// under emulation that may take longer than an attempt, so the answer has a limit of its own.
    pub(crate) async fn health(&self) -> Result<(), EnvdError> {
        let stream = self.connect(ATTEMPT_LIMIT).await.map_err(EnvdError::Unreachable)?;
        http1::get_health(stream).await
    }
}

/// Tries until it succeeds, at most for `limit`.
async fn repeated<T, F>(limit: Duration, attempt: impl Fn() -> F) -> Result<T, EnvdError>
where
    F: Future<Output = Result<T, EnvdError>>,
{
    let deadline = Instant::now() + limit;
    let mut last = EnvdError::Unreachable(io::ErrorKind::NotConnected.into());
    while Instant::now() < deadline {
        match timeout_at(deadline, attempt()).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => last = error,
            Err(_elapsed) => break,
        }
        sleep(ATTEMPT_GAP).await;
    }
    Err(EnvdError::NotReady { limit, last: Box::new(last) })
}

#[cfg(test)]
mod tests;
