//! The wire between an agent and the shim, the small process beside each microVM that is the VMM's parent.
//!
//! ```text
//! agent ── spec.json (path in argv) ─────► shim ──► VMM
//!       ── page table (a descriptor) ───────►│         `pages`: for a VMM whose memory the shim serves
//!       ◄─ one line on the ready descriptor ─┤
//!       ◄─ Unix socket: frames ──────────────┤      requests and answers, in this module
//!       ◄─ console ring (a file) ────────────┤      `ring`: readable also when the shim is gone
//!       ◄─ exit record (a file) ─────────────┘      `ExitRecord`: the VMM's end, written once
//! ```
//!
//! **Frames** are a length (u32, little endian, at most [`FRAME_MAX`]) and that many bytes of JSON ([`frame`]). The first
//! request of a connection is [`Request::Hello`] with the versions its sender speaks; the shim answers with the highest
//! version both know, or refuses and hangs up. After that requests may overlap; an answer carries its request's `id`
//! (only [`Request::Wait`] is answered late). A request the shim does not know is answered with an error and the
//! connection goes on, so that a newer agent can ask an older shim.
//!
//! **Compatibility.** The shim outlives upgrades of the agent. Within one protocol version fields are only added, and
//! readers of requests, answers and records ignore the ones they do not know. The [`Spec`] alone is strict: agent and
//! shim of one installation write and read it, and a typing error in it must not start a VM.
//!
//! Nothing here is async; [`Client`] blocks, with timeouts.

pub mod client;
pub mod frame;
pub mod pages;
pub mod ring;
mod spec;

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use client::{Client, ClientError};
pub use frame::{Decoder, FRAME_MAX, FrameError};
pub use spec::{
    Console, Credentials, InheritedFd, Jail, JailEntry, Pager, Resource, Rlimit, SPEC_VERSION, Spec, SpecError, Vmm,
};

/// The oldest protocol version this code speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// The newest protocol version this code speaks.
pub const PROTOCOL_MAX: u32 = 1;

/// Most bytes of one [`Request::ConsoleTail`], so that its base64 fits a frame with room to spare.
pub const CONSOLE_TAIL_MAX: u32 = 40 * 1024;

/// What is kept of the VMM's stderr, in bytes. A VMM that fails to start explains itself in a few lines.
pub const VMM_LOG_BYTES: usize = 16 * 1024;

/// Longest grace of a [`Request::Stop`]: whoever wants to wait longer asks twice.
pub const STOP_GRACE_MAX_MS: u32 = 600_000;

/// Longest exit record and ready line that is read, in bytes. Both are a few hundred.
const RECORD_MAX: u64 = 64 * 1024;

const _: () = assert!(CONSOLE_TAIL_MAX as usize * 4 / 3 + 1024 <= FRAME_MAX, "a tail fits a frame");
const _: () = assert!(VMM_LOG_BYTES * 4 / 3 + 1024 <= FRAME_MAX, "the log fits a frame");

/// One request with the number its answer will carry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFrame {
    /// Chosen by the client.
    pub id: u64,
    /// What is asked.
    #[serde(flatten)]
    pub request: Request,
}

/// What can be asked of a shim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// First on every connection. Answer: [`Reply::Hello`], or [`ErrorCode::VersionMismatch`] and the end.
    Hello {
        /// Oldest version the client speaks.
        min: u32,
        /// Newest version the client speaks.
        max: u32,
    },
    /// Answer: [`Reply::Status`].
    Status,
    /// The last bytes of the serial console, at most [`CONSOLE_TAIL_MAX`]. Answer: [`Reply::Console`].
    ConsoleTail {
        /// How many bytes at most.
        bytes: u32,
    },
    /// The last bytes of the VMM's stderr. Answer: [`Reply::VmmLog`].
    VmmLog,
    /// Sends the VMM a signal. Answer: [`Reply::Done`], or [`ErrorCode::VmmEnded`].
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// Ends the VMM: SIGKILL at once, or SIGTERM and after the grace SIGKILL. Answer: [`Reply::Done`] right away (also
    /// if the VMM has ended already); `Wait` tells when it has ended.
    Stop {
        /// Milliseconds between SIGTERM and SIGKILL, at most [`STOP_GRACE_MAX_MS`]; 0 is SIGKILL at once.
        #[serde(default)]
        grace_ms: u32,
    },
    /// Answer, once the VMM has ended: [`Reply::Ended`].
    Wait,
    /// Ends the shim. Answer: [`Reply::Done`], after which it is as good as gone; or [`ErrorCode::VmmRunning`] if the
    /// VMM runs and `kill` is not set.
    Shutdown {
        /// Kill the VMM if it runs; the answer comes when it has ended and is recorded.
        #[serde(default)]
        kill: bool,
    },
}

impl Request {
    /// The `op` of every request, to tell an unknown request from a malformed one.
    pub const OPS: [&'static str; 8] =
        ["hello", "status", "console_tail", "vmm_log", "signal", "stop", "wait", "shutdown"];
}

impl RequestFrame {
    /// The request in a frame; else what to answer: [`ErrorCode::UnknownRequest`] or [`ErrorCode::Malformed`].
    pub fn parse(json: &[u8]) -> Result<Self, NoRequest> {
        frame::decode(json).map_err(|error| Self::refuse(json, &error))
    }

    fn refuse(json: &[u8], error: &FrameError) -> NoRequest {
        let head = frame::decode(json).unwrap_or(Head { id: 0, op: None });
        let refusal = match head.op {
            Some(op) if !Request::OPS.contains(&op.as_str()) => {
                let op: String = op.chars().take(40).collect();
                Refusal {
                    code: ErrorCode::UnknownRequest,
                    message: format!("this shim does not know the request `{op}`"),
                }
            }
            Some(_) | None => {
                let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
                Refusal { code: ErrorCode::Malformed, message: format!("{error}{cause}") }
            }
        };
        NoRequest { id: head.id, refusal }
    }
}

/// A frame that is no request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoRequest {
    /// The number to answer under; 0 if it has none.
    pub id: u64,
    /// What to answer.
    pub refusal: Refusal,
}

/// What every request has.
#[derive(Deserialize)]
struct Head {
    id: u64,
    op: Option<String>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerFrame {
    /// The request's number; 0 if that could not be read.
    pub id: u64,
    /// The answer.
    #[serde(flatten)]
    pub answer: Answer,
}

/// Yes or no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It was done, or this is what was asked for.
    Ok(Reply),
    /// It was refused; nothing was changed.
    Error(Refusal),
}

/// What a shim answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Hello`].
    Hello {
        /// The version this connection speaks from here on.
        version: u32,
        /// The sandbox the shim belongs to.
        sandbox: String,
        /// The shim's pid.
        pid: u32,
    },
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::ConsoleTail`].
    Console(Tail),
    /// To [`Request::VmmLog`].
    VmmLog(Tail),
    /// To [`Request::Wait`].
    Ended(ExitRecord),
    /// To the requests that only do something.
    Done,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("the shim refused: {message}")]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

/// The reasons of a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Client and shim have no protocol version in common. The connection ends.
    VersionMismatch,
    /// The first request was not `Hello`. The connection ends.
    HelloExpected,
    /// The shim does not know this request.
    UnknownRequest,
    /// The frame is no request.
    Malformed,
    /// The frame is longer than [`FRAME_MAX`]. The connection ends.
    FrameTooLong,
    /// Too many clients or too many pending requests. In the first case the connection ends.
    Limit,
    /// Refused because the VMM runs.
    VmmRunning,
    /// Refused because the VMM has ended.
    VmmEnded,
    /// The shim could not do it; the message says what failed.
    Failed,
    /// A code of a newer shim.
    #[serde(other)]
    Unknown,
}

/// How things are with a shim and its VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The sandbox.
    pub sandbox: String,
    /// The shim's pid.
    pub pid: u32,
    /// The VMM.
    pub vmm: VmmStatus,
    /// Bytes the serial console has printed so far.
    pub console_bytes: u64,
    /// How often the console had to wait because it printed faster than allowed.
    pub console_throttled: u64,
    /// Bytes the VMM has written to stderr so far.
    pub vmm_log_bytes: u64,
}

/// The VMM's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum VmmStatus {
    /// It runs.
    Running {
        /// Its pid.
        pid: u32,
        /// When it was started, Unix milliseconds.
        started_ms: u64,
        /// Somebody asked for its end already.
        stopping: bool,
    },
    /// It has ended.
    Ended(ExitRecord),
}

/// The last bytes of something longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Position of the first byte of `data` in the whole, from 0.
    pub offset: u64,
    /// The bytes, in order.
    #[serde(serialize_with = "as_base64", deserialize_with = "from_base64")]
    pub data: Vec<u8>,
}

fn as_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    BASE64.decode(text).map_err(serde::de::Error::custom)
}

/// The version of [`ExitRecord`]s written here.
pub const RECORD_VERSION: u32 = 1;

/// How a VMM ended; the shim writes it once, whole, before it tells anyone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// The sandbox.
    pub sandbox: String,
    /// The VMM's pid; `None` if it was never started.
    pub pid: Option<u32>,
    /// When it was started (or should have been), Unix milliseconds.
    pub started_ms: u64,
    /// When its end was noticed, Unix milliseconds.
    pub ended_ms: u64,
    /// How it ended.
    pub end: End,
    /// Why, if it was the shim that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What went wrong, if that is why: one line for people, at most [`DETAIL_MAX_CHARS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Longest [`ExitRecord::detail`]: a path, a number and what the system said.
pub const DETAIL_MAX_CHARS: usize = 500;

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum End {
    /// It exited.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal ended it.
    Signalled {
        /// The signal's number.
        signal: i32,
    },
    /// It was never started.
    SpawnFailed {
        /// The step that failed, as `wrenn_sys::spawn::Step` names it; `open_netns` and the like for what comes before.
        step: String,
        /// The error number; 0 if the request was refused before any system call.
        errno: i32,
        /// The program, the file that could not be opened, or the place of the jail's entry.
        program: PathBuf,
    },
    /// Nobody knows; never invented.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "exited with code {code}"),
            Self::Signalled { signal } => write!(f, "was ended by signal {signal}"),
            Self::SpawnFailed { step, errno, program } => {
                let cause = io::Error::from_raw_os_error(*errno);
                write!(f, "was not started (step {step}, {}): {cause}", program.display())
            }
            Self::Unknown => write!(f, "ended in an unknown way"),
        }
    }
}

/// Why a shim ended its VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A client asked ([`Request::Stop`]).
    StopRequested,
    /// A client ended the shim ([`Request::Shutdown`] with `kill`).
    ShutdownRequested,
    /// The shim got SIGTERM.
    ShimTerminated,
    /// The shim could not go on.
    ShimFailed,
    /// The VMM's memory is the shim's to serve ([`Pager`]), and a page of it could not be served.
    MemoryLost,
    /// A reason of a newer shim.
    #[serde(other)]
    Unknown,
}

/// The one line on the ready descriptor, after which it is closed. No line at all means that the shim ended before it
/// could read its spec; then its stderr says why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ready", rename_all = "snake_case")]
pub enum Ready {
    /// The socket listens and the VMM runs.
    Started {
        /// The shim.
        shim_pid: u32,
        /// The VMM.
        vmm_pid: u32,
    },
    /// The VMM could not be started; the exit record says the same, and the shim ends.
    SpawnFailed(ExitRecord),
    /// The shim could not be set up (socket, ring, descriptors); nothing was started, and the shim ends.
    Failed {
        /// What failed and why.
        message: String,
    },
}

/// Why a ready line or an exit record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The ready descriptor was closed without a line.
    #[error("the shim ended before it said that it is ready; its stderr says why")]
    Silent,
    /// The system said no.
    #[error("cannot read {what}")]
    Io {
        /// What was read.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The text is not what it should be.
    #[error("{what} is not understood; was it cut short, or written by another version?")]
    Json {
        /// What was read.
        what: String,
        /// Where it does not fit.
        source: serde_json::Error,
    },
}

impl Ready {
    /// Reads the line a shim writes to the other end of `reader`. Blocks until the shim has written it or has ended.
    pub fn read(reader: impl Read) -> Result<Self, ReadError> {
        let mut line = Vec::new();
        let read = reader.take(RECORD_MAX).read_to_end(&mut line);
        read.map_err(|source| ReadError::Io { what: "the shim's ready line".into(), source })?;
        if line.is_empty() {
            return Err(ReadError::Silent);
        }
        parse("the shim's ready line", &line)
    }

    /// The line, with its newline.
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = to_json(self);
        line.push(b'\n');
        line
    }
}

impl fmt::Display for ExitRecord {
    /// How it ended, and why if that was not what somebody had asked for.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.end.fmt(f)?;
        let detail = self.detail.as_deref().unwrap_or("no more is known");
        match self.reason {
            Some(Reason::MemoryLost) => write!(f, ", because its memory could not be served: {detail}"),
            Some(Reason::ShimFailed) => f.write_str(", because its shim could not go on"),
            Some(Reason::StopRequested | Reason::ShutdownRequested | Reason::ShimTerminated | Reason::Unknown)
            | None => Ok(()),
        }
    }
}

impl ExitRecord {
    /// Reads a record. `None` if there is none, which means that the VMM runs or that its shim was killed with it.
    pub fn read(path: &Path) -> Result<Option<Self>, ReadError> {
        let what = || format!("the exit record {}", path.display());
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ReadError::Io { what: what(), source }),
        };
        let mut bytes = Vec::new();
        file.take(RECORD_MAX).read_to_end(&mut bytes).map_err(|source| ReadError::Io { what: what(), source })?;
        parse(&what(), &bytes).map(Some)
    }

    /// The record as it is kept in its file.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(self)
    }
}

fn parse<T: for<'de> Deserialize<'de>>(what: &str, bytes: &[u8]) -> Result<T, ReadError> {
    serde_json::from_slice(bytes).map_err(|source| ReadError::Json { what: what.to_owned(), source })
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a record of numbers, text and a path that came from JSON is JSON")
}

#[cfg(test)]
mod tests;
